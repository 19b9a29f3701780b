"""Who may use the gateway, and how much: bearer keys and a rate limit for each."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedduet.conf.check import ConfigError
from fedduet.server.gateway.protocol import Refused

LEAST_KEY = 16  # characters [O]


@dataclass(frozen=True)
class Keys:
    """The bearer keys' digests by name. None at all: everybody may (a gateway for this machine
    only)."""

    digests: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def read(cls, text: str, where: str) -> Keys:
        """One key a line, `name key` or `key` alone; "#" begins a comment. Raises ConfigError, in
        which no key is shown."""
        found: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            name = words[0] if len(words) == 2 else f"key {number}"
            if len(words) > 2 or len(words[-1]) < LEAST_KEY or not words[-1].isascii():
                raise ConfigError(
                    f"{where}: line {number}: allowed: a name and a key, or a key, of at least"
                    f" {LEAST_KEY} ASCII characters"
                )
            if name in found:
                raise ConfigError(f"{where}: line {number}: found the name {name!r} twice")
            found[name] = hashlib.sha256(words[-1].encode()).digest()
        if not found:
            raise ConfigError(
                f"{where}: found no key; allowed: one key a line, `name key` or `key` alone"
            )
        return cls(tuple(found.items()))

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """See `read`."""
        if not path.is_file():
            raise ConfigError(f"keys: {path} is not a file")
        return cls.read(path.read_text(encoding="utf-8"), str(path))

    def name(self, authorization: str) -> str:
        """Whose key a header "Bearer KEY" carries. All keys are compared, each in constant time.
        Raises Refused (401)."""
        if not self.digests:
            return "everybody"
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        names = [name for name, digest in self.digests if hmac.compare_digest(digest, given)]
        if scheme.lower() != "bearer" or not names:
            raise Refused(
                401,
                "no valid key: send the header Authorization: Bearer KEY",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return names[0]


class RateLimit:
    """Token buckets for each key: full at the start, filled up evenly over a minute. In memory: a
    restart forgets them."""

    def __init__(
        self, requests: int, tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._clock = (float(requests), float(tokens)), clock
        self._left: dict[str, tuple[float, float, float]] = {}

    def deposit(self, name: str, tokens: int) -> int:
        """Charges one request and what it may take, before it is read; returns that. Raises Refused
        (429) with Retry-After, and charges nothing, when either is spent."""
        held = min(tokens, int(self._most[1]))
        self._charge(name, 1, held, held)
        return held

    def settle(self, name: str, held: int, tokens: int) -> None:
        """Charges the request's own `tokens` in place of the deposit `held`. Raises Refused (429),
        and keeps the deposit, when they are more than there are."""
        if tokens > held:
            self._charge(name, 0, tokens - held, tokens)
        else:
            self.give_back(name, held - tokens)

    def _charge(self, name: str, request: int, more: int, tokens: int) -> None:
        now = self._clock()
        requests, left, then = self._left.get(name, (*self._most, now))
        filled = [
            min(most, had + (now - then) * most / 60)
            for most, had in zip(self._most, (requests, left), strict=True)
        ]
        if tokens > self._most[1]:
            raise Refused(
                429,
                f"the request may take {tokens} tokens; allowed: {self._most[1]:.0f} in a minute",
                "rate_limit_exceeded",
            )
        short = [
            (cost - had) / most * 60
            for cost, had, most in zip((request, more), filled, self._most, strict=True)
        ]
        if max(short) > 0:
            what = (
                f"{self._most[0]:.0f} requests"
                if short[0] >= short[1]
                else f"{self._most[1]:.0f} tokens"
            )
            wait = math.ceil(max(short))
            raise Refused(
                429,
                f"allowed: {what} in a minute; try again in {wait} s",
                "rate_limit_exceeded",
                headers={"retry-after": str(wait)},
            )
        self._left[name] = (filled[0] - request, filled[1] - more, now)

    def give_back(self, name: str, tokens: int) -> None:
        """Tokens that were charged and not used."""
        if name in self._left:
            requests, left, then = self._left[name]
            self._left[name] = (requests, min(self._most[1], left + tokens), then)
