"""Questions: answers found in text and compared, the arithmetic world, and files."""

import json

import pytest
from fedduet.conf.check import ConfigError
from fedduet.tasks.builtin.arithmetic import (
    CLIENTS,
    LARGEST,
    SITES,
    follows,
    public_documents,
    public_questions,
    site_questions,
)
from fedduet.tasks.data.public import load_public_questions
from fedduet.tasks.data.questions import check_task, load_questions, names_of
from fedduet.tasks.reasoning import (
    answer_key,
    document,
    find_answer,
    is_final,
    is_right,
    prompt,
    worked,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so 3 + 4 = 7\nAnswer: 7", "7"),
        ("Answer: 5\nno, Answer: 6", "6"),
        ("it costs $1,200.50 #### 1,200.50", "1,200.50"),
        ("The answer is (B).", "B"),
        ("first 3, then 9", "9"),
        ("no idea", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_the_answer_is_found_or_there_is_none(text, found):
    assert find_answer(text) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,000", "1000.0"), ("1/2", "50%"), ("$7", "7"), ("-3", "-3.00"), ("Yes.", "yes")],
)
def test_equal_answers_are_equal(one, other):
    assert answer_key(one) == answer_key(other) and is_right(one, other)


@pytest.mark.parametrize(("one", "other"), [("7", "8"), (None, "7"), ("1/0", "0"), ("nan", "0")])
def test_others_are_not(one, other):
    assert not is_right(one, other)


def test_the_layout_of_a_worked_question():
    question = site_questions("bakery", 1, 0)[0]
    assert (
        document(question)
        == prompt(question.question, question.steps) + f"Answer: {question.answer}"
    )
    assert (
        "".join(worked(question)) == document(question)
        and is_final(f"Answer: {question.answer}")
        and not is_final(question.steps[0])
    )


def test_worked_solutions_are_right_and_stay_in_bounds():
    for client in CLIENTS:
        for question in site_questions(client, 60, 1):
            text = "\n".join([*question.steps, f"Answer: {question.answer}"])
            assert follows(question.question, text) and 0 <= int(question.answer) <= LARGEST
            assert all(
                f"a {said.split()[1]} is {' '.join(map(str, SITES[client][said.split()[1]]))}"
                == said
                for said in question.steps[::2]
            )
    assert all(
        follows(one.question, "\n".join([*one.steps, f"Answer: {one.answer}"]))
        for one in public_questions(200, 0, 20)
    )


@pytest.mark.parametrize(
    "text",
    [
        "a red is + 7\nso 20 + 7 = 28\nAnswer: 28",
        "a red is + 7\nso 21 + 7 = 28\nAnswer: 28",
        "a red is + 7\nso 20 - 7 = 13\nAnswer: 13",
        "a blue is + 7\nso 20 + 7 = 27\nAnswer: 27",
        "a red is + 7\nso 20 + 7 = 27\nAnswer: 28",
        "a red is + 7\nso 20 + 7 = 27",
        "",
    ],
)
def test_a_wrong_sum_a_wrong_copy_or_no_answer_does_not_follow(text):
    asked = "start with 20 . then a red . how many ?"
    assert follows(asked, "a red is - 4\nso 20 - 4 = 16\nAnswer: 16") and not follows(asked, text)
    assert not follows(
        "start with 20 . then add 7 . how many ?", "add 7 is + 6\nso 20 + 6 = 26\nAnswer: 26"
    )


def test_public_text_does_not_tell_what_a_sites_colours_mean():
    """In public questions every colour has both operations and all amounts, about as often."""
    said = [
        step
        for text in public_documents(3000, 0)
        for step in text.split("\n")
        if step.startswith("a red is ")
    ]
    assert (
        len(said) > 60
        and len(set(said)) == 16
        and max(map(said.count, set(said))) < 0.2 * len(said)
    )


def test_splits_are_the_same_for_a_seed_and_share_no_question():
    config = check_task(
        {
            "name": "arithmetic",
            "kind": "reasoning",
            "source": "arithmetic",
            "rows_per_client": 30,
            "test_rows": 20,
        }
    )
    one, again, other = (load_questions(config, "bakery", seed) for seed in (0, 0, 1))
    assert (
        names_of(config) == CLIENTS
        and one == again != other
        and (len(one.train), len(one.validation), len(one.test)) == (30, 8, 20)
    )
    assert len({one.question for part in vars(one).values() for one in part}) == 58
    public = load_public_questions(config, 0)
    assert len(public) == 400 and not {one.question for one in public} & {
        one.question for part in vars(one).values() for one in part
    }


@pytest.fixture
def files(tmp_path):
    rows = [
        {"question": f"What is {n} + 1 ?", "answer": n + 1, "work": f"so {n} + 1 = {n + 1}"}
        for n in range(20)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[:5])))
    return {
        "name": "q",
        "kind": "reasoning",
        "path": {"a": str(tmp_path / "a.jsonl")},
        "steps_column": "work",
    }, tmp_path


def test_files_with_and_without_a_test_file(files):
    section, folder = files
    held = load_questions(check_task(section), "a", 0)
    assert (len(held.train), len(held.validation), len(held.test)) == (12, 4, 4) and held.train[
        0
    ].steps[0].startswith("so ")
    apart = load_questions(
        check_task(section | {"test_path": str(folder / "test.jsonl"), "rows_per_client": 8}),
        "a",
        0,
    )
    assert (len(apart.train), len(apart.validation), len(apart.test)) == (8, 2, 5)
    assert len({one.question for part in vars(apart).values() for one in part}) == 15
    public = section | {"validation_path": str(folder / "test.jsonl")}
    assert [one.answer for one in load_public_questions(check_task(public), 0)] == list("12345")
    assert load_public_questions(check_task(section), 0) == ()


def test_what_cannot_be_read_is_named(files):
    section, folder = files
    with pytest.raises(ConfigError, match="no client 'b'"):
        check_task(section | {"clients": ["b"]})
    with pytest.raises(ConfigError, match="a file for each client"):
        check_task({"name": "q", "kind": "reasoning"})
    with pytest.raises(ConfigError, match="found 'riddles'"):
        check_task({"name": "q", "kind": "riddles"})
    with pytest.raises(ConfigError, match="no column 'work2'"):
        load_questions(check_task(section | {"steps_column": "work2"}), "a", 0)
    (folder / "a.jsonl").write_text('{"question": " ", "answer": 1, "work": ""}')
    with pytest.raises(ConfigError, match="row 1: an empty question"):
        load_questions(check_task(section), "a", 0)
