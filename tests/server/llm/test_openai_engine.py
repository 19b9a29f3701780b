"""The endpoint engine over HTTP: against a real model server, against one that misbehaves, and with
its cache."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from fedduet.conf.check import ConfigError
from fedduet.server.llm.base import LLM, ChatTurn, Request
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import load_llm
from fedduet.server.llm.openai_engine import Endpoint, OpenAILLM
from fedduet.server.llm.response_cache import ResponseCache
from fedduet.server.llm.transformers_engine import TransformersLLM
from transformers.utils.import_utils import is_serve_available

KEY = "sk-very-secret-0123456789"

# ---------------------------------------------------------------- a server that misbehaves


def completion(text="fine", finish="stop", **more):
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return (
        200,
        {},
        json.dumps({"choices": [{"text": text, "finish_reason": finish, **more}], "usage": usage}),
    )


class Script:
    """What the server does with each request in turn (the last goes on for ever), and what it was
    asked."""

    def __init__(self, *steps):
        self.steps, self.bodies, self.times, self.keys, self.lock = (
            list(steps),
            [],
            [],
            [],
            threading.Lock(),
        )
        self.now = self.most = 0


@contextlib.contextmanager
def serving(script):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with script.lock:
                step = script.steps[min(len(script.bodies), len(script.steps) - 1)]
                script.bodies.append(body)
                script.times.append(time.monotonic())
                script.keys.append(self.headers.get("authorization"))
                script.now += 1
                script.most = max(script.most, script.now)
            status, headers, text = step(body) if callable(step) else step
            with script.lock:
                script.now -= 1
            if status == 0:  # hang up without an answer
                self.close_connection = True
                return self.connection.close()
            payload = text.encode()
            self.send_response(status)
            for name, value in (
                {"content-type": "application/json", "content-length": str(len(payload))} | headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may have stopped waiting
                self.wfile.write(payload)

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


HELLO = (Request("hello"),)


def ask(script, requests=HELLO, form="completion", **options):
    options = {"retries": 3, "backoff": 0.01, "timeout": 5.0} | options
    endpoint_options = {
        name: options.pop(name) for name in tuple(options) if name in Endpoint.__dataclass_fields__
    }
    with serving(script) as url:
        llm = OpenAILLM(
            Endpoint(url, "m", form, **endpoint_options), name="test", context=1000, **options
        )
        return llm.generate(list(requests))


def hang(_body, seconds=1.0):
    time.sleep(seconds)
    return completion("late")


BAD = {
    "429": (429, {}, '{"error": "slow down"}'),
    "500": (500, {}, "internal error"),
    "503": (503, {}, "<html>overloaded</html>"),
    "html": (200, {"content-type": "text/html"}, "<html>Please log in to the Wi-Fi</html>"),
    "truncated": (200, {}, '{"choices": [{"text": "fi'),
    "empty": (200, {}, ""),
    "no choices": (200, {}, '{"choices": []}'),
    "wrong shape": (200, {}, '{"choices": [{"text": 5}]}'),
    "a list": (200, {}, "[1, 2]"),
    "short body": (200, {"content-length": "5000"}, '{"choices"'),
    "bad gzip": (200, {"content-encoding": "gzip"}, "not gzip"),
    "hangs up": (0, {}, ""),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_may_pass_is_tried_again(bad):
    script = Script(BAD[bad], BAD[bad], completion())
    [answer] = ask(script, timeout=0.4)
    assert (answer.text, answer.finish, answer.prompt_tokens, answer.new_tokens) == (
        "fine",
        "stop",
        3,
        2,
    )
    assert len(script.bodies) == 3 and script.bodies[0] == script.bodies[2]


@pytest.mark.parametrize("bad", ["500", "html", "truncated", "wrong shape", "hangs up"])
def test_what_does_not_pass_is_an_error_that_says_what_came(bad):
    script = Script(BAD[bad])
    [answer] = ask(script, retries=2)
    named = {
        "500": "HTTP 500: internal error",
        "html": "log in to the Wi-Fi",
        "hangs up": "RemoteProtocolError",
    }
    on_progress = named.get(bad, "not a completion")
    assert (
        (answer.finish, answer.text) == ("error", "")
        and on_progress in answer.error
        and "attempt 3" in answer.error
    )
    assert len(script.bodies) == 3


def test_a_server_that_hangs_costs_the_timeout_and_no_more():
    begun = time.monotonic()
    [answer] = ask(Script(lambda body: hang(body, 3.0)), timeout=0.2, retries=1)
    assert (
        answer.finish == "error"
        and "no answer within 0.2 seconds" in answer.error
        and time.monotonic() - begun < 2
    )
    [answer] = ask(Script(hang, completion()), timeout=0.2)
    assert answer.text == "fine"


def test_a_server_that_drips_is_a_server_that_hangs():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        begun = time.monotonic()
        [answer] = OpenAILLM(
            Endpoint(url, "m"), name="", context=100, timeout=0.4, retries=0
        ).generate([Request("hello")])
        assert "no answer within 0.4 seconds" in answer.error and time.monotonic() - begun < 2
        thread.join()


def test_nothing_listening_is_an_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        [answer] = OpenAILLM(
            Endpoint(url, "m"), name="", context=100, retries=1, backoff=0.01
        ).generate([Request("hello")])
    assert answer.finish == "error" and "ConnectError" in answer.error and url in answer.error


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_repeated(status):
    script = Script((status, {}, '{"error": "this model has a context of 2048 tokens"}'))
    [answer] = ask(script)
    assert (
        answer.finish == "error"
        and f"HTTP {status}" in answer.error
        and "2048 tokens" in answer.error
        and len(script.bodies) == 1
    )


def test_retry_after_is_respected_by_all_requests():
    script = Script((429, {"retry-after": "1"}, "{}"), completion())
    answers = ask(script, [Request(str(i)) for i in range(4)], concurrency=1)
    assert [answer.text for answer in answers] == ["fine"] * 4
    assert script.times[1] - script.times[0] >= 0.95 and script.times[4] - script.times[1] < 0.5
    script = Script((503, {"retry-after": "86400"}, "{}"))
    [answer] = ask(script)
    assert "asks to wait 86400 seconds" in answer.error and len(script.bodies) == 1


def test_waits_grow_exponentially():
    script = Script(BAD["500"])
    ask(script, retries=3, backoff=0.2)
    waits = [b - a for a, b in zip(script.times, script.times[1:], strict=False)]
    assert all(0.1 * 2**i <= wait < 0.2 * 2**i + 0.15 for i, wait in enumerate(waits)), waits


def test_one_failure_leaves_the_others_and_their_order():
    def echo(body):
        return (400, {}, "no") if body["prompt"] == "3" else completion(f"answer {body['prompt']}")

    seen = []
    with serving(Script(echo)) as url:
        llm = OpenAILLM(Endpoint(url, "m", "completion"), name="", context=100, concurrency=3)
        answers = llm.generate(
            [Request(str(i)) for i in range(7)], lambda *state: seen.append(state)
        )
    assert [answer.text for answer in answers] == [
        f"answer {i}" if i != 3 else "" for i in range(7)
    ]
    assert [state[0] for state in seen] == list(range(1, 8)) and seen[-1] == (7, 7, 12)


def test_no_more_requests_at_once_than_allowed():
    script = Script(lambda body: hang(body, 0.05))
    ask(script, [Request(str(i)) for i in range(12)], concurrency=4)
    assert script.most == 4


def test_what_is_sent(monkeypatch):
    request = Request("hello", 7, 0.5, 0.8, 40, ("a", "b", "c", "d", "e"), 11)
    script = Script(completion("has e in it"))
    [answer] = ask(script, [request])
    expected = {
        "model": "m",
        "prompt": "hello",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.8,
        "seed": 11,
        "stop": list("abcd"),
    }
    assert script.bodies == [expected] and answer.text == "h" and script.keys == [None]
    script = Script(
        (200, {}, '{"choices": [{"message": {"content": "hi"}, "finish_reason": "length"}]}')
    )
    options = {
        "send_top_k": True,
        "send_seed": False,
        "max_tokens_key": "max_completion_tokens",
        "extra_body": {"user": "u"},
    }
    turns = (ChatTurn("system", "be brief"), ChatTurn("user", "hello"))
    [answer] = ask(script, [Request(turns, 7, 0.5, 0.8, 40)], form="chat", key=KEY, **options)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    expected = {
        "model": "m",
        "messages": messages,
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 40,
        "user": "u",
    }
    assert script.bodies == [expected] and script.keys == [f"Bearer {KEY}"]
    # no usage: estimates
    assert (
        (answer.text, answer.finish) == ("hi", "length")
        and answer.prompt_tokens > 0
        and answer.new_tokens > 0
    )


def test_unusual_answers():
    assert ask(Script(completion("", "content_filter")))[0].finish == "error"
    silent = (
        200,
        {},
        (
            '{"choices": [{"message": {"content": null}, "finish_reason": "length"}], "usage":'
            ' {"completion_tokens": 9}}'
        ),
    )
    [answer] = ask(Script(silent), form="chat")
    assert (answer.text, answer.finish, answer.new_tokens) == ("", "length", 9)
    [answer] = ask(Script(completion()), [Request((ChatTurn("user", "hello"),))])
    assert answer.finish == "error" and "completion form" in answer.error


def test_it_runs_inside_an_event_loop():
    async def caller():
        return ask(Script(completion()))

    assert asyncio.run(caller())[0].text == "fine"


# ---------------------------------------------------------------- the cache and the key


def test_a_second_run_reaches_no_server(tmp_path):
    requests = [Request(str(i % 5), seed=i % 5) for i in range(9)]  # four are repeats
    script = Script(lambda body: completion(f"answer {body['prompt']}"))
    with serving(script) as url:
        config = LLMConfig(engine="openai", base_url=url, model="m", form="completion", retries=0)
        first = load_llm(config, tmp_path).generate(requests)
        assert len(script.bodies) == 5
    second = load_llm(config, tmp_path).generate(requests)  # the server is gone
    assert first == second and [answer.text for answer in second] == [
        f"answer {i % 5}" for i in range(9)
    ]
    assert [file.name for file in (tmp_path / "llm_cache").iterdir()] == ["answers.sqlite"]


CHANGES = (
    {"seed": 2},
    {"prompt": "other"},
    {"temperature": 0.1},
    {"stop": ("x",)},
    {"top_k": 3},
    {"max_new_tokens": 9},
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_different_request_is_another_answer(change, tmp_path):
    for options in ({}, {"send_seed": False}):
        script = Script(completion("one"), completion("two"))
        cache = ResponseCache(tmp_path / str(len(options)))
        base = {"prompt": "hello", "seed": 1}
        answers = ask(
            script,
            [Request(**base), Request(**base), Request(**(base | change))],
            cache=cache,
            concurrency=1,
            **options,
        )
        assert [answer.text for answer in answers] == ["one", "one", "two"]


def test_errors_are_not_kept_and_answers_are_kept_as_they_come(tmp_path):
    def only_small(body):
        return completion() if int(body["prompt"]) < 3 else (400, {}, "no")

    script = Script(*[only_small] * 5, completion("now"))
    requests = [Request(str(i)) for i in range(5)]
    with serving(script) as url:
        for expected in (["fine"] * 3 + [""] * 2, ["fine"] * 3 + ["now"] * 2):
            llm = OpenAILLM(
                Endpoint(url, "m", "completion"),
                name="",
                context=100,
                cache=ResponseCache(tmp_path),
            )
            assert [answer.text for answer in llm.generate(requests)] == expected
            llm.close()
    assert len(script.bodies) == 7


def test_a_killed_run_keeps_what_it_paid_for(tmp_path):
    program = (
        "import sys; from pathlib import Path; from fedduet.server.llm.config import LLMConfig;"
        " from fedduet.server.llm.load import load_llm\nfrom fedduet.server.llm.base import"
        " Request\nllm = load_llm(LLMConfig(engine='openai', base_url=sys.argv[1], model='m',"
        " form='completion', concurrency=1), Path(sys.argv[2]))\nllm.generate([Request(str(i)) for"
        " i in range(6)])"
    )
    process = None

    def kill_at_three(body):
        if body["prompt"] == "3":
            process.kill()
        return completion(f"answer {body['prompt']}")

    with serving(Script(kill_at_three)) as url:
        process = subprocess.Popen([sys.executable, "-c", program, url, str(tmp_path)])
        assert process.wait(20) == -9
        script = Script(completion("late"))
    cache = sqlite3.connect(tmp_path / "llm_cache" / "answers.sqlite")
    kept = [json.loads(row[0])["text"] for row in cache.execute("SELECT answer FROM answers")]
    assert sorted(kept) == ["answer 0", "answer 1", "answer 2"] and not script.bodies


def test_the_key_stays_out_of_errors_logs_and_the_cache(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    script = Script(
        (401, {}, f"Incorrect API key provided: {KEY}"),
        (500, {}, f"bad {KEY}"),
        (500, {}, f"bad {KEY}"),
        completion(),
    )
    with serving(script) as url:
        options = {
            "base_url": url,
            "model": "m",
            "form": "completion",
            "retries": 1,
            "concurrency": 1,
        }
        llm = load_llm(
            LLMConfig(engine="openai", api_key_env="TEST_ENDPOINT_KEY", **options), tmp_path
        )
        llm.backoff = 0.01
        answers = llm.generate([Request("a"), Request("b"), Request("c")])
    assert script.keys == [f"Bearer {KEY}"] * 4 and answers[2].text == "fine"
    assert "[key]" in answers[0].error and "[key]" in answers[1].error
    assert KEY not in str(answers) + repr(llm.endpoint) + caplog.text
    assert KEY.encode() not in (tmp_path / "llm_cache" / "answers.sqlite").read_bytes()
    monkeypatch.delenv("TEST_ENDPOINT_KEY")
    with pytest.raises(
        ConfigError,
        match=r"llm\.api_key_env: the environment variable TEST_ENDPOINT_KEY is not set",
    ):
        load_llm(LLMConfig(engine="openai", api_key_env="TEST_ENDPOINT_KEY", **options))


# ---------------------------------------------------------------- counting tokens


def test_with_a_tokenizer_counts_are_exact_and_long_prompts_are_not_sent(model_folder, tokenizer):
    script = Script(completion())
    with serving(script) as url:
        options = {
            "base_url": url,
            "model": "m",
            "form": "completion",
            "tokenizer": str(model_folder),
            "context": 50,
        }
        llm = load_llm(LLMConfig(engine="openai", **options))
        assert llm.count_tokens("the camera takes") == len(
            tokenizer("the camera takes")["input_ids"]
        )
        answers = llm.generate([Request("camera " * 30, 10), Request("camera", 10)])
    assert (
        "context of 50 tokens" in answers[0].error
        and answers[1].text == "fine"
        and len(script.bodies) == 1
    )


def test_without_a_tokenizer_counts_are_upper_estimates(tokenizer):
    llm = OpenAILLM(Endpoint("http://x", "m"), name="", context=100)
    assert (
        llm.count_tokens("") == 0
        and llm.count_tokens("abc d") == 3
        and llm.count_tokens("1234") == 4
    )
    assert llm.count_tokens("日本!") == 7
    assert llm.count_tokens("12 + 30") == 7
    for text in ("12 + 30 = 42", "日本 é ß", "!!! ... ???", "\n\n\t"):
        assert llm.count_tokens(text) >= len(tokenizer(text)["input_ids"])


# ---------------------------------------------------------------- a real server: `transformers serv


@pytest.fixture(scope="module", autouse=True)
def starting_server(model_folder, tmp_path_factory):
    """`transformers serve`, which starts while the tests above run: (process, port, log), or None
    without its packages."""
    if not is_serve_available():
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from transformers.cli.transformers import main; main()",
        "serve",
        str(model_folder),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            yield process, port, log
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="module")
def real_server(starting_server):
    """Its base URL, once it answers."""
    if starting_server is None:
        pytest.skip("transformers serve needs fastapi, uvicorn and openai")
    process, port, log = starting_server
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return f"http://127.0.0.1:{port}/v1"
        time.sleep(0.1)
    raise AssertionError(f"no server after 60 seconds: {log.read_text()}")


def test_completions_equal_the_local_engine(real_server, model_folder, llama, tokenizer):
    config = LLMConfig(
        engine="openai", base_url=real_server, model=str(model_folder), form="completion", retries=0
    )
    llm = load_llm(config)
    assert isinstance(llm, LLM) and llm.form == "completion" and llm.parameters is None
    requests = [
        Request(p, max_new_tokens=8, temperature=0)
        for p in ("the camera", "I would not buy this", "good")
    ]
    answers = llm.generate(requests)
    local = TransformersLLM(llama, tokenizer, name="", form="completion", context=128).generate(
        requests
    )
    assert [(a.text, a.prompt_tokens, a.error) for a in answers] == [
        (a.text, a.prompt_tokens, "") for a in local
    ]
    assert [answer.new_tokens for answer in answers] == [answer.new_tokens for answer in local]


def test_chats_equal_the_local_engine(real_server, model_folder):
    llm = load_llm(
        LLMConfig(engine="openai", base_url=real_server, model=str(model_folder), retries=0)
    )
    local = load_llm(LLMConfig(path=str(model_folder), precision="fp32", device="cpu"))
    assert llm.form == local.form == "chat"
    requests = [
        Request((ChatTurn("system", "be good"), ChatTurn("user", "the phone")), 8, temperature=0),
        Request("bad", 8, temperature=0),
    ]
    assert [(a.text, a.prompt_tokens) for a in llm.generate(requests)] == [
        (a.text, a.prompt_tokens) for a in local.generate(requests)
    ]


def test_stop_strings_are_cut_off_and_a_refusal_is_an_error(real_server, model_folder):
    llm = load_llm(
        LLMConfig(
            engine="openai",
            base_url=real_server,
            model=str(model_folder),
            form="completion",
            send_top_k=True,
        )
    )
    refused = llm.generate([Request("good", 8, temperature=0)])[0]  # this server knows no top_k
    assert refused.finish == "error" and "HTTP 422" in refused.error and "top_k" in refused.error
    llm = load_llm(
        LLMConfig(engine="openai", base_url=real_server, model=str(model_folder), form="completion")
    )
    whole = llm.generate([Request("the camera", 12, temperature=0)])[0].text
    stop = whole[4:6]
    cut = llm.generate([Request("the camera", 12, temperature=0, stop=(stop,))])[0]
    assert (cut.text, cut.finish) == (whole[: whole.index(stop)], "stop")


def test_a_contrast_is_refused_and_nothing_is_sent():
    script = Script((200, {}, "never"))
    [answer] = ask(script, (Request("a", contrast="b", guidance=1.0),))
    assert "cannot run two prompts" in answer.error and not script.bodies
