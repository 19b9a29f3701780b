"""How the models of a run count the tokens of a text, and the most that each is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedduet.clients.vault.config import GeneratorConfig
from fedduet.conf.check import ConfigError
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.builtin.standin import is_made, resolve
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task


def token_counts(slm: SLMConfig, generator: GeneratorConfig, task: TaskConfig) -> dict[str, Any]:
    """By the key of each limit: how the run's model counts the tokens of a text, and the most that
    it is given. None of models that are not on this machine yet."""
    found: dict[str, Any] = {}
    wording = build_task(task)
    before = wording.control(next(iter(wording.domains.values())), 0)  # what the text stands after
    for key, path, limit, prefix in (
        ("slm.max_tokens", slm.path, slm.max_tokens, ""),
        ("generator.max_tokens", generator.path, generator.max_tokens, before),
        ("generator.max_new_tokens", generator.path, generator.max_new_tokens, ""),
    ):
        if (tokenizer := _tokenizer(path)) is not None:
            found[key] = (_counter(tokenizer, prefix), limit)
    return found


def _tokenizer(path: str) -> Any:
    from fedduet.lm.models.load import load_tokenizer  # brings torch along

    try:
        return load_tokenizer(resolve(path)) if is_made(path) else None
    except (ConfigError, ValueError, OSError):  # said where the model is needed
        return None


def _counter(tokenizer: Any, before: str) -> Any:
    def count(texts: Sequence[str]) -> list[int]:
        whole = [before + text for text in texts]
        return [len(ids) for ids in tokenizer(whole, verbose=False)["input_ids"]]

    return count
