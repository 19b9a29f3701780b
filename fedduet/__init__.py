"""FedDuet: a cloud LLM and private small language models improve each other, on Flower.

In a checkout the parts stand in folders at the top of the repository (`server/`, `clients/`, ...);
a wheel holds them inside this package. Either way they are `fedduet.server`, `fedduet.clients`, ...
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
if not (_HERE / "server").is_dir():  # a checkout, or Flower's bundle of one
    __path__.append(str(_HERE.parent))
