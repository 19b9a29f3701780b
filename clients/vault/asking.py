"""One request to a vault, whoever brings it: a courier in the same process, or the service."""

from __future__ import annotations

from typing import Any

from clients.vault.vault import Vault
from wire.codec import Arrays
from wire.messages import Evaluate, Introduce, Learn, Refused, Score, Synthesize


def ask(vault: Vault, request: Any, arrays: Arrays | None = None) -> tuple[Any, Arrays | None]:
    """The vault's answer, and weights where it shares them. What is no request is refused."""
    match request:
        case Introduce():
            return vault.introduce(), None
        case Synthesize():
            return vault.synthesize(request), None
        case Score():
            return vault.score(request), None
        case Learn():
            return vault.learn(request, arrays or {})
        case Evaluate():
            return vault.evaluate(request), None
    return Refused(f"{type(request).__name__} is not a request", "request"), None
