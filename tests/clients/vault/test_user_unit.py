"""A site whose policy protects users: n counts users everywhere, one user has one vote and one
clipped gradient, and units do not mix."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fedduet.clients.vault import feedback
from fedduet.clients.vault.budget.ledger import Ledger, LedgerError
from fedduet.clients.vault.feedback import (
    CLIP,
    LEARNING_RATE,
    VOTE,
    View,
    clipped_gradients,
    train_scorer,
    vote_sum,
)
from fedduet.clients.vault.release.policy import delta_for
from fedduet.clients.vault.release.privacy_unit import owners_of
from fedduet.conf.check import ConfigError, check
from fedduet.lm.dp.accounting import Event
from fedduet.lm.dp.dpsgd import planned_steps
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import check_data, load_client
from fedduet.tasks.task import Record
from fedduet.wire.messages import LabelledTexts, Learn, Refused, Score, Synthesize

DATA = LabelledTexts(
    ["a fine cup .", "it broke at once .", "the lid is loose .", "warm for hours ."], [1, 0, 0, 1]
)
WRITERS = 16


@pytest.fixture
def signed(private_csv, tmp_path):
    """The private CSV with a column `writer`: sixteen people."""
    rows = list(csv.DictReader((private_csv / "train.csv").open()))
    with (tmp_path / "signed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "writer"])
        writer.writeheader()
        writer.writerows(
            row | {"writer": f"writer {number % WRITERS}"} for number, row in enumerate(rows)
        )
    return {
        "path": str(tmp_path / "signed.csv"),
        "user_column": "writer",
        "rows_per_client": None,
    }


@pytest.fixture
def by_user(site, signed):
    def opened(folder="site", policy=None, task_changes=signed, **fields):
        policy = {"unit": "user", "minimum_records": 10, "share_scores": "private"} | (policy or {})
        return site(folder, policy, {"logical_batch": 4}, task_changes, **fields)

    return opened


def ask(message_id="m", **changes) -> Synthesize:
    return Synthesize(
        **{
            "message_id": message_id,
            "run": "r",
            "round": 0,
            "rounds": 1,
            "per_label": 3,
            "epsilon": 8.0,
            **changes,
        }
    )


def test_texts_are_released_by_a_plan_and_a_training_of_users(by_user, seen):
    vault = by_user()
    train = load_client(vault.config.task, "coffee", 0, by_user=True).train
    users = {record.user for record in train}
    assert len(users) == 11
    answer = vault.synthesize(ask())
    owners, report = seen.generator[0][7], seen.reports[0]
    assert len(set(owners)) == len(users) < len(owners) == len(train) == 41
    steps, rate = planned_steps(vault.config.generator, len(users))
    assert (
        (report.steps, report.sample_rate)
        == (steps, rate)
        == (answer.receipt.steps, answer.receipt.sample_rate)
    )
    assert (answer.receipt.unit, answer.receipt.records, answer.receipt.delta) == (
        "user",
        len(users),
        delta_for(vault.config.policy, len(users)),
    )
    line, _ = (vault.config.folder / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["unit"] == "user" and json.loads(line)["event"]["sample_rate"] == rate


@pytest.mark.parametrize("kind", ["votes", "gaussian"])
def test_scores_are_made_of_users(by_user, kind, monkeypatch):
    given, name = [], {"votes": "vote_sum", "gaussian": "train_scorer"}[kind]
    whole = getattr(feedback, name)
    monkeypatch.setattr(
        feedback, name, lambda *arguments: given.append(arguments) or whole(*arguments)
    )
    vault = by_user()
    answer = vault.score(Score("s", "r", "fdkt", DATA, 8.0, feedback=kind))
    assert not isinstance(answer, Refused), answer
    owners = given[0][5] if kind == "votes" else given[0][2]
    assert (
        answer.receipt.records == len(set(owners)) <= WRITERS < len(owners) == 41
        and answer.receipt.unit == "user"
    )


def test_a_site_of_few_users_takes_no_part(by_user):
    answer = by_user(policy={"minimum_records": 20}).synthesize(ask())
    assert isinstance(answer, Refused) and "11 users; allowed: at least 20" in answer.reason


def test_each_user_moves_the_sum_of_votes_by_one(monkeypatch):
    draw = np.random.default_rng(0)
    own, texts = draw.standard_normal((30, 6)), draw.standard_normal((9, 6))
    own_labels, labels, owners = (
        draw.integers(0, 2, 30),
        draw.integers(0, 2, 9),
        draw.integers(0, 7, 30),
    )
    monkeypatch.setattr(feedback, "_BLOCK", 3)  # sums run over several blocks
    whole = vote_sum(own, own_labels, texts, labels, 2, owners)
    for user in range(7):
        rest = np.flatnonzero(owners != user)
        moved = np.linalg.norm(
            whole - vote_sum(own[rest], own_labels[rest], texts, labels, 2, owners[rest])
        )
        assert 0.999 * VOTE < moved <= VOTE and (owners == user).sum() > 1


def test_each_user_moves_the_scorers_sum_by_the_clip_and_it_is_their_mean_gradient():
    draw = np.random.default_rng(1)
    features, labels, head = (
        2 * draw.standard_normal((30, 5)),
        draw.integers(0, 3, 30),
        draw.standard_normal((3, 5)),
    )
    owners = draw.integers(0, 7, 30)
    errors, clipped = clipped_gradients(head, features, labels, CLIP, owners), 0
    plain = clipped_gradients(head, features, labels, 1e9, range(30))
    for user in range(7):
        mine = np.flatnonzero(owners == user)
        mean = plain[mine].T @ features[mine] / len(mine)
        factor = min(1.0, CLIP / np.linalg.norm(mean))
        clipped += factor < 1
        np.testing.assert_allclose(errors[mine].T @ features[mine], factor * mean, atol=1e-12)
    assert clipped > 2


def test_the_scorers_sum_is_divided_by_the_number_of_users():
    class Silent:
        def normal(self, count):
            return torch.zeros(count)

    draw = np.random.default_rng(2)
    vectors, labels = draw.standard_normal((12, 5)), draw.integers(0, 3, 12)
    owners, view = np.arange(12) // 4, View(np.ones(5), np.zeros(5))
    found = train_scorer(vectors, labels, owners, view, 3, 1.0, 1, Silent()).head
    features = view.directions(vectors)
    total = clipped_gradients(np.zeros((3, 5)), features, labels, CLIP, owners).T @ features
    np.testing.assert_allclose(found, -LEARNING_RATE * total / 3)


def test_a_training_tells_users_and_steps_planned_for_users(by_user, signed, tmp_path, seen):
    """One of the training users writes thirty rows more, and nothing that is told changes."""
    told = []
    for more in (0, 30):
        path = tmp_path / f"more-{more}.csv"
        rows = Path(signed["path"]).read_text().splitlines()
        user = "writer 2"  # of the training split
        path.write_text("\n".join([*rows, *(f"more {i} .,0,coffee,{user}" for i in range(more))]))
        vault = by_user(f"more-{more}", task_changes=signed | {"path": str(path)})
        vault.config = replace(
            vault.config,
            slm=vault.config.slm.model_copy(update={"max_steps": 500, "epochs": 0.5}),
        )
        for name in ("together", "part"):
            request = Learn(name, "r", name, DATA, part=1.0 if name == "together" else 0.5)
            told.append(vault.learn(request)[0])
        told.append(len(seen.classifier[-1][0][2].texts))
    assert told[:2] == told[3:5] and (told[2], told[5]) == (41, 71)
    # half a pass over 11 users of four rows, eight a step
    assert vault.config.generator.records_per_user == 4 and vault.config.slm.batch_size == 8
    assert (told[0].private_units, told[0].steps, told[1].steps) == (11, 3, 2)
    assert told[0].private_passes == 3 * 8 / 44 and told[0].generated_passes == 3 * 8 / 4


# -- What does not go together ---------------------------------------------------------------------


def test_charges_for_records_and_for_users_do_not_add_up(tmp_path):
    first = Ledger(tmp_path / "ledger.jsonl", 8.0, 1e-5)
    first.charge("a", "r", "dp-sgd", Event.gaussian(3.0), 1)
    other = Ledger(tmp_path / "ledger.jsonl", 8.0, 1e-5, unit="user")
    for call in (
        other.spent,
        lambda: other.charge("b", "r", "dp-sgd", Event.gaussian(3.0), 1),
        lambda: other.plan(1.0, "r", 1.0, 1),
    ):
        with pytest.raises(
            LedgerError, match="charged for each record, and the site's policy has unit user"
        ):
            call()
    assert first.spent() > 0


def test_a_ledger_from_before_the_choice_is_one_of_records(tmp_path):
    first = Ledger(tmp_path / "ledger.jsonl", 8.0, 1e-5)
    first.charge("a", "r", "dp-sgd", Event.gaussian(3.0), 1)
    assert [entry.unit for entry in first.entries()] == ["record"]


def test_users_need_a_column_that_names_them(site, signed):
    with pytest.raises(
        ConfigError, match=r"policy\.unit: found user, but task.user_column is null"
    ):
        site(policy={"unit": "user"})
    with pytest.raises(
        ConfigError, match="users in the training rows, fewer than the logical batch of 17"
    ):
        check_data(site("other", task_changes=signed).config.task, 0, 17, ["coffee"], by_user=True)


def test_a_row_of_nobody_is_named(tmp_path):
    rows = [
        {"text": f"text {i}", "label": str(i % 2), "who": "me" if i else " "} for i in range(12)
    ]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    task = {
        "name": "t",
        "path": str(tmp_path / "data.csv"),
        "clients": ["a"],
        "labels": {"0": "bad", "1": "good"},
        "user_column": "who",
    }
    with pytest.raises(
        ConfigError,
        match=r"data\.csv: row 1 \(line 2\): column 'who' is empty; needed: whose row it is",
    ):
        check_data(check(TaskConfig, task, "task"), 0)
    with pytest.raises(ConfigError, match="no column 'whom'"):
        check_data(check(TaskConfig, task | {"user_column": "whom"}, "task"), 0)
    with pytest.raises(
        ConfigError, match="user_column: found 'who'; the built-in world's reviews have no writers"
    ):
        check(TaskConfig, {"name": "w", "source": "world", "user_column": "who"}, "task")


def test_owners_are_numbered_as_they_appear():
    records = [Record("a", 0, user="x"), Record("b", 1, user="y"), Record("c", 1, user="x")]
    assert owners_of(records, "user") == [0, 1, 0] and owners_of(records, "record") == [0, 1, 2]
