"""The help desks: what the data card claims, and that names alone do not give the queues away."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fedduet.conf.check import check
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task, load_clients

from fedduet import conf, tasks

FOLDER = Path(tasks.__file__).parent / "builtin" / "help_desks"


@pytest.fixture(scope="module")
def config():
    return check(TaskConfig, conf.compose(["task=help_desks"])["task"], "task")


@pytest.fixture(scope="module")
def rows():
    files = ("train.jsonl", "test.jsonl")
    lines = [line for file in files for line in (FOLDER / file).read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def accuracy(train, test):
    """Of multinomial naive Bayes on words, add-one smoothing."""
    words = sorted({word for text, _ in train for word in text})
    place = {word: number for number, word in enumerate(words)}
    labels = sorted({label for _, label in train})
    counts = np.ones((len(labels), len(words)))
    for text, label in train:
        for word in text:
            counts[labels.index(label), place[word]] += 1
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))
    found = [
        labels[int(logs[:, [place[word] for word in text if word in place]].sum(axis=1).argmax())]
        for text, _ in test
    ]
    return np.mean([guess == label for guess, (_, label) in zip(found, test, strict=True)])


def words(text):
    return re.findall(r"\w+", text.lower())


def test_sites_are_as_the_card_says(config):
    loaded = load_clients(config, 0)
    sizes = {
        name: (len(one.split.train) + len(one.split.validation), len(one.split.test))
        for name, one in loaded.items()
    }
    assert sizes == {
        "bank": (649, 171),
        "webshop": (652, 166),
        "clinic": (96, 203),
        "city_services": (35, 255),
    }
    queues = {name: set(np.flatnonzero(one.per_label)) for name, one in loaded.items()}
    assert set(range(12)) - queues["clinic"] == {7} and set(range(12)) - queues[
        "city_services"
    ] == {11}


def test_near_copies_are_rare(rows):
    kept = [frozenset(words(row["text"])) for row in rows]
    near = sum(len(a & b) / len(a | b) > 0.5 for a, b in itertools.combinations(kept, 2))
    assert near / len(rows) < 0.01
    assert len({row["text"] for row in rows}) == len(rows)


def test_no_template_begins_the_messages(rows):
    openings = Counter(tuple(words(row["text"])[:3]) for row in rows)
    assert openings.most_common(1)[0][1] / len(rows) < 0.01


def test_names_say_little_and_the_texts_much(config, rows):
    task = build_task(config)
    told = [(words(task.meaning(i)), label) for i, label in enumerate(task.labels)]
    data = [(words(row["text"]), row["queue"]) for row in rows]
    assert accuracy(told, data) <= 0.5
    order = np.random.default_rng(0).permutation(len(data))
    half = [[data[i] for i in part] for part in np.array_split(order, 2)]
    assert 0.5 <= accuracy(half[0], half[1]) <= 0.9


def test_the_public_desk_is_no_site(config, rows):
    public = [json.loads(line) for line in (FOLDER / "public.jsonl").read_text().splitlines()]
    assert {row["desk"] for row in public} == {"phone_provider"} and len(public) == 300
    assert not {row["text"] for row in public} & {row["text"] for row in rows}
    assert {row["desk"] for row in rows} == set(config.clients)


def test_prompts_say_what_the_texts_are_and_how_a_queue_is_handled(config):
    task = build_task(config)
    assert task.control("a bank", 4) == (
        "Messages that people write to the help desk of a bank\n"
        "Label: D1 (goes to the people who run the systems)\nMessage: "
    )
