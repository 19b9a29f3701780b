"""`fedduet.run` from Python: the command's figures, rows from tables, its sentences, a light import,
and the notebook of docs/."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest

import fedduet
from fedduet import conf
from fedduet.api import _literal

ROOT = Path(__file__).parents[1]
OFF = (
    "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}",
    "privacy.seeded_noise=true",
)
LABELS = {0: "negative", 1: "positive"}


def without(overrides, *keys):
    """The overrides that say nothing of `keys`."""
    return [one for one in overrides if one.partition("=")[0] not in keys]


@pytest.fixture
def rest(overrides):
    """What no argument of the data says."""
    mine = ("task", "task.path", "task.test_path", "task.client_column", "task.labels")
    return [*without(overrides, *mine, "federation", "run.folder"), *OFF]


def test_a_light_import():
    heavy = ["torch", "flwr", "ray", "hydra", "omegaconf", "pydantic", "pandas", "transformers"]
    program = (
        "import sys, json, fedduet; print(json.dumps([m for m in json.loads(sys.argv[1]) if m in"
        " sys.modules])); fedduet.run; print('torch' in sys.modules or 'flwr' in sys.modules);"
        " print(sorted(fedduet.__all__), 'run' in dir(fedduet), hasattr(fedduet, 'nothing'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(heavy)], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "[]",
        "False",
        "['ConfigError', 'Result', 'RunFailed', 'compose', 'run'] True False",
    ], done.stderr


def test_compose_is_the_commands():
    assert fedduet.compose(["seed=3"]) == conf.compose(["seed=3"])
    assert fedduet.compose(["seed=3"])["seed"] == 3


@pytest.mark.slow
def test_a_run_has_the_figures_of_the_command_and_tables_those_of_files(
    overrides, rest, private_csv, tmp_path
):
    """Four times the same run: by the command in a process of its own, and from a path, a frame and
    a data set."""
    words = [*without(overrides, "run.folder"), *OFF, f"run.folder={tmp_path}/command"]
    program = "from fedduet.scripts.run import command; command()"
    subprocess.run(
        [sys.executable, "-c", program, *words], check=True, capture_output=True, cwd=tmp_path
    )
    wanted = json.loads((tmp_path / "command" / "summary.json").read_text())
    files = [private_csv / f"{name}.csv" for name in ("train", "test")]
    frames = [pd.read_csv(file) for file in files]
    tables = [datasets.Dataset.from_pandas(frame) for frame in frames]
    heard = []
    for name, (train, test) in {"path": files, "frame": frames, "dataset": tables}.items():
        found = fedduet.run(
            train,
            test=test,
            client="domain",
            labels=LABELS,
            folder=tmp_path / name,
            on_event=heard.append,
            overrides=rest,
        )
        assert found.folder == tmp_path / name
        assert found.summary["accuracy_per_client"] == wanted["accuracy_per_client"]
        assert found.accuracy == wanted["accuracy"] and found.accuracy.keys() == {"local", "fdkt"}
        assert found.epsilon == wanted["epsilon"] and found.epsilon.keys() == {"coffee", "tents"}
        lines = (tmp_path / "command" / "task_data.jsonl").read_text().splitlines()
        assert found.texts == [json.loads(line) for line in lines] != []
        events = (tmp_path / name / "events.jsonl").read_text().splitlines()
        assert heard == [json.loads(line) for line in events] != []
        heard.clear()

    again = (tmp_path / "frame" / "command.txt").read_text()  # as the report says, so it runs
    config = conf.compose(shlex.split(again)[1:])
    (train, test) = (Path(config["task"][key]) for key in ("path", "test_path"))
    assert train.parent == tmp_path / "frame" / "sites" / ".rows"
    assert train.stat().st_mode & 0o077 == 0
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    assert rows == frames[0].to_dict("records")
    assert len(test.read_text().splitlines()) == len(frames[1])

    shown = found.table(width=100)
    accuracy = f"{found.accuracy['fdkt']:.3f}"
    assert accuracy in next(line for line in shown.splitlines() if " fdkt " in line)
    assert f"completed; everything is in {tmp_path / 'dataset'}" in shown.replace("\n", "")
    assert found.report() == tmp_path / "dataset" / "report.html" and found.report().is_file()
    page = found._repr_html_()
    assert f"<td>{accuracy}</td></tr>" in page and '<th scope="col">tents</th>' in page

    asked = {"test": frames[1], "client": "domain", "labels": LABELS, "overrides": rest}
    kept = fedduet.run(frames[0].copy(), folder=tmp_path / "frame", on_event=heard.append, **asked)
    assert kept.accuracy == wanted["accuracy"] and kept.epsilon == wanted["epsilon"]
    assert "synthesize-0" in {one["phase"] for one in heard if one["event"] == "phase_reused"}
    with pytest.raises(fedduet.ConfigError, match=r"another configuration; .* task\.path"):
        fedduet.run(frames[0][1:], folder=tmp_path / "frame", **asked)  # other rows, another run


def test_an_override_wins_over_an_argument(rest, private_csv, tmp_path):
    with pytest.raises(fedduet.ConfigError, match=r"^privacy\.epsilon: found -2"):
        fedduet.run(
            private_csv / "train.csv",
            client="domain",
            labels=LABELS,
            epsilon=4,
            folder=tmp_path / "run",
            overrides=[*rest, "privacy.epsilon=-2"],
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": "wrld"}, "dataset: found 'wrld', neither a task nor a file; did you mean world?"),
        ({"dataset": 3}, "dataset: found int; allowed: the name of a task, a path"),
        ({"dataset": "none/here.csv", "labels": LABELS}, "here.csv: no such file"),
        ({"dataset": "world", "label": "queue"}, "label: found 'queue', but the task world has its own"),
        ({"labels": LABELS}, "labels: found {0: 'negative', 1: 'positive'}, but the task of the overrides has its own"),
        ({"dataset": "world", "strategy": "fdk"}, "strategy: unknown choice 'fdk'; did you mean fdkt"),
        ({"dataset": "world", "epsilon": -1}, "privacy.epsilon: found -1"),
        ({"dataset": "world", "seed": 1.5}, "seed: found 1.5"),
        ({"dataset": "world", "overrides": ["privcy.epsilon=1"]}, "unknown key 'privcy"),
        ({"dataset": "world", "overrides": ["seed"]}, "'seed' is neither a command"),
        ({"dataset": pd.DataFrame({"txt": ["a"], "label": [0], "client": ["x"]}), "labels": LABELS}, "dataset: no column 'text'; did you mean txt?"),
        ({"dataset": pd.DataFrame({"text": ["a"], "label": ["ä"], "client": ["x"]}), "labels": {"ä": "a", "b": "b"}}, "task.labels: found the raw value 'ä'; allowed in a mapping"),
    ],
)  # fmt: skip
def test_errors_are_the_sentences_of_the_command(arguments, sentence, tmp_path):
    with pytest.raises(fedduet.ConfigError) as found:
        fedduet.run(folder=tmp_path / "run", **arguments)
    assert sentence in str(found.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    "text",
    ["a b", 'St. "Mary"', "x\\", 'a\\"b', 'a\\\\"b', "ü,é=[1]{2}", "${x}", "null", "True", "12", "1e3", "it's", "two\nlines", "C:\\dir\\f.csv", "/a/b.csv", "", " "],
)  # fmt: skip
def test_any_text_survives_the_grammar_of_overrides(text):
    assert conf.compose([f"task.noun={_literal(text, 'task.noun')}"])["task"]["noun"] == text
    assert conf.compose([f"task.labels={_literal([text, 'b'], '')}"])["task"]["labels"] == [
        text,
        "b",
    ]


def test_a_data_sets_own_names_of_labels_are_the_wordings(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["bad", "good"]),
        client=datasets.Value("string"),
    )
    rows = {"text": [f"text {i}" for i in range(8)], "label": [0, 1] * 4, "client": ["a"] * 8}
    table = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(fedduet.ConfigError, match="fewer than the logical batch of 16"):
        fedduet.run(table, folder=tmp_path)


@pytest.mark.slow
def test_the_notebook_runs_in_order(tmp_path, monkeypatch):
    """Its cells, as a reader would run them, in an empty folder."""
    notebook = json.loads((ROOT / "docs" / "first-steps.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), "first-steps.ipynb", "exec"), names)
    result = names["result"]
    assert result.summary["clients"] == 2 and result.accuracy.keys() >= {"local", "fdkt"}
    assert all(0 < value <= 4 for value in result.epsilon.values())
    assert result.folder == Path(os.path.realpath(tmp_path)) / "runs" / "first-steps"
