"""A strategy of the user's own, from one Python file with a function
`strategy(moves, settings)`."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from fedduet.conf.check import ConfigError
from fedduet.strategies.config import CustomConfig
from fedduet.strategies.run.moves import Moves

ENTRY = "strategy"


def custom(moves: Moves, config: CustomConfig) -> None:
    """Run `strategy` of `config.file`. It sees the sites through `moves` alone, as every strategy
    does. Raises ConfigError."""
    check_file(config.file)
    spec = importlib.util.spec_from_file_location(f"custom_{Path(config.file).stem}", config.file)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    getattr(module, ENTRY)(moves, dict(config.settings))


def check_file(file: str) -> None:
    """Raises ConfigError for a file that is missing, is no Python, or defines no `strategy`; it is
    not run for that."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError(
            f"strategy.file: no file {file}; give a Python file that defines {ENTRY}(moves,"
            " settings)"
        )
    try:
        found = [
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        ]
    except (SyntaxError, UnicodeDecodeError) as problem:
        raise ConfigError(f"strategy.file: {file} is no Python file: {problem}") from None
    if ENTRY not in found:
        raise ConfigError(
            f"strategy.file: {file} defines {', '.join(found) or 'no function'}; it must define"
            f" {ENTRY}(moves, settings)"
        )
