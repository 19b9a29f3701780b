"""The report page: true figures, nothing private, nothing from the network, and pictures that
people with a screen reader can follow."""

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.reporting.charts import ticks
from fedduet.scripts.reporting.page import main, write_page
from fedduet.tasks.builtin.world import world_records

from fedduet import conf


class Tags(HTMLParser):
    """Checks that tags nest, and keeps what they say."""

    VOID = ("meta", "line", "circle", "rect", "polyline")
    SILENT = ("script", "style")

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in self.SILENT:
            self.words.append(data)


def test_a_run_writes_a_page_without_private_text_or_network(overrides, tmp_path):
    summary = launch(conf.compose(overrides))
    page = (tmp_path / "run" / "report.html").read_text()
    tags = Tags(page)
    assert not re.search(r"https?://|<link|<img|url[(]", page)
    for domain, seed, n in [(d, s, n) for d in ("coffee", "tents") for s, n in ((1, 60), (2, 30))]:
        assert not [record.text for record in world_records(domain, n, seed) if record.text in page]
    cells = " ".join(tags.words)
    for accuracy in summary["accuracy"].values():
        assert f"{accuracy:.3f}" in cells
    for model, figures in summary["metrics"].items():
        assert f"{figures['macro_f1']:.3f}" in cells and f"{figures['auroc']:.3f}" in cells
        taken = summary["confusion"][model]
        assert sum(map(sum, taken)) == 60 and taken[0][0] + taken[1][1] == round(
            60 * summary["accuracy"][model]
        )
    gain = 100 * (summary["accuracy"]["fdkt"] - summary["accuracy"]["local"])
    assert f"{abs(gain):.1f} points" in cells and "epsilon 8" in cells
    assert all(attrs.get("aria-label") for tag, attrs in tags.seen if tag == "svg")
    assert [tag for tag, _ in tags.seen].count("h1") == 1
    ids, links = (
        [attrs.get("id") for _, attrs in tags.seen],
        [attrs["href"] for tag, attrs in tags.seen if tag == "a"],
    )
    assert all(link.removeprefix("#") in ids for link in links) and len(
        set(filter(None, ids))
    ) == len([one for one in ids if one])
    assert (
        cells.index("Do private SLMs get better")
        < cells.index(f"{abs(gain):.1f} points")
        < cells.index("How the run went")
    )
    released = len((tmp_path / "run" / "demonstrations.jsonl").read_text().splitlines())
    for said in (
        f"{released} DP-synthetic texts",
        "to the sites",
        "nearest text of the LLM",
        "nearest demonstration",
        "noise multiplier",
        "torch",
    ):
        assert said in cells, said


def test_a_picture_never_says_less_epsilon_than_was_spent(overrides, tmp_path):
    """With two rounds a receipt holds the last release's epsilon, and the ledger more."""
    off = (
        "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}"
    )
    summary = launch(conf.compose([*overrides, off, "strategy.rounds=2"]))
    spent, last = (
        max(summary["epsilon"].values()),
        max(one["epsilon"] for one in summary["receipts"].values()),
    )
    assert last < spent <= 8
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        f"epsilon {spent:.2f} at most for all 2 releases together" in page
        and f"epsilon {last:.2f}" not in page
    )


def test_only_our_own_script_may_run(overrides, tmp_path):
    launch(conf.compose(overrides))
    page = (tmp_path / "run" / "report.html").read_text()
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    assert "default-src 'none'" in page and page.count("<script") == 1


CANARY = "Zeppelin-Quokka-7731"


def test_a_unique_string_in_every_private_record_is_in_no_page_and_no_artefact(
    overrides, private_csv, tmp_path
):
    """All the private texts carry it, in training, validation and test; the run's own folder may
    hold it only below sites/."""
    for name in ("train", "test"):
        with (private_csv / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(
                row | {"text": f"{row['text']} {CANARY} {number}"}
                for number, row in enumerate(rows)
            )
    changed = [one.replace(str(private_csv), str(tmp_path)) for one in overrides]
    assert changed != list(overrides)
    command = " ".join(["fedduet", *changed])
    launch(conf.compose(changed), command)
    folder = tmp_path / "run"
    page = (folder / "report.html").read_text()
    assert "DP-synthetic texts" in page and CANARY not in page and "Zeppelin" not in page
    assert "fedduet federation=inprocess" in page
    for file in folder.rglob("*"):
        if file.is_file() and "sites" not in file.relative_to(folder).parts:
            assert CANARY.encode() not in file.read_bytes(), file


def test_text_of_an_llm_cannot_break_out_of_the_page(overrides, tmp_path):
    launch(conf.compose(overrides))
    folder = tmp_path / "run"
    hostile = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
    for name in ("task_data", "demonstrations"):
        rows = [
            json.loads(line) | {"text": hostile}
            for line in (folder / f"{name}.jsonl").read_text().splitlines()
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_page(folder).read_text()
    assert (
        page.count("<script") == 1
        and "alert(1)</script>" not in page
        and "<img" not in page
        and "&lt;script&gt;" in page
    )
    Tags(page)


def test_several_runs_make_one_page_and_a_sweep_of_epsilon_a_curve(overrides, tmp_path):
    off = (
        "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}"
    )
    folders = []
    for epsilon in (4, 8):
        folders.append(tmp_path / f"epsilon{epsilon}")
        launch(
            conf.compose(
                [*overrides[:-1], off, f"privacy.epsilon={epsilon}", f"run.folder={folders[-1]}"]
            )
        )
    assert main([*map(str, folders), "--out", str(tmp_path / "sweep.html")]) == 0
    page = (tmp_path / "sweep.html").read_text()
    assert (
        "2 runs" in page
        and "Accuracy against epsilon" in page
        and 'aria-label="accuracy by epsilon' in page
    )
    with pytest.raises(ConfigError, match="no summary"):
        main([str(tmp_path)])


def test_ticks_are_round_and_inside():
    assert ticks(0.52, 0.88) == [0.6, 0.7, 0.8]
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(3, 3) == [3]
