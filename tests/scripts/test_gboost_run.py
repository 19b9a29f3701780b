"""G-Boost as a whole on tiny models: a run, its summary and page, a question by hand, and what is
refused before anything is loaded."""

import json

import pytest
from fedduet.conf.check import ConfigError
from fedduet.lm.training.reward_training import fit_likelihood
from fedduet.lm.training.step_labels import LabelledSolution
from fedduet.scripts.ask import main as ask
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.launching.preflight import preflight
from fedduet.scripts.launching.run_config import read_run
from fedduet.scripts.reporting.page import write_page
from fedduet.scripts.reporting.table import read_summaries, table
from fedduet.scripts.train_reward import main as train_reward
from fedduet.tasks.builtin.arithmetic import CLIENTS, site_questions
from fedduet.tasks.reasoning import prompt

from fedduet import conf

METHODS = (
    "strategy.methods=[slm, llm, proxy_tuning, slm_best_of_n, search_private, gboost,"
    " gboost_average]"
)
ASKED = "start with 20 . then a red . then a lime . how many ?"


@pytest.fixture
def gboost(tiny_model, tmp_path):
    solutions = [
        LabelledSolution(0, ("so 1 + 1 = 2",), (True,)),
        LabelledSolution(0, ("so 1 + 1 = 3",), (False,)),
    ]
    reward = fit_likelihood(tiny_model, ["start with 1 ."], solutions, prompt, tmp_path / "reward")
    small = [
        "search.step_tokens=8",
        "search.max_steps=3",
        "search.iterations=4",
        "search.llm_token_budget=60",
        "samples=3",
    ]
    return [
        "strategy=gboost", "federation=inprocess", f"slm.path={tiny_model}", f"llm.path={tiny_model}", f"answers.reward.path={reward}",
        "slm.max_steps=4", "task.rows_per_client=24", "task.test_rows=4", METHODS, f"run.folder={tmp_path}/run",
        *(f"strategy.{one}" for one in small),
    ]  # fmt: skip


def test_a_run_leaves_the_contract_a_page_and_answers_by_hand(gboost, tmp_path, capsys):
    summary = launch(conf.compose(gboost))
    names = [
        "slm",
        "llm",
        "proxy_tuning",
        "slm_best_of_n",
        "search_private",
        "gboost",
        "gboost_average",
    ]
    assert (
        summary["status"] == "completed"
        and summary["failures"] == []
        and list(summary["answers"]) == names
    )
    for name, found in summary["answers"].items():
        assert (
            found["questions"] == 12 and 0 <= found["accuracy"] <= 1 and found["llm_tokens"] <= 60
        )
        assert summary["accuracy"][name] == pytest.approx(found["accuracy"])
    assert (
        summary["answers"]["search_private"]["llm_tokens"]
        == 0
        < summary["answers"]["gboost"]["llm_tokens"]
    )
    assert summary["epsilon"] == {} and summary["accuracy_per_client"].keys() == {
        "bakery",
        "clinic",
        "shipyard",
    }
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        "gboost_average" in page
        and "LLM tokens" in page
        and "start with" not in page
        and "a red is" not in page
    )
    stored = (tmp_path / "run" / "searches.jsonl").read_text()
    for site in CLIENTS:  # a test question is searched for the page, and no word of any is kept
        assert not [one for one in site_questions(site, 84, 0) if one.question in page + stored]
    (kept,) = map(json.loads, stored.splitlines())
    assert kept["question"] is kept["answer"] is None and not any(
        {"text", "answer"} & node.keys() for node in kept["nodes"]
    )
    assert (
        page.count('class="tree"') == 1 and page.count('class="node') == len(kept["nodes"]) - 1 > 0
    )
    assert page.count('class="node chosen') == len(kept["chosen"]) > 0
    assert "| gboost |" in table(read_summaries([tmp_path / "run"]))
    again = launch(conf.compose(gboost))
    assert again["answers"] == summary["answers"]  # nothing is answered twice

    capsys.readouterr()
    assert ask([str(tmp_path / "run"), ASKED, "--client", "bakery", "--budget", "20"]) == 0
    said = capsys.readouterr().out
    assert "answer:" in said and "written by" in said and "LLM tokens" in said
    assert (
        ask([str(tmp_path / "run"), ASKED, "--client", "clinic", "--budget", "20", "--keep"]) == 0
    )
    assert (
        "for the report" in capsys.readouterr().out
        and ASKED in write_page(tmp_path / "run").read_text()
    )
    for arguments, why in (
        ([ASKED, "--client", "bakry"], "did you mean bakery"),
        (["  ", "--client", "bakery"], "found an empty text"),
        (["why " * 500, "--client", "bakery"], "too long"),
        ([ASKED, "--client", "bakery", "--method", "magic"], "method: found 'magic'"),
        ([ASKED, "--client", "bakery", "--model", "other"], "has to learn it first"),
    ):
        assert ask([str(tmp_path / "run"), *arguments]) == 2 and why in capsys.readouterr().err
    assert ask([str(tmp_path), ASKED]) == 2 and "is no run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("privacy.policy.share_questions=never", "share_questions is never"),
        ("strategy.methods=[slmm]", "did you mean slm"),
        ("strategy.search.iterations=0", "strategy.search.iterations"),
        ("task=world", "needs reasoning"),
        ("strategy=fdkt", "needs classification"),
        ("answers.reward.path=/nowhere", "answers.reward.path"),
        ("llm.path=/nowhere", "answers.llm_path"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(gboost, override, said):
    changed = override.partition("=")[0]
    kept = [
        one
        for one in gboost
        if one.partition("=")[0] != changed
        and (changed not in ("task", "strategy") or not one.startswith(changed + "."))
    ]
    extra = ["task=arithmetic"] if changed == "strategy" else []
    if changed == "strategy":
        kept = [one for one in kept if not one.startswith("answers.")]
    with pytest.raises(ConfigError, match=said):
        preflight(read_run(conf.compose([*kept, override, *extra])))


def test_a_reward_model_is_trained_from_questions_and_answers(tiny_model, tmp_path, capsys):
    """Random weights never answer rightly, so every step is bad: said, and nothing written."""
    rows = [{"question": f"What is {n} ?", "answer": n} for n in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        "--questions",
        f"{tmp_path}/q.jsonl",
        "--llm",
        str(tiny_model),
        "--out",
        f"{tmp_path}/r",
        "--tokens",
        "12",
    ]
    assert train_reward([*arguments, "--solutions", "1", "--completions", "1"]) == 2
    assert "labelled steps are bad" in capsys.readouterr().err and not (tmp_path / "r").exists()
    assert (
        train_reward([*arguments, "--answer-column", "result"]) == 2
        and "no column 'result'" in capsys.readouterr().err
    )
