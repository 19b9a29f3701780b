"""The gateway over real HTTP with a tiny model: who may, how much, what is answered, and that
nothing a client sends breaks it."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
import uvicorn
from fedduet.conf.check import ConfigError
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.scripts.gateway import main
from fedduet.server.gateway.access import Keys, RateLimit
from fedduet.server.gateway.app import Gateway, GatewayConfig, gateway_app
from fedduet.server.gateway.protocol import Refused
from fedduet.server.llm.base import Request
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import load_llm
from fedduet.server.llm.top_logprobs import top_logprobs
from fedduet.server.llm.transformers_engine import TransformersLLM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEY = "key-of-the-first-site-0123456789"
LIMITS = GatewayConfig(
    requests_per_minute=100_000,
    tokens_per_minute=10**9,
    most_bytes=50_000,
    most_logprobs=600,
    most_choices=40,
)
TEXT = "the grinder was very good and"


@contextlib.contextmanager
def serving(llm, limits=LIMITS):
    """A real uvicorn server on a free port; yields (client with the key, gateway)."""
    gateway = Gateway(
        llm, Keys.read(f"first {KEY}\nsecond second-key-0123456789 # a comment\n", "keys"), limits
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
        url = f"http://127.0.0.1:{here.getsockname()[1]}"
        try:
            with httpx.Client(
                base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=30
            ) as client:
                yield client, gateway
        finally:
            server.should_exit = True
            thread.join()
    assert not gateway.worker._thread.is_alive()


@pytest.fixture(scope="module")
def llm(tiny_model):
    """Random weights with an even spread over tokens, in float32."""
    tokenizer, model = load_tokenizer(tiny_model), load_causal_lm(tiny_model)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=drawn) * 0.2)
    return TransformersLLM(model, tokenizer, name="tiny", form="completion", context=256)


@pytest.fixture(scope="module")
def served(llm):
    with serving(llm) as (client, _):
        yield client


def ask(client, **body):
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client, status, **body):
    answer = client.post("/v1/completions", content=json.dumps(body))
    error = answer.json().get("error", {})
    assert answer.status_code == status and set(error) == {
        "message",
        "type",
        "param",
        "code",
    }, answer.text
    return error


# ---------------------------------------------------------------- answers


def test_text_equals_the_engines(served, llm):
    prompts = [TEXT, "a tent is", ""]
    requests = [Request(prompt, 12, 0.0) for prompt in prompts]
    expected = llm.generate(requests)
    found = ask(served, prompt=prompts, max_tokens=12, temperature=0)
    assert [choice["text"] for choice in found["choices"]] == [one.text for one in expected]
    assert [choice["finish_reason"] for choice in found["choices"]] == [
        one.finish for one in expected
    ]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2] and found[
        "model"
    ] == "tiny"
    assert found["usage"]["prompt_tokens"] == sum(one.prompt_tokens for one in expected)
    assert found["usage"]["completion_tokens"] == sum(one.new_tokens for one in expected)
    sampled = llm.generate([Request(TEXT, 12, 0.9, 0.8, 0, seed=7)])[0]
    assert (
        ask(served, prompt=TEXT, max_tokens=12, temperature=0.9, top_p=0.8, seed=7)["choices"][0][
            "text"
        ]
        == sampled.text
    )


def test_seeds_and_several_choices(served):
    def texts(**more):
        return [
            choice["text"]
            for choice in ask(served, prompt=[TEXT, TEXT], max_tokens=8, n=3, **more)["choices"]
        ]

    first = texts(seed=3)
    assert texts(seed=3) == first and texts(seed=4) != first and len(set(first)) == 6
    assert texts() != texts()  # no seed: another stream each time
    assert len(set(texts(seed=3, temperature=0))) == 1


def test_stop_strings_and_token_ids(served, llm):
    free = ask(served, prompt=TEXT, max_tokens=30, seed=1, return_token_ids=True)["choices"][0]
    tokens = llm.tokenizer(TEXT)["input_ids"]
    assert (
        free["prompt_token_ids"] == tokens
        and len(free["token_ids"]) == 30
        and free["finish_reason"] == "length"
    )
    stop = free["text"][9:12]
    cut = ask(served, prompt=tokens, max_tokens=30, seed=1, stop=stop)["choices"][0]
    assert (
        cut["text"] == free["text"][: free["text"].index(stop)] and cut["finish_reason"] == "stop"
    )
    assert cut["stop_reason"] == stop and free["stop_reason"] is None
    assert (
        ask(served, prompt=[tokens, tokens], max_tokens=30, seed=1, stop=[stop, "zz"])["choices"][
            0
        ]["text"]
        == cut["text"]
    )


def direct(llm, tokens):
    with torch.no_grad():
        return llm.model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(dim=-1)


@pytest.mark.parametrize("most", [0, 1, 4])
def test_echoed_log_probabilities_equal_a_direct_forward(served, llm, most):
    rows = [llm.tokenizer(text)["input_ids"] for text in (TEXT, "a tent", "no")]
    found = ask(
        served,
        prompt=rows,
        max_tokens=most,
        echo=True,
        logprobs=5,
        seed=2,
        return_tokens_as_token_ids=True,
        return_token_ids=True,
    )
    for row, choice in zip(rows, found["choices"], strict=True):
        whole = row + choice["token_ids"]
        assert choice["prompt_token_ids"] == row and len(choice["token_ids"]) <= most
        part, laws = choice["logprobs"], direct(llm, whole)
        assert part["tokens"] == [f"token_id:{token}" for token in whole]
        assert part["token_logprobs"][0] is None and part["top_logprobs"][0] is None
        for place in range(1, len(whole)):
            values, tokens = laws[place - 1].topk(5)
            best = part["top_logprobs"][place]
            expected = {
                f"token_id:{token}": value
                for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
            }
            expected.setdefault(f"token_id:{whole[place]}", float(laws[place - 1, whole[place]]))
            assert best == pytest.approx(expected, abs=2e-4)
            assert part["token_logprobs"][place] == pytest.approx(
                float(laws[place - 1, whole[place]]), abs=2e-4
            )
    assert found["usage"]["completion_tokens"] >= len(rows) * most


def test_one_token_with_and_without_log_probabilities_is_the_same(served):
    for seed in range(6):
        body = {
            "prompt": [TEXT, "a tent"],
            "max_tokens": 1,
            "seed": seed,
            "return_token_ids": True,
            "temperature": 0.7,
            "top_p": 0.9,
        }
        plain, scored = (
            ask(served, **body),
            ask(served, **body, logprobs=3, return_tokens_as_token_ids=True),
        )
        for a, b in zip(plain["choices"], scored["choices"], strict=True):
            assert (a["token_ids"], a["text"]) == (b["token_ids"], b["text"])
            assert (
                len(b["logprobs"]["tokens"]) == 1
                and 3 <= len(b["logprobs"]["top_logprobs"][0]) <= 4
            )


def test_places_before_logprobs_from_are_left_out_and_all_tokens_can_be_had(served, llm):
    row = llm.tokenizer(TEXT)["input_ids"]
    body = {
        "prompt": row,
        "max_tokens": 1,
        "echo": True,
        "logprobs": -1,
        "return_tokens_as_token_ids": True,
        "seed": 1,
    }
    whole, part = (
        ask(served, **body, **more)["choices"][0]["logprobs"]
        for more in ({}, {"logprobs_from": len(row) - 2})
    )
    assert part["tokens"] == whole["tokens"] and part["top_logprobs"][: len(row) - 2] == [None] * (
        len(row) - 2
    )
    assert part["top_logprobs"][-3:] == [
        pytest.approx(distribution, abs=1e-4) for distribution in whole["top_logprobs"][-3:]
    ]
    assert all(
        len(distribution) == len(llm.tokenizer) for distribution in part["top_logprobs"][-3:]
    )
    assert sum(
        map(lambda value: 2.718281828**value, part["top_logprobs"][-1].values())
    ) == pytest.approx(1, abs=1e-3)


def test_token_texts_and_offsets(served, llm):
    choice = ask(served, prompt=TEXT, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    part = choice["logprobs"]
    assert choice["text"] == TEXT == "".join(part["tokens"])
    assert [
        TEXT[at : at + len(name)]
        for at, name in zip(part["text_offset"], part["tokens"], strict=True)
    ] == part["tokens"]


def events(client, **body):
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(
            "text/event-stream"
        )
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_streams_add_up_to_the_whole_answer(served):
    body = {"prompt": [TEXT, "a tent é"], "max_tokens": 24, "seed": 5, "n": 2}
    free = ask(served, **body)
    stop = free["choices"][0]["text"][14:17]
    for more in ({}, {"stop": [stop, "\n"]}, {"echo": True}):
        whole = ask(served, **body, **more)
        found = events(served, **body, **more, stream_options={"include_usage": True})
        assert found[-1]["choices"] == [] and found[-1]["usage"] == whole["usage"]
        texts, ends = [""] * 4, [None] * 4
        for event in found[:-1]:
            (choice,) = event["choices"]
            assert ends[choice["index"]] is None
            texts[choice["index"]] += choice["text"]
            ends[choice["index"]] = choice["finish_reason"]
        assert texts == [choice["text"] for choice in whole["choices"]]
        assert ends == [choice["finish_reason"] for choice in whole["choices"]] and len(found) > 20


def test_openais_own_client(served, llm):
    from openai import OpenAI

    client = OpenAI(base_url=f"{served.base_url}/v1/", api_key=KEY, max_retries=0)
    answer = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=5, temperature=0, logprobs=2
    )
    assert answer.choices[0].text == llm.generate([Request(TEXT, 5, 0.0)])[0].text
    assert len(answer.choices[0].logprobs.top_logprobs) == 5
    streamed = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=5, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.max_model_len == 256


def test_waiting_requests_share_a_batch_and_scoring_does_not_wait_for_texts(llm, monkeypatch):
    with serving(llm) as (client, gateway), ThreadPoolExecutor(9) as pool:
        order, batches = [], []
        inner = gateway.worker._write_all
        monkeypatch.setattr(
            gateway.worker, "_write_all", lambda jobs: (batches.append(len(jobs)), inner(jobs))
        )

        def write(seed):
            ask(client, prompt=TEXT, max_tokens=220, seed=seed)
            order.append("text")

        first = pool.submit(write, 0)
        while not batches:
            time.sleep(0.001)
        others = [pool.submit(write, seed) for seed in range(1, 6)]
        while gateway.worker.waiting < 5 and not first.done():
            time.sleep(0.001)
        ask(client, prompt=TEXT, max_tokens=1, echo=True, logprobs=2)
        order.append("score")
        for job in (first, *others):
            job.result()
        assert batches == [1, 5] and order[0] == "score"


# ---------------------------------------------------------------- who may, and how much


def test_without_a_valid_key_only_health_answers(served):
    url = str(served.base_url)
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    for header in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer"},
    ):
        for answer in (
            httpx.get(f"{url}/v1/models", headers=header),
            httpx.post(f"{url}/v1/completions", headers=header, json={}),
        ):
            assert (
                answer.status_code == 401
                and answer.json()["error"]["code"] == "invalid_api_key"
                and KEY not in answer.text
            )
    second = httpx.get(
        f"{url}/v1/models", headers={"authorization": "bearer second-key-0123456789"}
    )
    assert second.status_code == 200 and second.json()["data"][0]["id"] == "tiny"
    assert (
        served.get("/v1/nothing").status_code == 404
        and served.get("/v1/completions").json()["error"]["type"] == "invalid_request_error"
    )


def test_rates_are_limited_for_each_key(llm):
    limits = GatewayConfig(requests_per_minute=4, tokens_per_minute=400)
    with serving(llm, limits) as (client, _):
        used = ask(client, prompt=TEXT, max_tokens=200, stop=" ", seed=0)["usage"]["total_tokens"]
        assert used < 100
        ask(client, prompt=TEXT, max_tokens=200, stop=" ", seed=1)  # what was not used came back
        # more than a minute's tokens; the refusal is one of the four requests
        assert (
            refused(client, 429, prompt=TEXT, max_tokens=240, n=2)["code"] == "rate_limit_exceeded"
        )
        ask(client, prompt=TEXT, max_tokens=1)
        answer = client.post("/v1/completions", json={"prompt": TEXT})
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 15
        other = client.post(
            "/v1/completions",
            json={"prompt": TEXT},
            headers={"authorization": "Bearer second-key-0123456789"},
        )
        assert other.status_code == 200


def test_buckets_fill_up_with_time():
    now = [0.0]
    limit = RateLimit(2, 60, clock=lambda: now[0])
    assert limit.deposit("a", 30) == 30
    limit.deposit("a", 30)
    with pytest.raises(Refused, match="2 requests in a minute; try again in 30 s"):
        limit.deposit("a", 0)
    now[0] = 30.0
    with pytest.raises(Refused, match="60 tokens in a minute; try again in 10 s"):
        limit.deposit("a", 40)
    limit.give_back("a", 25)
    limit.deposit("a", 40)
    limit.give_back("a", 1000)
    now[0] = 60.0
    limit.deposit("a", 60)  # never more than full
    assert limit.deposit("b", 1000) == 60  # a deposit is never more than there can be


def test_a_deposit_is_settled_and_a_refusal_keeps_it():
    limit = RateLimit(3, 60, clock=lambda: 0.0)
    limit.settle("a", limit.deposit("a", 50), 20)  # 40 left
    held = limit.deposit("a", 30)
    with pytest.raises(Refused, match="60 tokens in a minute; try again in 5 s"):
        limit.settle("a", held, 45)
    with pytest.raises(Refused, match="may take 61 tokens; allowed: 60"):
        limit.settle("a", 0, 61)
    limit.settle("a", limit.deposit("a", 0), 10)  # the thirty are gone, a third request is spent
    with pytest.raises(Refused, match="3 requests"):
        limit.deposit("a", 0)


def test_large_prompts_stop_nobody_and_are_paid_by_their_sender(llm, monkeypatch):
    """Tokenising hangs: health answers all the same. What cannot fit is never tokenised, and five
    large prompts leave their sender, and nobody else, without tokens."""
    limits = GatewayConfig(tokens_per_minute=1_000_000)
    reading, go_on, tokenised = threading.Event(), threading.Event(), []

    def slow(self, text):
        tokenised.append(len(text))
        reading.set()
        assert go_on.wait(30)
        return [3]

    monkeypatch.setattr(Gateway, "_encode", slow)
    with serving(llm, limits) as (client, gateway), ThreadPoolExecutor(8) as pool:
        gateway._limit._clock = lambda: 0.0  # nothing fills up meanwhile
        waits = pool.submit(client.post, "/v1/completions", json={"prompt": TEXT, "max_tokens": 1})
        assert reading.wait(30)
        assert client.get("/health").status_code == 200
        large = json.dumps({"prompt": "a " * 2_000_000, "max_tokens": 1})
        answers = [pool.submit(client.post, "/v1/completions", content=large) for _ in range(5)]
        assert client.get("/health").status_code == 200
        other = {"authorization": "Bearer second-key-0123456789"}
        theirs = pool.submit(
            client.post, "/v1/completions", json={"prompt": TEXT, "max_tokens": 1}, headers=other
        )
        go_on.set()
        found = [answer.result().status_code for answer in answers]
        assert sorted(found) == [400, 429, 429, 429, 429]
        assert waits.result().status_code == theirs.result().status_code == 200
        assert set(tokenised) == {len(TEXT)}
        # 500,000 of the minute's million are gone for what was refused
        assert client.post("/v1/completions", content=large).status_code == 429


def test_too_large_too_long_too_many(served, llm):
    assert refused(served, 413, prompt="x" * 60_000)["code"] == "request_too_large"
    chunked = served.post("/v1/completions", content=(b" " * 10_000 for _ in range(10)))
    assert chunked.status_code == 413
    error = refused(served, 400, prompt="tent " * 120, max_tokens=200)
    assert (
        error["code"] == "context_length_exceeded"
        and "context of 256 tokens" in error["message"]
        and error["param"] == "prompt"
    )
    assert refused(served, 404, prompt="a", model="gpt-9")["code"] == "model_not_found"
    assert "allowed: 40 choices" in refused(served, 400, prompt=["a"] * 9, n=5)["message"]
    assert "outside 0 to" in refused(served, 400, prompt=[len(llm.tokenizer)])["message"]
    assert "outside 0 to" in refused(served, 400, prompt=[[3], [-1]])["message"]
    assert "at most 600" in refused(served, 400, prompt="a", logprobs=601)["message"]
    assert "with stream" in refused(served, 400, prompt="a", logprobs=1, stream=True)["message"]
    assert "max_tokens: found 0" in refused(served, 400, prompt="a", max_tokens=0)["message"]
    assert refused(served, 400, prompt="a", temperature="hot")["param"] == "temperature"
    assert refused(served, 400, prompt="a", temprature=1)["param"] == "temprature"
    assert refused(served, 400, prompt="a", frequency_penalty=0.5)["param"] == "frequency_penalty"
    assert "surrogate" in refused(served, 400, prompt="\ud800")["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "seed",
    "n",
    "logprobs",
    "echo",
    "stream",
    "model",
    "logit_bias",
)
BODIES = (
    st.binary(max_size=60)
    | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(FIELDS), JSON).map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from(FIELDS[1:]), JSON).map(
        lambda pair: json.dumps({"prompt": "a", "max_tokens": 2, pair[0]: pair[1]}).encode()
    )
    | st.sampled_from(
        [
            b"[" * 20_000,
            b'{"prompt":' * 3000,
            b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
            b'{"prompt": "a", "n": NaN}',
        ]
    )
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
@given(raw=BODIES)
def test_no_body_breaks_it(served, raw):
    answer = served.post("/v1/completions", content=raw)
    assert answer.status_code in (200, 400, 404), (raw, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


def test_a_model_that_breaks_is_a_500_and_the_next_request_is_served(llm, monkeypatch):
    with serving(llm) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr(
                llm.model.lm_head,
                "forward",
                lambda hidden: hidden.new_full((*hidden.shape[:-1], 512), float("nan")),
            )
            error = refused(client, 500, prompt=TEXT, max_tokens=0, echo=True, logprobs=2)
            assert "not numbers" in error["message"]
        with monkeypatch.context() as patch:
            patch.setattr(llm.model, "forward", None)
            assert (
                refused(client, 500, prompt=TEXT, max_tokens=0, echo=True, logprobs=2)["message"]
                == "the gateway failed"
            )
        ask(client, prompt=TEXT, max_tokens=0, echo=True, logprobs=2)


def test_a_client_that_hangs_up_frees_the_model(llm):
    with serving(llm) as (client, _):
        with client.stream(
            "POST",
            "/v1/completions",
            json={"prompt": [TEXT] * 40, "max_tokens": 200, "stream": True},
        ) as answer:
            next(answer.iter_lines())
        start = time.monotonic()
        ask(client, prompt=TEXT, max_tokens=2)
        assert time.monotonic() - start < 2


# ---------------------------------------------------------------- keys, scores, the command


def test_keys_are_read_with_care(tmp_path):
    for text, words in (
        ("", "found no key"),
        ("short", "line 1: allowed: a name and a key"),
        ("a b c", "line 1"),
        ("# x\n\na 0123456789abcdef\na 0123456789abcdee", "line 4: found the name 'a' twice"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            Keys.read(text, "keys.txt")
        assert "0123456789" not in str(raised.value)
    with pytest.raises(ConfigError, match="is not a file"):
        Keys.from_file(tmp_path / "none")
    assert KEY not in repr(Keys.read(KEY, "keys.txt"))


def test_top_logprobs_in_batches(llm):
    rows = [llm.tokenizer(text)["input_ids"] for text in (TEXT, "a tent", "no", TEXT + TEXT)]
    starts = [1, 2, 1, 7]
    for tokens in (16_384, 12):
        for row, start, found in zip(
            rows, starts, top_logprobs(llm.model, rows, 6, starts, batch_tokens=tokens), strict=True
        ):
            laws = direct(llm, row)[start - 1 :]
            values, best = laws.topk(6)
            assert torch.equal(found.tokens, best) and torch.allclose(
                found.logprobs, values, atol=2e-4
            )
            assert torch.allclose(
                found.chosen,
                laws[:-1].gather(1, torch.tensor(row[start:])[:, None])[:, 0],
                atol=2e-4,
            )
            assert torch.allclose(found.last, laws[-1], atol=2e-4)
    with pytest.raises(ValueError, match="row 0: found start 0"):
        top_logprobs(llm.model, rows[:1], 6, [0])


def test_the_command_says_what_is_wrong_before_it_loads(tiny_model, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    model = f"llm.path={tiny_model}"
    for arguments, words in (
        (["--no-keys", "--host", "0.0.0.0", model], "--no-keys: found --host 0.0.0.0"),
        (["--keys", str(tmp_path / "none"), model], "is not a file"),
        (["--key-env", "FEDDUET_NO_SUCH_VARIABLE", model], "FEDDUET_NO_SUCH_VARIABLE is not set"),
        (["--keys", str(keys), "llm=openai", "llm.model=m"], "llm.engine: found openai"),
        (["--keys", str(keys), f"llm.path={tmp_path}"], "has no config.json"),
        (["--keys", str(keys), model, "gateway.most_byte=3"], "most_bytes"),
        (["--keys", str(keys), model, "gateway.most_bytes=0"], "gateway.most_bytes: found 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            main(arguments)
    assert load_llm(LLMConfig(path=str(tiny_model))).context == 256
