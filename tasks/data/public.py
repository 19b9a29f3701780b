"""Labelled text of no site: what a baseline trains on directly, and rows of which nobody's are, to
choose settings on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedduet.conf.check import ConfigError
from fedduet.tasks.builtin import arithmetic, world
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data import partition as part
from fedduet.tasks.data.pools import client_names, label_wordings, read_pools
from fedduet.tasks.data.questions import QuestionsConfig, read_questions
from fedduet.tasks.reasoning import Question
from fedduet.tasks.task import Record

HELD_OUT = 0.2  # of the public text, for validation, where it has no file of its own [O]
WORLD_VALIDATION = 400  # reviews, or questions, of the built-in worlds [O]


@dataclass(frozen=True)
class PublicText:
    """Labelled rows of no site; the two have no text in common."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]


def load_public(config: TaskConfig, seed: int) -> PublicText | None:
    """The task's public text: `public_clients` of its data, or `public_path`, less a held-out part
    unless `validation_path` has other rows; of the built-in world, the reviews that its stand-in
    LLM was made from, and fresh ones. None for a task without any. Raises ConfigError."""
    if config.source == "world":
        return _world(config, seed)
    train = _file(config, "public_path")
    if config.public_clients:
        train += _clients(config, seed)
    validation = _file(config, "validation_path")
    train = tuple({record.text: record for record in reversed(train)}.values())[::-1]
    if validation:
        held = {record.text for record in validation}
        train = tuple(record for record in train if record.text not in held)
    elif train:
        labels = [record.label for record in train]
        rng = part.named_random(seed, "public", "validation")
        rows = set(part.test_rows_of(labels, len(label_wordings(config)), HELD_OUT, rng))
        validation = tuple(record for row, record in enumerate(train) if row in rows)
        train = tuple(record for row, record in enumerate(train) if row not in rows)
    return PublicText(train, validation) if train or validation else None


def load_public_questions(config: QuestionsConfig, seed: int) -> tuple[Question, ...]:
    """Questions of no site, to choose settings on: of `validation_path`, or fresh ones that the
    built-in arithmetic world's models may see. () for a task without any."""
    if config.source == "arithmetic":
        return tuple(arithmetic.public_questions(WORLD_VALIDATION, f"validation/{seed}"))
    if config.validation_path is None:
        return ()
    return tuple(read_questions(config, config.validation_path, ""))


def _world(config: TaskConfig, seed: int) -> PublicText:
    from fedduet.tasks.builtin.standin import RECIPES, public_reviews

    order = label_wordings(config)

    def worded(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(
            Record(one.text, order.index(world.LABELS[one.label]), one.domain) for one in records
        )

    train = worded(public_reviews(RECIPES["llm"]))
    seen = {record.text for record in train}
    each = -(-WORLD_VALIDATION // len(world.PUBLIC_DOMAINS))
    fresh = [
        record
        for domain in world.PUBLIC_DOMAINS
        for record in world.world_records(domain, each, f"{seed}/public validation")
        if record.text not in seen
    ]
    return PublicText(train, worded(fresh))


def _clients(config: TaskConfig, seed: int) -> tuple[Record, ...]:
    """All training rows of the named public clients, each in its own domain."""
    sites = client_names(config)
    for name in config.public_clients:
        if name in sites:
            raise ConfigError(
                f"task.public_clients: {name!r} is a site of this task, and its rows are private;"
                " allowed: names of the data that are not in task.clients"
            )
    domain = config.domain if config.domain and "{client}" in config.domain else None
    open_ = config.model_copy(update={"clients": config.public_clients, "domain": domain})
    pools = read_pools(open_, config.public_clients, config.public_clients, seed)
    return tuple(record for name in config.public_clients for record in pools[name].train)


def _file(config: TaskConfig, key: str) -> tuple[Record, ...]:
    path = getattr(config, key)
    if path is None:
        return ()
    alone = {
        "source": "files",
        "path": path,
        "test_path": None,
        "client_column": None,
        "user_column": None,
        "clients": ("public",),
        "partition": "files",
    }
    pools = read_pools(config.model_copy(update=alone), ("public",), ("public",), 0)
    return pools["public"].train
