"""Which steps of sampled solutions lead to the right answer: Monte-Carlo labels for a process
reward model (Math-Shepherd)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedduet.lm.randomness import derive

Write = Callable[[Sequence[str], int], list[str]]
"""Continues each prompt to the end of a solution; the number seeds the draws."""


@dataclass(frozen=True)
class LabelledSolution:
    """A question's number, the steps of one solution, and for each step whether some completion
    after it was right."""

    question: int
    steps: tuple[str, ...]
    good: tuple[bool, ...]


def label_steps(
    prompts: Sequence[str],
    word: Callable[[int, Sequence[str]], str],
    is_right: Callable[[int, str], bool],
    write: Write,
    complete: Write,
    solutions: int,
    completions: int,
    seed: int,
) -> list[LabelledSolution]:
    """`solutions` of each prompt, by `write`, with their steps labelled (hard estimation, Wang et
    al. 2024, eq. 3).

    A step is good when one of `completions` after it, by `complete`, is right; the last step when
    the solution itself is. Steps after a bad one are not completed, for nothing that follows them
    was reached rightly. `word(question, steps)`: what the next step continues.
    """
    drawn = write(
        [prompt for prompt in prompts for _ in range(solutions)], derive(seed, "solutions")
    )
    found = []
    for place, text in enumerate(drawn):
        if steps := tuple(line.strip() for line in text.split("\n") if line.strip()):
            found.append((place // solutions, steps))
    whole = {(question, steps): is_right(question, "\n".join(steps)) for question, steps in found}
    known: dict[tuple[int, tuple[str, ...]], bool] = {}
    longest = max((len(steps) for _, steps in found), default=0)
    for depth in range(1, longest):
        wanted = [
            (question, steps[:depth])
            for question, steps in dict.fromkeys(
                (question, steps[:depth]) for question, steps in found if len(steps) > depth
            )
            if all(known[question, steps[:end]] for end in range(1, depth))
        ]
        asked = [word(question, steps) for question, steps in wanted for _ in range(completions)]
        after = complete(asked, derive(seed, "completions", depth)) if asked else []
        for place, (question, steps) in enumerate(wanted):
            tries = after[place * completions : (place + 1) * completions]
            known[question, steps] = any(
                is_right(question, "\n".join([*steps, text])) for text in tries
            )
    labelled = []
    for question, steps in dict.fromkeys(found):
        good: list[bool] = []
        for end in range(1, len(steps)):
            good.append((not good or good[-1]) and known[question, steps[:end]])
        good.append((not good or good[-1]) and whole[question, steps])
        labelled.append(LabelledSolution(question, steps, tuple(good)))
    return labelled
