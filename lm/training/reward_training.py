"""Trains a process reward model on labelled steps: a head on a causal LM's body, or a curve over
the LM's own likelihoods."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fedduet.conf.check import Section
from fedduet.lm.models.batch import endless_by_length, longest, pad
from fedduet.lm.models.load import load_causal_lm, load_tokenizer, quiet
from fedduet.lm.models.save import save_model
from fedduet.lm.progress import report
from fedduet.lm.randomness import derive, numpy_generator
from fedduet.lm.training.classify import schedule
from fedduet.lm.training.reward import LIKELIHOOD, Word, lowest_likelihoods
from fedduet.lm.training.step_labels import LabelledSolution
from sklearn.isotonic import IsotonicRegression
from torch.nn import functional
from transformers import AutoModelForTokenClassification


class RewardTraining(Section):
    """How a reward model is trained. All values are our choice [O]."""

    learning_rate: float = 5e-4
    batch_size: int = 32
    steps: int = 300
    warmup: float = 0.1


def train_reward(
    start: str | Path,
    questions: Sequence[str],
    solutions: Sequence[LabelledSolution],
    word: Word,
    out: Path,
    config: RewardTraining,
    seed: int = 0,
) -> Path:
    """A reward model of the form "steps" (lm/training/reward.py) in `out`, from the causal LM
    `start`; returns `out`.

    Raises ValueError when all steps have one label: then there is nothing to tell apart.
    """
    tokenizer = load_tokenizer(str(start))
    limit = longest(tokenizer)
    rows = [
        row
        for row in (_encoded(tokenizer, questions[one.question], one, word) for one in solutions)
        if len(row[0]) <= limit
    ]
    labels = [label for _, places in rows for _, label in places]
    _check_both(labels)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "head"))
        model = AutoModelForTokenClassification.from_pretrained(
            str(start), num_labels=2, use_safetensors=True
        )
    share = sum(labels) / len(labels)
    balance = torch.tensor([0.5 / (1 - share), 0.5 / share])  # both kinds count the same
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, config.steps, config.warmup)
    )
    batches = endless_by_length(
        [len(ids) for ids, _ in rows], config.batch_size, numpy_generator(seed, "batches")
    )
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "dropout"))
        for step in range(config.steps):
            _loss(
                model, [rows[place] for place in next(batches)], tokenizer.pad_token_id, balance
            ).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rates.step()
            report("train the reward model", step + 1, config.steps, "steps")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(model.eval(), tokenizer, out)
    return out


def fit_likelihood(
    start: str | Path,
    questions: Sequence[str],
    solutions: Sequence[LabelledSolution],
    word: Word,
    out: Path,
    batch_size: int = 64,
) -> Path:
    """A reward model of the form "likelihood" in `out`: the causal LM `start`, and how often a step
    is good whose least likely token has a given log-probability.

    Isotonic regression on steps up to the first bad one. Raises ValueError when all have one label.
    """
    tokenizer = load_tokenizer(str(start))
    model = load_causal_lm(str(start), tokenizer=tokenizer)
    states, labels = [], []
    for one in solutions:
        reached = one.good.index(False) + 1 if False in one.good else len(one.good)
        states += [(questions[one.question], one.steps[:end]) for end in range(1, reached + 1)]
        labels += one.good[:reached]
    _check_both(labels)
    found = lowest_likelihoods(model, tokenizer, states, word, batch_size)
    fitted = IsotonicRegression(y_min=0.01, y_max=0.99).fit(found, labels)
    save_model(model, tokenizer, out)
    curve = {
        "lowest": fitted.X_thresholds_.tolist(),
        "good": fitted.y_thresholds_.tolist(),
        "steps": len(labels),
    }
    (out / LIKELIHOOD).write_text(json.dumps(curve))
    return out


def _check_both(labels: Sequence[bool]) -> None:
    if len(set(labels)) < 2:
        said = "good" if any(labels) else "bad"
        raise ValueError(
            f"all {len(labels)} labelled steps are {said}; needed: both kinds (other questions, or"
            " a higher temperature)"
        )


def _loss(
    model: Any,
    rows: Sequence[tuple[list[int], list[tuple[int, bool]]]],
    pad_id: int,
    balance: torch.Tensor,
) -> torch.Tensor:
    ids, mask = pad([ids for ids, _ in rows], pad_id)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    places = [
        (row, place, int(label)) for row, (_, found) in enumerate(rows) for place, label in found
    ]
    at, targets = (
        torch.tensor([[row, place] for row, place, _ in places]),
        torch.tensor([label for *_, label in places]),
    )
    return functional.cross_entropy(logits[at[:, 0], at[:, 1]], targets, weight=balance)


def _encoded(
    tokenizer: Any, question: str, solution: LabelledSolution, word: Word
) -> tuple[list[int], list[tuple[int, bool]]]:
    """Token ids of the whole solution, and for each step the place of its last token with its
    label."""

    def ids_of(steps: Sequence[str]) -> list[int]:
        ids = list(tokenizer(word(question, steps), verbose=False)["input_ids"])
        while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        return ids

    ids = ids_of(solution.steps)
    places = []
    for end, label in enumerate(solution.good, start=1):
        begun = ids_of(solution.steps[:end])
        # a tokenizer may join a step's end to the next one's beginning
        if ids[: len(begun)] == begun:
            places.append((len(begun) - 1, label))
    return ids, places
