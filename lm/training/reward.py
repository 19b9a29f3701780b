"""Process reward models: how good the last step of a solution is, as a transformers model has
it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedduet.conf.check import ConfigError
from fedduet.lm.models.batch import Encoded, by_length, longest, pad
from fedduet.lm.models.load import load_causal_lm, load_tokenizer, quiet
from fedduet.lm.training.config import RewardConfig
from fedduet.lm.training.tune import answer_logprobs
from safetensors import safe_open
from transformers import AutoModel, AutoModelForTokenClassification

# question and finished steps as text, ending where the next step begins
Word = Callable[[str, Sequence[str]], str]
State = tuple[str, tuple[str, ...]]
LIKELIHOOD = "likelihood.json"


class StepRewards:
    """A `RewardModel` (clients/vault/answering/solving.py) over the folder `config.path`; `word` is
    the layout that a "steps" model was trained on.

    Rewards are P(good) in [0, 1]; a state longer than `config.max_tokens` is cut at its beginning.
    What the model returns is not repaired: NaN stays NaN, and the search counts it as a bad reward
    of 0.
    """

    def __init__(self, config: RewardConfig, word: Word) -> None:
        self._config, self._word = config, word
        self._tokenizer = load_tokenizer(config.path)
        self._limit = min(config.max_tokens, longest(self._tokenizer))

    def score(self, states: Sequence[State]) -> list[float]:
        """P(the last step is good), in the order of the states."""
        if self._config.form == "likelihood":
            found = lowest_likelihoods(
                self._causal, self._tokenizer, states, self._word, self._config.batch_size
            )
            return np.interp(found, *self._calibration).tolist()
        rows = [self._encoded(question, steps)[-self._limit :] for question, steps in states]
        rewards = torch.zeros(len(rows))
        with torch.inference_mode():
            for part in by_length([len(row) for row in rows], self._config.batch_size):
                ids, mask = pad([rows[place] for place in part], self._tokenizer.pad_token_id)
                rewards[part] = self._good(ids, mask, mask.sum(dim=1) - 1).float()
        return rewards.tolist()

    def _encoded(self, question: str, steps: Sequence[str]) -> list[int]:
        """Token ids that end where the reward of the last step is read."""
        match self._config.form:
            case "steps":
                text = self._word(question, steps)
            case "math_shepherd":
                text = f"{question} " + "\n".join(f"{step} {self._config.tag}" for step in steps)
            case "qwen":
                system = "Please reason step by step, and put your final answer within \\boxed{}."
                said = {
                    "system": system,
                    "user": question,
                    "assistant": "".join(f"{step}<extra_0>" for step in steps),
                }
                chat = [{"role": role, "content": content} for role, content in said.items()]
                text = self._tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=False
                )
                text = text[: text.rindex("<extra_0>") + len("<extra_0>")]
        ids = list(
            self._tokenizer(text, add_special_tokens=self._config.form != "qwen", verbose=False)[
                "input_ids"
            ]
        )
        while len(ids) > 1 and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        return ids

    def _good(self, ids: torch.Tensor, mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """[B] probabilities at the `last` tokens."""
        rows = torch.arange(len(ids))
        match self._config.form:
            case "steps":
                return (
                    self._classifier(input_ids=ids, attention_mask=mask)
                    .logits[rows, last]
                    .softmax(dim=-1)[:, 1]
                )
            case "math_shepherd":
                good, bad = (self._token(name) for name in (self._config.good, self._config.bad))
                return (
                    self._causal(input_ids=ids, attention_mask=mask)
                    .logits[rows, last][:, [good, bad]]
                    .softmax(dim=-1)[:, 0]
                )
            case "qwen":
                body, head = self._body
                return head(
                    body(input_ids=ids, attention_mask=mask).last_hidden_state[rows, last]
                ).softmax(dim=-1)[:, 1]

    def _token(self, text: str) -> int:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-1]

    @cached_property
    def _classifier(self) -> Any:
        with quiet():
            model = AutoModelForTokenClassification.from_pretrained(
                self._config.path, use_safetensors=True
            )
        if model.config.num_labels != 2:
            raise ConfigError(
                f"reward.path: {self._config.path} has {model.config.num_labels} classes; needed:"
                " two, bad and good"
            )
        return model.eval()

    @cached_property
    def _causal(self) -> Any:
        return load_causal_lm(self._config.path, tokenizer=self._tokenizer).eval()

    @cached_property
    def _calibration(self) -> tuple[list[float], list[float]]:
        """Log-probabilities, rising, and the share of good steps at each."""
        file = Path(self._config.path) / LIKELIHOOD
        try:
            read = json.loads(file.read_text())
            lowest, good = (
                [float(value) for value in read["lowest"]],
                [float(value) for value in read["good"]],
            )
        except (OSError, ValueError, KeyError, TypeError) as failure:
            raise ConfigError(
                f"reward.path: {file} cannot be read ({failure}); fedduet-train-reward writes it"
            ) from None
        if not lowest or len(lowest) != len(good) or lowest != sorted(lowest):
            raise ConfigError(
                f"reward.path: {file} has {len(lowest)} and {len(good)} values; needed: as many of"
                " each, the first rising"
            )
        return lowest, good

    @cached_property
    def _body(self) -> tuple[Any, torch.nn.Module]:
        """The model without its head, and the head: score.0, ReLU, score.2 (transformers has no
        class for it; no code is loaded)."""
        weights = read_weights(Path(self._config.path), "score.")
        try:
            layers = [
                torch.nn.Linear(*reversed(weights[f"score.{place}.weight"].shape))
                for place in (0, 2)
            ]
            for place, layer in zip((0, 2), layers, strict=True):
                layer.load_state_dict(
                    {name: weights[f"score.{place}.{name}"].float() for name in ("weight", "bias")}
                )
        except KeyError as missing:
            raise ConfigError(
                f"reward.path: {self._config.path} has no weights {missing}; is it a"
                " Qwen2.5-Math-PRM?"
            ) from None
        with quiet():
            body = AutoModel.from_pretrained(
                self._config.path, use_safetensors=True, dtype=torch.float32
            )
        return body.eval(), torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]).eval()


def lowest_likelihoods(
    model: Any, tokenizer: Any, states: Sequence[State], word: Word, batch_size: int
) -> np.ndarray:
    """[states] log-probability of the least likely token of all steps so far (the last one's end
    not among them) under a causal LM.

    Of all steps: what follows a wrong one is wrong too, as in the labels, however well it follows.
    """
    rows = []
    for question, steps in states:
        whole, before = (
            _ids(tokenizer, word(question, steps).rstrip("\n")),
            _ids(tokenizer, word(question, ())),
        )
        context = next(
            (
                place
                for place, pair in enumerate(zip(before, whole, strict=False))
                if pair[0] != pair[1]
            ),
            len(before),
        )
        rows.append(Encoded(tuple(whole), min(context, len(whole) - 1)))
    found = np.zeros(len(rows))
    with torch.inference_mode():
        for part in by_length([len(row.ids) for row in rows], batch_size):
            logprobs, mask = answer_logprobs(
                model, [rows[place] for place in part], tokenizer.pad_token_id
            )
            found[part] = logprobs.masked_fill(mask == 0, 0.0).min(dim=1).values.numpy()
    return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def read_weights(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors folder whose names begin with `prefix`. Raises ConfigError when
    it holds no safetensors."""
    index = folder / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.is_file()
        else ["model.safetensors"]
    )
    found = {}
    for name in files:
        if not (folder / name).is_file():
            raise ConfigError(
                f"reward.path: {folder} has no {name}; needed: a folder with safetensors weights"
            )
        with safe_open(folder / name, "pt") as opened:
            keys = [key for key in opened.keys() if key.startswith(prefix)]  # noqa: SIM118
            found |= {key: opened.get_tensor(key) for key in keys}
    return found
