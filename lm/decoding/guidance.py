"""Guidance by contrast: a prompt's logits are pushed away from those of a second prompt, in one
batch over one set of weights."""

from __future__ import annotations

import torch
from fedduet.lm.decoding.stepper import Continuous, Stepper


class Guided:
    """A `fedduet.lm.decoding.stepper.Stepper` with the logits z + gamma * (z - z_contrast)
    (classifier-free guidance, Sanchez et al. 2023, arXiv 2306.17806, eq. 7, whose gamma is ours
    plus 1; raw logits are added, as in `fedduet.lm.decoding.fusion`).

    Prompts come in pairs: rows 2 i and 2 i + 1 of `prefill` are the i-th prompt and its contrast.
    All else counts pairs; both rows of a pair take the same new token.
    """

    def __init__(self, run: Stepper, gamma: float) -> None:
        self._run, self._gamma = run, gamma
        self.compact_at = run.compact_at

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        return self._mix(self._run.prefill(ids, mask, room))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._mix(self._run.step(tokens.repeat_interleave(2)))

    def keep(self, rows: torch.Tensor) -> None:
        self._run.keep(_pairs(rows))

    def _mix(self, logits: torch.Tensor) -> torch.Tensor:
        wanted, contrast = logits[::2], logits[1::2]
        return torch.lerp(contrast, wanted, 1 + self._gamma)


class ContinuousGuided(Guided):
    """The same over a `Continuous` stepper."""

    def __init__(self, run: Continuous, gamma: float) -> None:
        super().__init__(run, gamma)
        self._run: Continuous = run
        self.device = run.device

    @property
    def width(self) -> int:
        return self._run.width

    def admit(self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._mix(self._run.admit(ids, mask, _pairs(rows)))

    def fork(self) -> ContinuousGuided:
        return ContinuousGuided(self._run.fork(), self._gamma)


def guided(run: Stepper, gamma: float) -> Guided:
    """`run` with guidance, and what else it can do."""
    return ContinuousGuided(run, gamma) if isinstance(run, Continuous) else Guided(run, gamma)


def _pairs(rows: torch.Tensor) -> torch.Tensor:
    """Numbers of pairs as numbers of their rows: 2 -> 4, 5."""
    return torch.stack([2 * rows, 2 * rows + 1], dim=1).flatten()
