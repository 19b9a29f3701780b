"""The engine for any OpenAI-compatible endpoint: bounded concurrency, patient retries, and no
request paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from fedduet.server.llm.base import NO_CONTRAST, Completion, Progress, Request
from fedduet.server.llm.response_cache import ResponseCache

LONGEST_BACKOFF = 30.0  # seconds [O]
# seconds; an endpoint that asks for more gets an error instead of a run that stands still [O]
LONGEST_RETRY_AFTER = 600.0
MOST_STOPS = 4  # OpenAI takes no more; the engine cuts at all of them itself


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and how they are written. `key` is in no representation, log or cache."""

    base_url: str
    model: str
    form: str = "chat"  # "chat": /chat/completions, "completion": /completions
    key: str | None = field(default=None, repr=False)
    send_seed: bool = True
    send_top_k: bool = False
    max_tokens_key: str = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + (
            "/chat/completions" if self.form == "chat" else "/completions"
        )

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of `request`; a string prompt is one user turn in chat form."""
        body: dict[str, Any] = {"model": self.model}
        if self.form == "chat":
            turns = (
                [("user", request.prompt)]
                if isinstance(request.prompt, str)
                else [(t.role, t.content) for t in request.prompt]
            )
            body["messages"] = [{"role": role, "content": content} for role, content in turns]
        else:
            body["prompt"] = request.prompt
        body |= {
            self.max_tokens_key: request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if request.stop:
            body["stop"] = list(request.stop[:MOST_STOPS])
        if self.send_seed:
            body["seed"] = request.seed
        if self.send_top_k:
            body["top_k"] = request.top_k
        return body | dict(self.extra_body)

    def hash(self, request: Request) -> str:
        """What the cache knows a request by: all of it, the seed also where it is not sent."""
        whole = {"url": self.url, "body": self.body(request), "request": request}
        return hashlib.sha256(
            json.dumps(whole, sort_keys=True, default=asdict).encode()
        ).hexdigest()


class _Retry(Exception):
    """This attempt failed in a way that another may not; `after` is how many seconds the endpoint
    asked for."""

    def __init__(self, problem: str, after: float | None = None) -> None:
        super().__init__(problem)
        self.after = after


class OpenAILLM:
    """Requests to one endpoint. Equal requests (seed included) are sent once."""

    parameters: int | None = None

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str,
        context: int,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        tokenizer: Any = None,
        cache: ResponseCache | None = None,
    ) -> None:
        """`timeout` is seconds for one attempt in all; waits before further ones are about
        `backoff` x 1, 2, 4, ... seconds."""
        self.endpoint, self.name, self.form, self.context = endpoint, name, endpoint.form, context
        self.concurrency, self.timeout, self.retries, self.backoff = (
            concurrency,
            timeout,
            retries,
            backoff,
        )
        self.tokenizer, self.cache = tokenizer, cache
        self._resume_at = 0.0  # monotonic seconds before which the endpoint wants no request

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> list[Completion]:
        """One completion for each request, in their order; answers in the cache are not asked for
        again."""
        return _run(self._generate(requests, progress))

    async def _generate(
        self, requests: Sequence[Request], progress: Progress | None
    ) -> list[Completion]:
        answers: list[Completion | None] = [None] * len(requests)
        places: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(self.endpoint.hash(request), []).append(index)
        done = new_tokens = 0

        async def answer(key: str, indices: list[int]) -> None:
            nonlocal done, new_tokens
            completion = await self._answer(key, requests[indices[0]], client, slots)
            for index in indices:
                answers[index] = completion
            done, new_tokens = done + len(indices), new_tokens + completion.new_tokens
            if progress:
                progress(done, len(requests), new_tokens)

        slots = asyncio.Semaphore(self.concurrency)
        headers = {"Authorization": f"Bearer {self.endpoint.key}"} if self.endpoint.key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        async with (
            httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for key, indices in places.items():
                tasks.create_task(answer(key, indices))
        return answers  # type: ignore[return-value]

    async def _answer(
        self, key: str, request: Request, client: httpx.AsyncClient, slots: asyncio.Semaphore
    ) -> Completion:
        problem = self._unfit(request)
        if problem:
            return Completion("", 0, 0, "error", problem)
        known = self.cache.get(key) if self.cache else None
        if known:
            return Completion(**known)
        async with slots:
            completion = await self._ask(request, client)
        if self.cache and completion.finish != "error":
            self.cache.put(key, asdict(completion))
        return completion

    def _unfit(self, request: Request) -> str:
        """Why `request` need not be sent, or ""."""
        if request.contrast is not None:
            return NO_CONTRAST
        if self.form != "chat" and not isinstance(request.prompt, str):
            return (
                "the prompt is a chat, but this endpoint is used in completion form (strings) only"
            )
        if self.tokenizer is None:
            # an estimate must not refuse what the endpoint may take; it will say so itself
            return ""
        texts = (
            [request.prompt]
            if isinstance(request.prompt, str)
            else [turn.content for turn in request.prompt]
        )
        length = sum(map(self.count_tokens, texts))
        if length + request.max_new_tokens <= self.context:
            return ""
        return (
            f"the prompt has {length} tokens and max_new_tokens is {request.max_new_tokens},"
            f" together more than the context of {self.context} tokens; shorten the prompt or lower"
            " max_new_tokens"
        )

    async def _ask(self, request: Request, client: httpx.AsyncClient) -> Completion:
        problem = ""
        for attempt in range(self.retries + 1):
            await asyncio.sleep(max(0.0, self._resume_at - time.monotonic()))
            try:
                async with asyncio.timeout(self.timeout):
                    response = await client.post(
                        self.endpoint.url, json=self.endpoint.body(request)
                    )
                return self._read(response, request)
            except _Retry as failure:
                problem, after = str(failure), failure.after
            except TimeoutError:
                problem, after = f"no answer within {self.timeout:g} seconds", None
            # no connection, a broken one, an answer that cannot be decoded
            except httpx.HTTPError as failure:
                problem, after = f"{type(failure).__name__}: {failure}", None
            if after is not None and after > LONGEST_RETRY_AFTER:
                problem = f"{problem}; the endpoint asks to wait {after:.0f} seconds"
                break
            if after is not None:  # the endpoint means all of our requests
                self._resume_at = max(self._resume_at, time.monotonic() + after)
            if attempt < self.retries:
                await asyncio.sleep(
                    min(LONGEST_BACKOFF, self.backoff * 2**attempt) * random.uniform(0.5, 1.0)
                )
        return Completion(
            "",
            0,
            0,
            "error",
            self._without_key(f"{self.endpoint.url}: {problem} (attempt {attempt + 1})"),
        )

    def _read(self, response: httpx.Response, request: Request) -> Completion:
        """The completion in an HTTP answer. Raises _Retry for what may pass, and for answers that
        make no sense."""
        status = response.status_code
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Retry(f"HTTP {status}: {_excerpt(response)}", _retry_after(response))
        if status != 200:
            return Completion(
                "",
                0,
                0,
                "error",
                self._without_key(f"{self.endpoint.url}: HTTP {status}: {_excerpt(response)}"),
            )
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.form == "chat" else choice["text"]
            finish, usage = choice.get("finish_reason"), answer.get("usage") or {}
            prompt_tokens, new_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Retry(f"not a completion: {_excerpt(response)}") from None
        if finish == "content_filter":
            return Completion(
                "", 0, 0, "error", f"{self.endpoint.url}: refused by the endpoint's content filter"
            )
        text = text or ""  # null: a reasoning model that spent all its tokens before the answer
        cut = min(
            (at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0),
            default=None,
        )
        if not isinstance(prompt_tokens, int):
            turns = (
                [request.prompt]
                if isinstance(request.prompt, str)
                else [turn.content for turn in request.prompt]
            )
            prompt_tokens = sum(map(self.count_tokens, turns))
        if not isinstance(new_tokens, int):
            new_tokens = self.count_tokens(text)
        return Completion(
            text[:cut],
            prompt_tokens,
            new_tokens,
            "length" if finish == "length" and cut is None else "stop",
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text

    def count_tokens(self, text: str) -> int:
        """Exact with a tokenizer. Without: a token for two characters of " word", one for each
        other character, one per non-ASCII byte.

        That is above what byte-level BPE of 8 k tokens or more makes of prose (3 to 5 letters a
        token). Our choice.
        """
        if self.tokenizer is not None:
            return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        plain = sum(map(len, re.findall(r" ?[A-Za-z]+", text)))
        return math.ceil(plain / 2) + len(text.encode()) - plain

    def close(self) -> None:
        if self.cache:
            self.cache.close()


def _run(work: Coroutine[Any, Any, list[Completion]]) -> list[Completion]:
    """Runs `work` to its end, also when the caller is itself inside an event loop (a notebook, the
    gateway)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:300] or "an empty answer"


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of the Retry-After header (RFC 9110, 10.2.3); None without a
    readable one."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
