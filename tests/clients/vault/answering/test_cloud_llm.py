"""The site's side of the gateway: fused steps over real HTTP equal fused steps of local models, and
no server's lie gets through."""

import contextlib
import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import uvicorn
from fedduet.clients.vault.answering.cloud_fusion import RemoteFusion
from fedduet.clients.vault.answering.cloud_llm import PROBE, Remote, RemoteConfig, RemoteFailed
from fedduet.clients.vault.answering.steps import StepAsk
from fedduet.clients.vault.answering.whole_steps import FallbackWriter, WholeStepWriter
from fedduet.clients.vault.answering.writers import TokenWriter, local_writers
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.fusion import FusedStepper, proxy_tuned, slm_pair
from fedduet.lm.decoding.stepper import AnyStepper, stepper
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.server.gateway.access import Keys
from fedduet.server.gateway.app import Gateway, GatewayConfig, gateway_app
from fedduet.server.llm.transformers_engine import TransformersLLM

KEY = "key-of-the-first-site-0123456789"
QUESTIONS = ["the grinder", "a very good tent and", "coffee is", "no", "it was fine"]


@pytest.fixture(scope="module")
def models(tiny_model):
    """(tokenizer, LLM, tuned SLM, base SLM): the base close to the LLM, the tuned one close to the
    base, an even spread over tokens."""
    tokenizer = load_tokenizer(tiny_model, generates=True)
    found = []
    for seed, scale in ((1, 0.2), (2, 0.03), (3, 0.04)):
        model, drawn = (
            load_causal_lm(tiny_model, tokenizer=tokenizer),
            torch.Generator().manual_seed(seed),
        )
        with torch.no_grad():
            for weight, before in zip(
                model.parameters(), (found[-1] if found else model).parameters(), strict=True
            ):
                if weight.dim() > 1:
                    weight.copy_(
                        torch.randn(weight.shape, generator=drawn) * scale
                        + (before if found else 0)
                    )
        found.append(model)
    return tokenizer, found[0], found[2], found[1]


@pytest.fixture(scope="module")
def url(models):
    """A gateway over the LLM, on a free port."""
    tokenizer, llm, _, _ = models
    limits = GatewayConfig(most_logprobs=1000, requests_per_minute=10_000, tokens_per_minute=10**9)
    gateway = Gateway(
        TransformersLLM(llm, tokenizer, name="tiny", form="completion", context=256),
        Keys.read(KEY, "keys"),
        limits,
    )
    server = uvicorn.Server(
        uvicorn.Config(gateway_app(gateway), log_level="warning", lifespan="on")
    )
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [here]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{here.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def reaching(where, **more):
    remote = Remote(RemoteConfig(**{"base_url": where, "key": KEY, "seconds": 10.0} | more))
    try:
        yield remote
    finally:
        remote.close()


def asks(count=10, tokens=12, **more):
    return [StepAsk(f"{QUESTIONS[i % 5]}\n", i, tokens, **more) for i in range(count)]


def fusion(remote, models, compared=False, **more):
    """`compared`: its tokenizer passes for checked; liars are asked about nothing else."""
    tokenizer, _, tuned, base = models
    pair = slm_pair(tuned, base)
    made = RemoteFusion(
        remote, pair.tuned, pair.base, tokenizer, {tokenizer.eos_token_id}, len(tokenizer), **more
    )
    made._one_tokenizer = compared
    return made


# ---------------------------------------------------------------- together with a real gateway


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_greedy_remote_steps_equal_those_of_local_fusion(models, url, alpha):
    tokenizer, llm, tuned, base = models
    local = local_writers((tuned, tokenizer), (base, tokenizer), (llm, tokenizer), alpha)[
        "collaborative"
    ]
    wanted = asks(5, 16, temperature=0.0) + asks(3, 16, temperature=0.0, whole=True)
    with reaching(url, top=-1) as remote:
        made = fusion(remote, models, alpha=alpha)
        steps = WholeStepWriter(made, 256, made.count, seconds=30).write(wanted)
        taken = made.taken
        assert remote.context == 256 and made.count("the grinder\n") == len(
            tokenizer("the grinder\n")["input_ids"]
        )
    for step, direct in zip(steps, local.write(wanted), strict=True):
        assert (step.text, step.end, step.llm_tokens) == (
            direct.text,
            direct.end,
            direct.llm_tokens,
        )
    tokens = sum(step.llm_tokens for step in steps)
    assert (
        tokens > 50
        and sum(one.looks for one in taken) < tokens
        and sum(one.kept for one in taken) > 0
    )
    assert remote.counts.llm_tokens == tokens and remote.counts.rows == sum(
        one.looks for one in taken
    )
    # all rows together; the model's name and the public line for its tokenizer once
    assert remote.counts.requests == 2 + max(one.looks for one in taken)
    assert not remote.counts.failures


def test_sampled_remote_steps_repeat_and_depend_on_their_own_ask(models, url):
    with reaching(url, top=20) as remote:
        made = fusion(remote, models)
        every = made(asks(), "\n")
        assert (
            made(asks(), "\n") == every and [made([ask], "\n")[0] for ask in asks(4)] == every[:4]
        )
        assert made([replace(ask, seed=ask.seed + 50) for ask in asks()], "\n") != every
        assert all(one.tokens <= 12 for one in every)


def test_top_k_is_fusion_on_the_llms_k_likeliest_tokens(models, url):
    """k = 1: whatever the SLMs think, only the LLM's own choice is left. k = 3: never a token
    outside the LLM's three."""
    tokenizer, llm, _, _ = models
    rows = [tuple(tokenizer(ask.prefix)["input_ids"]) for ask in asks(5)]
    greedy = decode(stepper(llm), [Ask(row, 12, 0.0) for row in rows], {tokenizer.eos_token_id})
    with reaching(url, top=1) as remote:
        made = fusion(remote, models, rest="none")
        made(asks(5, temperature=1.0, whole=True), "\n")
        assert [one.answer.tokens for one in made.taken] == [one.tokens for one in greedy]
    with reaching(url, top=3) as remote:
        made = fusion(remote, models, rest="none")
        made(asks(5, temperature=1.0, whole=True), "\n")
        for row, one in zip(rows, made.taken, strict=True):
            whole = [*row, *one.answer.tokens]
            with torch.no_grad():
                best = llm(input_ids=torch.tensor([whole])).logits[0].topk(3).indices
            assert all(whole[place] in best[place - 1] for place in range(len(row), len(whole)))


def test_the_llm_writes_whole_steps_as_it_would_here(models, url):
    tokenizer, llm, _, _ = models
    own = TokenWriter(stepper(llm), tokenizer, {tokenizer.eos_token_id}, 256, llm=1, delimiter="e")
    with reaching(url) as remote:
        wanted = asks(10, 24)
        steps = WholeStepWriter(remote.complete, 256, delimiter="e").write(wanted)
        assert [(step.text, step.end) for step in steps] == [
            (step.text, step.end) for step in own.write(wanted)
        ]
        assert {step.end for step in steps} >= {"delimiter"} and remote.counts.requests == 11
        whole = remote.complete(asks(3, 24, whole=True), "e")
        assert any("e" in one.text for one in whole) and all(
            one.tokens == 24 or one.ended for one in whole
        )


def test_tokenizers_are_compared(models, url):
    tokenizer = models[0]
    with reaching(url) as remote:
        remote.check_tokenizer(tokenizer)

        def shifted(text, **more):
            ids = tokenizer(text, **more)["input_ids"]
            return {"input_ids": [*ids[:-1], ids[-1] + 1]}

        shifted.eos_token_id = tokenizer.eos_token_id
        with pytest.raises(RemoteFailed, match="tokenizer differs from the SLM's"):
            remote.check_tokenizer(shifted)


def test_logits_of_a_foreign_tokenizer_are_refused_before_a_draft_is_sent(models, url):
    tokenizer = models[0]

    class Shifted:
        """The same words by other numbers."""

        eos_token_id, decode = tokenizer.eos_token_id, tokenizer.decode

        def __len__(self):
            return len(tokenizer)

        def __call__(self, text, **more):
            return {"input_ids": [one + 1 for one in tokenizer(text, **more)["input_ids"]]}

    sent = []
    with reaching(url) as remote:
        remote._keep = sent.extend
        made = fusion(remote, (Shifted(), *models[1:]))
        with pytest.raises(RemoteFailed, match="tokenizer differs from the SLM's"):
            made(asks(3), "\n")
    assert sent == [PROBE] and remote.counts.positions == 0
    assert remote.counts.failures == {"Tokenizer": 1}


def test_what_the_gateway_refuses_is_said_without_the_key(models, url):
    with (
        reaching(url, key="wrong-key-0123456789") as remote,
        pytest.raises(RemoteFailed, match=r"HTTP 401: .*no valid key") as raised,
    ):
        remote.score_drafts([(5, 6)], [1])
    assert "wrong-key" not in str(raised.value) + repr(remote.config)
    with (
        reaching(url, model="gpt-9") as remote,
        pytest.raises(RemoteFailed, match="serves no model 'gpt-9', but tiny"),
    ):
        _ = remote.context
    with reaching(url) as remote:
        for bad in ([(5,) * 300], [(10**6,)]):
            with pytest.raises(RemoteFailed, match="HTTP 400"):
                remote.score_drafts(bad, [1])
        with pytest.raises(RemoteFailed, match="HTTP 400"):
            remote.complete([StepAsk("half \ud800 a pair", 0, 5)], "\n")
        assert remote.counts.failures == {"HTTP 400": 3}


# ---------------------------------------------------------------- servers that lie


@contextlib.contextmanager
def lying(answer):
    """A server that sends what `answer(path, body)` returns: (status, bytes), or an iterator of
    bytes that it sends piece by piece."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_POST(self):
            body = json.loads(
                self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}"
            )
            status, content = answer(self.path, body)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.end_headers()
                for part in [content] if isinstance(content, bytes) else content:
                    self.wfile.write(part)
                    self.wfile.flush()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def honest(path, body):
    """A sound answer over 16 tokens of even probability, which the lies below change."""
    if path.endswith("/models"):
        return {"data": [{"id": "m", "max_model_len": 64}]}
    distribution = {f"token_id:{token}": -3.0 for token in range(body["logprobs"])}
    choices = []
    for index, row in enumerate(body["prompt"]):
        whole = [*row, 2]
        laws = [None, *[{**distribution, f"token_id:{token}": -3.0} for token in whole[1:]]]
        part = {
            "tokens": [f"token_id:{token}" for token in whole],
            "top_logprobs": laws,
            "token_logprobs": [None] + [-3.0] * len(row),
        }
        choices.append({"index": index, "text": "", "finish_reason": "length", "logprobs": part})
    return {"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


def changed(change):
    """`honest`, with `change(choice)` made to the last choice's log-probabilities."""

    def answer(path, body):
        found = honest(path, body)
        if "choices" in found:
            change(found["choices"][-1]["logprobs"])
        return 200, json.dumps(found).encode()

    return answer


def instead(content, status=200):
    return lambda path, body: (
        (200, json.dumps(honest(path, body)).encode())
        if path.endswith("/models")
        else (status, content)
    )


def drip(path, body):
    def parts():
        for _ in range(1000):
            yield b" "
            time.sleep(0.02)

    return (
        (200, json.dumps(honest(path, body)).encode())
        if path.endswith("/models")
        else (200, parts())
    )


def put(place, value):
    return lambda part: part["top_logprobs"].__setitem__(place, value)


LIES = {
    "html": (instead(b"<html>Please log in</html>"), "Lie: the answer is not JSON: <html>"),
    "empty": (instead(b""), "an empty answer"),
    "truncated": (instead(b'{"choices": ['), "not JSON"),
    "deep": (instead(b"[" * 100_000), "not JSON"),
    "list": (instead(b"[1]"), "no JSON object"),
    "500": (instead(b"oops", 500), "HTTP 500: oops"),
    "redirect": (instead(b"", 302), "HTTP 302"),
    "429": (instead(b'{"error": {"message": "later"}}', 429), "HTTP 429: .*later"),
    "no choices": (instead(b'{"choices": 3}'), "found no choices for 2 prompts"),
    "fewer choices": (instead(b'{"choices": [{"index": 0}]}'), "found 1 choices for 2 prompts"),
    "another order": (instead(b'{"choices": [{"index": 1}, {"index": 0}]}'), "not numbered"),
    "no log-probabilities": (
        instead(b'{"choices": [{"index": 0}, {"index": 1}]}'),
        "no tokens with log-probabilities",
    ),
    "too short": (
        changed(lambda part: (part["tokens"].pop(), part["top_logprobs"].pop())),
        "row 1: found 3 tokens for a prompt of 3",
    ),
    "too long": (
        changed(
            lambda part: (part["tokens"].append("token_id:1"), part["top_logprobs"].append({}))
        ),
        "row 1: found 5 tokens",
    ),
    "two lengths": (
        changed(lambda part: part["top_logprobs"].pop()),
        "no tokens with log-probabilities",
    ),
    "other tokens": (
        changed(lambda part: part["tokens"].__setitem__(1, "token_id:9")),
        "are not those of the prompt",
    ),
    "texts": (changed(lambda part: part["tokens"].__setitem__(1, "the")), "found the token 'the'"),
    "huge id": (
        changed(put(-1, {"token_id:99999999999999": -0.001})),
        "found the token 'token_id:999",
    ),
    "negative id": (changed(put(-1, {"token_id:-1": -0.001})), "found the token 'token_id:-1'"),
    "nan": (changed(put(-1, {"token_id:1": float("nan")})), "not JSON"),
    "infinity": (changed(put(-1, {"token_id:1": float("-inf")})), "not JSON"),
    "overflow": (instead(b'{"x": 1e999}'), "found no choices"),
    "above 0": (
        changed(put(-1, {"token_id:1": 0.7})),
        "row 1: found log-probabilities that are no numbers or above 0",
    ),
    "text for a number": (changed(put(-1, {"token_id:1": "-0.1"})), "no numbers"),
    "true for a number": (changed(put(-1, {"token_id:1": True})), "no numbers"),
    "no law": (changed(put(-1, None)), "row 1: a place has no log-probabilities"),
    "empty law": (changed(put(-1, {})), "row 1: a place has no log-probabilities"),
    "too many": (
        changed(put(-1, {f"token_id:{i}": -5.0 for i in range(12)})),
        "found 12 alternatives at a place; 4 were asked",
    ),
    "too few": (
        changed(put(-1, {"token_id:1": -5.0})),
        "found 1 alternatives at a place; 4 were asked",
    ),
    "more than 1": (
        changed(put(-1, {f"token_id:{i}": -0.1 for i in range(4)})),
        "add up to more than 1",
    ),
    "slow": (
        lambda path, body: (time.sleep(1.0), honest(path, body), (200, b""))[2],
        "Timeout: no answer within 0.4 s",
    ),
    "drip": (drip, "Timeout: no answer within 0.4 s"),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_one_sentence_within_the_time_limit(lie):
    answer, words = LIES[lie]
    with lying(answer) as url, reaching(url, seconds=0.4, top=4, model="m") as remote:
        start = time.monotonic()
        with pytest.raises(RemoteFailed, match=words) as raised:
            remote.score_drafts([(3, 4), (5, 6, 7)], [2, 1])
        assert time.monotonic() - start < 0.9
        assert (
            sum(remote.counts.failures.values()) == 1
            and "\n" not in str(raised.value)
            and len(str(raised.value)) < 400
        )


def test_what_is_no_lie_is_taken():
    with (
        lying(lambda path, body: (200, json.dumps(honest(path, body)).encode())) as url,
        reaching(url, top=4) as remote,
    ):
        first, second = remote.score_drafts([(3, 4), (5, 6, 7)], [2, 1])
        assert (
            first.tokens.tolist() == [[0, 1, 2, 3]]
            and second.tokens.shape == (3, 4)
            and remote.context == 64
        )
        # the row's own token is not among the four: it has no place in the law
        assert second.logprobs.tolist() == [[-3.0] * 4] * 3


def test_nobody_there_and_endless_answers(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with (
            reaching(f"http://127.0.0.1:{free.getsockname()[1]}/v1") as remote,
            pytest.raises(RemoteFailed, match="Unreachable: Connect"),
        ):
            remote.score_drafts([(3,)], [1])
    monkeypatch.setattr("fedduet.clients.vault.answering.cloud_llm.MOST_BYTES", 10_000)
    endless = lying(lambda path, body: (200, (b" " * 4096 for _ in range(10**9))))
    with (
        endless as url,
        reaching(url, model="m") as remote,
        pytest.raises(RemoteFailed, match="larger than 10000 bytes"),
    ):
        remote.score_drafts([(3,)], [1])


def test_retries_are_off_unless_asked_for():
    calls = []

    def answer(path, body):
        calls.append(path)
        return (500, b"") if len(calls) % 3 else (200, json.dumps(honest(path, body)).encode())

    with lying(answer) as url:
        with reaching(url, model="m") as remote, pytest.raises(RemoteFailed):
            remote.score_drafts([(3,)], [1])
        assert len(calls) == 1
        with reaching(url, model="m", retries=2, top=4) as remote:
            assert (
                len(remote.score_drafts([(3,)], [1])) == 1
                and len(calls) == 3
                and remote.counts.requests == 2
            )


@pytest.mark.parametrize("lie", ["html", "slow", "nan"])
def test_a_step_writer_goes_on_privately(models, lie):
    tokenizer, _, tuned, base = models
    private = local_writers((tuned, tokenizer), (base, tokenizer))["private"]
    with lying(LIES[lie][0]) as url, reaching(url, seconds=0.4, model="m", top=4) as remote:
        made = fusion(remote, models, compared=True, seconds=1.0)
        writer = FallbackWriter(WholeStepWriter(made, 256, made.count, seconds=2.0), private)
        start = time.monotonic()
        steps = writer.write(asks(3))
        assert time.monotonic() - start < 1.5
        assert [step.text for step in steps] == [step.text for step in private.write(asks(3))]
        assert all(step.degraded for step in steps) and writer.failures == {"RemoteFailed": 3}


def test_many_requests_together_have_a_time_limit(models):
    def answer(path, body):
        time.sleep(0.15)
        return 200, json.dumps(honest(path, body)).encode()

    with lying(answer) as url, reaching(url, seconds=0.4, model="m", top=4) as remote:
        start = time.monotonic()
        with pytest.raises(RemoteFailed, match="Timeout"):
            fusion(remote, models, compared=True, seconds=0.6, length=1)(
                asks(2, 200, whole=True), "\n"
            )
        assert 0.4 < time.monotonic() - start < 1.2 and remote.counts.requests >= 3


def test_tokens_beyond_the_shared_vocabulary_are_a_lie(models):
    liar, words = (
        lying(changed(put(-1, {"token_id:99999": -0.001}))),
        "beyond the 512 that are shared",
    )
    with (
        liar as url,
        reaching(url, model="m", top=4) as remote,
        pytest.raises(RemoteFailed, match=words),
    ):
        fusion(remote, models, compared=True)(asks(1), "\n")


def test_settings_are_checked():
    for settings, words in (
        ({"base_url": "ftp://x/v1"}, "it starts with http"),
        ({"base_url": "http://llm.example/v1"}, "http:// to this machine, or allow_http"),
        ({"base_url": "https://llm.example/v1", "seconds": 0}, "seconds above 0"),
        ({"base_url": "https://llm.example/v1", "top": 0}, "top 1 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            RemoteConfig(**settings)
    assert RemoteConfig("http://llm.example/v1", allow_http=True).retries == 0


def test_the_law_of_local_fusion_with_the_llms_top_k(models, url):
    """The first token, drawn 600 times over HTTP, against the formula: fusion on the LLM's 5
    likeliest tokens, renormalised."""
    tokenizer, llm, tuned, base = models
    row = tuple(tokenizer("coffee is")["input_ids"])
    run = proxy_tuned(AnyStepper(llm), slm_pair(tuned, base), 1.0, len(tokenizer))
    with torch.inference_mode():
        fused = run.prefill(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64), 1)[0]
        best = FusedStepper({"llm": AnyStepper(llm)}, {"llm": 1.0}).prefill(
            torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64), 1
        )
    support = best[0].topk(5).indices
    distribution = torch.softmax(fused[support], dim=0)
    with reaching(url, top=5) as remote:
        made = fusion(remote, models, batch_size=100, rest="none")
        made(
            [StepAsk("coffee is", seed, 2, temperature=1.0, whole=True) for seed in range(600)],
            "\n",
        )
    drawn = torch.tensor(
        [
            one.answer.tokens[0] if one.answer.tokens else tokenizer.eos_token_id
            for one in made.taken
        ]
    )
    counts = torch.tensor([(drawn == token).sum() for token in support], dtype=torch.float64)
    assert counts.sum() == 600
    statistic = ((counts - 600 * distribution.double()) ** 2 / (600 * distribution.double())).sum()
    assert (
        statistic < 18.5 and distribution.max() < 0.9
    )  # chi-square, 4 degrees of freedom: p = 0.001
