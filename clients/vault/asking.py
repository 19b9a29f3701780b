"""One request to a vault, whoever brings it: a courier in the same process, or the service."""

from __future__ import annotations

from typing import Any

from clients.vault.config import SiteConfig
from clients.vault.reasoning import ReasoningVault
from clients.vault.vault import Vault
from tasks.questions import QuestionsConfig
from wire.codec import Arrays
from wire.messages import Answer, Evaluate, Introduce, Learn, Refused, Score, Synthesize

AnyVault = Vault | ReasoningVault
METHODS = {Introduce: "introduce", Synthesize: "synthesize", Score: "score", Learn: "learn", Evaluate: "evaluate", Answer: "answer"}


def open_vault(config: SiteConfig) -> AnyVault:
    """The vault for the task's kind. Reads nothing yet."""
    return ReasoningVault(config) if isinstance(config.task, QuestionsConfig) else Vault(config)


def ask(vault: AnyVault, request: Any, arrays: Arrays | None = None) -> tuple[Any, Arrays | None]:
    """The vault's answer, and weights where it shares them. What is no request, or none for this kind of task, is refused."""
    name = METHODS.get(type(request), "")
    method = getattr(vault, name, None) if name else None
    if method is None:
        return Refused(f"{type(request).__name__} is not a request for a task of kind {vault.config.task.kind}", "request"), None
    if name == "introduce":
        return method(), None
    return method(request, arrays or {}) if name == "learn" else (method(request), None)
