"""A strategy of one's own in one file: the documentation's example runs, and files that cannot work
are named before anything is loaded."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.launching.preflight import preflight
from fedduet.scripts.launching.run_config import read_run
from fedduet.server.strategy import chosen_strategy
from fedduet.strategies.custom import CustomConfig, outside

from fedduet import conf

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
EXAMPLE, EVOLUTION = EXAMPLES / "neighbours.py", EXAMPLES / "evolution.py"
OTHERS = (
    "generator.attempts",
    "generator.max_new_tokens",
    "strategy.demonstrations_per_label",
    "strategy.augment.per_label",
    "strategy.fedavg_rounds",
)


@pytest.fixture
def custom(overrides):
    kept = [one for one in overrides if one.partition("=")[0] not in OTHERS]
    own = [
        "strategy=custom",
        f"strategy.file={EXAMPLE}",
        "+strategy.settings.per_label=6",
        "+strategy.augment.per_label=8",
    ]
    # even a random model writes enough
    easy = ["generator.minimum_tokens=1", "generator.attempts=40", "generator.max_new_tokens=24"]
    return [*kept, *own, *easy]


def test_the_example_of_the_documentation_runs(custom, tmp_path):
    summary = launch(conf.compose(custom))
    assert summary["status"] == "completed" and summary["failures"] == []
    assert list(summary["accuracy"]) == ["local", "neighbours", "custom"]
    assert (
        summary["epsilon"].keys() == {"coffee", "tents"} and max(summary["epsilon"].values()) <= 8.0
    )
    assert 0 < summary["receipts"]["coffee"]["released"] <= 12  # per_label=6 of two labels arrived
    page = (tmp_path / "run" / "report.html").read_text()
    assert "neighbours" in page and "points" in page
    # and resumes like any other
    assert launch(conf.compose(custom))["accuracy"] == summary["accuracy"]


@pytest.fixture
def evolution(overrides):
    kept = [one for one in overrides if one.partition("=")[0] not in OTHERS]
    settings = {"rounds": 2, "survivors": 3, "augment.per_label": 6, "fedavg_rounds": 1}
    own = [f"+strategy.settings.{key}={value}" for key, value in settings.items()]
    own = [f"strategy.file={EVOLUTION}", *own]
    return [*kept, "strategy=custom", *own, "privacy.feedback=votes", "privacy.seeded_noise=true"]


def test_a_method_with_feedback_in_one_outside_file_gets_everything(evolution, tmp_path):
    assert len(EVOLUTION.read_text().splitlines()) <= 120
    summary = launch(conf.compose(evolution))
    assert summary["status"] == "completed" and summary["failures"] == []
    assert summary["strategy"] == "evolution" and summary["rounds"] == 2
    assert list(summary["accuracy"]) == ["local", "evolution", "zero_shot", "fedavg", "pooled"]
    # both rounds' votes, planned together and charged before they left
    assert 7.0 < summary["epsilon"]["coffee"] <= 8.0
    run = tmp_path / "run"
    charges = (run / "sites" / "coffee" / "ledger.jsonl").read_text().splitlines()
    assert sum('"gaussian"' in line for line in charges) == 2
    # the survivors are the best-scored of what was written, by the mean of what the sites said
    rows = [json.loads(line) for line in (run / "feedback.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows} == {0, 1}
    for round, site, label in itertools.product((0, 1), ("coffee", "tents"), (0, 1)):
        of = [
            one
            for one in rows
            if (one["round"], one["client"], one["label"]) == (round, site, label)
        ]
        assert all(one["reward"] == pytest.approx(sum(one["scores"].values()) / 2) for one in of)
        worst = min(one["reward"] for one in of if one["accepted"])
        assert all(one["reward"] <= worst for one in of if not one["accepted"])
    # and every site learns from everybody's last ones: 3 of 2 labels of 2 domains
    learned = json.loads((run / "checkpoint" / "learn-evolution.json").read_text())
    assert learned["coffee"]["generated_rows"] == 12
    page = (run / "report.html").read_text()
    assert "evolve under the sites" in page and "survivors of the last round" in page
    assert "the best-rated texts are kept, 2 rounds" in page and 'id="scores"' in page
    # a report needs no strategy's code, and a resumed run repeats nothing
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert launch(config)["accuracy"] == summary["accuracy"]
    assert len((run / "sites" / "coffee" / "ledger.jsonl").read_text().splitlines()) == len(charges)


def test_settings_of_an_outside_file_are_checked_by_its_spec(evolution):
    with pytest.raises(ConfigError, match=r"strategy\.settings\.survivors: found 0"):
        preflight(read_run(conf.compose([*evolution, "strategy.settings.survivors=0"])))
    with pytest.raises(ConfigError, match=r"strategy\.settings\.augment\.shotz: unknown key"):
        preflight(read_run(conf.compose([*evolution, "+strategy.settings.augment.shotz=1"])))
    with pytest.raises(ConfigError, match="unknown baseline dp_only"):
        preflight(read_run(conf.compose([*evolution, "+strategy.settings.baselines.dp_only=true"])))


def test_an_installed_strategy_is_run_by_its_name(evolution, monkeypatch):
    found = outside(CustomConfig(file=str(EVOLUTION)))[0]

    class Point:
        value = "evolution:SPEC"

        def load(self):
            return found

    monkeypatch.setattr("fedduet.strategies.installed", lambda: {"evolution": Point()})
    asked = [one for one in evolution if not one.startswith("strategy.file")]
    section = conf.compose([*asked, "strategy.name=evolution"])["strategy"]
    chosen = chosen_strategy(section)
    assert chosen.spec is found and chosen.settings.survivors == 3
    assert chosen.augment.per_label == 6  # of its own section, not of the outer one
    with pytest.raises(ConfigError, match="unknown strategy 'evolutoin'"):
        chosen_strategy(section | {"name": "evolutoin"})


@pytest.mark.parametrize("file", [EXAMPLE, EVOLUTION])
def test_the_page_shows_the_files_that_run(file):
    assert file.read_text() in (EXAMPLES.parent / "new-strategy.md").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no file"),
        ("def plan(moves): ...", "defines plan; it must define strategy"),
        ("x = 1", "defines no function"),
        ("def strategy(", "is no Python file"),
    ],
)
def test_files_that_cannot_work_are_named(custom, tmp_path, text, said):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=f"strategy.file: .*{said}"):
        preflight(read_run(conf.compose([*custom, f"strategy.file={file}"])))
