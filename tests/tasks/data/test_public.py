"""Public text is nobody's: it shares no row with a site, and its validation none with its
training."""

from __future__ import annotations

import csv

import pytest
from fedduet.conf.check import ConfigError, check
from fedduet.tasks.builtin.world import PUBLIC_DOMAINS
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import load_clients
from fedduet.tasks.data.public import load_public

LABELS = {0: "negative", 1: "positive"}


def write(path, clients, n=10, word="text"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "shop"])
        writer.writerows([f"{word} {c} {i}", i % 2, c] for c in clients for i in range(n))
    return str(path)


def task(path, **more):
    section = {"name": "t", "path": path, "labels": LABELS, "client_column": "shop"}
    return check(TaskConfig, section | {"clients": ["a", "b"]} | more, "task")


def texts(records):
    return {record.text for record in records}


def test_rows_of_named_public_clients_are_public_and_a_fifth_is_held_out(tmp_path):
    made = task(
        write(tmp_path / "all.csv", "abcd"), public_clients=["c", "d"], domain="of {client}"
    )
    found = load_public(made, 0)
    assert (len(found.train), len(found.validation)) == (16, 4)
    assert texts(found.train) | texts(found.validation) == {
        f"text {c} {i}" for c in "cd" for i in range(10)
    }
    assert {record.domain for record in found.train} == {"of c", "of d"}
    held = {record.text for one in load_clients(made, 0).values() for record in one.split.train}
    assert not held & (texts(found.train) | texts(found.validation))
    assert load_public(made, 1) != found == load_public(made, 0)


def test_files_of_public_rows_and_of_validation(tmp_path):
    path = write(tmp_path / "all.csv", "ab")
    public = write(tmp_path / "public.csv", "x", word="open")
    other = write(tmp_path / "validation.csv", "x", n=4, word="open")  # four of the same rows
    found = load_public(task(path, public_path=public, validation_path=other), 0)
    assert len(found.validation) == 4 and len(found.train) == 6
    assert not texts(found.train) & texts(found.validation)
    assert load_public(task(path, validation_path=other), 0).train == ()
    assert load_public(task(path), 0) is None


def test_a_site_is_not_public(tmp_path):
    path = write(tmp_path / "all.csv", "abc")
    with pytest.raises(ConfigError, match="'a' is a site of this task, and its rows are private"):
        load_public(task(path, public_clients=["a"]), 0)
    with pytest.raises(ConfigError, match=r"public_clients: found c with partition=iid"):
        task(path, public_clients=["c"], partition="iid", clients=2)


def test_the_worlds_public_text_is_what_its_llm_was_made_from(tmp_path):
    made = check(TaskConfig, {"name": "world", "source": "world"}, "task")
    found = load_public(made, 0)
    assert len(found.train) == 450 * len(PUBLIC_DOMAINS) + 150 * 8
    assert 380 <= len(found.validation) <= 420
    assert {record.domain for record in found.validation} == set(PUBLIC_DOMAINS)
    assert not texts(found.train) & texts(found.validation)
    with pytest.raises(ConfigError, match="the built-in world brings public text of its own"):
        check(TaskConfig, {"name": "w", "source": "world", "public_path": "x.csv"}, "task")
