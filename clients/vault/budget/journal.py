"""Append-only JSON lines that survive a killed process, a full disk and two writers, and show every
other damage.

Each line ends in the SHA-256 of the line before it and of itself. Two side files carry, after each
append, the number and hash of the last line: `.lock`, which carries the lock too, and `.head`. So
lines cut off at the end, or the whole file gone, are noticed, also with one side file gone. A
person who may write all three can still rewrite history: the chain is against accidents and
careless edits, and receipts name the hash that theirs must contain.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START = "0" * 64  # what the first line's hash is chained to
_WAIT_SECONDS = 60.0  # [O] for the lock; a holder needs about a second


class LedgerError(Exception):
    """A ledger that cannot be read, trusted or written: nothing may be released. Says where, and
    what to do."""


def chained(previous: str, entry: dict[str, Any]) -> str:
    """The `check` of `entry` (without one) after a line whose check is `previous`: SHA-256 in
    hex."""
    return hashlib.sha256(previous.encode() + _dump(entry)).hexdigest()


@dataclass
class OpenJournal:
    """The lines of a journal while its lock is held."""

    path: Path
    entries: list[dict[str, Any]]  # without their check
    checks: list[str]  # of the entries
    _lock: int

    @property
    def last_check(self) -> str:
        """To which the next line is chained."""
        return self.checks[-1] if self.checks else START

    def append(self, entry: dict[str, Any]) -> None:
        """Write `entry`; return once it is on the disk. Raises LedgerError, the file as before,
        when it cannot be."""
        check = chained(self.last_check, entry)
        line = _dump({**entry, "check": check}) + b"\n"
        created = not self.path.exists()
        with _explained(self.path, "cannot write the ledger"):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    _write(descriptor, line)
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
            if created:
                _sync(self.path.parent)
            self.entries.append(entry)
            self.checks.append(check)
            _write_heads(self._lock, self.path, len(self.entries), check)


class Journal:
    """The file at `path` with its side files `.lock` and, once a half-written line was set aside,
    `.torn`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[OpenJournal]:
        """The journal, read and verified, for this process and thread alone. Raises LedgerError."""
        with _explained(self.path, "cannot open the ledger for writing"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _wait_for(lock, self.path)
            with _explained(self.path, "cannot open the ledger for writing"):
                heads = _heads(lock, self.path)
                entries, checks = self._verify(self._bytes(), heads)
                # written by a process that died before it could say so in both places: it counts
                if entries and set(heads) != {(len(entries), checks[-1])}:
                    _sync(self.path)
                    _write_heads(lock, self.path, len(entries), checks[-1])
            yield OpenJournal(self.path, entries, checks, lock)
        finally:
            os.close(lock)  # releases the lock, as the end of the process does

    def _bytes(self) -> bytes:
        try:
            # for writing too: fails now where a charge would
            descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise LedgerError(
                    f"{self.path}: found something that is no regular file; allowed: the path of a"
                    " ledger file; nothing was released"
                )
            return file.read()

    def _verify(
        self, data: bytes, heads: Sequence[tuple[int, str]]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The entries and their checks. All lines up to each of `heads` must be there; a torn line
        after them may."""
        acknowledged = max(count for count, _ in heads)
        entries: list[dict[str, Any]] = []
        checks = [START]
        good = 0  # bytes of whole, verified lines
        for number, raw in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", data), start=1):
            entry = _parse(raw)
            whole = raw.endswith(b"\n") and entry is not None
            if not whole and good + len(raw) == len(data) and number > acknowledged:
                self._set_aside(raw, good)
                break
            if not whole or entry is None:
                raise self._damaged(number, "is not a whole JSON line")
            check = entry.pop("check", None)
            if (
                check != chained(checks[-1], entry)
                or raw != _dump({**entry, "check": check}) + b"\n"
            ):
                raise self._damaged(
                    number,
                    "does not match its check: it, or a line before it, was changed, moved or"
                    " removed",
                )
            entries.append(entry)
            checks.append(check)
            good += len(raw)
        if len(entries) < acknowledged:
            raise self._damaged(
                len(entries) + 1,
                f"is missing: {acknowledged} charges were written and {len(entries)} are here",
            )
        for count, check in heads:
            if checks[count] != check:
                raise self._damaged(count, "is not the line that was written last")
        return entries, checks[1:]

    def _set_aside(self, torn: bytes, at: int) -> None:
        """Keep the bytes of a line whose writer died in `.torn`, and cut them off: the release they
        announced never happened.
        """
        aside = os.open(
            self.path.with_suffix(".torn"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        try:
            _write(aside, torn if torn.endswith(b"\n") else torn + b"\n")
            os.fsync(aside)
        finally:
            os.close(aside)
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, at)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _damaged(self, number: int, what: str) -> LedgerError:
        return LedgerError(
            f"{self.path}, line {number}: {what}; nothing was released; restore the ledger (with"
            f" {self.path.with_suffix('.lock').name} and .head) from a backup that holds every"
            " release made, or, if there is none, keep it and treat the site's budget as spent"
        )


def _dump(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _heads(lock: int, path: Path) -> list[tuple[int, str]]:
    """Number and check of the last line whose writing was acknowledged, as each side file has it;
    (0, START) for a new one."""
    try:
        second = path.with_suffix(".head").read_bytes()
    except FileNotFoundError:
        second = b""
    named = ((os.pread(lock, 200, 0), ".lock"), (second, ".head"))
    return [_head(text, path, suffix) for text, suffix in named]


def _head(text: bytes, path: Path, suffix: str) -> tuple[int, str]:
    if not text:
        return 0, START
    parts = text.split()
    if len(parts) != 2 or not parts[0].isdigit() or len(parts[1]) != 64 or not text.endswith(b"\n"):
        name = path.with_suffix(suffix)
        raise LedgerError(
            f"{name}: found {text[:40]!r}; allowed: the number of charges and the last one's check;"
            f" nothing was released; delete {name.name} only if you know that {path.name} holds"
            " every release made"
        )
    return int(parts[0]), parts[1].decode()


def _write_heads(lock: int, path: Path, count: int, check: str) -> None:
    head = b"%012d %s\n" % (count, check.encode())
    os.lseek(lock, 0, os.SEEK_SET)
    _write(lock, head)
    os.fsync(lock)
    second = path.with_suffix(".head")
    created = not second.exists()
    descriptor = os.open(second, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        _write(descriptor, head)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if created:
        _sync(path.parent)


def _wait_for(lock: int, path: Path) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise LedgerError(
                    f"{path}: another process has held its lock for {_WAIT_SECONDS:g} s; nothing"
                    " was released; find and stop it"
                ) from None
            time.sleep(0.01)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"{path}: {what} ({error.strerror}); nothing was released; give this user write access"
            " and disk space there"
        ) from error
