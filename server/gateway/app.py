"""The gateway: lets sites use the cloud's LLM over HTTP, with the completions part of the OpenAI
protocol."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pydantic
import torch
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from fedduet.conf.check import Section
from fedduet.lm.decoding.decode import NOT_NUMBERS, Answer, Ask
from fedduet.lm.decoding.draw import draw, uniforms
from fedduet.lm.randomness import derive
from fedduet.server.gateway.access import Keys, RateLimit
from fedduet.server.gateway.protocol import (
    LEAST_TEMPERATURE,
    CompletionBody,
    Refused,
    logprobs_part,
    read_completion,
    to_json,
    usage,
)
from fedduet.server.gateway.worker import Worker, Writing
from fedduet.server.llm.tokens import decoded, decoded_after, encode, start_tokens
from fedduet.server.llm.top_logprobs import PlaceLogprobs
from starlette.exceptions import HTTPException

log = logging.getLogger("fedduet.gateway")

BODY_SECONDS = 30.0  # a request must have arrived by then [O]
BYTES_OF_A_TOKEN = 8  # of a body, for the charge before it is read [O]; texts and ids have fewer


class GatewayConfig(Section):
    """Limits of a gateway. All values are our choice [O]."""

    requests_per_minute: int = pydantic.Field(default=600, ge=1)  # of one key
    # of one key; prompts and new tokens
    tokens_per_minute: int = pydantic.Field(default=1_000_000, ge=1)
    most_bytes: int = pydantic.Field(default=4 * 2**20, ge=1)  # of a request's body
    most_choices: int = pydantic.Field(default=128, ge=1)  # prompts x n in one request
    most_logprobs: int = pydantic.Field(default=100, ge=0)  # alternatives at a place
    most_entries: int = pydantic.Field(default=2_000_000, ge=1)  # alternatives in one answer
    most_waiting: int = pydantic.Field(default=256, ge=1)  # requests before the model


# ---------------------------------------------------------------- one request


@dataclass(frozen=True)
class _Asked:
    """A request that can run: its prompts' tokens, and alternatives at a place (None: no
    log-probabilities)."""

    body: CompletionBody
    rows: list[tuple[int, ...]]
    k: int | None

    @property
    def cost(self) -> int:
        return sum(map(len, self.rows)) + self.body.max_tokens * self.body.n * len(self.rows)

    def asks(
        self, stopped: Callable[[tuple[int, ...]], Callable[[list[int]], bool] | None]
    ) -> list[Ask]:
        """The n x prompts rows to continue. The first draws from the seed itself, the others from
        streams derived from it."""
        body = self.body
        seed = secrets.randbits(62) if body.seed is None else body.seed
        temperature = body.temperature if body.temperature >= LEAST_TEMPERATURE else 0.0
        rows = [row for row in self.rows for _ in range(body.n)]
        return [
            Ask(
                row,
                body.max_tokens,
                temperature,
                max(body.top_k, 0),
                body.top_p,
                derive(seed, "choice", i) if i else seed,
                stopped(row),
            )
            for i, row in enumerate(rows)
        ]


@dataclass(frozen=True)
class _Choice:
    """A choice: its prompt, new tokens, their text up to a stop string (`stop`), why it ended, and
    what may stand at its places."""

    prompt: tuple[int, ...]
    new: tuple[int, ...]
    text: str
    finish: str
    spent: int  # tokens drawn, an end token among them
    stop: str | None = None
    places: PlaceLogprobs | None = None


class Gateway:
    """Answers requests with a model of this process (a
    `fedduet.server.llm.transformers_engine.TransformersLLM`)."""

    def __init__(self, llm: Any, keys: Keys, config: GatewayConfig = GatewayConfig()) -> None:  # noqa: B008  (frozen)
        self.name, self.context, self.config, self.keys = llm.name, llm.context, config, keys
        self._tokenizer, self._vocabulary = llm.tokenizer, len(llm.tokenizer)
        self._limit = RateLimit(config.requests_per_minute, config.tokens_per_minute)
        self._started = int(time.time())
        self._reader = ThreadPoolExecutor(1, "gateway-reader")
        self._longest = max(len(token.encode()) for token in llm.tokenizer.get_vocab())
        self.worker = Worker(llm.model, llm.tokenizer, llm.batch_tokens)

    def close(self) -> None:
        """Ends the gateway's threads."""
        self._reader.shutdown(cancel_futures=True)
        self.worker.close()

    def models(self) -> bytes:
        """GET /v1/models; `max_model_len` (vLLM's name) is the context in tokens."""
        card = {
            "id": self.name,
            "object": "model",
            "created": self._started,
            "owned_by": "fedduet",
            "max_model_len": self.context,
        }
        return to_json({"object": "list", "data": [card]})

    async def completions(self, request: Request, name: str) -> Response:
        """POST /v1/completions."""
        if self.worker.waiting >= self.config.most_waiting:
            raise Refused(
                503,
                "too many requests wait for the model; try again later",
                "overloaded",
                headers={"retry-after": "1"},
            )
        # by bytes, before anything is read; what is then refused keeps that charge
        announced = request.headers.get("content-length", "")
        size = int(announced) if 0 < len(announced) <= 15 else self.config.most_bytes
        held = self._limit.deposit(name, min(size, self.config.most_bytes) // BYTES_OF_A_TOKEN)
        raw = await self._read(request)
        # never in the event loop, which answers everybody, nor several at a time
        asked = await asyncio.get_running_loop().run_in_executor(
            self._reader, lambda: self._asked(read_completion(raw))
        )
        body = asked.body
        self._limit.settle(name, held, asked.cost)
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        if body.stream:
            return StreamingResponse(
                self._stream(asked, head, name),
                media_type="text/event-stream",
                headers={"cache-control": "no-store"},
            )
        used = 0
        try:
            choices = await self._choices(asked, request)
            used = sum(map(len, asked.rows)) + sum(choice.spent for choice in choices)
        finally:
            self._limit.give_back(name, asked.cost - used)
        written = [self._choice(asked, i, choice) for i, choice in enumerate(choices)]
        total = usage(sum(map(len, asked.rows)), sum(choice.spent for choice in choices))
        return Response(
            to_json({**head, "choices": written, "usage": total}), media_type="application/json"
        )

    async def _read(self, request: Request) -> bytes:
        """The body. Raises Refused for one that is too large or does not come."""
        most = self.config.most_bytes
        parts, size, on_progress = [], 0, request.headers.get("content-length", "0")
        too_large = Refused(
            413,
            f"the request is larger than {most} bytes",
            "request_too_large",
            headers={"connection": "close"},
        )
        if (
            len(on_progress) > 15 or int(on_progress) > most
        ):  # the HTTP server has seen to it that it is a number
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise Refused(
                408, f"the request did not arrive within {BODY_SECONDS:g} s", "timeout"
            ) from None
        return b"".join(parts)

    def _asked(self, body: CompletionBody) -> _Asked:
        """Raises Refused for what this model or these limits do not take."""
        config = self.config
        if body.model not in (None, self.name):
            raise Refused(
                404, f"there is no such model; there is {self.name}", "model_not_found", "model"
            )
        if len(body.prompt) * body.n > config.most_choices:
            raise Refused(
                400,
                f"prompt, n: found {len(body.prompt)} x {body.n}; allowed: {config.most_choices}"
                " choices",
                None,
                "prompt",
            )
        for number, one in enumerate(body.prompt):
            if isinstance(one, str) and len(one) > self._longest * self.context:
                raise Refused(
                    400,
                    f"prompt {number} has {len(one)} characters, more than fit into the context of"
                    f" {self.context} tokens",
                    "context_length_exceeded",
                    "prompt",
                )
        rows = [tuple(self._encode(one) if isinstance(one, str) else one) for one in body.prompt]
        for number, row in enumerate(rows):
            if not row:
                raise Refused(
                    400,
                    f"prompt {number} is empty and the tokenizer has no token to start a text with",
                    None,
                    "prompt",
                )
            if not 0 <= min(row) <= max(row) < self._vocabulary:
                raise Refused(
                    400,
                    f"prompt {number}: found a token id outside 0 to {self._vocabulary - 1}",
                    None,
                    "prompt",
                )
            if len(row) + body.max_tokens > self.context:
                found = f"prompt {number} has {len(row)} tokens and max_tokens is {body.max_tokens}"
                message = f"{found}, together more than the context of {self.context} tokens"
                raise Refused(400, message, "context_length_exceeded", "prompt")
        k = self._vocabulary if body.logprobs == -1 else body.logprobs
        if k is not None:
            if k > config.most_logprobs:
                raise Refused(
                    400,
                    f"logprobs: found {body.logprobs}; allowed: at most {config.most_logprobs}",
                    None,
                    "logprobs",
                )
            echoed = sum(max(0, len(row) - body.logprobs_from) for row in rows) * body.echo * body.n
            if (
                entries := (k + 1) * (echoed + body.max_tokens * body.n * len(rows))
            ) > config.most_entries:
                raise Refused(
                    400,
                    f"the answer may have {entries} log-probabilities; allowed:"
                    f" {config.most_entries}",
                    None,
                    "logprobs",
                )
        return _Asked(body, rows, k)

    def _encode(self, text: str) -> Sequence[int]:
        return encode(self._tokenizer, text) or start_tokens(self._tokenizer)

    # -- answers ---------------------------------------------------------------

    async def _choices(self, asked: _Asked, request: Request) -> list[_Choice]:
        body = asked.body
        if asked.k is not None and body.max_tokens == 1 and not body.stop:
            return await self._one_token(asked, request)
        choices = [_Choice(row, (), "", "length", 0) for row in asked.rows for _ in range(body.n)]
        if body.max_tokens:
            job = Writing(asked.asks(self._stopping(body.stop)))
            answers = await self._wait(self.worker.write(job), request, job)
            choices = [
                self._written(ask, answer, body.stop)
                for ask, answer in zip(job.asks, answers, strict=True)
            ]
        if asked.k is None:
            return choices
        rows = [choice.prompt + choice.new for choice in choices]
        starts = [self._first(asked, choice.prompt) for choice in choices]
        places = await self._wait(self.worker.score(rows, starts, asked.k), request)
        _check_numbers(places)
        return [replace(choice, places=part) for choice, part in zip(choices, places, strict=True)]

    async def _one_token(self, asked: _Asked, request: Request) -> list[_Choice]:
        """One token behind each prompt, drawn from the same pass that scores the prompt; an end
        token is given as it is."""
        starts = [self._first(asked, row) for row in asked.rows]
        scored = await self._wait(self.worker.score(asked.rows, starts, asked.k or 0), request)
        _check_numbers(scored)
        choices = []
        for ask, places in zip(
            asked.asks(lambda _: None),
            (part for part in scored for _ in range(asked.body.n)),
            strict=True,
        ):
            token = _drawn(places.last, ask)
            chosen = torch.cat([places.chosen, places.last[token : token + 1]])
            end = token in self.worker.ends
            text = decoded_after(self._tokenizer, list(ask.prompt[-1:]), [token])
            part = replace(places, chosen=chosen)
            choices.append(
                _Choice(ask.prompt, (token,), text, "stop" if end else "length", 1, None, part)
            )
        return choices

    def _first(self, asked: _Asked, prompt: Sequence[int]) -> int:
        """The first place that gets log-probabilities."""
        return min(len(prompt), asked.body.logprobs_from) if asked.body.echo else len(prompt)

    def _written(self, ask: Ask, answer: Answer, stops: Sequence[str]) -> _Choice:
        if answer.finish == "error":
            raise Refused(500, answer.error)
        text, stop = self._text(ask.prompt, answer.tokens, stops)
        finish = "length" if answer.finish == "length" and stop is None else "stop"
        return _Choice(
            ask.prompt,
            answer.tokens,
            text,
            finish,
            len(answer.tokens) + (answer.finish == "end"),
            stop,
        )

    def _text(
        self, prompt: tuple[int, ...], new: Sequence[int], stops: Sequence[str]
    ) -> tuple[str, str | None]:
        """The text of the new tokens up to the first stop string, and which that is."""
        text = decoded_after(self._tokenizer, list(prompt[-1:]), list(new))
        at, stop = min(
            ((text.find(stop), stop) for stop in stops if stop and stop in text),
            default=(None, None),
        )
        return text[:at], stop

    def _stopping(
        self, stops: Sequence[str]
    ) -> Callable[[tuple[int, ...]], Callable[[list[int]], bool] | None]:
        """Ends a row as soon as a stop string is in its text. Tokens have a byte or more, so the
        last few show it first."""
        span = max((len(stop.encode()) for stop in stops), default=0) + 8

        def of(prompt: tuple[int, ...]) -> Callable[[list[int]], bool] | None:
            def stopped(new: list[int]) -> bool:
                tail = decoded(self._tokenizer, [*prompt[-1:], *new][-span:])
                return (
                    any(stop in tail for stop in stops if stop)
                    and self._text(prompt, new, stops)[1] is not None
                )

            return stopped if any(stops) else None

        return of

    def _choice(self, asked: _Asked, index: int, choice: _Choice) -> dict[str, Any]:
        """The choice as the protocol writes it."""
        body, found = (
            asked.body,
            {
                "index": index,
                "text": choice.text,
                "logprobs": None,
                "finish_reason": choice.finish,
            },
        )
        found["stop_reason"] = choice.stop
        if body.echo:
            found["text"] = self._echo(choice.prompt) + choice.text
        if choice.places is not None:
            row, first = choice.prompt + choice.new, self._first(asked, choice.prompt)
            begin, chosen = 0 if body.echo else len(choice.prompt), choice.places.chosen.tolist()
            found["logprobs"] = logprobs_part(
                self._tokenizer,
                row,
                choice.places,
                begin,
                first,
                chosen,
                asked.k or 0,
                body.return_tokens_as_token_ids,
            )
        if body.return_token_ids:
            found |= {"prompt_token_ids": list(choice.prompt), "token_ids": list(choice.new)}
        return found

    def _echo(self, prompt: tuple[int, ...]) -> str:
        return self._tokenizer.decode(
            list(prompt), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    async def _wait(self, future: Future, request: Request, job: Writing | None = None) -> Any:
        """The future's result; the work is cancelled when the other end hangs up."""
        waiting = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait({waiting}, timeout=0.5))[0]:
                if await request.is_disconnected():
                    raise Refused(499, "the client has gone")
            return waiting.result()
        finally:
            if job:
                job.cancelled.set()
            waiting.cancel()

    # -- streaming -------------------------------------------------------------

    async def _stream(self, asked: _Asked, head: dict[str, Any], name: str) -> AsyncIterator[bytes]:
        """Server-sent events: text as it is written, then why each choice ended, then [DONE]."""
        body, loop = asked.body, asyncio.get_running_loop()
        on_progress: asyncio.Queue[tuple[int, list[int]] | None] = asyncio.Queue()
        asks = asked.asks(self._stopping(body.stop))
        job = Writing(asks, lambda row, new: _post(loop, on_progress, (row, list(new))))
        sent, used = [""] * len(asks), sum(map(len, asked.rows))

        def event(index: int, text: str, finish: str | None = None) -> bytes:
            return _event(
                {
                    **head,
                    "choices": [
                        {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
                    ],
                }
            )

        try:
            if body.echo:
                for row, ask in enumerate(asks):
                    yield event(row, self._echo(ask.prompt))
            choices = [_Choice(ask.prompt, (), "", "length", 0) for ask in asks]
            if body.max_tokens:
                future = self.worker.write(job)
                future.add_done_callback(lambda _: _post(loop, on_progress, None))
                while (step := await on_progress.get()) is not None:
                    row, new = step
                    text = _safe(*self._text(asks[row].prompt, new, body.stop), body.stop)
                    if len(text) > len(sent[row]):
                        yield event(row, text[len(sent[row]) :])
                        sent[row] = text
                choices = [
                    self._written(ask, answer, body.stop)
                    for ask, answer in zip(asks, future.result(), strict=True)
                ]
            for row, choice in enumerate(choices):
                yield event(row, choice.text[len(sent[row]) :], choice.finish)
            spent = sum(choice.spent for choice in choices)
            used += spent
            if body.stream_options.include_usage:
                yield _event(
                    {**head, "choices": [], "usage": usage(sum(map(len, asked.rows)), spent)}
                )
        except Refused as refused:
            yield b"data: " + refused.body() + b"\n\n"
        except Exception:
            log.exception("streaming failed")
            yield b"data: " + Refused(500, "the gateway failed").body() + b"\n\n"
        finally:
            job.cancelled.set()
            self._limit.give_back(name, asked.cost - used)
        yield b"data: [DONE]\n\n"


def _post(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, item: Any) -> None:
    """Puts `item` into a queue of another thread's loop, if that still runs."""
    try:
        loop.call_soon_threadsafe(queue.put_nowait, item)
    except RuntimeError:
        log.info("a stream's loop has ended before its text")


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _safe(text: str, cut: str | None, stops: Sequence[str]) -> str:
    """What of `text` later tokens cannot change: without half a character, or the beginning of a
    stop string, at its end."""
    if cut is not None:
        return text
    text = text.rstrip("\ufffd")
    held = max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )
    return text[: len(text) - held]


def _drawn(distribution: torch.Tensor, ask: Ask) -> int:
    """The token that `fedduet.lm.decoding.decode.decode` would draw from these log-probabilities
    [V]."""
    if ask.temperature == 0:
        return int(distribution.argmax())
    return int(
        draw(
            distribution[None],
            uniforms(ask.seed, 1),
            torch.tensor([ask.temperature]),
            ask.top_k,
            torch.tensor([ask.top_p]),
        )
    )


def _check_numbers(places: Sequence[PlaceLogprobs]) -> None:
    if any(part.logprobs.isnan().any() or part.last.isnan().any() for part in places):
        raise Refused(500, NOT_NUMBERS)


# ---------------------------------------------------------------- the application


def gateway_app(gateway: Gateway) -> FastAPI:
    """The ASGI application: POST /v1/completions, GET /v1/models (both with a key), GET /health.
    Ends the worker with itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gateway.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.exception_handler(Refused)
    async def refused(_: Request, problem: Refused) -> Response:
        return Response(problem.body(), problem.status, problem.headers, "application/json")

    @app.exception_handler(HTTPException)
    async def no_such_way(_: Request, problem: HTTPException) -> Response:
        return Response(
            Refused(problem.status_code, str(problem.detail)).body(),
            problem.status_code,
            problem.headers,
            "application/json",
        )

    def who(request: Request) -> str:
        return gateway.keys.name(request.headers.get("authorization", ""))

    @app.get("/health")
    async def health() -> Response:
        return Response(to_json({"status": "ok"}), media_type="application/json")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        who(request)
        return Response(gateway.models(), media_type="application/json")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        name = who(request)
        try:
            return await gateway.completions(request, name)
        except Refused:
            raise
        except Exception:
            log.exception("a request of %s failed", name)
            raise Refused(500, "the gateway failed") from None

    return app
