"""What left a site, by message id: a vault asked twice for the same release answers with the first
one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from fedduet.wire.codec import decode, encode


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

    def digest(self, message_id: str) -> str:
        """SHA-256, in hex, of the file that keeps the answer to `message_id`. Raises OSError where
        there is none."""
        return hashlib.sha256(self._file(message_id).read_bytes()).hexdigest()

    def all(self) -> list[Any]:
        """Every answer that is kept, oldest first."""
        found = []
        for file in sorted(self.folder.glob("*.release"), key=lambda file: file.stat().st_mtime_ns):
            kind, _, blob = file.read_bytes().partition(b"\n")
            found.append(decode(kind.decode(), blob))
        return found

    def count(self) -> int:
        """How many answers are kept."""
        return len(list(self.folder.glob("*.release")))

    def keep(self, message_id: str, answer: Any) -> Any:
        """Store `answer` durably and return what may leave: `answer`, or the one that was stored
        for this id before.

        Two trainings for one id may run at once; the charge pays for one release, so the first to
        be stored is everybody's answer. Raises OSError when it cannot be written; then nothing must
        leave.
        """
        kind, _, stored = write_once(
            self._file(message_id), type(answer).__name__.encode() + b"\n" + encode(answer)
        ).partition(b"\n")
        return decode(kind.decode(), stored)

    def _file(self, message_id: str) -> Path:
        # folders of older versions have names of half the length
        old = hashlib.sha256(message_id.encode()).hexdigest()[:32]
        if (file := self.folder / f"{old}.release").exists():
            return file
        return self.folder / f"{hashlib.sha256(message_id.encode()).hexdigest()}.release"


def write_once(file: Path, content: bytes) -> bytes:
    """Write `content` durably to a new `file`, or leave it as it is; returns what is in it now.
    Raises OSError when that fails."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(partial, file)  # unlike a rename it fails where there is one already
        except FileExistsError:
            return file.read_bytes()
    finally:
        os.unlink(partial)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return content
