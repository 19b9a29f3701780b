"""One request to a vault, whoever brings it: a courier in the same process, or the service."""

from __future__ import annotations

from typing import Any

from fedduet.clients.vault.config import SiteConfig
from fedduet.clients.vault.reasoning import ReasoningVault
from fedduet.clients.vault.release.approvals import Approvals
from fedduet.clients.vault.vault import Vault
from fedduet.conf.check import ConfigError
from fedduet.tasks.data.questions import QuestionsConfig
from fedduet.wire.codec import Arrays
from fedduet.wire.messages import Answer, Evaluate, Introduce, Learn, Refused, Score, Synthesize

AnyVault = Vault | ReasoningVault
RELEASED = {
    Synthesize: "texts",
    Score: "scores",
    Learn: "weight arrays",
    Evaluate: "test counts",
    Answer: "test counts",
}
METHODS = {
    Introduce: "introduce",
    Synthesize: "synthesize",
    Score: "score",
    Learn: "learn",
    Evaluate: "evaluate",
    Answer: "answer",
}


def open_vault(config: SiteConfig) -> AnyVault:
    """The vault for the task's kind. Reads nothing yet."""
    return ReasoningVault(config) if isinstance(config.task, QuestionsConfig) else Vault(config)


def ask(vault: AnyVault, request: Any, arrays: Arrays | None = None) -> tuple[Any, Arrays | None]:
    """The vault's answer, and weights where it shares them. What is no request, or none for this
    kind of task, is refused."""
    name = METHODS.get(type(request), "")
    method = getattr(vault, name, None) if name else None
    if method is None:
        return (
            Refused(
                f"{type(request).__name__} is not a request for a task of kind"
                f" {vault.config.task.kind}",
                "request",
            ),
            None,
        )
    if name == "introduce":
        return method(), None
    if vault.config.policy.approval == "never":
        return _asked(method, name, request, arrays)
    approvals = Approvals(vault.config.folder / "approvals")
    held = approvals.held(request, arrays)
    if held is None:
        answer, returned = _asked(method, name, request, arrays)
        if (receipt := getattr(answer, "receipt", None)) is None:
            return answer, returned
        what = (
            f"{receipt.released} {RELEASED[type(request)]} to run {request.run},"
            f" {receipt.mechanism}, epsilon {receipt.epsilon:.3g}"
        )
        held = approvals.hold(request, arrays, what, answer, returned)
    return _approved(approvals, held, vault.config.policy.approval_seconds)


def _asked(
    method: Any, name: str, request: Any, arrays: Arrays | None
) -> tuple[Any, Arrays | None]:
    return method(request, arrays or {}) if name == "learn" else (method(request), None)


def _approved(approvals: Approvals, name: str, seconds: float) -> tuple[Any, Arrays | None]:
    """What is kept under `name`, once a person has approved just that."""
    decided = approvals.wait(name, seconds)
    if decided is None:
        return Refused(
            "this release waits for a person at the site; ask again later", "waiting"
        ), None
    if not decided:
        return Refused("a person at the site denied this release", "policy"), None
    try:
        answer, arrays = approvals.answer(name)
    except ConfigError:
        return Refused("what was approved is not kept any more; nothing was released", "data"), None
    return answer, arrays or None
