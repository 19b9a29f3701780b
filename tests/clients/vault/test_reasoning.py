"""The vault that answers questions: what leaves, what the policy keeps, gateways that fail, and
questions asked by hand."""

import dataclasses
import json
import math
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from fedduet.clients.simulated import simulated_site
from fedduet.clients.vault import reasoning
from fedduet.clients.vault.answering.config import SearchConfig
from fedduet.clients.vault.answering.sent import Sent, everything_sent
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.config import read_sites
from fedduet.clients.vault.dispatch import ask, open_vault
from fedduet.clients.vault.reasoning import ReasoningVault
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.conf.check import ConfigError
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.training.reward_training import fit_likelihood
from fedduet.lm.training.step_labels import LabelledSolution
from fedduet.scripts import vault as commands
from fedduet.server.gateway.access import Keys
from fedduet.server.gateway.app import Gateway, GatewayConfig, gateway_app
from fedduet.server.llm.transformers_engine import TransformersLLM
from fedduet.tasks.builtin.arithmetic import site_questions
from fedduet.tasks.reasoning import prompt
from fedduet.wire.codec import encode
from fedduet.wire.messages import (
    Answer,
    Answered,
    Evaluate,
    Introduce,
    Introduced,
    Learn,
    Learned,
    Refused,
    Synthesize,
)

from fedduet import conf

SEARCH = {
    "step_tokens": 8,
    "max_steps": 3,
    "solution_tokens": 16,
    "iterations": 4,
    "llm_token_budget": 60,
}


@pytest.fixture(scope="session")
def reward_folder(tiny_model, tmp_path_factory):
    solutions = [
        LabelledSolution(0, ("so 1 + 1 = 2",), (True,)),
        LabelledSolution(0, ("so 1 + 1 = 3",), (False,)),
    ]
    return fit_likelihood(
        tiny_model,
        ["start with 1 ."],
        solutions,
        prompt,
        tmp_path_factory.mktemp("models") / "reward",
    )


@pytest.fixture
def site(tiny_model, reward_folder, tmp_path):
    """`make(policy..., answers...)`: the bakery's vault, its SLM not yet tuned."""

    def make(answers=None, **policy):
        overrides = [
            "strategy=gboost",
            f"slm.path={tiny_model}",
            f"llm.path={tiny_model}",
            "slm.max_steps=4",
            "task.rows_per_client=20",
        ]
        config = conf.compose([*overrides, "task.test_rows=6"])
        config["answers"] |= {"reward": {"path": str(reward_folder), "form": "likelihood"}} | (
            answers or {}
        )
        config["privacy"]["policy"] |= {"minimum_records": 10} | policy
        return open_vault(simulated_site(read_sites(config), "bakery", tmp_path / "site"))

    return make


def learnt(vault):
    assert isinstance(vault.learn(Learn("l", "run", "private"))[0], Learned)
    return vault


def answer(method="search", id="run/answer/bakery", **changes):
    return Answer(
        **(
            {
                "message_id": id,
                "run": "run",
                "model": "private",
                "method": method,
                "search": SEARCH,
                "samples": 3,
            }
            | changes
        )
    )


@pytest.mark.parametrize(
    "method",
    [
        "search",
        "slm",
        "slm_base",
        "llm",
        "proxy_tuning",
        "average",
        "slm_best_of_n",
        "average_majority",
    ],
)
def test_every_method_answers_every_question_within_the_budget(site, method):
    vault = learnt(site())
    counts = vault.answer(answer(method))
    assert isinstance(counts, Answered) and counts.total == 6 and 0 <= counts.right <= 6
    assert counts.llm_tokens <= 6 * SEARCH["llm_token_budget"] and (counts.llm_tokens > 0) == (
        method not in ("slm", "slm_base", "slm_best_of_n")
    )
    assert (counts.reward_calls > 0) == (method in ("search", "slm_best_of_n"))
    assert vault.answer(answer(method)) == counts  # the first answer again
    other = vault.answer(answer(method, id="again"))
    # deterministic under a seed
    assert dataclasses.replace(other, seconds=counts.seconds) == counts


def test_no_question_and_no_step_is_in_what_leaves(site):
    vault = learnt(site())
    left = encode(vault.answer(answer()))
    for question in site_questions("bakery", 26, 0):
        assert not any(
            word in left.decode()
            for word in ("start with", "a red", question.question, *question.steps)
        )
    assert set(json.loads(left)) == {field.name for field in dataclasses.fields(Answered)}


def test_questions_stay_where_the_policy_says_never(site):
    vault = learnt(site(share_questions="never"))
    for method in ("search", "llm", "proxy_tuning"):
        refused = vault.answer(answer(method))
        assert (
            isinstance(refused, Refused)
            and refused.kind == "policy"
            and 'share_questions is "never"' in refused.reason
        )
    with pytest.raises(PolicyError, match="share_questions"):
        vault.solve("run", "private", "start with 3 . then a red . how many ?", SearchConfig())
    private = vault.answer(answer("search", id="p", search=SEARCH | {"modes": "private"}))
    assert isinstance(private, Answered) and private.llm_tokens == 0
    # an LLM of the site's own is no way out for a question
    assert isinstance(
        learnt(site(answers={"llm_is_remote": False}, share_questions="never")).answer(
            answer(id="own")
        ),
        Answered,
    )


def test_counts_leave_only_as_often_as_the_policy_says(site):
    vault = learnt(site(maximum_measurements=1))
    assert isinstance(vault.answer(answer()), Answered)
    assert "maximum_measurements" in vault.answer(answer(id="b")).reason
    assert "share_metrics" in site(share_metrics="never").answer(answer(id="c")).reason


def test_what_is_no_request_for_this_kind_of_site_is_refused(site):
    vault = site()
    assert ask(vault, Introduce("i", "run"))[0] == Introduced("bakery", "bakery")
    for request in (Synthesize("s", "run", 0, 1, 3, 8.0), Evaluate("e", "run", "private")):
        assert "kind reasoning" in ask(vault, request)[0].reason
    assert "has to learn it first" in ask(vault, answer())[0].reason
    assert (
        "keeps the weights"
        in ask(vault, Learn("l", "run", "private", share_weights=True))[0].reason
    )
    learnt(vault)
    assert "did you mean slm" in ask(vault, answer("slms"))[0].reason
    assert ask(vault, answer(search={"iterations": 0}))[0].reason.startswith("search.iterations")
    assert isinstance(ask(site(answers={"reward": None}), answer())[0], Refused)
    with pytest.raises(ValueError, match="empty"):
        vault.solve("run", "private", "  ", SearchConfig())
    with pytest.raises(ValueError, match="too long"):
        vault.solve("run", "private", "why " * 400, SearchConfig())


def test_a_lora_slm_keeps_its_base_at_no_extra_cost(site):
    vault = site()
    vault.config = dataclasses.replace(
        vault.config, slm=vault.config.slm.model_copy(update={"method": "lora"})
    )
    learnt(vault)
    assert (vault._folder("run", "private") / "adapter_config.json").is_file()
    assert isinstance(vault.answer(answer()), Answered) and isinstance(
        vault.answer(answer("slm_base", id="b")), Answered
    )


def test_another_kind_of_task_has_no_such_vault(tmp_path):
    config = conf.compose([])
    with pytest.raises(ConfigError, match="kind reasoning"):
        ReasoningVault(simulated_site(read_sites(config), "coffee", tmp_path))


@pytest.fixture
def gateway(tiny_model, monkeypatch):
    """The address of a gateway that serves the tiny model; the key is in the environment."""
    monkeypatch.setenv("SITE_KEY", "key-of-the-first-site-0123456789")
    tokenizer = load_tokenizer(tiny_model, generates=True)
    llm = TransformersLLM(
        load_causal_lm(tiny_model, tokenizer=tokenizer),
        tokenizer,
        name="tiny",
        form="completion",
        context=256,
    )
    limits = GatewayConfig(requests_per_minute=10_000, tokens_per_minute=10**9)
    app = gateway_app(Gateway(llm, Keys.read("key-of-the-first-site-0123456789", "keys"), limits))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [here]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{here.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("write", ["fusion", "steps"])
def test_a_gateway_takes_part(site, gateway, write):
    vault = learnt(site(answers={"base_url": gateway, "key_env": "SITE_KEY", "write": write}))
    counts = vault.answer(answer())
    assert (
        isinstance(counts, Answered)
        and counts.requests > 0
        and counts.llm_tokens > 0
        and counts.degraded < counts.llm_tokens
    )
    assert isinstance(vault.answer(answer("llm", id="b")), Answered)


@pytest.mark.parametrize("reply", [None, b"<html>no</html>", b'{"choices": []}'])
def test_a_gateway_that_is_gone_or_lies_never_fails_a_question(site, reply):
    """Every step is the private SLM's, and counted."""
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{here.getsockname()[1]}/v1"
        if reply is not None:
            here.listen(64)

            def lie():
                while True:
                    try:
                        met, _ = here.accept()
                    except OSError:
                        return
                    with met:
                        met.recv(65536)
                        head = (
                            f"HTTP/1.1 200 OK\r\ncontent-length: {len(reply)}\r\nconnection:"
                            " close\r\n\r\n"
                        )
                        met.sendall(head.encode() + reply)

            threading.Thread(target=lie, daemon=True).start()
        vault = learnt(site(answers={"base_url": where, "seconds": 2.0}))
        counts = vault.answer(answer())
        assert (
            isinstance(counts, Answered)
            and counts.total == 6
            and counts.degraded > 0
            and counts.llm_tokens == 0
        )
        assert counts.collaborative_steps == 0


# --- A real site: what asks the LLM is charged as unprotected, kept, and bounded ------------------


@pytest.fixture
def real(site):
    """`real(...)` as `site`, opened as a real site would be."""

    def make(answers=None, **policy):
        vault = site(answers, **policy)
        return open_vault(dataclasses.replace(vault.config, simulated=False))

    return make


def entries(vault):
    ledger = Ledger(vault.config.folder / "ledger.jsonl", math.inf, 1e-5, True)
    return [(entry.what, entry.event.kind, entry.released) for entry in ledger.entries()]


@pytest.mark.parametrize("write", ["fusion", "steps"])
def test_what_asks_the_llm_is_charged_first_and_kept_word_for_word(real, gateway, write, capsys):
    vault = learnt(real(answers={"base_url": gateway, "key_env": "SITE_KEY", "write": write}))
    assert not (vault.config.folder / "sent").exists()
    at_first = []
    keep = Sent.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sent, "keep", lambda *given: at_first.append(entries(vault)) or keep(*given))
        counts = vault.answer(answer())
    assert counts.requests > 0 and counts.seconds == 0.0
    assert at_first[0] == [("questions", "none", 6)]  # on the disk before anything was sent
    assert entries(vault) == [("questions", "none", 6), ("counts", "none", 1)]
    assert (counts.receipt.mechanism, counts.receipt.epsilon_total) == ("none", math.inf)
    sent = list(everything_sent(vault.config.folder))
    texts = "\n".join(row["text"] for row in sent)
    for question in site_questions("bakery", 26, 0)[20:]:
        assert question.question in texts
    assert commands.releases(vault.config) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in printed if row["kind"] == "Sent"] == [
        row["text"] for row in sent
    ]
    assert [row["right"] for row in printed if row["kind"] == "Answered"] == [counts.right]
    found = commands.figures(vault.config)
    assert found["epsilon_spent"] is None  # no formal guarantee any more
    assert [charge["what"] for charge in found["charges"]] == ["questions", "counts"]
    # asked by hand, at the site: as unprotected
    vault.solve("run", "private", "start with 3 . then a red . how many ?", SearchConfig(**SEARCH))
    assert entries(vault)[2:] == [("questions", "none", 1)]
    assert len(list(everything_sent(vault.config.folder))) > len(sent)


def test_what_cannot_be_written_down_is_not_sent(real, gateway, monkeypatch):
    requests, stream = [], httpx.AsyncClient.stream
    monkeypatch.setattr(
        httpx.AsyncClient,
        "stream",
        lambda self, method, *rest, **named: (
            requests.append(method) or stream(self, method, *rest, **named)
        ),
    )
    vault = learnt(real(answers={"base_url": gateway, "key_env": "SITE_KEY"}))
    (vault.config.folder / "sent").write_text("")
    counts = vault.answer(answer("llm"))  # the private SLM writes instead
    assert (counts.llm_tokens, counts.degraded) == (0, 6)
    assert set(requests) == {"GET"}  # what there is to ask was asked, and no question sent


def test_a_site_that_asks_nobody_charges_its_counts_alone(real):
    vault = learnt(real(share_questions="never"))
    assert isinstance(vault.answer(answer("slm")), Answered)
    assert entries(vault) == [("counts", "none", 1)]
    for granted in ("never", "private"):
        refused = real(share_metrics=granted).answer(answer("slm", id="again"))
        assert isinstance(refused, Refused) and "share_metrics" in refused.reason


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"alpha": 1e4}, "alpha 10000; allowed: at most 2"),
        ({"alpha": -1e4}, "alpha 10000"),
        ({"temperature": 50.0}, "temperature 50"),
        ({"iterations": 10**7}, "tokens"),
        ({"solution_tokens": 10**6}, "tokens"),
    ],
)
def test_a_server_cannot_steer_the_search_to_say_more(real, search, says):
    refused = learnt(real()).answer(answer(search=SEARCH | search))
    assert isinstance(refused, Refused) and refused.kind == "policy" and says in refused.reason
    assert not (real().config.folder / "ledger.jsonl").exists()


def test_a_real_site_that_answers_draws_its_own_batches_and_tells_no_time(real, monkeypatch):
    seeds, train = [], reasoning.train_causal

    def spied(model, tokenizer, pairs, config, seed, phase, padded):
        seeds.append((seed, padded))
        return train(model, tokenizer, pairs, config, seed, phase, padded=padded)

    monkeypatch.setattr(reasoning, "train_causal", spied)
    vault = real()
    for message_id in ("a", "b", "a"):
        learned, _ = vault.learn(Learn(message_id, "run", "private"))
        assert learned.seconds == 0.0 and learned.private_units == 20
    assert seeds[0] == seeds[2] != seeds[1] and all(padded for _, padded in seeds)
