"""One request to a vault, whoever brings it: a courier in the same process, or the service."""

from __future__ import annotations

from typing import Any

from fedduet.clients.vault.config import SiteConfig
from fedduet.clients.vault.reasoning import ReasoningVault
from fedduet.clients.vault.release.approvals import Approvals
from fedduet.clients.vault.vault import Vault
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
    answer, returned = method(request, arrays or {}) if name == "learn" else (method(request), None)
    return _approved(vault, request, answer, returned)


def _approved(
    vault: AnyVault, request: Any, answer: Any, returned: Arrays | None
) -> tuple[Any, Arrays | None]:
    """The answer, unless it is a release and the site's policy has a person approve these: then
    only after that."""
    policy, receipt = vault.config.policy, getattr(answer, "receipt", None)
    if policy.approval == "never" or receipt is None:
        return answer, returned
    what = (
        f"{receipt.released} {RELEASED[type(request)]} to run {request.run}, {receipt.mechanism},"
        f" epsilon {receipt.epsilon:.3g}"
    )
    decided = Approvals(vault.config.folder / "approvals").wait(
        request.message_id, what, policy.approval_seconds
    )
    if decided:
        return answer, returned
    if decided is None:
        return (
            Refused(
                f"this release waits for a person at the site ({what}); ask again later", "waiting"
            ),
            None,
        )
    return Refused(f"a person at the site denied this release ({what})", "policy"), None
