"""Trainings of a site: how many there may be, what their batches are drawn from, and what of their
time is told."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Sequence

from fedduet.clients.vault.config import SiteConfig
from fedduet.clients.vault.release import policy as rules
from fedduet.clients.vault.release.releases import write_once
from fedduet.lm.randomness import derive
from fedduet.tasks.task import Record
from fedduet.wire.messages import Learn

SECRET, CALLS = "batches.secret", "trainings"  # in the site's folder


def count_training(config: SiteConfig, request: Learn) -> None:
    """Takes one of the trainings that the policy allows, a byte in a file for each. Raises
    PolicyError."""
    calls = config.folder / CALLS
    made = calls.stat().st_size if calls.is_file() else 0
    models = config.folder / "models"
    kept = {file.parent for file in models.glob("*/*/*")} - {models / request.run / request.model}
    taken = sum(file.stat().st_size for file in models.rglob("*") if file.is_file())
    rules.check_trainings(config.policy, made, len(kept), taken / 2**30)
    config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, b".")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def batch_seed(config: SiteConfig, request: Learn) -> int:
    """The seed of batches and dropout: from a secret of the site and the message, so that a server
    cannot choose which rows are in a step. A repeatable site's comes from the server's seed, its
    own name, and the part of a training that is asked for."""
    if config.repeatable:
        return derive(request.seed, "site", config.client, str(request.begun))
    secret = write_once(config.folder / SECRET, os.urandom(32))
    drawn = hmac.new(secret, f"{request.run}/{request.message_id}".encode(), hashlib.sha256)
    return int.from_bytes(drawn.digest()[:8], "big") >> 1


def evened(records: Sequence[Record], each: int) -> tuple[Record, ...]:
    """`each` records of every user, the first ones, or some of them again: as many rows as the
    number of users says."""
    users: dict[str, list[Record]] = {}
    for record in records:
        users.setdefault(record.user, []).append(record)
    return tuple(rows[i % len(rows)] for rows in users.values() for i in range(each))


def told_seconds(config: SiteConfig, began: float, digits: int = 1) -> float:
    """Seconds since `began` (monotonic) in a simulation; 0 at a real site, where they depend on
    private texts."""
    return round(time.monotonic() - began, digits) if config.simulated else 0.0


def public_rows(config: SiteConfig, units: int) -> int:
    """The number of private rows that steps are planned for: n, or, where users are the unit, as
    many for each as a generator takes."""
    if config.policy.unit == "record" or config.generator is None:
        return units
    return units * config.generator.records_per_user
