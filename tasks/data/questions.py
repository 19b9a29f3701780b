"""The task section of kind "reasoning": whose questions with which answers, from files or the
built-in world."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedduet.conf.check import ConfigError, Section, check, nearest
from fedduet.tasks.builtin import arithmetic
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import client_names
from fedduet.tasks.data.partition import sizes
from fedduet.tasks.data.read import Columns, read_rows
from fedduet.tasks.reasoning import Question
from pydantic import Field, model_validator

WORLD_ROWS, WORLD_TEST_ROWS = 80, 60  # [O]


class QuestionsConfig(Section):
    """Questions with answers, and worked steps where there are any. Paths are relative to `root`,
    and `root` to the working directory."""

    name: str = Field(min_length=1)
    """How reports name it."""
    kind: Literal["reasoning"]
    """Questions with answers."""
    source: Literal["arithmetic", "files"] = "files"
    """The built-in arithmetic, or files."""
    root: str | None = None
    """Folder that path and test_path are relative to; null is the current working directory."""
    path: dict[str, str] | None = None
    """Client -> file of its training questions."""
    test_path: str | dict[str, str] | None = None
    """Likewise; one file serves all clients; null: test_fraction of each client's rows."""
    question_column: str = "question"
    """The column of questions."""
    answer_column: str = "answer"
    """The column of answers."""
    steps_column: str | None = None
    """Worked steps, a line each; null: the answer alone is learnt."""
    clients: tuple[str, ...] | None = None
    """null: all."""
    rows_per_client: int | None = Field(default=None, ge=2)
    """Training questions; null: all."""
    validation_rows: int | None = Field(default=None, ge=0)
    """Beside them; null: a quarter of rows_per_client, a fifth of all."""
    validation_path: str | None = None
    """A file of questions of no site, on which settings may be chosen."""
    test_rows: int | None = Field(default=None, ge=1)
    """Test questions; null: all."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Of a client's rows, where there is no test file."""

    @model_validator(mode="after")
    def _has_data(self) -> QuestionsConfig:
        if self.source == "files" and not self.path:
            raise ValueError(
                "path: missing with source=files; give a file for each client, such as {shop:"
                " shop.jsonl}"
            )
        known = tuple(self.path or {}) if self.source == "files" else arithmetic.CLIENTS
        for client in self.clients or ():
            if client not in known:
                raise ValueError(f"clients: no client {client!r}; {nearest(client, list(known))}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The clients in order."""
        return self.clients or (
            tuple(self.path or {}) if self.source == "files" else arithmetic.CLIENTS
        )


@dataclass(frozen=True)
class QuestionSplit:
    """What one site holds: questions to learn from, others to choose settings on, and others that
    only measure; no question is two of these."""

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]


def load_questions(config: QuestionsConfig, client: str, seed: int) -> QuestionSplit:
    """One client's questions, the same for the same seed.

    Raises ConfigError naming file and row for what `fedduet.tasks.data.read` complains of, empty
    questions or answers, and too few rows.
    """
    if client not in config.names:
        raise ConfigError(
            f"task.clients: no client {client!r}; {nearest(client, list(config.names))}"
        )
    if config.source == "arithmetic":
        rows, tests = config.rows_per_client or WORLD_ROWS, config.test_rows or WORLD_TEST_ROWS
        held = -(-rows // 4) if config.validation_rows is None else config.validation_rows
        found = arithmetic.site_questions(client, rows + tests + held, seed)
        return QuestionSplit(
            tuple(found[:rows]), tuple(found[rows + tests :]), tuple(found[rows : rows + tests])
        )
    draws = random.Random(f"questions/{config.name}/{client}/{seed}")
    train = read_questions(config, (config.path or {})[client], client)
    if config.test_path is None:
        draws.shuffle(train)
        held = max(1, round(config.test_fraction * len(train)))
        test, train = train[:held], train[held:]
    else:
        test = read_questions(
            config,
            (
                config.test_path
                if isinstance(config.test_path, str)
                else config.test_path.get(client, "")
            ),
            client,
        )
    asked = {question.question for question in test}
    train = [
        question
        for question in {one.question: one for one in train}.values()
        if question.question not in asked
    ]
    rows, held = sizes(len(train), config.rows_per_client, config.validation_rows)
    if config.rows_per_client is not None or held:
        train = draws.sample(train, rows + held)
    validation, train = train[rows:], train[:rows]
    if config.test_rows is not None:
        test = random.Random(f"questions/{config.name}/test/{seed}").sample(
            test, min(config.test_rows, len(test))
        )
    if len(train) < 2:
        raise ConfigError(
            f"client {client}: {len(train)} training questions that are not test questions too;"
            " needed: at least 2"
        )
    return QuestionSplit(tuple(train), tuple(validation), tuple(test))


def read_questions(config: QuestionsConfig, name: str, client: str) -> list[Question]:
    """All questions of the file `name`. Raises ConfigError for an empty question or answer."""
    path = Path(config.root or ".").expanduser() / name
    questions = []
    columns = Columns(
        config.question_column,
        config.answer_column,
        config.steps_column,
        config.steps_column is not None,
    )
    for row in read_rows(path, columns):
        if not row.text.strip() or not row.label.strip():
            raise ConfigError(
                f"{row.where}: an empty {'question' if not row.text.strip() else 'answer'}; needed:"
                " words or a number"
            )
        steps = (
            tuple(line.strip() for line in row.client.splitlines() if line.strip())
            if config.steps_column
            else ()
        )
        questions.append(Question(" ".join(row.text.split()), steps, row.label.strip(), client))
    return questions


AnyTask = TaskConfig | QuestionsConfig


def check_task(section: Mapping[str, Any]) -> AnyTask:
    """The checked `task` section, whatever its kind. Raises ConfigError."""
    kind = section.get("kind", "classification")
    if kind not in ("classification", "reasoning"):
        raise ConfigError(f"task.kind: found {kind!r}; allowed: classification, reasoning")
    return check(QuestionsConfig if kind == "reasoning" else TaskConfig, section, "task")


def names_of(task: AnyTask) -> tuple[str, ...]:
    """The clients of a task of any kind."""
    return task.names if isinstance(task, QuestionsConfig) else client_names(task)
