"""From the `llm` section to a running engine; what cannot work is said before any weights are
read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError
from fedduet.server.llm.base import LLM
from fedduet.server.llm.config import LLMConfig

ASSUMED_CONTEXT = 8192  # of an endpoint, when llm.context is null [O]


def load_llm(config: LLMConfig, run_folder: Path | None = None) -> LLM:
    """The engine that `config` names. `run_folder` is where paid answers are kept unless
    `cache_dir` says otherwise.

    Raises ConfigError (see `check_llm`), also for what only the loaded tokenizer or weights show.
    """
    check_llm(config)
    if config.engine == "transformers":
        return _load_transformers(config)
    if config.engine == "openai":
        return _open_endpoint(config, run_folder)
    from fedduet.server.llm.scripted import ScriptedLLM, read_script

    script = Path(str(config.script)).expanduser()
    form = "completion" if config.form == "auto" else config.form
    name = config.name or f"scripted:{script.stem}"
    return ScriptedLLM(
        read_script(script), name=name, form=form, context=config.context or ASSUMED_CONTEXT
    )


def check_llm(config: LLMConfig) -> None:
    """Raises ConfigError for what can be seen without loading weights: folders, the key's variable,
    the device, the script."""
    if config.engine == "transformers":
        from fedduet.lm.models.device import chosen_device
        from fedduet.lm.models.folder import check_model_folder

        check_model_folder(str(config.path), "llm.path", causal=True)
        chosen_device(config.device, "llm.device")
    elif config.engine == "openai":
        if config.api_key_env and not os.environ.get(config.api_key_env):
            raise ConfigError(
                f"llm.api_key_env: the environment variable {config.api_key_env} is not set; export"
                " it, or use null"
            )
        if config.tokenizer:
            _check_tokenizer_folder(config.tokenizer)
    else:
        from fedduet.server.llm.scripted import read_script

        read_script(Path(str(config.script)).expanduser())


def _check_tokenizer_folder(path: str) -> None:
    from fedduet.lm.models.folder import is_folder

    names = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
    if is_folder(path) and not any((Path(path).expanduser() / name).is_file() for name in names):
        raise ConfigError(f"llm.tokenizer: {path} has no tokenizer; {' or '.join(names)} is needed")


def _dtype(precision: str, device: Any) -> Any:
    """bf16 where the hardware multiplies in it (then it is the faster one), float32 elsewhere. int8
    is of generation alone."""
    import torch

    if precision not in ("auto", "int8"):
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _load_transformers(config: LLMConfig) -> LLM:
    from fedduet.lm.decoding.stepper import runs_in_int8
    from fedduet.lm.models.device import chosen_device
    from fedduet.lm.models.folder import is_folder
    from fedduet.lm.models.load import load_tokenizer, quiet
    from fedduet.server.llm.transformers_engine import TransformersLLM
    from transformers import AutoModelForCausalLM

    path = (
        str(Path(str(config.path)).expanduser())
        if is_folder(str(config.path))
        else str(config.path)
    )
    device = chosen_device(config.device, "llm.device")
    try:
        tokenizer = load_tokenizer(path)
        if config.form == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"llm.form: found chat, but the tokenizer of {path} has no chat template; use auto"
                " or completion"
            )
        # not fedduet.lm.models.load.load_causal_lm: it keeps a second copy in memory, and this
        # model may be large
        with quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=_dtype(config.precision, device),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except OSError as failure:  # hub names: not there, gated, no network, no safetensors
        raise ConfigError(f"llm.path: {path} cannot be loaded: {failure}") from failure
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(
            f"llm.path: {path} lacks {len(report['missing_keys'])} of the model's weights ({some},"
            " ...)"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    top = max(token for text, token in tokenizer.get_vocab().items() if text != tokenizer.pad_token)
    if top >= rows:
        raise ConfigError(
            f"llm.path: the tokenizer of {path} has token id {top}, but the model has {rows}"
            " embedding rows"
        )
    if config.precision == "int8" and not runs_in_int8(model.to(device)):
        raise ConfigError(
            "llm.precision: found int8, allowed: auto, fp32, bf16; int8 is for Llama models on a"
            " processor with instructions for it (AVX-512 VNNI) and memory for a copy of the"
            " weights"
        )
    form = (
        config.form
        if config.form != "auto"
        else "chat"
        if tokenizer.chat_template
        else "completion"
    )
    return TransformersLLM(
        model.to(device),
        tokenizer,
        name=config.name or f"transformers:{Path(path).name}",
        form=form,
        context=_context(config, model, tokenizer),
        batch_tokens=config.batch_tokens,
        precision=config.precision,
    )


def _context(config: LLMConfig, model: Any, tokenizer: Any) -> int:
    """The longest prompt + answer: the model's own limit, or a shorter one that the configuration
    asks for."""
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if own is None and tokenizer.model_max_length < 10**7:
        own = tokenizer.model_max_length
    if own is None and config.context is None:
        raise ConfigError(
            f"llm.context: {config.path} does not say how long its context is; give a number of"
            " tokens"
        )
    if own is not None and config.context is not None and config.context > own:
        raise ConfigError(
            f"llm.context: found {config.context}, allowed: at most {own}, the model's own"
        )
    return config.context or own


def _open_endpoint(config: LLMConfig, run_folder: Path | None) -> LLM:
    from fedduet.server.llm.openai_engine import Endpoint, OpenAILLM
    from fedduet.server.llm.response_cache import ResponseCache

    tokenizer = None
    if config.tokenizer:
        from transformers import AutoTokenizer

        try:  # not fedduet.lm.models.load.load_tokenizer: it wants a whole model folder
            tokenizer = AutoTokenizer.from_pretrained(
                Path(config.tokenizer).expanduser(), trust_remote_code=False
            )
        except (OSError, ValueError) as failure:
            raise ConfigError(
                f"llm.tokenizer: {config.tokenizer} cannot be loaded: {failure}"
            ) from failure
    folder = (
        Path(config.cache_dir).expanduser()
        if config.cache_dir
        else run_folder / "llm_cache"
        if run_folder
        else None
    )
    endpoint = Endpoint(
        base_url=str(config.base_url),
        model=str(config.model),
        form=config.form if config.form in ("completion", "list") else "chat",
        key=os.environ[config.api_key_env] if config.api_key_env else None,
        send_seed=config.send_seed,
        send_top_k=config.send_top_k,
        max_tokens_key=config.max_tokens_key,
        extra_body=config.extra_body,
    )
    return OpenAILLM(
        endpoint,
        name=config.name or f"openai:{config.model}",
        context=config.context or ASSUMED_CONTEXT,
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
        tokenizer=tokenizer,
        cache=ResponseCache(folder) if folder else None,
    )
