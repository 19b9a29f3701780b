"""Budget is not spent for nothing: an LLM that does not answer is found before the first charge, a
phase that got nothing is not kept, and the same command goes on at no cost."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fedduet.clients.app import app
from fedduet.conf.check import ConfigError, Waiting
from fedduet.scripts.launching.inprocess import InProcessGrid
from fedduet.server.app import conduct
from fedduet.strategies.run.sites import TooFewSites

from fedduet import conf

OFF = (
    "strategy.baselines={local: false, dp_only: false, zero_shot: false, fedavg: false, pooled:"
    " false}"
)


@pytest.fixture
def endpoint():
    """An endpoint and what it was asked; `asked.fails` lets it fail all but requests of one
    token."""

    class Asked(list):
        fails = False

    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            known = body.get("model") == "named"
            good = known and (not asked.fails or body["max_tokens"] == 1)
            text = f"A fine cup of coffee , warm for hours , number {len(asked)} ."
            answer = {
                "choices": [{"text": text, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 9},
            }
            sent = json.dumps(answer if good else {"error": "no such model"}).encode()
            self.send_response(200 if good else 404)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    server.shutdown()
    thread.join()


def settings(overrides, *more):
    kept = [word for word in overrides if not word.startswith("llm")]
    return conf.compose([*kept, OFF, *more])


def run(config):
    return conduct(InProcessGrid(app, 2, {"config": conf.dump(config)}), config)


def ledgers(tmp_path):
    return sorted((tmp_path / "run").rglob("ledger.jsonl"))


def charges(tmp_path):
    return sum(len(file.read_text().splitlines()) for file in ledgers(tmp_path))


def openai(url, model="named"):
    given = ["llm=openai", f"llm.base_url={url}", "llm.form=completion", "llm.retries=0"]
    return [*given, "llm.context=2048", "llm.timeout=5", f"llm.model={model}"]


def test_a_dead_endpoint_is_waited_for_before_anything_is_charged(overrides, tmp_path):
    config = settings(overrides, *openai("http://127.0.0.1:9/v1"))
    with pytest.raises(Waiting, match=r"the LLM does not answer: .*nothing was spent"):
        run(config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "waiting" and "nothing was spent" in summary["reason"]
    assert ledgers(tmp_path) == [] and not (tmp_path / "run" / "checkpoint").exists()


def test_a_model_that_the_endpoint_does_not_know_is_found_first(overrides, tmp_path, endpoint):
    url, asked = endpoint
    with pytest.raises(Waiting, match=r"no such model.*nothing was spent"):
        run(settings(overrides, *openai(url, "unset")))
    assert len(asked) == 1 and asked[0]["max_tokens"] == 1 and ledgers(tmp_path) == []


def test_a_wrong_name_of_the_llm_spends_nothing(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = settings(overrides, "llm=transformers", "llm.path=nobody/no-such-model")
    with pytest.raises(ConfigError, match="nothing was spent"):
        run(config)
    assert ledgers(tmp_path) == []


def test_a_wrong_name_of_the_generator_spends_nothing(overrides, tmp_path):
    (tmp_path / "empty").mkdir()
    config = conf.compose([*overrides, OFF, f"generator.path={tmp_path}/empty"])
    with pytest.raises(TooFewSites, match="synthesize-0: 0 of 2 sites answered"):
        run(config)
    assert ledgers(tmp_path) == []
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "this site's data or models cannot be used" in events


def test_a_phase_that_got_nothing_is_not_kept_and_goes_on_at_no_cost(overrides, tmp_path, endpoint):
    url, asked = endpoint
    config = settings(overrides, *openai(url), "llm.cache_dir=null", "strategy.curate.judge=rules")
    asked.fails = True  # it answers the request of one token, and then no more
    with pytest.raises(Waiting, match=r"augment-0: the LLM gave no text.*pays nothing again"):
        run(config)
    paid = charges(tmp_path)
    kept = {file.stem for file in (tmp_path / "run" / "checkpoint").iterdir()}
    assert paid > 0 and "synthesize-0" in kept and "augment-0" not in kept
    asked.fails = False
    summary = run(config)
    assert summary["status"] == "completed" and charges(tmp_path) == paid
    assert (tmp_path / "run" / "checkpoint" / "augment-0.json").is_file()


def test_the_command_ends_with_3_and_a_sentence(overrides):
    kept = [word for word in overrides if not word.startswith("llm")]
    command = [sys.executable, "-m", "fedduet.scripts.run", *kept, OFF]
    done = subprocess.run(
        [*command, *openai("http://127.0.0.1:9/v1")],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "waiting: the LLM does not answer" in done.stderr and "Traceback" not in done.stderr
