"""Loads tokenizers and models from folders or hub names: safetensors only, no code from the folder,
quietly, and cached."""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from fedduet.conf.check import ConfigError
from fedduet.lm.models.folder import check_model_folder, is_folder
from fedduet.lm.randomness import generator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

KEPT = 4  # public base models kept in memory by one process
END = "<|endoftext|>"  # the end token a generator gets when its tokenizer has none


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, load reports or advice from transformers inside the `with`; what was set
    before comes back."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.ERROR)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # libraries warning each other
            # peft on GPT-2: it corrects itself
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


# ---------------------------------------------------------------- tokenizers


def load_tokenizer(path: str | Path, generates: bool = False) -> Any:
    """The tokenizer of a model folder or hub name, with a pad token for certain.

    No pad token: the end token pads; there is none either: "<|pad|>" is added. With `generates` a
    tokenizer without an end token gets `END` as one. Added tokens may need new embedding rows: pass
    the tokenizer to `load_causal_lm`.
    """
    check_model_folder(path, "tokenizer")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(_name(path), trust_remote_code=False)
    if generates and tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": END})
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.padding_side = "right"
    return tokenizer


# ---------------------------------------------------------------- models

_cache: OrderedDict[tuple, nn.Module] = OrderedDict()
_lock = threading.Lock()


def load_causal_lm(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu", tokenizer: Any = None
) -> Any:
    """A causal LM in eval mode; yours to change (the cached public weights stay as they are).

    With `tokenizer`, tokens it has beyond the model's embedding get rows of their own: the mean of
    the others [O].
    """
    check_model_folder(path, "model", causal=True)
    model = _cached(path, ("causal", str(dtype)), lambda: _load_causal(path, dtype))
    if tokenizer is not None:
        fit_embeddings(model, tokenizer)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval()


def load_encoder(path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """The body without a head (last hidden states), of an encoder or a causal LM; eval mode, yours
    to change."""
    check_model_folder(path, "model")
    return (
        _cached(path, ("body", str(dtype)), lambda: _load(AutoModel, path, dtype)).to(device).eval()
    )


def load_classifier(
    path: str | Path,
    num_labels: int,
    seed: int,
    tokenizer: Any = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    """A sequence classifier over an encoder or causal LM, in eval mode; yours to change.

    Weights that the folder lacks (the head) are drawn from `seed` by their names: normal with the
    model's `initializer_range`, biases zero, norms one; so two processes and two calls agree. A
    folder that holds a trained head of `num_labels` keeps it.
    """
    check_model_folder(path, "model")
    model = _cached(
        path,
        ("classifier", num_labels, str(dtype)),
        lambda: _load_classifier(path, num_labels, dtype),
    )
    deviation = float(getattr(model.config, "initializer_range", None) or 0.02)
    parameters = dict(model.named_parameters())
    for name in model.drawn_at_random:
        with torch.no_grad():
            if parameters[name].dim() > 1:
                parameters[name].normal_(0.0, deviation, generator=generator(seed, "head", name))
            else:
                parameters[name].fill_(0.0 if name.endswith("bias") else 1.0)
    if tokenizer is not None:
        fit_embeddings(model, tokenizer)
        # a causal LM finds a row's last real token by it
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval()


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Adds embedding rows for tokens that the tokenizer has and the model lacks, each the mean of
    the known rows."""
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        with quiet():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in {
            id(layer): layer
            for layer in (model.get_input_embeddings(), model.get_output_embeddings())
            if layer
        }.values():
            with torch.no_grad():
                layer.weight[known:] = layer.weight[:known].mean(dim=0)


def attach_lora(
    model: Any,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> PeftModel:
    """`model` with LoRA adapters on `targets`; only they (and a classification head) are trainable.

    The A matrices are drawn from `seed` by their names (peft's Kaiming-uniform range), B is zero,
    so the model starts unchanged.
    """
    kind = "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    where = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        task_type=kind, r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=where
    )
    return add_lora(model, config, "default", seed)


def add_lora(model: Any, config: LoraConfig, name: str, seed: int) -> PeftModel:
    """`model`, plain or with adapters, with one more called `name`, which becomes the active and
    only trainable one; see `attach_lora`."""
    with torch.random.fork_rng(devices=[]), quiet():
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            model.set_adapter(name)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    for key, parameter in model.named_parameters():
        if ".lora_A." in key and f".{name}." in key:
            bound = parameter.shape[1] ** -0.5
            with torch.no_grad():
                drawn = torch.empty(parameter.shape).uniform_(
                    -bound, bound, generator=generator(seed, "lora", key)
                )
                parameter.copy_(drawn)
    return model


def merged(model: Any) -> Any:
    """A copy of `model` with its LoRA adapters folded into the weights (a plain model when there
    are none: itself)."""
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Plain matrix products for attention inside the `with`: faster than SDPA for short rows on a
    CPU, and vmap can map it."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in a fixed order; a tied weight counts
    once."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def forget() -> None:
    """Drops all cached public weights of this process."""
    with _lock:
        _cache.clear()


def _name(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve()) if is_folder(path) else str(path)


def _cached(path: str | Path, kind: tuple, load: Callable[[], nn.Module]) -> Any:
    """A deep copy of the model under (path, weights' times, kind), loading it when it is not there;
    the oldest of > KEPT goes.

    A classifier that came with its head is somebody's trained model, not a public base: it is
    loaded afresh each time.
    """
    weights = sorted(Path(_name(path)).glob("*.safetensors")) if is_folder(path) else []
    key = (
        _name(path),
        tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in weights),
        *kind,
    )
    with _lock:
        if key not in _cache:
            model = load()
            if getattr(model, "drawn_at_random", None) == []:
                return model
            _cache[key] = model
        _cache.move_to_end(key)
        while len(_cache) > KEPT:
            _cache.popitem(last=False)
        return copy.deepcopy(_cache[key])


def _load(family: Any, path: str | Path, dtype: torch.dtype, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]), quiet():
        return family.from_pretrained(
            _name(path), dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )


def _load_causal(path: str | Path, dtype: torch.dtype) -> Any:
    model, info = _load(AutoModelForCausalLM, path, dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model: the weights of {path} lack {', '.join(missing[:3])}, so it cannot generate"
            " text; give a causal LM"
        )
    return model


def _load_classifier(path: str | Path, num_labels: int, dtype: torch.dtype) -> Any:
    config = AutoConfig.from_pretrained(_name(path), trust_remote_code=False)
    config.num_labels, config.problem_type = num_labels, "single_label_classification"
    model, info = _load(
        AutoModelForSequenceClassification,
        path,
        dtype,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    mismatched = [
        entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]
    ]
    model.drawn_at_random = sorted(
        {*info["missing_keys"], *mismatched} & set(dict(model.named_parameters()))
    )
    return model
