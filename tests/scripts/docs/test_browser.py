"""Reports in a real headless Chromium: sizes and colour schemes, without the network, without
complaints, by keyboard, by axe-core's rules.

`make test-browser` runs these; elsewhere they are skipped where playwright or a Chromium is
missing.
"""

import json

import pytest
from fedduet.scripts.docs.browser import SCHEMES, SIZES, NoBrowser, chromium, opened
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.reporting.page import write_page

from fedduet import conf

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as started:
            yield started
    except NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture
def report(browser, overrides, tmp_path):  # the browser first: without one nothing is run
    """An FDKT report with, beside what the run wrote, scores of two rounds and a search tree: every
    part that a report can have."""
    launch(
        conf.compose(overrides), "fedduet strategy=fdkt task.labels='{0: negative, 1: positive}'"
    )
    folder = tmp_path / "run"
    rows = [
        {
            "round": n // 8,
            "client": "tents",
            "label": n % 2,
            "reward": n / 16,
            "accepted": n > 4,
            "text": f"text {n} of the LLM",
        }
        | {"scores": {"coffee": n / 16, "tents": 0.5}}
        for n in range(16)
    ]
    (folder / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nodes = [
        {"number": 0, "parent": None, "text": "", "mode": "", "reward": 0, "visits": 9},
        {
            "number": 1,
            "parent": 0,
            "text": "add 4 is + 4",
            "mode": "private",
            "reward": 0.9,
            "visits": 5,
        },
        {
            "number": 2,
            "parent": 0,
            "text": "add 4 is - 4",
            "mode": "collaborative",
            "reward": 0.1,
            "visits": 2,
        },
        {
            "number": 3,
            "parent": 1,
            "text": "so 8 + 4 = 12",
            "mode": "collaborative",
            "reward": 0.8,
            "visits": 3,
            "answer": "12",
        },
    ]
    search = {
        "client": "tents",
        "question": "start with 8 . then add 4 . how many ?",
        "answer": "12",
        "stopped": "settled",
        "nodes": nodes,
    }
    search |= {"costs": {"llm_tokens": 9, "slm_tokens": 12, "reward_calls": 3}, "chosen": [1, 3]}
    (folder / "searches.jsonl").write_text(json.dumps(search) + "\n")
    summary = json.loads((folder / "summary.json").read_text())
    curve = [
        {"round": n, "texts": 8, "accepted": 6, "reward": 0.5 + n / 9, "llm_accuracy": 0.5}
        for n in range(2)
    ]
    general = {when: {"perplexity": 17.0, "accuracy": 0.5} for when in ("before", "after")}
    means = {
        key: 1.0
        for key in ("accuracy", "llm_tokens", "slm_tokens", "reward_calls", "requests", "seconds")
    }
    summary |= {
        "curve": curve,
        "llm_accuracy": {"before": 0.5},
        "llm_general": general,
        "feedback": "votes",
    }
    summary |= {"answers": {"slm": means | {"questions": 60}, "gboost": means | {"questions": 60}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return write_page(folder)


def test_every_size_and_scheme_shows_the_page_without_complaint(browser, report, tmp_path):
    for size in SIZES:
        for scheme in SCHEMES:
            with opened(browser, report, size, scheme) as (page, seen):
                wide, window = page.evaluate(
                    "[document.documentElement.scrollWidth, window.innerWidth]"
                )
                assert wide <= window, f"{size}: the page is {wide} wide in a window of {window}"
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
                # the answer is what one sees first
                assert page.locator("h1").bounding_box()["y"] < 220
                small = (
                    "[...document.querySelectorAll('svg text')].map(t =>"
                    " t.getBoundingClientRect().height)"
                )
                assert min(page.evaluate(small)) >= 8  # words in pictures stay readable
                page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
                assert (tmp_path / f"{size}-{scheme}.png").stat().st_size > 20_000
                assert seen.console == [] and seen.requests == []


def test_axe_finds_nothing_serious(browser, report):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-core is missing; make test-browser installs it",
    ).Axe()
    for scheme in SCHEMES:
        for size in ("phone", "desktop"):
            with opened(browser, report, size, scheme) as (page, _):
                page.evaluate(
                    "document.querySelectorAll('details').forEach(one => one.open = true)"
                )
                found = axe.run(page).response
                assert len(found["passes"]) > 15  # it did look
                bad = [
                    (one["id"], one["nodes"][0]["html"][:200])
                    for one in found["violations"]
                    if one["impact"] in ("serious", "critical")
                ]
                assert bad == []


def test_it_is_used_by_keyboard(browser, report):
    with opened(browser, report, "desktop", "light") as (page, _):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
        region = page.locator("#accuracy .wide").last
        region.focus()
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
        cells = (
            "[...document.querySelectorAll('#accuracy tbody tr')].map(row =>"
            " parseFloat(row.cells[1].textContent))"
        )
        before = page.evaluate(cells)
        page.locator("#accuracy thead button").nth(1).focus()
        page.keyboard.press("Enter")
        assert page.evaluate(cells) == sorted(before)  # equal ones may stand sorted already
        assert page.locator("#accuracy thead th").nth(1).get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")
        assert page.evaluate(cells) == sorted(before, reverse=True)
        tree = page.locator("details.tree")
        assert not tree.get_by_text("so 8 + 4 = 12").is_visible()
        tree.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert tree.get_by_text("so 8 + 4 = 12").is_visible()


def test_it_reads_the_same_without_script_and_a_foreign_script_does_not_run(browser, report):
    hostile = report.with_name("hostile.html")
    text = report.read_text()
    hostile.write_text(
        text.replace(
            "</main>",
            '</main><script>document.title = "owned"</script><img src="https://example.org/x.png">',
        )
    )
    with opened(browser, hostile, "desktop", "light") as (page, seen):
        assert page.title() != "owned" and seen.requests == []  # the page's own policy stops both
        assert len(seen.console) >= 2
    words = []
    for script in (True, False):
        with opened(browser, report, "desktop", "light", script=script) as (page, _):
            words.append(page.locator("main").inner_text())
    assert words[0] == words[1] and "Search" not in words[1][:9] and "points" in words[1]
