"""What left a site, by message id: a vault asked twice for the same release answers with the first one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from wire.codec import decode, encode


class Releases:
    """One file per release in `folder`, written and synced before the release leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, message_id: str) -> Any | None:
        """The earlier answer to `message_id`, or None."""
        file = self._file(message_id)
        if not file.exists():
            return None
        kind, _, blob = file.read_bytes().partition(b"\n")
        return decode(kind.decode(), blob)

    def keep(self, message_id: str, answer: Any) -> None:
        """Store `answer` durably. Raises OSError when it cannot be written; then nothing must leave."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._file(message_id)
        partial = file.with_suffix(f".{os.getpid()}")
        with partial.open("wb") as out:
            out.write(type(answer).__name__.encode() + b"\n" + encode(answer))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)

    def _file(self, message_id: str) -> Path:
        return self.folder / f"{hashlib.sha256(message_id.encode()).hexdigest()[:32]}.release"
