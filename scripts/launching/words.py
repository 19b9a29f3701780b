"""The words of a command line that are Hydra overrides, checked before Hydra reads them."""

from __future__ import annotations

from collections.abc import Iterable

from fedduet.conf.check import ConfigError, nearest

from fedduet import conf


def check_words(arguments: Iterable[str], commands: Iterable[str]) -> None:
    """Catch what Hydra would answer with a page of text: a word that is no override, or an unknown
    choice of a group. Raises ConfigError; `commands`: the words that are known besides."""
    for argument in arguments:
        if argument.startswith("-"):
            continue
        if "=" not in argument:
            raise ConfigError(
                f"{argument!r} is neither a command ({', '.join(commands)}) nor an override such as"
                " seed=1; see fedduet --help"
            )
        key, value = argument.split("=", 1)
        if key in ("strategy", "task", "llm", "slm", "generator", "privacy", "federation"):
            for choice in value.split(","):
                if choice not in conf.choices(key):
                    raise ConfigError(
                        f"{key}: unknown choice {choice!r}; {nearest(choice, conf.choices(key))}"
                    )
