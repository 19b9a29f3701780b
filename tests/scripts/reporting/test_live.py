"""The page of a run that goes on: what is known so far, then the report, to this machine alone."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import pytest
from fedduet.scripts.reporting.live import live_page, server

EVENTS = [
    {"event": "start", "elapsed": 0.0},
    {"event": "phase_start", "phase": "learn-local", "side": "clients", "elapsed": 0.1},
    {
        "event": "phase_end",
        "phase": "learn-local",
        "side": "clients",
        "seconds": 2.5,
        "elapsed": 2.6,
    },
    {"event": "accuracy", "model": "local", "by_site": {"a": 0.5, "b": 0.7}, "elapsed": 2.7},
    {"event": "warning", "message": "<b>odd</b>", "elapsed": 2.8},
    {"event": "phase_start", "phase": "synthesize-0", "side": "clients", "elapsed": 3.0},
]


@pytest.fixture
def run(tmp_path):
    lines = "".join(json.dumps(one) + "\n" for one in EVENTS)
    (tmp_path / "events.jsonl").write_text(lines)
    return tmp_path


def test_a_run_that_goes_on_shows_what_is_known_and_looks_again(run):
    page = live_page(run)
    assert "Going on: now synthesize-0" in page and "1 phases are done" in page
    assert 'http-equiv="refresh"' in page and "local 0.600" in page and "2.5 s" in page
    assert "&lt;b&gt;odd" in page and "<b>odd" not in page


def test_it_is_served_to_this_machine_by_its_own_name_alone(run):
    serving = server(run, 0)
    assert serving.server_address[0] == "127.0.0.1"
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{serving.server_address[1]}/"
    try:
        with urllib.request.urlopen(address) as answer:
            assert b"Going on" in answer.read() and answer.headers["Cache-Control"] == "no-store"
        for url, headers in ((address, {"Host": "evil.example:80"}), (f"{address}config.yaml", {})):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    finally:
        serving.shutdown()
        serving.server_close()
