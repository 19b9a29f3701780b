"""The `llm` section of the configuration: which engine answers, where its weights or its endpoint
are, how it generates."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from fedduet.conf.check import Section


class LLMConfig(Section):
    """One cloud LLM. Fields of the other engines are ignored, so that a sweep may override
    `llm.engine` alone.

    Defaults of temperature, top_p, top_k and max_new_tokens are what callers put into their
    requests; the paper of each strategy may say otherwise in its own section. All numeric defaults
    here are our choice.
    """

    engine: Literal["transformers", "openai", "scripted"] = "transformers"
    # auto: chat iff the tokenizer has a chat template; openai: chat
    form: Literal["auto", "chat", "completion", "list"] = "auto"
    # prompt + answer, tokens; null: the model's own
    context: int | None = pydantic.Field(default=None, gt=1)
    name: str | None = None  # shown in reports; null: engine and model

    # transformers
    path: str | None = None  # folder or hub name, safetensors only
    # rows x (longest prompt + answer) held in the cache at once
    batch_tokens: int = pydantic.Field(default=16_384, gt=0)
    # int8: of generation's products alone; scoring and tuning run as with auto
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps

    # openai: any endpoint that speaks /v1/chat/completions or /v1/completions
    model: str | None = None  # the endpoint's name for the model
    base_url: str | None = None  # up to and including /v1
    # NAME of the environment variable that holds the key; null: no key is sent
    api_key_env: str | None = None
    # folder or hub name for exact token counts; null: an upper estimate
    tokenizer: str | None = None
    concurrency: int = pydantic.Field(default=8, gt=0)  # requests in flight
    timeout: float = pydantic.Field(default=120.0, gt=0)  # seconds for one attempt of one request
    retries: int = pydantic.Field(default=5, ge=0)  # further attempts after the first
    # folder for paid answers; null: llm_cache in the run folder, or none without one
    cache_dir: str | None = None
    # a few endpoints refuse "seed"; answers are then only as repeatable as the endpoint
    send_seed: bool = True
    # vLLM, llama.cpp and Ollama take it; OpenAI and `transformers serve` refuse it
    send_top_k: bool = False
    # newer OpenAI chat models want the second
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    # merged into every request body
    extra_body: dict[str, Any] = pydantic.Field(default_factory=dict)

    # scripted
    script: str | None = None  # YAML file of answers

    # what callers put into their requests
    temperature: float = pydantic.Field(default=1.0, ge=0)
    top_p: float = pydantic.Field(default=0.9, gt=0, le=1)
    top_k: int = pydantic.Field(default=50, ge=0)
    max_new_tokens: int = pydantic.Field(default=96, gt=0)

    @pydantic.model_validator(mode="after")
    def _names_what_the_engine_needs(self) -> LLMConfig:
        needed = {
            "transformers": ("path",),
            "openai": ("model", "base_url"),
            "scripted": ("script",),
        }[self.engine]
        missing = [key for key in needed if not getattr(self, key)]
        if missing:
            raise ValueError(f"engine {self.engine} needs {' and '.join(missing)}; found null")
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url: found {self.base_url!r}; it starts with http:// or https:// and usually"
                " ends with /v1"
            )
        return self
