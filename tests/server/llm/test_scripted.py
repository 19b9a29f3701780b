"""The scripted engine: lists, patterns, callables, endings, and what a script file may not be."""

import pytest
from fedduet.conf.check import ConfigError
from fedduet.server.llm.base import LLM, ChatTurn, Request
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import load_llm
from fedduet.server.llm.scripted import ScriptedLLM


def test_a_list_is_given_in_turn_and_ends_in_an_error():
    llm = ScriptedLLM(["one", "two words"])
    assert isinstance(llm, LLM)
    assert [answer.text for answer in llm.generate([Request("a b c")])] == ["one"]
    answers = llm.generate([Request("a"), Request("b")])
    assert (answers[0].text, answers[0].new_tokens, answers[0].finish) == ("two words", 2, "stop")
    assert answers[1].finish == "error" and "no answer for the prompt 'b'" in answers[1].error


def test_the_first_pattern_found_answers_and_the_seed_chooses():
    llm = ScriptedLLM({"positive.*books": ["p0", "p1", "p2"], "positive": "other"}, form="chat")
    assert [
        llm.generate([Request("positive\nbooks", seed=seed)])[0].text for seed in (0, 1, 5)
    ] == ["p0", "p1", "p2"]
    turns = (ChatTurn("system", "x"), ChatTurn("user", "positive"))
    assert llm.generate([Request(turns)])[0].text == "other"


def test_endings_are_those_of_the_real_engines():
    llm = ScriptedLLM(lambda request: f"{request.prompt} says one two  three", context=20)
    [answer] = llm.generate([Request("it", max_new_tokens=3)])
    assert (answer.text, answer.finish, answer.prompt_tokens, answer.new_tokens) == (
        "it says one",
        "length",
        1,
        3,
    )
    [answer] = llm.generate([Request("it", max_new_tokens=9, stop=("three", " one"))])
    assert (answer.text, answer.finish, answer.new_tokens) == ("it says", "stop", 2)
    [answer] = llm.generate([Request("w " * 12, max_new_tokens=9)])
    assert (
        answer.finish == "error" and "12 tokens" in answer.error and "context of 20" in answer.error
    )


def test_a_script_file(tmp_path):
    file = tmp_path / "answers.yaml"
    file.write_text("answers:\n  'a+b': found\n  '.': [x, y]\n")
    llm = load_llm(LLMConfig(engine="scripted", script=str(file), form="chat", context=500))
    assert (llm.name, llm.form, llm.context) == ("scripted:answers", "chat", 500)
    assert [answer.text for answer in llm.generate([Request("aab"), Request("z", seed=1)])] == [
        "found",
        "y",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a", "must hold one key, answers"),
        ("answers: {}", "must hold one key, answers"),
        ("answers: [1, 2]", "must hold one key, answers"),
        ("answers: {a: 3}", "pattern 'a': found 3, allowed"),
        ("answers: {'(': x}", r"pattern '\(': not a regular expression"),
        ("answers: [", "is not YAML"),
    ],
)
def test_bad_script_files_are_named(content, said, tmp_path):
    file = tmp_path / "answers.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as failure:
        load_llm(LLMConfig(engine="scripted", script=str(file)))
    assert str(file) in str(failure.value) and "llm.script" in str(failure.value)


def test_a_contrast_is_refused():
    answers = ScriptedLLM(["one", "two"]).generate([Request("a", contrast="b"), Request("a")])
    assert answers[0].finish == "error" and "cannot run two prompts" in answers[0].error
    assert answers[1].text == "one"
