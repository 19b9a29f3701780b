"""The cloud's LLM as this site asks it: a gateway of the project or vLLM, over HTTP, within a time
limit, believing nothing unchecked.

What leaves the site with every request: the question and the steps so far (as text, or as the SLM's
token ids) and, for fusion, the tokens that the private SLM drafted, which are samples of a model
trained on private records. Nothing of this code asks whether that is allowed: the vault does, by
`fedduet.clients.vault.release.policy.check_answer`, before it makes anything here, and is charged
for. `keep` is told of every prompt before it is sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
from fedduet.clients.vault.answering.steps import StepAsk
from fedduet.clients.vault.answering.whole_steps import Completed
from fedduet.lm.decoding.drafts import Following

MOST_BYTES = 64 * 2**20  # of an answer [O]
ID = "token_id:"  # how gateway and vLLM write tokens under return_tokens_as_token_ids
# public: how the LLM's tokenizer takes digits, spaces, other scripts
PROBE = "Tokens 0123 1,5 + 27 = ?\n\tOne step.  Zwölf é 日本\n"


class RemoteFailed(ConnectionError):
    """The remote LLM cannot be used, or its answer not believed; the text is one sentence that says
    why."""


@dataclass(frozen=True)
class RemoteConfig:
    """Where the LLM is and what to put up with. `key` is in no representation and no error.

    `seconds`: for one request in all, connecting and reading included. `retries`: further attempts
    after a request that failed, within the same seconds. `top`: alternatives asked for at each
    place (vLLM: --max-logprobs must allow them; -1 all). `allow_http`: http:// to other machines,
    where anybody between may read key and questions.
    """

    base_url: str  # up to and including /v1
    model: str | None = None  # None: the first that the server names
    key: str | None = field(default=None, repr=False)
    seconds: float = 20.0
    retries: int = 0
    top: int = 20  # [O] what vLLM allows by default
    allow_http: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base_url: found {self.base_url!r}; it starts with http:// or https:// and usually"
                " ends with /v1"
            )
        if parts.scheme == "http" and not (self.allow_http or _loopback(parts.hostname)):
            raise ValueError(
                f"base_url: found {self.base_url!r}; allowed: https://, http:// to this machine, or"
                " allow_http"
            )
        if not self.seconds > 0 or self.retries < 0 or self.top < -1 or self.top == 0:
            found = f"seconds {self.seconds}, retries {self.retries}, top {self.top}"
            raise ValueError(
                f"found {found}; allowed: seconds above 0, retries 0 or more, top 1 or more, or -1"
                " for all"
            )


@dataclass
class RemoteCounts:
    """What was asked of the LLM: HTTP `requests`, `rows` (prompts in them), `llm_tokens` (drawn by
    it, or in laws it took part in), `positions` (tokens it had to read), and `failures` by
    reason."""

    requests: int = 0
    rows: int = 0
    llm_tokens: int = 0
    positions: int = 0
    failures: dict[str, int] = field(default_factory=dict)


class Remote:
    """One remote LLM. Its connections live in a thread of their own, so that they stay open between
    calls and time limits are hard."""

    def __init__(
        self,
        config: RemoteConfig,
        keep: Callable[[Sequence[str | Sequence[int]]], None] = lambda prompts: None,
    ) -> None:
        self.config, self.counts, self._keep = config, RemoteCounts(), keep
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="remote-llm", daemon=True
        )
        self._thread.start()
        headers = {
            "accept-encoding": "identity",
            **({"authorization": f"Bearer {config.key}"} if config.key else {}),
        }
        # below uvicorn's 5 s, so that no request meets a closing one
        limits = httpx.Limits(max_connections=16, keepalive_expiry=3.0)
        self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)
        self._card: dict[str, Any] | None = None

    def close(self) -> None:
        """Closes the connections and the thread."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    # -- what the LLM is -------------------------------------------------------

    @property
    def model(self) -> str:
        """The model's name. Raises RemoteFailed."""
        return self.config.model or str(self._described()["id"])

    @property
    def context(self) -> int | None:
        """Tokens that fit, as the server says (`max_model_len`); None when it does not. Raises
        RemoteFailed."""
        found = self._described().get("max_model_len")
        return found if type(found) is int and found > 1 else None

    def _described(self) -> dict[str, Any]:
        if self._card is None:
            answer = self._run(self._ask("GET", "/models", None), self.config.seconds)
            cards = answer.get("data")
            if not isinstance(cards, list) or not all(
                isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards
            ):
                raise self.failed("Lie", "the list of models is not one")
            named = [card for card in cards if self.config.model in (None, card["id"])]
            if not named:
                raise self.failed(
                    "Refused",
                    f"it serves no model {self.config.model!r}, but"
                    f" {', '.join(c['id'] for c in cards)[:200]}",
                )
            self._card = named[0]
        return self._card

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises RemoteFailed when the LLM's tokenizer takes a public line of text differently, so
        that logits cannot be fused."""
        body = {
            "prompt": PROBE,
            "max_tokens": 1,
            "echo": True,
            "logprobs": 1,
            "return_tokens_as_token_ids": True,
            "model": self.model,
        }
        answer = self._run(self._ask("POST", "/completions", body), self.config.seconds)
        tokens, _ = self._read_places(self._choices(answer, 1)[0])
        own = list(tokenizer(PROBE, verbose=False)["input_ids"])
        while len(own) > 1 and own[-1] == tokenizer.eos_token_id:
            own.pop()
        if tokens[:-1] != own:
            raise self.failed(
                "Tokenizer",
                "the LLM's tokenizer differs from the SLM's, so they cannot be fused; let the LLM"
                " write whole steps",
            )

    # -- what it thinks of drafts ----------------------------------------------

    def score_drafts(
        self, rows: Sequence[tuple[int, ...]], heads: Sequence[int], seconds: float | None = None
    ) -> list[Following]:
        """See `fedduet.lm.decoding.drafts.ScoreDrafts`: one request for all rows. Raises
        RemoteFailed.

        Every answer is held against what was asked: the same tokens in the same places, finite
        log-probabilities that can be a law, the `top` likeliest (a drafted token that is listed
        besides them is not among those).
        """
        top = self.config.top
        body = {
            "model": self.model,
            "prompt": [list(row) for row in rows],
            "max_tokens": 1,
            "temperature": 1.0,
            "echo": True,
            "logprobs": top,
            "logprobs_from": min(heads),
            "return_tokens_as_token_ids": True,
        }
        self.counts.rows += len(rows)
        self.counts.positions += sum(map(len, rows))
        answer = self._run(self._ask("POST", "/completions", body), seconds or self.config.seconds)
        found = []
        for number, (choice, row, head) in enumerate(
            zip(self._choices(answer, len(rows)), rows, heads, strict=True)
        ):
            tokens, laws = self._read_places(choice)
            if len(tokens) != len(row) + 1:
                raise self.failed(
                    "Lie",
                    f"row {number}: found {len(tokens)} tokens for a prompt of {len(row)} and one"
                    " more",
                )
            if tokens[:-1] != list(row):
                raise self.failed(
                    "Lie", f"row {number}: the tokens sent back are not those of the prompt"
                )
            found.append(
                self._following([self._law(distribution, number) for distribution in laws[head:]])
            )
        return found

    def _read_places(self, choice: dict[str, Any]) -> tuple[list[int], list[Any]]:
        """The token ids of a choice and what else could stand at each place."""
        part = choice.get("logprobs")
        names, laws = (
            (part.get("tokens"), part.get("top_logprobs"))
            if isinstance(part, dict)
            else (None, None)
        )
        if not isinstance(names, list) or not isinstance(laws, list) or len(names) != len(laws):
            raise self.failed(
                "Lie", "found no tokens with log-probabilities (echo, logprobs) in an answer"
            )
        return [self._token(name) for name in names], laws

    def _token(self, name: Any) -> int:
        digits = name[len(ID) :] if isinstance(name, str) and name.startswith(ID) else ""
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
            raise self.failed(
                "Lie",
                f"found the token {str(name)[:40]!r}; {ID}N was asked (return_tokens_as_token_ids)",
            )
        return int(digits)

    def _law(self, distribution: Any, number: int) -> list[tuple[int, float]]:
        """The likeliest tokens of a place and their log-probabilities, likeliest first."""
        if not isinstance(distribution, dict) or not distribution:
            raise self.failed("Lie", f"row {number}: a place has no log-probabilities")
        top = self.config.top
        if 0 < top < len(distribution) - 1:
            raise self.failed(
                "Lie",
                f"row {number}: found {len(distribution)} alternatives at a place; {top} were"
                " asked",
            )
        values = list(distribution.values())
        if not all(
            type(value) in (int, float) and math.isfinite(value) and value <= 1e-3
            for value in values
        ):
            raise self.failed(
                "Lie", f"row {number}: found log-probabilities that are no numbers or above 0"
            )
        if (total := sum(math.exp(value) for value in values)) > 1.01:
            raise self.failed(
                "Lie", f"row {number}: the probabilities at a place add up to more than 1"
            )
        if total < 0.99 and len(distribution) < top:
            raise self.failed(
                "Lie",
                f"row {number}: found {len(distribution)} alternatives at a place; {top} were"
                " asked",
            )
        pairs = sorted(
            ((self._token(name), float(value)) for name, value in distribution.items()),
            key=lambda pair: (-pair[1], pair[0]),
        )
        return pairs if top < 0 else pairs[:top]

    @staticmethod
    def _following(laws: Sequence[Sequence[tuple[int, float]]]) -> Following:
        most = max(map(len, laws))
        filled = [
            [*distribution, *[(distribution[0][0], -math.inf)] * (most - len(distribution))]
            for distribution in laws
        ]
        tokens = torch.tensor([[token for token, _ in distribution] for distribution in filled])
        return Following(
            tokens, torch.tensor([[value for _, value in distribution] for distribution in filled])
        )

    # -- what it writes itself -------------------------------------------------

    def complete(self, asks: Sequence[StepAsk], stop: str) -> list[Completed]:
        """The LLM writes the steps (`fedduet.clients.vault.answering.whole_steps.Complete`): one
        request for each ask, since a request has one seed, all at once. A `whole` solution is not
        stopped. Raises RemoteFailed."""
        model = self.model

        async def one(ask: StepAsk) -> Completed:
            body = {
                "model": model,
                "prompt": ask.prefix,
                "max_tokens": ask.max_tokens,
                "temperature": ask.temperature,
            }
            body |= {
                "top_p": ask.top_p,
                "seed": ask.seed % 2**63,
                **({} if ask.whole else {"stop": [stop]}),
            }
            answer = await self._ask("POST", "/completions", body)
            choice = self._choices(answer, 1)[0]
            used = answer.get("usage")
            tokens, text = (
                (used.get("completion_tokens") if isinstance(used, dict) else None),
                choice.get("text"),
            )
            if (
                not isinstance(text, str)
                or type(tokens) is not int
                or not 0 <= tokens <= ask.max_tokens
            ):
                raise self.failed(
                    "Lie",
                    f"found no text, or not its number of tokens ({str(tokens)[:20]}, at most"
                    f" {ask.max_tokens})",
                )
            self.counts.llm_tokens += tokens
            # gateway and vLLM: what stopped it, null for the end token; others do not tell
            stopped = choice.get("stop_reason", stop)
            return Completed(
                text,
                tokens,
                choice.get("finish_reason") == "stop" and (ask.whole or stopped is None),
            )

        async def every() -> list[Completed]:
            tasks = [asyncio.ensure_future(one(ask)) for ask in asks]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:  # one that failed is the end of all
                    task.cancel()

        self.counts.rows += len(asks)
        return self._run(every(), self.config.seconds)

    # -- HTTP ------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """The result of `work` in the connections' thread. Raises RemoteFailed when it takes
        longer."""

        async def limited() -> Any:
            async with asyncio.timeout(seconds):
                return await work

        try:
            return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()
        except TimeoutError:
            raise self.failed("Timeout", f"no answer within {seconds:g} s") from None

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        for attempt in range(self.config.retries + 1):
            try:
                return await self._once(method, path, body)
            except RemoteFailed:
                if attempt == self.config.retries:
                    raise
            await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        if body is not None:
            prompt = body["prompt"]
            self._keep([prompt] if isinstance(prompt, str) else prompt)
        self.counts.requests += 1
        parts, size = [], 0
        content = None if body is None else json.dumps(body).encode()
        headers = None if body is None else {"content-type": "application/json"}
        try:
            async with self._client.stream(
                method,
                self.config.base_url.rstrip("/") + path,
                content=content,
                headers=headers,
            ) as answer:
                async for part in answer.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > MOST_BYTES:
                        raise self.failed("Lie", f"the answer is larger than {MOST_BYTES} bytes")
        except (httpx.HTTPError, httpx.StreamError) as failure:
            raise self.failed(
                "Unreachable", f"{type(failure).__name__} {failure}".strip()
            ) from None
        raw = b"".join(parts)
        if answer.status_code != 200:
            raise self.failed(f"HTTP {answer.status_code}", _excerpt(raw))
        try:
            found = json.loads(raw, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise self.failed("Lie", f"the answer is not JSON: {_excerpt(raw)}") from None
        if not isinstance(found, dict):
            raise self.failed("Lie", f"the answer is no JSON object: {_excerpt(raw)}")
        return found

    def _choices(self, answer: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The answer's choices in the order of the prompts."""
        choices = answer.get("choices")
        if (
            not isinstance(choices, list)
            or not all(isinstance(choice, dict) for choice in choices)
            or len(choices) != count
        ):
            raise self.failed(
                "Lie",
                f"found {len(choices) if isinstance(choices, list) else 'no'} choices for {count}"
                " prompts",
            )
        if [choice.get("index") for choice in choices] != list(range(count)):
            raise self.failed("Lie", "the choices are not numbered as the prompts are")
        return choices

    def failed(self, reason: str, why: str) -> RemoteFailed:
        """The error to raise, counted; the key is taken out of what the server said."""
        self.counts.failures[reason] = self.counts.failures.get(reason, 0) + 1
        text = f"{self.config.base_url}: {reason}: {why}"
        return RemoteFailed(text.replace(self.config.key, "[key]") if self.config.key else text)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _no_number(name: str) -> float:
    raise ValueError(f"found {name}")


def _excerpt(raw: bytes) -> str:
    return " ".join(raw[:2000].decode("utf-8", "replace").split())[:200] or "an empty answer"
