"""Two sites whose data differ in one unit of privacy, for the game of `fedduet attack
interface`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedduet.clients.vault.config import SiteConfig, read_sites
from fedduet.conf.check import check
from fedduet.tasks.builtin.world import world_records
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import load_client

CLIENT = "coffee"
KINDS = ("record", "longer", "test", "more", "user")
BY_USER = ("more", "user")
RULES = ("minimum_records", 10), ("delta", 1e-3)
Rows = list[dict[str, str]]


def neighbours(kind: str) -> list[tuple[Rows, Rows]]:
    """(training file, test file) of both sides. "record": one record replaced; "longer": the same
    record much longer; "test": a test record replaced, with its label; "more": one record more of a
    user; "user": another user in the place of one, with other records."""
    train, test = _rows(1, 120 if kind in BY_USER else 48), _rows(2, 24)
    left, right = (list(map(dict, train)) for _ in range(2))
    more = {"text": "one record more .", "label": "1", "user": "user 3"}
    changed = list(test)
    match kind:
        case "record":
            # the label stays, so that the split that is drawn does
            right[RECORD]["text"] = "nobody else ever wrote this ."
        case "longer":
            right[RECORD]["text"] = " ".join([right[RECORD]["text"]] * 12)
        case "test":
            label = str(1 - int(test[5]["label"]))
            changed[5] = test[5] | {"text": "an unlike text .", "label": label}
        case "more":
            right += [more]
        case "user":
            left = [row for row in left if row["user"] != "user 3"] + [more]
            right = [row for row in right if row["user"] != "user 3"]
            right += [more | {"text": f"text {i} of another .", "label": "0"} for i in range(9)]
    return [(left, test), (right, changed)]


RECORD = 0  # its place in the file; `site_of` makes sure that it is trained on


def _rows(seed: int, count: int) -> Rows:
    return [
        {"text": record.text, "label": str(record.label), "user": f"user {number % 40}"}
        for number, record in enumerate(world_records(CLIENT, count, seed))
    ]


def site_of(
    folder: Path,
    config: Mapping[str, Any],
    rows: tuple[Rows, Rows],
    kind: str,
    policy: Mapping[str, Any],
) -> SiteConfig:
    """A real site in `folder` with the models of a run's configuration and the game's policy."""
    folder.mkdir(parents=True)
    for name, part in zip(("train", "test"), rows, strict=True):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label", "user"])
            writer.writeheader()
            writer.writerows(part)
    by_user = kind in BY_USER
    task = check(
        TaskConfig,
        {
            "name": "game",
            "path": str(folder / "train.csv"),
            # with users the test split is theirs, too
            "test_path": None if by_user else str(folder / "test.csv"),
            "clients": [CLIENT],
            "labels": {0: "negative", 1: "positive"},
            "user_column": "user" if by_user else None,
        },
        "task",
    )
    if kind in ("record", "longer"):
        trained = {record.text for record in load_client(task, CLIENT, 0).train}
        if rows[0][RECORD]["text"] not in trained:
            raise AssertionError("the record that differs is not trained on")
    part = read_sites(config)
    slm, generator, privacy = part.slm, part.generator, part.privacy
    rules = privacy.policy.model_copy(
        update={
            **dict(RULES),
            "unit": "user" if by_user else "record",
            "share_scores": "never",
            "share_metrics": "never",
            **policy,
        }
    )
    return SiteConfig(
        CLIENT,
        folder / "state",
        task,
        slm,
        generator.model_copy(update={"logical_batch": 4}),
        rules,
        seed=0,
    )
