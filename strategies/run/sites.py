"""The sites as a strategy sees them: ask all of them something over Flower's Grid, and get back
answers, refusals and failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedduet.conf.check import RunFailed
from fedduet.strategies.run.run_folder import RunFolder
from fedduet.wire.codec import Arrays, WireError, pack, size, unpack
from fedduet.wire.messages import (
    Answer,
    Evaluate,
    Introduce,
    Introduced,
    Learn,
    Refused,
    Score,
    Synthesize,
)

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

_MESSAGE_TYPES = {
    Introduce: "query.introduce",
    Synthesize: "query.synthesize",
    Score: "query.score",
    Learn: "train.learn",
    Evaluate: "evaluate.evaluate",
    Answer: "query.answer",
}


@dataclass(frozen=True)
class SitesConfig:
    """How long sites may take to appear and to do a phase, and how many must answer; seconds.
    `poll`: pause between looks for replies."""

    phase_timeout: float = 3600.0
    gather_timeout: float = 120.0
    minimum: int = 1
    poll: float = 0.05


class TooFewSites(RunFailed):
    """Fewer sites than the configured minimum answered a phase. `by_policy`: those who did not all
    said no, by their policy or budget."""

    by_policy = False


class Sites:
    """The vaults of a federation, addressed by their public names."""

    def __init__(self, grid: Grid, run: RunFolder, run_id: str, config: SitesConfig) -> None:
        self._grid, self._run, self.run_id, self._config = grid, run, run_id, config
        self._nodes: dict[str, int] = {}
        self.domains: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The sites that introduced themselves, sorted."""
        return tuple(sorted(self._nodes))

    def gather(self, expected: Sequence[str]) -> None:
        """Wait until the `expected` sites have introduced themselves. Raises TooFewSites after the
        time limit."""
        deadline = time.monotonic() + self._config.gather_timeout
        asked: set[int] = set()
        while True:
            fresh = [node for node in self._grid.get_node_ids() if node not in asked]
            asked.update(fresh)
            requests = {
                str(node): (
                    node,
                    Introduce(message_id=f"{self.run_id}/introduce/{node}", run=self.run_id),
                    None,
                )
                for node in fresh
            }
            for name, (answer, _) in self._exchange("introduce", requests, deadline).items():
                if isinstance(answer, Introduced):
                    self._nodes[answer.client] = int(name)
                    self.domains[answer.client] = answer.domain
            missing = sorted(set(expected) - set(self._nodes))
            if not missing:
                return
            if time.monotonic() > deadline:
                raise TooFewSites(
                    f"{len(missing)} of {len(expected)} sites did not introduce themselves within"
                    f" {self._config.gather_timeout:.0f} s: {', '.join(missing)}; this federation"
                    f" has {len(asked)} nodes (start it with --num-supernodes {len(expected)}, or"
                    " let federation.gather_timeout be longer)"
                )
            time.sleep(self._config.poll)

    def ask(
        self,
        phase: str,
        request: Callable[[str], Any],
        only: Sequence[str] | None = None,
        arrays: Arrays | None = None,
    ) -> dict[str, tuple[Any, Arrays]]:
        """Send `request(site)` to every site (or `only` those) and return what answered in time, by
        site.

        Refusals and failures are left out and written to the run as `failure` events. Raises
        TooFewSites when fewer than the configured minimum remain.
        """
        names = self.names if only is None else only
        requests = {name: (self._nodes[name], request(name), arrays) for name in names}
        with self._run.phase(phase, "clients"):
            answers = self._exchange(phase, requests, time.monotonic() + self._config.phase_timeout)
        good = {}
        for name, (answer, returned) in sorted(answers.items()):
            if isinstance(answer, Refused):
                self._run.event(
                    "failure", phase=phase, client=name, kind=answer.kind, reason=answer.reason
                )
            else:
                good[name] = (answer, returned)
        if len(good) < min(self._config.minimum, len(names)):
            failure = TooFewSites(
                f"{phase}: {len(good)} of {len(names)} sites answered, at least"
                f" {self._config.minimum} must; see the failures above"
            )
            failure.by_policy = len(answers) == len(names) and all(
                answer.kind in ("policy", "budget")
                for answer, _ in answers.values()
                if isinstance(answer, Refused)
            )
            raise failure
        return good

    def _exchange(
        self, phase: str, requests: Mapping[str, tuple[int, Any, Arrays | None]], deadline: float
    ) -> dict[str, tuple[Any, Arrays]]:
        """Push all requests, pull replies until all are there or `deadline` (monotonic seconds) has
        passed."""
        if not requests:
            return {}
        from flwr.app import Message

        ttl = max(1.0, deadline - time.monotonic())
        packed = {name: pack(message, arrays) for name, (_, message, arrays) in requests.items()}
        outgoing = [
            Message(
                packed[name],
                dst_node_id=node,
                message_type=_MESSAGE_TYPES[type(message)],
                ttl=ttl,
                group_id=phase,
            )
            for name, (node, message, _) in requests.items()
        ]
        self._run.event(
            "sent",
            phase=phase,
            clients=sorted(requests),
            bytes=sum(size(record) for record in packed.values()),
        )
        waiting = dict(zip(self._grid.push_messages(outgoing), requests, strict=True))
        answers: dict[str, tuple[Any, Arrays]] = {}
        while waiting and time.monotonic() < deadline:
            for reply in self._grid.pull_messages(list(waiting)):
                name = waiting.pop(reply.metadata.reply_to_message_id, None)
                if name is not None and (answer := self._read(phase, name, reply)) is not None:
                    answers[name] = answer
            if waiting:
                time.sleep(self._config.poll)
        for name in waiting.values():
            self._run.event(
                "failure",
                phase=phase,
                client=name,
                kind="timeout",
                reason=f"no answer within {ttl:.0f} s",
            )
        return answers

    def _read(self, phase: str, name: str, reply: Message) -> tuple[Any, Arrays] | None:
        if reply.has_error():
            reason = str(reply.error.reason or "").strip() or f"error code {reply.error.code}"
            self._run.event(
                "failure",
                phase=phase,
                client=name,
                kind="error",
                code=reply.error.code,
                reason=reason[-500:],
            )
            return None
        try:
            answer = unpack(reply.content)
        except WireError as failure:
            self._run.event(
                "failure", phase=phase, client=name, kind="unreadable", reason=str(failure)
            )
            return None
        self._run.event("answered", phase=phase, client=name, bytes=size(reply.content))
        return answer
