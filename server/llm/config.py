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
    """What runs the LLM: transformers in this process, an OpenAI-compatible endpoint, or
    scripted answers."""
    form: Literal["auto", "chat", "completion", "list"] = "auto"
    """auto: chat iff the tokenizer has a chat template; openai: chat."""
    context: int | None = pydantic.Field(default=None, gt=1)
    """Prompt + answer, tokens; null: the model's own."""
    name: str | None = None
    """Shown in reports; null: engine and model."""

    path: str | None = None
    """transformers: folder or hub name of the weights, safetensors only."""
    batch_tokens: int = pydantic.Field(default=16_384, gt=0)
    """Rows x (longest prompt + answer) held in the cache at once."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """int8: of generation's products alone; scoring and tuning run as with auto."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    model: str | None = None
    """openai: the endpoint's name for the model."""
    base_url: str | None = None
    """Up to and including /v1."""
    api_key_env: str | None = None
    """NAME of the environment variable that holds the key; null: no key is sent."""
    tokenizer: str | None = None
    """Folder or hub name for exact token counts; null: an upper estimate."""
    concurrency: int = pydantic.Field(default=8, gt=0)
    """Requests in flight."""
    timeout: float = pydantic.Field(default=120.0, gt=0)
    """Seconds for one attempt of one request."""
    retries: int = pydantic.Field(default=5, ge=0)
    """Further attempts after the first."""
    cache_dir: str | None = None
    """Folder for paid answers; null: llm_cache in the run folder, or none without one."""
    send_seed: bool = True
    """A few endpoints refuse "seed"; answers are then only as repeatable as the endpoint."""
    send_top_k: bool = False
    """vLLM, llama.cpp and Ollama take it; OpenAI and `transformers serve` refuse it."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls its limit; newer OpenAI chat models want the second."""
    extra_body: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Merged into every request body."""

    script: str | None = None
    """scripted: a YAML file of answers."""

    temperature: float = pydantic.Field(default=1.0, ge=0)
    """What callers put into their requests, as the next three."""
    top_p: float = pydantic.Field(default=0.9, gt=0, le=1)
    """Of sampling: the least set of tokens with this much probability."""
    top_k: int = pydantic.Field(default=50, ge=0)
    """Of sampling: among so many likeliest tokens; 0 is off."""
    max_new_tokens: int = pydantic.Field(default=96, gt=0)
    """The most tokens of one text."""

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
