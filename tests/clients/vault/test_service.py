"""The vault as a service: HTTP on a Unix socket, couriers, hostile messages, malformed bodies, and
a kill in the middle of a release."""

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn
import yaml
from fedduet.clients.app import app
from fedduet.clients.courier import ask_remote
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.release.approvals import Approvals
from fedduet.clients.vault.service import build_service, listen, read_site
from fedduet.clients.vault.vault import Vault
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.inprocess import InProcessGrid
from fedduet.scripts.vault import main
from fedduet.wire.body import from_body, to_body
from fedduet.wire.codec import WireError, pack, unpack
from fedduet.wire.messages import (
    Evaluate,
    Introduce,
    Introduced,
    LabelledTexts,
    Learn,
    Learned,
    Refused,
    Score,
    Synthesize,
    Synthesized,
)

from fedduet import conf


@pytest.fixture
def site_yaml(tmp_path, tiny_model, private_csv):
    """A site's file; `write(**policy)` writes it with a policy."""
    private = tmp_path / "coffee.csv"
    lines = (private_csv / "train.csv").read_text().splitlines()
    private.write_text(
        "\n".join([lines[0], *(line for line in lines[1:] if line.endswith(",coffee"))]) + "\n"
    )

    def write(steps=4, **policy):
        config = conf.compose(
            ["task=files", f"slm.path={tiny_model}", f"generator.path={tiny_model}"]
        )
        slm = config["slm"] | {"max_steps": 4, "min_steps": 0}
        generator = config["generator"] | {
            "steps": steps,
            "max_new_tokens": 16,
            "attempts": 1,
            "logical_batch": 8,
        }
        task = {
            "name": "reviews",
            "source": "files",
            "path": {"coffee": str(private)},
            "clients": {"coffee": "coffee"},
        }
        task |= {"labels": {"0": "negative", "1": "positive"}, "test_fraction": 0.2}
        values = {
            "client": "coffee",
            "folder": str(tmp_path / "state"),
            "socket": str(tmp_path / "run" / "vault.sock"),
        }
        values |= {
            "task": task,
            "slm": slm,
            "generator": generator,
            "policy": {"minimum_records": 10} | policy,
        }
        file = tmp_path / "site.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write


@pytest.fixture
def serving(site_yaml):
    """`start(**policy)` serves in a thread and returns the vault's address."""
    servers = []

    def start(**policy):
        site, config = read_site(site_yaml(**policy))
        server = uvicorn.Server(uvicorn.Config(build_service(Vault(config)), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listen(site)]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread))
        return f"unix://{site.socket}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()


def synthesize(id="run/synthesize-0/coffee", **changes):
    return Synthesize(
        **(
            {
                "message_id": id,
                "run": "run",
                "round": 0,
                "rounds": 1,
                "per_label": 3,
                "epsilon": 8.0,
            }
            | changes
        )
    )


def test_a_release_is_made_once_and_charged_once(serving, tmp_path, capsys):
    url = serving(share_metrics="private")
    assert ask_remote(url, Introduce("i", "run"))[0] == Introduced("coffee", "coffee")
    first, _ = ask_remote(url, synthesize())
    assert isinstance(first, Synthesized) and ask_remote(url, synthesize())[0] == first
    assert len(Ledger(tmp_path / "state" / "ledger.jsonl", 8.0, 1e-5).entries()) == 1
    assert isinstance(ask_remote(url, Learn("l", "run", "local"))[0], Learned)
    kept_in = ask_remote(url, Evaluate("e", "run", "local"))[0]  # an exact count
    assert isinstance(kept_in, Refused) and "share_metrics is private" in kept_in.reason

    capsys.readouterr()
    assert main(["status", "--json", "--config", str(tmp_path / "site.yaml")]) == 0
    on_progress = json.loads(capsys.readouterr().out)
    assert (
        0 < on_progress["epsilon_spent"] <= 8
        and [one["what"] for one in on_progress["charges"]] == ["dp-sgd"]
        and on_progress["measurements"] == 0
    )
    assert (
        main(["status", "--config", str(tmp_path / "site.yaml")]) == 0
        and "of 8 spent" in capsys.readouterr().out
    )
    assert main(["releases", "--config", str(tmp_path / "site.yaml")]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == list(
        first.data.texts
    )


def test_the_courier_passes_messages_on(serving):
    url = serving()

    def send(request, node):
        grid = InProcessGrid(app, 1, {})
        grid._contexts[1].node_config.clear()
        grid._contexts[1].node_config.update(node)
        (reply,) = grid.send_and_receive(
            [grid.create_message(pack(request), "query.introduce", 1, "g")]
        )
        return unpack(reply.content)[0]

    # the vault comes first
    assert send(Introduce("i", "run"), {"vault": url, "partition-id": 0}) == Introduced(
        "coffee", "coffee"
    )
    gone = send(Introduce("i", "run"), {"vault": "unix:///nowhere/vault.sock"})
    assert isinstance(gone, Refused) and "cannot be reached" in gone.reason
    assert (
        "unix:///path/to/socket" in send(Introduce("i", "run"), {"vault": "http://1.2.3.4"}).reason
    )


def test_weights_travel_as_tensors_when_the_policy_agrees(serving):
    url = serving(share_weights=True, allow_unprotected=True)
    learned, weights = ask_remote(url, Learn("l", "run", "fedavg", share_weights=True))
    assert (
        isinstance(learned, Learned)
        and learned.receipt.mechanism == "none"
        and sum(value.size for value in weights.values()) > 1000
    )
    again, _ = ask_remote(url, Learn("m", "run", "fedavg", private=False), weights)
    assert isinstance(again, Learned)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (synthesize(epsilon=float("inf")), "allow_unprotected"),
        (synthesize(epsilon=9.0), "allowed: at most 8"),
        (synthesize(per_label=10**6), "allowed: at most 5000"),
        (Learn("l", "run", "x", share_weights=True), "weights do not leave this site"),
        (Learn("l", "run", "x", scope="pooled"), "only a simulation"),
        (Evaluate("e", "run", "x", scope="pooled"), "only a simulation"),
        (Evaluate("e", "run", "x"), "share_metrics is never"),
        (Learn("l", "run", "x", start="other-run-model"), "keeps no model"),
        (Score("s", "run", "x", LabelledTexts(["t"], [0]), 8.0), "share_scores"),
        (
            Score("s", "run", "x", LabelledTexts(["t"], [0]), 8.0, counterfactual=True),
            "only in a simulation",
        ),
        (Introduced("a", "b"), "is not a request"),
    ],
)
def test_hostile_requests_are_refused_with_their_reason(serving, request_, said):
    answer, weights = ask_remote(serving(), request_)
    assert isinstance(answer, Refused) and said in answer.reason and weights is None


def test_malformed_bodies_get_an_error_and_the_vault_goes_on(serving):
    url, draws = serving(), random.Random(0)
    whole = to_body(Learn("l", "run", "x"), {"w": np.ones(3, dtype=np.float32)})
    bodies = [
        b"",
        b"\n",
        b"Learn 99\n{}",
        b"Learn -1\n",
        b"Nonsense 2\n{}",
        b"Learn 2\n[]",
        to_body(Learn("l", "run", "x")) + b"\x80\x04pickle",
    ]
    bodies += [
        to_body(Introduce("i", "run")).replace(b'"run": "run"', name)
        for name in (b'"run": "../x"', b'"run": 7', b'"run": null')
    ]
    bodies += [bytes(draws.randrange(256) for _ in range(draws.randrange(200))) for _ in range(150)]
    for _ in range(150):  # one byte changed anywhere
        place = draws.randrange(len(whole))
        bodies.append(whole[:place] + bytes([draws.randrange(256)]) + whole[place + 1 :])
    transport = httpx.HTTPTransport(uds=url.removeprefix("unix://"))
    with httpx.Client(transport=transport, base_url="http://vault", timeout=60) as client:
        codes = {client.post("/v1/messages", content=body).status_code for body in bodies}
        assert codes <= {200, 400}
        assert client.get("/health").json() == {"client": "coffee", "busy": False}
        assert (
            client.get("/v1/messages").status_code == 405 and client.get("/docs").status_code == 404
        )


def test_a_release_waits_for_a_person_and_a_denial_stays(serving, tmp_path, capsys):
    url, file = serving(approval="each", approval_seconds=0.0), str(tmp_path / "site.yaml")
    waiting, _ = ask_remote(url, synthesize())
    assert (
        isinstance(waiting, Refused)
        and waiting.kind == "waiting"
        and waiting.reason == "this release waits for a person at the site; ask again later"
    )
    assert isinstance(ask_remote(url, Learn("l", "run", "local"))[0], Learned)  # no release
    capsys.readouterr()
    assert main(["releases", "--config", file]) == 0 and capsys.readouterr().out == ""
    assert main(["approve", "--config", file]) == 0
    name, *texts = capsys.readouterr().out.splitlines()
    name, _, what = name.partition(": ")
    assert "texts to run run, dp-sgd, epsilon" in what and len(name) == 64
    assert (
        main(["approve", "--config", file, "nothing"]) == 2
        and f"waiting: {name}" in capsys.readouterr().err
    )
    assert main(["approve", "--config", file, name]) == 0 and "approved" in capsys.readouterr().out
    answer, _ = ask_remote(url, synthesize())
    assert (
        isinstance(answer, Synthesized)
        and [f"    {text}" for text in answer.data.texts] == texts[:-1]
    )
    assert len(Ledger(tmp_path / "state" / "ledger.jsonl", 8.0, 1e-5).entries()) == 1
    assert (
        main(["approve", "--config", file, "--deny", name]) == 2
        and "a decision stays" in capsys.readouterr().err
    )

    other = synthesize(id="second", round=1, rounds=2)
    assert ask_remote(url, other)[0].kind in ("waiting", "budget")


def test_a_request_waits_for_an_approval_and_takes_a_denial(tmp_path):
    approvals, asked = Approvals(tmp_path), [synthesize(id=name) for name in "mn"]
    one, other = (approvals.hold(ask, None, "texts", Introduced("c", "d"), None) for ask in asked)
    threading.Timer(0.3, lambda: approvals.decide(one, False)).start()
    assert approvals.wait(one, 20.0) is False and approvals.wait(one, 0.0) is False
    assert approvals.wait(other, 0.0) is None and approvals.held(asked[0]) == one
    assert [waiting.decided for waiting in approvals.all()] == [False, None]


def test_bodies_come_back_and_pickles_do_not_open():
    message, arrays = Learn("l", "run", "x"), {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    back, returned = from_body(to_body(message, arrays))
    assert back == message and np.array_equal(returned["w"], arrays["w"])
    with pytest.raises(WireError, match="no safetensors"):
        from_body(to_body(message) + b"\x80\x04\x95")


def test_only_the_sites_user_may_connect(serving, tmp_path):
    serving()
    assert stat.S_IMODE((tmp_path / "run" / "vault.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="already listening"):
        listen(read_site(tmp_path / "site.yaml")[0])


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="needs root to become another user"
)
def test_code_of_another_user_reads_neither_data_nor_ledger(serving, tmp_path):
    ask_remote(serving(), synthesize())
    os.chmod(tmp_path / "coffee.csv", 0o600)
    # the way there is open: only the site's own modes protect it
    for folder in (tmp_path, *tmp_path.parents):
        if folder != folder.parent and str(folder).startswith(str(tmp_path.parents[2])):
            os.chmod(folder, 0o755)
    script = f"""
import os, socket
os.setgid(65534); os.setuid(65534)
opened = []
for path in ({str(tmp_path / "coffee.csv")!r}, {str(tmp_path / "state" / "ledger.jsonl")!r}):
    try:
        open(path).read(); opened.append(path)
    except PermissionError:
        pass
try:
    socket.socket(socket.AF_UNIX).connect({str(tmp_path / "run" / "vault.sock")!r}); opened.append("socket")
except PermissionError:
    pass
raise SystemExit(len(opened))
"""
    assert (tmp_path / "state" / "ledger.jsonl").is_file()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_vault_killed_in_the_middle_of_a_release_finishes_it_without_paying_again(
    site_yaml, tmp_path
):
    file, ledger = site_yaml(steps=40), tmp_path / "state" / "ledger.jsonl"
    url = f"unix://{tmp_path}/run/vault.sock"

    def start():
        process = subprocess.Popen(
            [sys.executable, "-m", "fedduet.scripts.vault", "--config", str(file)],
            stdout=subprocess.PIPE,
            cwd=conf.FOLDER.parent,
        )
        assert b"listening" in process.stdout.readline()
        return process

    process = start()
    asking = threading.Thread(target=ask_remote, args=(url, synthesize()))
    asking.start()
    while not (ledger.is_file() and ledger.read_text().count("\n") >= 1):
        assert process.poll() is None and asking.is_alive()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    asking.join()
    paid = Ledger(ledger, 8.0, 1e-5).entries()
    file = site_yaml(steps=40)
    process = start()  # the socket that was left behind is no obstacle
    try:
        answer, _ = ask_remote(url, synthesize())
        assert (
            isinstance(answer, Synthesized)
            and Ledger(ledger, 8.0, 1e-5).entries() == paid
            and len(paid) == 1
        )
    finally:
        process.terminate()
        process.wait()
    assert not (tmp_path / "run" / "vault.sock").exists()


def test_what_cannot_work_is_said_before_it_listens(site_yaml, tmp_path, capsys):
    file = site_yaml()
    values = yaml.safe_load(file.read_text())
    for change, said in (
        ({"client": "tea"}, "client: found 'tea'"),
        ({"slm": {"path": str(tmp_path)}}, "slm.path"),
        ({"policy": {"epsilon_total": -1}}, "epsilon_total"),
        ({"polcy": {}}, "polcy"),
    ):
        file.write_text(yaml.safe_dump(values | change))
        assert main(["--config", str(file)]) == 2 and said in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "vault.sock").write_text("a file")
    file.write_text(yaml.safe_dump(values))
    assert main(["--config", str(file)]) == 2 and "no socket" in capsys.readouterr().err


def test_the_probe_of_a_dead_socket_does_not_hang(tmp_path):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    answer, _ = ask_remote(f"unix://{tmp_path}/s", Introduce("i", "run"), timeout=2.0)
    assert isinstance(answer, Refused) and answer.kind == "error"
