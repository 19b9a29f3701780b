"""Which demonstrations a few-shot prompt shows: a queue per label, without replacement."""

from __future__ import annotations

from collections.abc import Sequence

from fedduet.lm.randomness import numpy_generator
from fedduet.server.writing.curate import Demonstration


class ShotQueue:
    """Gives every demonstration of a label once before any of them comes twice; the order is
    reshuffled for each pass."""

    def __init__(self, demonstrations: Sequence[Demonstration], labels: int, seed: int) -> None:
        self._of_label = [
            [one for one in demonstrations if one.label == label] for label in range(labels)
        ]
        self._waiting: list[list[Demonstration]] = [[] for _ in range(labels)]
        self._shuffle = [numpy_generator(seed, "shots", label) for label in range(labels)]

    def draw(self, label: int, count: int) -> list[Demonstration]:
        """`count` different demonstrations of `label`, or all of them where there are fewer."""
        everyone = self._of_label[label]
        drawn: list[Demonstration] = []
        count = min(count, len(everyone))
        while len(drawn) < count:
            if not self._waiting[label]:
                # these come last in the new pass: a draw must not hold one twice
                taken = {id(one) for one in drawn}
                order = [
                    everyone[place] for place in self._shuffle[label].permutation(len(everyone))
                ]
                self._waiting[label] = sorted(order, key=lambda one: id(one) not in taken)
            drawn.append(self._waiting[label].pop())
        return drawn

    def draw_for(self, label: int, per_label: int) -> list[Demonstration]:
        """`per_label` demonstrations of every label in turn, those of `label` last, where a
        prompt's end weighs most."""
        order = [other for other in range(len(self._of_label)) if other != label] + [label]
        drawn = [self.draw(other, per_label) for other in order]
        return [column[row] for row in range(per_label) for column in drawn if row < len(column)]
