"""`fedduet attack interface`: a game against the messages themselves.

Two vaults hold neighbouring data; a server plays any sequence of messages to both. What charged
mechanisms answer is a fixed draw here, the same on both sides, so everything else that the server
can see must be equal byte for byte: every field, every refusal, sizes, weights, what is sent to an
LLM, and the shapes that training computes on. What differs must stand in both ledgers as "none" by
a permission of the site. n is public, so a unit is replaced, or what it holds changes; times are
outside (docs/privacy.md).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fedduet.clients.vault import dispatch, feedback
from fedduet.lm.dp import dpsgd
from fedduet.lm.training import classify
from fedduet.scripts.attacking.neighbours import KINDS, neighbours, site_of
from fedduet.wire.codec import Arrays, encode
from fedduet.wire.messages import (
    Answer,
    Evaluate,
    Introduce,
    LabelledTexts,
    Learn,
    Refused,
    Score,
    Synthesize,
)
from rich.console import Console
from rich.table import Table

from fedduet import conf

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "private": {"share_scores": "private", "share_metrics": "private"},
    "open": {
        "share_scores": "any",
        "share_metrics": "any",
        "share_weights": True,
        "allow_unprotected": True,
    },
    "few": {"methods": ("learn", "evaluate"), "share_metrics": "private", "maximum_trainings": 3},
}
TEXTS = ("a fine cup .", "it broke at once .", "the lid is loose .", "warm for hours .")


class Leak(AssertionError):
    """The two sides answered differently, and no permission says they may."""


@dataclass(frozen=True)
class Seen:
    """Everything that a server sees of one exchange."""

    answer: bytes
    arrays: tuple[tuple[str, bytes], ...]
    shapes: tuple[tuple[int, ...], ...]  # of the batches of a training: work, hence time
    sent: tuple[str, ...]  # to an LLM


class Game:
    """Two vaults in `folder` whose data differ as `kind` says, under one policy.

    `models`: folders of a classifier's and a generator's public start; small ones, since every
    message is worked on twice.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], kind: str, policy: str = "private"
    ) -> None:
        self.kind, self.policy, self.played = kind, policy, 0
        shutil.rmtree(folder, ignore_errors=True)
        self._sites = [
            site_of(folder / name, config, rows, kind, POLICIES[policy])
            for name, rows in zip(("left", "right"), neighbours(kind), strict=True)
        ]
        self.restart()

    def restart(self) -> None:
        """Both sites stop and start again."""
        self._vaults = [dispatch.open_vault(site) for site in self._sites]

    def lose(self, what: str) -> None:
        """A folder or file of both sites' state is gone."""
        for site in self._sites:
            lost = site.folder / what
            shutil.rmtree(lost, ignore_errors=True) if lost.is_dir() else lost.unlink(True)

    def play(self, request: Any, arrays: Arrays | None = None) -> Any:
        """Both sides' answer to a message. Raises Leak where they differ without a permission."""
        self.played += 1
        with fixed_draws() as shapes:
            seen, answers = [], []
            for vault in self._vaults:
                shapes.clear()
                answer, returned = dispatch.ask(vault, request, dict(arrays or {}))
                answers.append(answer)
                seen.append(_seen(answer, returned, shapes, vault.config.folder))
        if seen[0] != seen[1] and not self._permitted(request):
            raise Leak(
                f"{self.kind}, policy {self.policy}: {request} was answered with {answers[0]} and"
                f" {answers[1]}; shapes {set(seen[0].shapes) ^ set(seen[1].shapes)}"
            )
        if self._lines(0) != self._lines(1):
            raise Leak(f"{self.kind}: after {request} the ledgers differ")
        return answers[0]

    def _permitted(self, request: Any) -> bool:
        """Whether both ledgers hold this message as "none"."""
        return all(
            any(
                line["id"].startswith(request.message_id) and line["event"]["kind"] == "none"
                for line in self._lines(side)
                if "event" in line
            )
            for side in (0, 1)
        )

    def _lines(self, side: int) -> list[dict[str, Any]]:
        file = self._sites[side].folder / "ledger.jsonl"
        if not file.is_file():
            return []
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        # hashes over the site's clock and its key; what left is compared as it left
        said = {"time", "check", "coins", "digest"}
        return [{key: line[key] for key in line if key not in said} for line in lines]


def _seen(
    answer: Any, returned: Arrays | None, shapes: Sequence[tuple[int, ...]], folder: Path
) -> Seen:
    receipt = getattr(answer, "receipt", None)
    if receipt is not None and hasattr(receipt, "ledger_head"):
        # a hash over the site's clock, too
        answer = replace(answer, receipt=replace(receipt, ledger_head=""))
    arrays = tuple((name, value.tobytes()) for name, value in sorted((returned or {}).items()))
    sent = [file.read_text() for file in sorted((folder / "sent").glob("*.jsonl"))]
    return Seen(encode(answer), arrays, tuple(shapes), tuple(sent))


@contextlib.contextmanager
def fixed_draws() -> Iterator[list[tuple[int, ...]]]:
    """Charged mechanisms answer with noise alone, always the same: what they would show of the data
    is what was paid for. Yields the shapes of the batches that classifiers see."""
    shapes: list[tuple[int, ...]] = []
    gradients, logits = dpsgd.set_noisy_gradients, classify._logits

    def noisy(total: np.ndarray, sigma: float, randomness: Any) -> np.ndarray:
        return sigma * np.random.default_rng(total.size).standard_normal(total.shape)

    def votes(total: np.ndarray, sigma: float, randomness: Any) -> np.ndarray:
        return noisy(total.astype(float), sigma, randomness)

    def noise_alone(
        parameters: dict[str, torch.nn.Parameter],
        total: Any,
        sigma: float,
        expected: float,
        randomness: Any,
    ) -> None:
        if sigma > 0:
            drawn = torch.Generator().manual_seed(0)
            for value in total.sums.values():
                value.copy_(torch.randn(value.shape, generator=drawn) * sigma * total.clip)
            sigma = 0.0
        gradients(parameters, total, sigma, expected, randomness)

    def seen(model: Any, rows: Any, pad: int, precision: str, width: int = 0) -> Any:
        multiple = classify.width_multiple(model)
        widest = max([width, *map(len, rows)])
        shapes.append((len(rows), -(-widest // multiple) * multiple))
        return logits(model, rows, pad, precision, width)

    with (
        mock.patch.object(feedback, "noisy", noisy),
        mock.patch.object(feedback, "noisy_votes", votes),
        mock.patch.object(dpsgd, "set_noisy_gradients", noise_alone),
        mock.patch.object(classify, "_logits", seen),
    ):
        yield shapes


# --- Messages -------------------------------------------------------------------------------------


def bounds() -> dict[str, tuple[Any, ...]]:
    """The values that a server plays for each field, the least, the most and what is beyond."""
    return {
        "message_id": ("m0", "m1", "m2", "m3"),
        "run": ("r", "other"),
        "model": ("own", "public", "heir"),
        "round": (0, 1, 2),
        "rounds": (1, 2, 0, 10**9),
        "per_label": (1, 3, 0, 10**6),
        "epsilon": (4.0, 8.0, 8.1, 0.0, math.inf, math.nan),
        "delta": (None, 1e-4, 0.0, math.nan),
        "seed": (0, 1),
        "feedback": feedback_kinds(),
        "texts": (0, 1, 4),
        "label": (0, 1, 2, -1),
        "part": (1.0, 0.01),
        "order": ("together", "generated_first"),
        "start": (None, "own", "public"),
        "private": (True, False),
        "share_weights": (False, True),
        "exact": (True, False),
        "scope": ("own", "pooled"),
    }


def feedback_kinds() -> tuple[str, ...]:
    """How scores may be asked for."""
    return ("votes", "gaussian", "none")


def message(kind: str, of: Mapping[str, Any]) -> Any:
    """A message of `kind` from a choice for every field of `bounds`."""
    size = of["texts"]
    data = LabelledTexts(list(TEXTS[:size]), [of["label"], 1, 0, 1][:size])
    ids = {"message_id": of["message_id"], "run": of["run"]}
    rounds = {"round": of["round"], "rounds": of["rounds"], "delta": of["delta"]}
    match kind:
        case "synthesize":
            each = {"per_label": of["per_label"], "epsilon": of["epsilon"], "seed": of["seed"]}
            return Synthesize(**ids, **rounds, **each)
        case "score":
            each = {"model": of["model"], "epsilon": of["epsilon"], "feedback": of["feedback"]}
            return Score(**ids, **rounds, **each, data=data)
        case "learn":
            names = ("model", "private", "order", "start", "part", "share_weights", "seed")
            return Learn(**ids, **{name: of[name] for name in names}, data=data)
        case "evaluate":
            asked = None if of["exact"] else of["epsilon"]
            return Evaluate(**ids, **rounds, model=of["model"], scope=of["scope"], epsilon=asked)
        case "answer":
            return Answer(**ids, model=of["model"], method="search", search={"alpha": 1e4})
    return Introduce(**ids)


MESSAGES = ("introduce", "synthesize", "score", "learn", "learn", "evaluate", "answer")
LOST = ("releases", "measurements", "models", "scorers", "batches.secret", "trainings")


def play_at_random(game: Game, moves: int, draw: random.Random) -> dict[str, int]:
    """Plays messages, repeats, restarts and losses; how many of each answer there were. Raises
    Leak."""
    heard: dict[str, int] = {}
    last: Any = None
    for _ in range(moves):
        chance = draw.random()
        if chance < 0.06:
            game.restart()
        elif chance < 0.12:
            game.lose(draw.choice(LOST))
        else:
            if last is None or chance > 0.2:
                of = {name: _often_first(values, draw) for name, values in bounds().items()}
                last = message(draw.choice(MESSAGES), of)
            answer = game.play(last)
            name = answer.kind if isinstance(answer, Refused) else type(answer).__name__
            heard[name] = heard.get(name, 0) + 1
    return heard


SMALL = (
    "slm.max_tokens=64",
    "slm.min_steps=0",
    "slm.epochs=0.5",
    "generator.max_tokens=48",
    "generator.max_new_tokens=16",
    "generator.attempts=1",
    "generator.epochs=1",
    "generator.steps=null",
)  # what a game changes of a run's configuration, since every message is worked on twice


def play_all(
    config: Mapping[str, Any], moves: int, seed: int, folder: Path
) -> list[dict[str, Any]]:
    """One game for each kind of neighbours and policy: what was played and what was heard. Raises
    Leak."""
    rows = []
    for kind in KINDS:
        for policy in POLICIES:
            game = Game(folder / f"{kind}-{policy}", config, kind, policy)
            heard = play_at_random(game, moves, random.Random(f"{seed}/{kind}/{policy}"))
            rows.append({"kind": kind, "policy": policy, "messages": game.played, "heard": heard})
    return rows


def main(argv: Sequence[str]) -> int:
    """`fedduet attack interface [--moves N] [--seed N] OVERRIDES...`; 1 when something leaked."""
    parser = argparse.ArgumentParser(prog="fedduet attack interface", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", help="as for a run: slm.path=... generator.path=..."
    )
    parser.add_argument("--moves", type=int, default=40, help="of each of the games")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_intermixed_args(list(argv))
    config, began, console = conf.compose([*SMALL, *given.overrides]), time.monotonic(), Console()
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = play_all(config, given.moves, given.seed, Path(folder))
        except Leak as leak:
            print(f"leak: {leak}", file=sys.stderr)
            return 1
    table = Table("neighbours differ in", "policy", "messages", "answers")
    for row in rows:
        heard = ", ".join(f"{name} {count}" for name, count in sorted(row["heard"].items()))
        table.add_row(row["kind"], row["policy"], str(row["messages"]), heard)
    played = sum(row["messages"] for row in rows)
    table.caption = f"{played} messages to both sides, no leak; {time.monotonic() - began:.0f} s"
    console.print(table)
    return 0


def _often_first(values: Sequence[Any], draw: random.Random) -> Any:
    """Mostly what works, so that a game gets somewhere."""
    return values[0] if draw.random() < 0.6 else draw.choice(values)
