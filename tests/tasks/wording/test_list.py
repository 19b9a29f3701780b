"""The list form: a numbered list of one label's texts that an LLM goes on with."""

import pytest
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.prompts import augment_prompt, parse_generated

TASK = Task(
    "desk",
    ("A1", "B7"),
    {"bank": "a bank"},
    about="messages that people write to {domain}",
    meanings=("two people look at it", "the planner moves it"),
)
SHOWN = [
    Record("charged twice", 0),
    Record("please make it friday", 1),
    Record("wrong fee\nagain", 0),
]


def prompt(budget=500):
    return augment_prompt(
        TASK, "list", "a bank", 0, SHOWN, 5, lambda text: len(text.split()), budget
    )


def test_it_shows_examples_of_the_wanted_label_alone_and_leaves_the_next_number_open():
    text, shown = prompt()
    assert text == (
        "Messages that people write to a bank, all of them A1 (two people look at it):\n"
        "1. charged twice\n2. wrong fee again\n3."
    )
    assert [record.label for record in shown] == [0, 0]


def test_what_does_not_fit_is_left_out_whole():
    text, shown = prompt(budget=21)
    assert text.endswith("1. charged twice\n2.") and len(shown) == 1


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (
            " booked twice\n4. fee?\n5. no idea what this is",
            ["booked twice", "fee?", "no idea what this is"],
        ),
        (' "booked twice"\n4) fee?', ["booked twice", "fee?"]),
        ("one\n4. two\nAnd now for something else:\n5. three", ["one", "two"]),
        ("one\n4.\n5. three", ["one"]),
        ("", []),
    ],
)
def test_items_are_read_until_the_numbers_end(answer, texts):
    assert parse_generated(TASK, "list", answer, 1) == [(text, 1) for text in texts]
