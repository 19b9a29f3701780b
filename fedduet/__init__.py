"""FedDuet: a cloud LLM and private small language models improve each other, on Flower.

For a notebook: `fedduet.run(dataset=...)` runs a configuration and returns a `Result`, and
`fedduet.compose([...])` is the configuration that Hydra makes of overrides. Nothing heavy is
imported before a run needs it.

In a checkout the parts stand in folders at the top of the repository (`server/`, `clients/`, ...);
a wheel holds them inside this package. Either way they are `fedduet.server`, `fedduet.clients`, ...
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
if not (_HERE / "server").is_dir():  # a checkout, or Flower's bundle of one
    __path__.append(str(_HERE.parent))

_PUBLIC = {  # name: module, imported when it is asked for
    "ConfigError": "fedduet.conf.check",
    "Result": "fedduet.api",
    "RunFailed": "fedduet.conf.check",
    "compose": "fedduet.conf",
    "run": "fedduet.api",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
