"""Keeps an endpoint's answers on disk, so that a resumed run does not pay for them again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError


class ResponseCache:
    """Answers by the hash of their request, in `folder`/answers.sqlite; each is committed as it
    arrives. Holds no prompt and no key."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "answers.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The engine works in one thread at a time, but not always in the one that opened the
            # file.
            self._database = sqlite3.connect(
                self.path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as failure:
            raise ConfigError(
                f"llm.cache_dir: {self.path} cannot be used: {failure}; give a writable folder"
            ) from failure

    def get(self, key: str) -> dict[str, Any] | None:
        found = self._database.execute(
            "SELECT answer FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return json.loads(found[0]) if found else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Durable when it returns; the first answer to a request stays."""
        self._database.execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, json.dumps(answer))
        )

    def close(self) -> None:
        self._database.close()
