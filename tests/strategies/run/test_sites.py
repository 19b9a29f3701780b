"""Sites that do not come, do not answer, or refuse: nobody is waited for longer than was said, and
the rest goes on."""

import json
import time

import pytest
from fedduet.scripts.launching.inprocess import InProcessGrid
from fedduet.strategies.run.run_folder import RunFolder
from fedduet.strategies.run.sites import Sites, SitesConfig, TooFewSites
from fedduet.wire.codec import pack, unpack
from fedduet.wire.messages import Evaluate, Evaluated, Introduce, Introduced, Refused
from flwr.app import Message
from flwr.clientapp import ClientApp

NAMES = ("coffee", "tents")


def courier(on_evaluate):
    """Sites called NAMES that answer an Evaluate with `on_evaluate(name)`."""
    app = ClientApp()

    def handle(message, context):
        request, _ = unpack(message.content)
        name = NAMES[context.node_config["partition-id"]]
        answer = Introduced(name, name) if isinstance(request, Introduce) else on_evaluate(name)
        return Message(pack(answer), reply_to=message)

    app.query("introduce")(handle)
    app.evaluate("evaluate")(handle)
    return app


class SilentGrid(InProcessGrid):
    """A grid on which the nodes of `silent` never answer."""

    silent: frozenset[int] = frozenset()

    def pull_messages(self, message_ids):
        heard = [
            key
            for key in message_ids
            if key in self._waiting and self._waiting[key].metadata.dst_node_id not in self.silent
        ]
        return super().pull_messages(heard)


def good(name):
    return Evaluated("m", {name: 1}, {name: 2})


def gathered(
    tmp_path, on_evaluate=good, nodes=2, silent=(), expected=NAMES, timeout=0.5, minimum=1
):
    grid = SilentGrid(courier(on_evaluate), nodes, {})
    run = RunFolder(tmp_path / "run", {})
    sites = Sites(
        grid,
        run,
        "r",
        SitesConfig(phase_timeout=timeout, gather_timeout=timeout, minimum=minimum, poll=0.01),
    )
    sites.gather(expected)
    grid.silent = frozenset(silent)
    return sites, run


def failures(run):
    return [
        (entry["client"], entry["kind"]) for entry in run.events() if entry["event"] == "failure"
    ]


def evaluate(name):
    return Evaluate(f"r/e/{name}", "r", "m")


def test_a_site_that_never_comes_is_not_waited_for_for_ever(tmp_path):
    began = time.monotonic()
    with pytest.raises(
        TooFewSites, match=r"1 of 2 sites did not introduce themselves within 0 s: tents"
    ):
        gathered(tmp_path, nodes=1, timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 5


def test_a_site_that_never_answers_is_left_out_after_the_time_limit(tmp_path):
    sites, run = gathered(tmp_path, silent=[2])
    began = time.monotonic()
    assert sites.ask("e", evaluate) == {"coffee": (good("coffee"), {})}
    assert 0.5 <= time.monotonic() - began < 5
    assert failures(run) == [("tents", "timeout")]


def test_refusals_crashes_and_garbage_are_written_down_and_too_few_answers_end_the_phase(tmp_path):
    def crash(name):
        raise RuntimeError("gone")

    for number, (kind, tents) in enumerate(
        (("policy", lambda _: Refused("not here")), ("error", crash))
    ):
        sites, run = gathered(
            tmp_path / str(number),
            lambda name, tents=tents: good(name) if name == "coffee" else tents(name),
        )
        assert set(sites.ask("e", evaluate)) == {"coffee"} and failures(run) == [("tents", kind)]
        strict, _ = gathered(
            tmp_path / f"strict{number}", lambda name, tents=tents: tents(name), minimum=2
        )
        with pytest.raises(TooFewSites, match="0 of 2 sites answered, at least 2 must"):
            strict.ask("e", evaluate)
    assert (
        json.loads((tmp_path / "0" / "run" / "events.jsonl").read_text().splitlines()[-1])["reason"]
        == "not here"
    )
