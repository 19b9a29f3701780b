"""The site's small model: trained on private and generated texts, kept in the site's folder as
plain Hugging Face folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.lm.models.load import load_classifier, load_tokenizer
from fedduet.lm.models.save import save_model, set_trainable_arrays, trainable_arrays
from fedduet.lm.randomness import derive
from fedduet.lm.training.classify import (
    Examples,
    planned_training_steps,
    predict_probabilities,
    prepare_classifier,
    train_classifier,
)
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.task import Record, Split
from fedduet.wire.codec import Arrays
from fedduet.wire.messages import Learn

# in the folder of a model that saw nothing private, neither to learn from nor to choose by
PUBLIC = "saw-nothing-private"
# in the folder of a model that learnt texts with their domain in front
DOMAIN_FIRST = "domain-first"


def examples(records: Sequence[Record]) -> Examples:
    """Records as training rows."""
    return Examples([record.text for record in records], [record.label for record in records])


@dataclass(frozen=True)
class Trained:
    """Steps of a training and how often it saw a private and a generated row on the mean, by the
    public number of private rows; `checkpoint`: how the kept one was chosen."""

    steps: int
    private_passes: float
    generated_passes: float
    checkpoint: str


class SLM:
    """All SLMs of one run at one site, by name, in `folder`/<name>.

    `owner`: the site's name, so that each site draws its own head; `sites`: how many sites' rows
    are trained on (the pooled bound). `careful`: as a real site's, whose time and whose public
    models are not to tell of private rows: rows take the longest row's place, and what learns from
    generated texts alone is not chosen by private ones.
    """

    def __init__(
        self,
        config: SLMConfig,
        classes: int,
        folder: Path,
        owner: str,
        sites: int = 1,
        careful: bool = True,
        domain: str = "",
    ) -> None:
        self._config, self._classes, self._folder = config, classes, folder
        self._owner, self._sites, self._careful, self._domain = owner, sites, careful, domain
        self._path = resolve(config.path)
        self._shared: dict[str, Arrays] = {}

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._path)

    def train(
        self, request: Learn, split: Split, arrays: Arrays, private_rows: int, seed: int
    ) -> Trained:
        """Train from the public start (or `request.start`, or the shared `arrays`) and keep the
        model. `seed`: of batches and dropout.

        Steps follow the public number `private_rows` alone, whatever texts come beside them.
        Weights that are averaged have one start at all sites.
        """
        sharing = request.share_weights or bool(arrays)
        config = self._config
        if sharing:
            config = config.model_copy(update={"method": config.share, "select": "last"})
        if self._careful and not request.private:
            config = config.model_copy(update={"select": "last"})
        start = self._path if request.start is None else str(self._kept(request.start))
        public = request.seed if sharing else derive(request.seed, "site", self._owner)
        model = load_classifier(start, self._classes, derive(public, "head"), self._tokenizer)
        model = prepare_classifier(model, config, derive(public, "adapter"))
        if arrays:
            set_trainable_arrays(model, arrays)
        trained = Trained(0, 0.0, 0.0, config.select)
        if request.private or len(request.data):
            own, held = examples(split.train), examples(split.validation)
            if request.domain_first:
                own, held = (
                    replace(one, texts=self._with_domain(one.texts)) for one in (own, held)
                )
            private = own if request.private else Examples()
            report = train_classifier(
                model,
                self._tokenizer,
                private,
                request.data,  # type: ignore[arg-type]  # it has the fields of Examples
                config,
                weight=request.weight,
                order=request.order,
                validation=held if request.private or not self._careful else None,
                seed=derive(seed, "slm"),
                phase=f"train {request.model}",
                private_rows=private_rows,
                padded=self._careful,
                steps=self._steps(request, config, private_rows),
            )
            trained = Trained(
                report.steps, report.private_passes, report.generated_passes, config.select
            )
        if request.share_weights:
            self._shared[request.model] = trainable_arrays(model)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        public = (
            self._careful
            and not (request.private or arrays)
            and (request.start is None or self.is_public(request.start))
        )
        for mark in (PUBLIC, DOMAIN_FIRST):  # of an earlier one
            (self._folder / request.model / mark).unlink(missing_ok=True)
        save_model(model, self._tokenizer, self._folder / request.model)
        if public:
            (self._folder / request.model / PUBLIC).touch(mode=0o600)
        if request.domain_first:
            (self._folder / request.model / DOMAIN_FIRST).touch(mode=0o600)
        return trained

    def _with_domain(self, texts: Sequence[str]) -> list[str]:
        """As texts stand in data of several domains (strategies/run/texts.py `shared_by_all`)."""
        return [f"{self._domain}: {text}" for text in texts]

    def _steps(self, request: Learn, config: SLMConfig, private_rows: int) -> int:
        """Of a whole training, or of the `part` of it that this request is: parts that add up to 1
        make the whole."""
        rows = private_rows if request.private else len(request.data)
        whole = planned_training_steps(config, rows, self._sites)
        ends = round((request.begun + request.part) * whole)
        return max(1, ends - round(request.begun * whole))

    def check_start(self, request: Learn) -> None:
        """Raises PolicyError for a start that is not kept here."""
        if request.start is not None:
            self._kept(request.start)

    def is_public(self, name: str) -> bool:
        """Whether the kept model is a function of what the server sent alone."""
        return (self._kept(name) / PUBLIC).is_file()

    def weights(self, name: str) -> Arrays:
        """The trainable weights of the model just trained, as FedAvg sends them."""
        return self._shared[name]

    def probabilities(self, name: str, texts: Sequence[str]) -> np.ndarray:
        """[n, K] class probabilities of the kept model."""
        model = load_classifier(str(self._kept(name)), self._classes, 0, self._tokenizer)
        if (self._kept(name) / DOMAIN_FIRST).is_file():
            texts = self._with_domain(texts)
        return predict_probabilities(
            model,
            self._tokenizer,
            texts,
            self._config.max_tokens,
            precision=self._config.precision,
            padded=self._careful,
        )

    def right(self, name: str, records: Sequence[Record]) -> np.ndarray:
        """[n] bool: where the kept model's likeliest class is the record's label."""
        probabilities = self.probabilities(name, [record.text for record in records])
        return probabilities.argmax(axis=1) == np.array([record.label for record in records])

    def _kept(self, name: str) -> Path:
        path = self._folder / name  # messages hold no name that leads out of the folder
        if not (path / "config.json").is_file():
            raise PolicyError(
                f"this site keeps no model {name!r} for this run; it has to learn it first"
            )
        return path
