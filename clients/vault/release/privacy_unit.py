"""The unit of privacy: whose data an epsilon protects, one record's or all records of one user."""

from __future__ import annotations

from collections.abc import Sequence

from fedduet.clients.vault.release.policy import Policy, Unit
from fedduet.conf.check import ConfigError
from fedduet.tasks.data.questions import AnyTask, QuestionsConfig
from fedduet.tasks.task import Record


def owners_of(records: Sequence[Record], unit: Unit) -> list[int]:
    """For each record the number of its unit, units numbered as they appear."""
    names = range(len(records)) if unit == "record" else [record.user for record in records]
    numbers: dict[object, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def check_unit(policy: Policy, task: AnyTask) -> None:
    """Raises ConfigError where users shall be the unit and the task does not say whose a record
    is."""
    if policy.unit == "record":
        return
    if isinstance(task, QuestionsConfig):
        raise ConfigError(
            "policy.unit: found user with a task of questions, of which nothing leaves with an"
            " epsilon; allowed: record"
        )
    if not task.user_column:
        raise ConfigError(
            "policy.unit: found user, but task.user_column is null; give the column that says whose"
            " a row is, or unit record"
        )
