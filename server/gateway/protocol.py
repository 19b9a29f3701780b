"""The gateway's bodies: what a completion request may say, and how answers and errors are written
(OpenAI's form, vLLM's names)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic
from fedduet.server.llm.top_logprobs import PlaceLogprobs

LEAST_TEMPERATURE = 1e-5  # below it the likeliest token is meant, as in vLLM
# stands for minus infinity, which JSON cannot say, as in OpenAI's and vLLM's answers
LEAST_LOGPROB = -9999.0
MOST_STOPS = 16  # [O]


class Refused(Exception):
    """A request that gets an error instead of an answer, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = (
            status,
            message,
            code,
            param,
            dict(headers or {}),
        )

    def body(self) -> bytes:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return to_json(
            {
                "error": {
                    "message": self.message,
                    "type": kind,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


def to_json(value: Any) -> bytes:
    """ASCII JSON (a lone surrogate that a request smuggled in cannot break it); numbers that JSON
    does not know raise ValueError."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


class StreamOptions(pydantic.BaseModel):
    """`stream_options`."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid")
    include_usage: bool = False


class CompletionBody(pydantic.BaseModel):
    """POST /v1/completions. null is the default everywhere. What would change the answer and is not
    here is refused, not ignored.

    `return_token_ids`, `return_tokens_as_token_ids` and `top_k` mean what they do in vLLM.
    `logprobs_from` is the gateway's own:
    places of the echoed prompt before it get no log-probabilities (null), which saves most of the
    bytes when only a draft at the prompt's end is asked about; servers that do not know it send
    them all.
    """

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid")

    prompt: list[str] | list[list[int]]  # one or more of either kind
    model: str | None = None
    max_tokens: int = pydantic.Field(default=16, ge=0, le=2**31)
    temperature: float = pydantic.Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = pydantic.Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = pydantic.Field(default=0, ge=-1, le=2**31)
    stop: list[str] = pydantic.Field(default_factory=list, max_length=MOST_STOPS)
    seed: int | None = pydantic.Field(default=None, ge=-(2**63), lt=2**63)
    n: int = pydantic.Field(default=1, ge=1, le=2**31)
    best_of: int | None = None
    logprobs: int | None = pydantic.Field(default=None, ge=-1, le=2**31)
    logprobs_from: int = pydantic.Field(default=1, ge=1, le=2**31)
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    add_special_tokens: Literal[True] = True
    suffix: Literal[""] = ""
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logit_bias: dict[str, float] = pydantic.Field(default_factory=dict, max_length=0)
    user: str = ""

    @pydantic.field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str) or _numbers(value):
            value = [value]
        if (
            isinstance(value, list)
            and value
            and (all(isinstance(one, str) for one in value) or all(map(_numbers, value)))
        ):
            return value
        raise ValueError(
            "allowed: a text, a list of token ids, or a list of either, none of them empty lists"
        )

    @pydantic.field_validator("stop", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @pydantic.field_validator("prompt", "stop")
    @classmethod
    def _text(cls, value: list) -> list:
        for text in value:
            if isinstance(text, str) and not _encodes(text):
                raise ValueError(
                    "found half of a surrogate pair; allowed: text that UTF-8 can write"
                )
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: found 0; allowed: at least 1, or 0 with echo")
        if self.best_of not in (None, self.n):
            raise ValueError(f"best_of: found {self.best_of}; allowed: the same as n, {self.n}")
        if self.stream and self.logprobs is not None:
            raise ValueError("logprobs: not available with stream")
        return self


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_completion(raw: bytes) -> CompletionBody:
    """A request's body. Raises Refused (400) with the first thing that is wrong."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as failure:
        raise Refused(400, f"the body is not JSON: {str(failure)[:200]}", "invalid_json") from None
    if not isinstance(found, dict):
        raise Refused(
            400, f"the body is a JSON {type(found).__name__}; allowed: an object", "invalid_json"
        )
    try:
        return CompletionBody.model_validate(
            {name: value for name, value in found.items() if value is not None}
        )
    except pydantic.ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in error["loc"])[:100]
        raise Refused(
            400,
            f"{where}: {error['msg']}" if where else error["msg"],
            "invalid_value",
            where or None,
        ) from None


# ---------------------------------------------------------------- answers


def token_name(tokenizer: Any, token: int, as_id: bool) -> str:
    """How a token is written: its text, or "token_id:N", which alone says for certain which token
    is meant."""
    return (
        f"token_id:{token}"
        if as_id
        else tokenizer.decode(
            [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


def logprobs_part(
    tokenizer: Any,
    row: Sequence[int],
    places: PlaceLogprobs,
    begin: int,
    first: int,
    chosen: Sequence[float],
    k: int,
    as_ids: bool,
) -> dict[str, Any]:
    """The `logprobs` of a choice for row[begin:], null at places before `first`, where `places`
    begins.

    `chosen`: log-probabilities of row[first:]. As with OpenAI and vLLM the token itself is among
    the alternatives, so that there may be k + 1 of them.
    """
    names, own, best, offsets, offset = [], [], [], [], 0
    most, likely = places.tokens[:, :k].tolist(), places.logprobs[:, :k].tolist()
    for place in range(begin, len(row)):
        name = token_name(tokenizer, row[place], as_ids)
        names.append(name)
        offsets.append(offset)
        offset += len(name)
        if place < first:
            own.append(None)
            best.append(None)
            continue
        value = max(chosen[place - first], LEAST_LOGPROB)
        others: dict[str, float] = {}
        for token, logprob in zip(most[place - first], likely[place - first], strict=True):
            others.setdefault(token_name(tokenizer, token, as_ids), max(logprob, LEAST_LOGPROB))
        others.setdefault(name, value)
        own.append(value)
        best.append(others)
    return {"tokens": names, "token_logprobs": own, "top_logprobs": best, "text_offset": offsets}


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """The `usage` of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
