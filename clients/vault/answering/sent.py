"""What went to the LLM of others: every question, step and draft, written down before it goes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = "sent"  # in the site's folder


class Sent:
    """The texts that one answer sends, a JSON line each, in a file of its own."""

    def __init__(self, folder: Path, id: str) -> None:
        self._id = id
        self._file = folder / FOLDER / f"{hashlib.sha256(id.encode()).hexdigest()}.jsonl"

    def keep(self, texts: Sequence[str]) -> None:
        """Writes durably. Raises OSError where it cannot; then nothing must be sent."""
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = "".join(
            json.dumps({"id": self._id, "text": text}, ensure_ascii=False) + "\n" for text in texts
        )
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as out:
            out.write(lines)
            out.flush()
            os.fsync(out.fileno())


def everything_sent(folder: Path) -> Iterator[dict[str, str]]:
    """The id of the answer and the text of everything that a site sent, file by file, oldest
    first."""
    files = sorted((folder / FOLDER).glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
