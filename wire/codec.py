"""Messages as Flower RecordDicts: one JSON text in a uint8 array (fast and chunked, where long
string lists are slow), arrays beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic
from fedduet.wire import messages

if TYPE_CHECKING:
    from flwr.app import RecordDict

_KINDS = {
    kind.__name__: kind
    for kind in vars(messages).values()
    if dataclasses.is_dataclass(kind)
    and isinstance(kind, type)
    and kind.__module__ == messages.__name__
}

Arrays = dict[str, np.ndarray]

LARGEST = 256 * 2**20  # bytes of a message's text [O]; far above any run's


class WireError(ValueError):
    """A RecordDict that is not one of our messages."""


@cache
def _adapter(kind: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def encode(message: Any) -> bytes:
    """A message dataclass as UTF-8 JSON; infinities are written as `Infinity`."""
    return json.dumps(dataclasses.asdict(message), ensure_ascii=False).encode()


def decode(kind: str, blob: bytes) -> Any:
    """The message of type name `kind` in `blob`. Raises WireError when the name or the content does
    not fit."""
    if kind not in _KINDS:
        raise WireError(f"unknown message type {kind!r}; known: {', '.join(sorted(_KINDS))}")
    if len(blob) > LARGEST:
        raise WireError(f"{kind}: found {len(blob)} bytes; allowed: at most {LARGEST}")
    try:
        values = json.loads(blob)
        if not isinstance(values, dict):
            raise WireError(f"{kind}: expected an object, found {type(values).__name__}")
        unknown = set(values) - {entry.name for entry in dataclasses.fields(_KINDS[kind])}
        if unknown:
            raise WireError(f"{kind}: unknown fields {', '.join(sorted(unknown))}")
        return _adapter(_KINDS[kind]).validate_python(values)
    except WireError:
        raise
    # no JSON, not of this type, numbers of thousands of digits, deep nesting
    except (ValueError, RecursionError) as failure:
        raise WireError(f"{kind}: unreadable content ({failure})") from None


def pack(message: Any, arrays: Mapping[str, np.ndarray] | None = None) -> RecordDict:
    """A RecordDict with the message and, optionally, named weight arrays."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    blob = np.frombuffer(encode(message), dtype=np.uint8)
    record = RecordDict(
        {
            "kind": ConfigRecord({"type": type(message).__name__}),
            "message": ArrayRecord({"json": Array(ndarray=blob)}),
        }
    )
    if arrays:
        record["arrays"] = ArrayRecord(
            {name: Array(ndarray=value) for name, value in arrays.items()}
        )
    return record


def unpack(record: RecordDict) -> tuple[Any, Arrays]:
    """The message and its arrays. Raises WireError for anything that `pack` did not make."""
    try:
        # what is there may be anything: a record of another kind has no `numpy`
        parts: Mapping[str, Any] = record
        kind = parts["kind"]["type"]
        blob = parts["message"]["json"].numpy()
        arrays = {name: array.numpy() for name, array in parts.get("arrays", {}).items()}
    except (KeyError, TypeError, AttributeError, ValueError, EOFError) as failure:
        raise WireError(f"not a FedDuet message: {failure}") from None
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise WireError(f"message text must be a flat uint8 array, found {blob.dtype} {blob.shape}")
    return decode(str(kind), blob.tobytes()), arrays


def size(record: RecordDict) -> int:
    """Payload bytes of a RecordDict: its arrays' data."""
    from flwr.app import ArrayRecord

    return sum(
        len(array.data)
        for part in record.values()
        if isinstance(part, ArrayRecord)
        for array in part.values()
    )
