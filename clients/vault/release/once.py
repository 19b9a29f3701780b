"""One release for one charge: the coins it is drawn with, and the file that is kept of it.

Coins and noise of a mechanism come from a key of the operating system's secure source. It is on the
disk before the charge, which names it together with the request, and is removed when the release
is kept. So a mechanism that ran and failed runs again with the same coins, on the same request,
and shows what it would have shown the first time: nothing more is spent. With the key gone, with
another request, or with the kept file gone it does not run again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedduet.clients.vault.release.releases import write_once
from fedduet.lm.randomness import SecureNoise


class Once:
    """The release `id` of one request (its bytes), with its key in `folder`. Raises OSError where
    the key cannot be written."""

    def __init__(self, folder: Path, id: str, request: bytes) -> None:
        self._key = write_once(_file(folder, id), os.urandom(32))
        self.coins = hashlib.sha256(self._key + request).hexdigest()

    def noise(self) -> SecureNoise:
        """The mechanism's coins, from the start: the same ones each time."""
        return SecureNoise(self._key)

    @staticmethod
    def forget(folder: Path, id: str) -> None:
        """The release is kept: nobody may draw it again."""
        _file(folder, id).unlink(missing_ok=True)


def _file(folder: Path, id: str) -> Path:
    return folder / f"{hashlib.sha256(id.encode()).hexdigest()}.key"
