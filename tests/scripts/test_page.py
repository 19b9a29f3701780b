"""The report page: true figures, nothing private, nothing from the network, and pictures that people with a screen reader can follow."""

import json
import re
from html.parser import HTMLParser

import pytest

import conf
from conf.check import ConfigError
from scripts.charts import ticks
from scripts.launch import launch
from scripts.page import main, write_page
from tasks.world import world_records


class Tags(HTMLParser):
    """Checks that tags nest, and keeps what they say."""

    VOID = ("meta", "line", "circle", "rect", "polyline")

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
        self.words.append(data)


def test_a_run_writes_a_page_without_private_text_or_network(overrides, tmp_path):
    summary = launch(conf.compose(overrides))
    page = (tmp_path / "run" / "report.html").read_text()
    tags = Tags(page)
    assert not re.search(r"https?://|<script|<link|<img|url[(]", page)
    for domain, seed, n in [(d, s, n) for d in ("coffee", "tents") for s, n in ((1, 60), (2, 30))]:
        assert not [record.text for record in world_records(domain, n, seed) if record.text in page]
    cells = " ".join(tags.words)
    for accuracy in summary["accuracy"].values():
        assert f"{accuracy:.3f}" in cells
    gain = 100 * (summary["accuracy"]["fdkt"] - summary["accuracy"]["local"])
    assert f"{abs(gain):.1f} points" in cells and "epsilon 8" in cells
    assert all(attrs.get("aria-label") for tag, attrs in tags.seen if tag == "svg")
    assert [tag for tag, _ in tags.seen].count("h1") == 1


def test_text_of_an_llm_cannot_break_out_of_the_page(overrides, tmp_path):
    launch(conf.compose(overrides))
    folder = tmp_path / "run"
    hostile = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
    for name in ("task_data", "demonstrations"):
        rows = [json.loads(line) | {"text": hostile} for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_page(folder).read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    Tags(page)


def test_several_runs_make_one_page_and_a_sweep_of_epsilon_a_curve(overrides, tmp_path):
    off = "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled: false}"
    folders = []
    for epsilon in (4, 8):
        folders.append(tmp_path / f"epsilon{epsilon}")
        launch(conf.compose([*overrides[:-1], off, f"privacy.epsilon={epsilon}", f"run.folder={folders[-1]}"]))
    assert main([*map(str, folders), "--out", str(tmp_path / "sweep.html")]) == 0
    page = (tmp_path / "sweep.html").read_text()
    assert "2 runs" in page and "Accuracy against epsilon" in page and 'aria-label="accuracy by epsilon' in page
    with pytest.raises(ConfigError, match="no summary"):
        main([str(tmp_path)])


def test_ticks_are_round_and_inside():
    assert ticks(0.52, 0.88) == [0.6, 0.7, 0.8]
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(3, 3) == [3]
