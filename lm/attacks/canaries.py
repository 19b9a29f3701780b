"""Secrets planted in private texts, names and telephone numbers, to see whether they come out in
what is released."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fedduet.lm.randomness import numpy_generator

_SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]


@dataclass(frozen=True)
class Secret:
    """A person's name and telephone number, and in how many records they stand."""

    name: str
    number: str
    repeats: int

    @property
    def sentence(self) -> str:
        """What a record says of it."""
        return f"call {self.name} at {self.number}."

    def shown_by(self, text: str) -> tuple[bool, bool]:
        """Whether `text` holds the whole name, and all digits of the number in their order,
        whatever stands between them."""
        return self.name in " ".join(text.casefold().split()), self.number.replace(
            " ", ""
        ) in re.sub(r"\D+", "", text)


def plant(
    texts: Sequence[str], repeats: Sequence[int], seed: int
) -> tuple[list[str], list[Secret]]:
    """`texts` with secrets before some of them, one secret a text, and the secrets.

    Of each number in `repeats` there are max(1, 10 // repeats) secrets, since one that stands in
    few records comes out seldom. They stand first, where a generator begins: the worst case. Raises
    ValueError when there are fewer texts than places.
    """
    draw = numpy_generator(seed, "secrets")
    secrets = [_secret(draw, number) for number in repeats for _ in range(max(1, 10 // number))]
    places = [secret for secret in secrets for _ in range(secret.repeats)]
    if len(places) > len(texts):
        raise ValueError(
            f"found {len(texts)} records for {len(places)} planted ones; allowed: fewer repeats, or"
            " more records"
        )
    planted = list(texts)
    for place, secret in zip(draw.permutation(len(texts)).tolist(), places, strict=False):
        planted[place] = f"{secret.sentence} {planted[place]}"
    return planted, secrets


def _secret(draw: np.random.Generator, repeats: int) -> Secret:
    first, last = ("".join(draw.choice(_SYLLABLES, size)) for size in (2, 3))
    digits = "".join(str(digit) for digit in draw.integers(0, 10, 8))
    return Secret(f"{first} {last}", f"{digits[:4]} {digits[4:]}", repeats)
