"""Messages as bytes for HTTP: kind, JSON and arrays (safetensors) one after another; nothing in it
can be code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from fedduet.wire.codec import Arrays, WireError, decode, encode
from safetensors import SafetensorError
from safetensors.numpy import load, save


def to_body(message: Any, arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """`Kind length\\n`, the JSON of that many bytes, and the arrays, if any."""
    blob = encode(message)
    tensors = (
        save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        if arrays
        else b""
    )
    return f"{type(message).__name__} {len(blob)}\n".encode() + blob + tensors


def from_body(body: bytes) -> tuple[Any, Arrays]:
    """The message and its arrays. Raises WireError for anything that `to_body` did not make."""
    head, found, rest = body.partition(b"\n")
    kind, _, length = head[:80].decode("ascii", errors="replace").partition(" ")
    if not found or not length.isdigit() or len(length) > 12 or int(length) > len(rest):
        raise WireError(
            "a body begins with the kind of its message and the length of its JSON, on one line"
        )
    message, tensors = decode(kind, rest[: int(length)]), rest[int(length) :]
    try:
        return message, dict(load(tensors)) if tensors else {}
    except (SafetensorError, ValueError, KeyError, TypeError) as failure:
        raise WireError(f"{kind}: its arrays are no safetensors ({failure})") from None
