"""A strategy of one's own in one file: the documentation's example runs, and files that cannot work
are named before anything is loaded."""

from pathlib import Path

import pytest
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.launching.preflight import preflight

from fedduet import conf

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "neighbours.py"
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


def test_the_page_shows_the_file_that_runs():
    assert EXAMPLE.read_text() in (EXAMPLE.parents[1] / "new-strategy.md").read_text()


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
        preflight(conf.compose([*custom, f"strategy.file={file}"]))
