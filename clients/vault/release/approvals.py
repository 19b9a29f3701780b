"""Releases that wait for a person: made, charged and kept at the site, and sent only after somebody
there has approved them.

A decision is on three things together: the message id, the digest of the whole request, and the
digest of the very bytes that would leave, weights included. The name of what waits is the SHA-256
of these three, in full, so nothing else can be made to carry it; what leaves are the kept bytes.
"""

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
from fedduet.wire.body import from_body, to_body
from fedduet.wire.codec import Arrays

POLL = 0.2  # seconds between looks for a decision [O]


@dataclass(frozen=True)
class Waiting:
    """A release that waits, or waited: `decided` None, True (approved) or False (denied)."""

    name: str
    what: str
    decided: bool | None


class Approvals:
    """In `folder`, for each release its description, its bytes and its decision, which is made once
    and stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def held(self, request: Any, arrays: Arrays | None = None) -> str | None:
        """The name of what was made for this very request before, or None."""
        file = self.folder / f"{_key(request, arrays)}.made"
        return file.read_text(encoding="ascii") if file.is_file() else None

    def hold(
        self,
        request: Any,
        arrays: Arrays | None,
        what: str,
        answer: Any,
        returned: Arrays | None,
    ) -> str:
        """Keep what would leave for `request`, described by `what`; returns its name, of two at
        once the first's."""
        body, key = to_body(answer, returned), _key(request, arrays)
        name = _digest(f"{key}\n{_digest(body)}".encode())
        write_once(self.folder / f"{name}.body", body)
        write_once(self.folder / f"{name}.waiting", json.dumps({"what": what, "key": key}).encode())
        return write_once(self.folder / f"{key}.made", name.encode()).decode()

    def wait(
        self,
        name: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool | None:
        """The decision, waited for at most `seconds`; None when there is none yet."""
        deadline = clock() + seconds
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
        self.answer(name)  # a decision on bytes that are no longer these would be on nothing
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
        return Waiting(name, known[name].what, approve)

    def answer(self, name: str) -> tuple[Any, Arrays]:
        """What leaves once `name` is approved: the kept bytes. Raises ConfigError where they are
        gone or are others than those that the name stands for."""
        try:
            body = (self.folder / f"{name}.body").read_bytes()
            key = _read(self.folder / f"{name}.waiting")["key"]
        except (OSError, KeyError) as gone:
            raise ConfigError(f"{name}: what waits under it is gone ({gone})") from None
        if _digest(f"{key}\n{_digest(body)}".encode()) != name:
            raise ConfigError(f"{name}: what is kept is not what was shown; it does not leave")
        return from_body(body)

    def all(self) -> list[Waiting]:
        """Everything that waits or waited, oldest first."""
        files = sorted(self.folder.glob("*.waiting"), key=lambda file: file.stat().st_mtime_ns)
        return [
            Waiting(file.stem, _read(file)["what"], self._decided(file.stem))
            for file in files
            if len(file.stem) == 64  # older versions had short names, which bind nothing
        ]

    def _decided(self, name: str) -> bool | None:
        file = self.folder / f"{name}.decided"
        return bool(_read(file)["approved"]) if file.is_file() else None


def _key(request: Any, arrays: Arrays | None) -> str:
    """Of the message id and the request, each whole."""
    whole = _digest(to_body(request, arrays))
    return _digest(f"{_digest(request.message_id.encode())}\n{whole}".encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
