"""Labelled texts by private prediction: prompts that are lists, contexts that are filled up, texts
that are read off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedduet.lm.dp.private_prediction import (
    Batch,
    ClippedDifferences,
    NoisyArgmax,
    Rule,
    Written,
    write_texts,
)
from fedduet.lm.models.batch import encode_prompt
from fedduet.lm.text.rules import plain

if TYPE_CHECKING:
    from fedduet.lm.decoding.stepper import Stepper
    from fedduet.lm.randomness import NoiseSource

ITEM = "\n- "


@dataclass(frozen=True, kw_only=True)
class Predicting:
    """What is public of a writing. `rho`: what all texts may cost one unit; infinite: nothing is
    clipped, no guarantee."""

    rho: float
    units: int  # n
    labels: int
    per_label: int
    rule: str = "clipped"  # or argmax
    contexts: int | None = None  # B; None: n / (labels x batches)
    batches: int = 1
    tokens: int = 32  # of a text at most
    temperature: float = 1.0
    top_k: int = 500
    prompt_tokens: int = 128
    rows: int = 64

    @property
    def divisor(self) -> int:
        """B."""
        return self.contexts or max(1, round(self.units / (self.labels * self.batches)))

    @property
    def room(self) -> int:
        """Contexts that every batch is filled up to: two deviations of a Poisson number above
        what is expected [O]. A batch that has more is larger, which only its time tells."""
        expected = self.units / (self.labels * self.batches)
        return max(1, math.ceil(expected + 2 * math.sqrt(expected)))

    @property
    def texts(self) -> int:
        """Of each batch: all batches of a label together write at least `per_label`."""
        return math.ceil(self.per_label / self.batches)

    def made_rule(self) -> Rule:
        """The rule for whose tokens, texts x tokens of them, `rho` pays."""
        each = self.rho / (self.tokens * self.texts)
        if self.rule == "argmax":
            return NoisyArgmax.of_rho(each, self.divisor, self.top_k)
        return ClippedDifferences.of_rho(each, self.divisor, self.temperature, self.top_k)


def list_prompt(heading: str, items: Sequence[str]) -> str:
    """A heading, `items` as a list, and the beginning of the next item: base and tuned LMs go on
    with one more."""
    shown = "".join(f"{ITEM}{' '.join(plain(item).split())}" for item in items)
    return f"{heading}{shown}{ITEM.rstrip()}"


def predict_texts(
    run: Stepper,
    tokenizer: Any,
    headings: Sequence[str],
    contexts: Mapping[tuple[int, int], Sequence[Sequence[str]]],
    asked: Predicting,
    ends: frozenset[int],
    randomness: NoiseSource,
    examples: Sequence[Sequence[str]] = (),
    done: Callable[[int], None] | None = None,
) -> list[list[tuple[str, bool]]]:
    """For each label (text, whether it ended by itself), `asked.per_label` of each.

    `headings[label]` begins all prompts of a label and `examples[label]`, public texts, follow in
    all of them; a private prompt has the texts of a unit besides, `contexts[label, batch]` lists
    them (`fedduet.lm.dp.contexts`). Prompts are cut to `asked.prompt_tokens`. A text ends before a
    line break. What this costs one unit is `asked.rho`, whatever comes out.
    """
    ends = ends | line_breaks(tokenizer)
    rule = asked.made_rule()

    def prompt(label: int, own: Sequence[str]) -> tuple[int, ...]:
        public = list(examples[label]) if examples else []
        return _cut(tokenizer, headings[label], public, own, asked.prompt_tokens)

    batches = []
    for label in range(asked.labels):
        for number in range(asked.batches):
            own = [prompt(label, texts) for texts in contexts.get((label, number), ())]
            nulls = [None] * (asked.room - len(own))
            batches.append(Batch(prompt(label, ()), (*own, *nulls), asked.texts))
    written = write_texts(
        run,
        batches,
        rule,
        asked.tokens,
        asked.prompt_tokens,
        ends,
        randomness,
        asked.rows,
        done,
    )
    found: list[list[tuple[str, bool]]] = [[] for _ in headings]
    for one in written:
        found[one.batch // asked.batches].append((_read(tokenizer, one), one.finished))
    return [texts[: asked.per_label] for texts in found]


def public_examples(
    run: Stepper,
    tokenizer: Any,
    headings: Sequence[str],
    each: int,
    asked: Predicting,
    ends: frozenset[int],
    randomness: NoiseSource,
) -> list[list[str]]:
    """`each` texts or fewer for every label that the LM writes after the heading alone, without any
    private text: so that the public prompt has examples in the format of the private ones."""
    if not each:
        return [[] for _ in headings]
    ends = ends | line_breaks(tokenizer)
    batches = [
        Batch(_cut(tokenizer, heading, (), (), asked.prompt_tokens), (), 2 * each)
        for heading in headings
    ]
    rule = ClippedDifferences(1, 1.0, 1.0, 50)  # without contexts this is plain sampling
    written = write_texts(
        run, batches, rule, asked.tokens, asked.prompt_tokens, ends, randomness, asked.rows
    )
    found: list[dict[str, None]] = [{} for _ in headings]
    for one in written:
        if one.finished and (text := _read(tokenizer, one)):
            found[one.batch][text] = None
    return [list(texts)[:each] for texts in found]


def line_breaks(tokenizer: Any) -> frozenset[int]:
    """The tokens with a line break in them."""
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, piece in enumerate(pieces) if "\n" in piece)


def _cut(
    tokenizer: Any, heading: str, public: Sequence[str], own: Sequence[str], most: int
) -> tuple[int, ...]:
    """The prompt; one of more than `most` tokens loses the end of its list, where a unit's own
    texts stand."""
    ids = encode_prompt(tokenizer, list_prompt(heading, [*public, *own]))
    if len(ids) > most:
        begins = encode_prompt(tokenizer, ITEM)
        ids = [*ids[: max(0, most - len(begins))], *begins][:most]
    return tuple(ids)


def _read(tokenizer: Any, one: Written) -> str:
    return tokenizer.decode(list(one.tokens), skip_special_tokens=True).strip()
