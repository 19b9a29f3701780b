"""Private contexts, one for each unit, dealt to batches by a keyed hash of the unit alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence


def deal_contexts(
    texts: Sequence[str],
    labels: Sequence[int],
    users: Sequence[str] | None,
    secret: bytes,
    batches: int,
    most: int = 1,
) -> dict[tuple[int, int], list[list[str]]]:
    """By (label, batch), the contexts there: each holds the text of one record or, with `users`
    (text i is of users[i]), at most `most` texts of one user.

    A unit is in one context of one batch. Its batch comes from a hash of the unit under `secret`; a
    user's label is that of their text with the smallest hash, and their texts of other labels are
    left out, since these are other batches. Which other units there are does not matter: one that
    vanishes takes its context with it and changes no other. Lists are of one length.
    """
    if min(batches, most) < 1:
        raise ValueError(f"found {batches} batches of {most} texts; allowed: at least 1 of each")
    units: dict[object, list[tuple[bytes, int, str]]] = {}
    for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
        order = _keyed(secret, "text", str(label), text)
        units.setdefault(users[number] if users else number, []).append((order, label, text))
    dealt: dict[tuple[int, int], list[tuple[bytes, list[str]]]] = {}
    for name, rows in units.items():
        first, label, text = min(rows)
        digest = _keyed(secret, "user", str(name)) if users else first
        batch = int.from_bytes(_keyed(secret, "batch", digest.hex()), "big") % batches
        own = [text for _, of, text in sorted(rows) if of == label][:most]
        dealt.setdefault((label, batch), []).append((digest, own))
    return {place: [own for _, own in sorted(held)] for place, held in dealt.items()}


def _keyed(secret: bytes, *parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in encoded)
    return hmac.new(secret, message, hashlib.sha256).digest()
