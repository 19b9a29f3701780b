"""Releases that wait for a person: made, charged and kept at the site, and sent only after somebody
there has approved them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet.clients.vault.release.releases import write_once
from fedduet.conf.check import ConfigError

POLL = 0.2  # seconds between looks for a decision [O]


@dataclass(frozen=True)
class Waiting:
    """A release that waits, or waited: `decided` None, True (approved) or False (denied)."""

    name: str  # short, to type
    message_id: str
    what: str
    decided: bool | None


class Approvals:
    """One file for each release in `folder`, and one for each decision; a decision is made once and
    stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def wait(
        self,
        message_id: str,
        what: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool | None:
        """The decision on a message's release, waited for at most `seconds`; None when there is
        none yet."""
        name, deadline = self.name(message_id), clock() + seconds
        write_once(
            self.folder / f"{name}.waiting",
            json.dumps({"message_id": message_id, "what": what}).encode(),
        )
        while (decided := self._decided(name)) is None and clock() < deadline:
            sleep(POLL)
        return decided

    def decide(self, name: str, approve: bool) -> Waiting:
        """Approve or deny. Raises ConfigError for a name that nothing waits under, or a decision
        that was made already."""
        known = {one.name: one for one in self.all()}
        if name not in known:
            waiting = (
                ", ".join(one.name for one in known.values() if one.decided is None) or "nothing"
            )
            raise ConfigError(f"no release waits under {name!r}; waiting: {waiting}")
        if (
            json.loads(
                write_once(
                    self.folder / f"{name}.decided", json.dumps({"approved": approve}).encode()
                )
            )["approved"]
            is not approve
        ):
            raise ConfigError(
                f"{name} was {'denied' if approve else 'approved'} before; a decision stays"
            )
        return Waiting(name, known[name].message_id, known[name].what, approve)

    def all(self) -> list[Waiting]:
        """Everything that waits or waited, oldest first."""
        files = sorted(self.folder.glob("*.waiting"), key=lambda file: file.stat().st_mtime_ns)
        return [
            Waiting(file.stem, **_read(file), decided=self._decided(file.stem)) for file in files
        ]

    @staticmethod
    def name(message_id: str) -> str:
        """The short name of a message's release."""
        return hashlib.sha256(message_id.encode()).hexdigest()[:10]

    def _decided(self, name: str) -> bool | None:
        file = self.folder / f"{name}.decided"
        return bool(_read(file)["approved"]) if file.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
