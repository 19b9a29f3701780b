"""Checks of a model folder before anything is loaded; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from fedduet.conf.check import ConfigError


def is_folder(path: str | Path) -> bool:
    """Whether `path` means a folder on this machine rather than a hub name such as "org/name" or
    "name"."""
    text = str(path)
    return (
        Path(text).expanduser().exists() or text.startswith(("/", ".", "~")) or text.count("/") > 1
    )


def check_model_folder(path: str | Path, role: str, causal: bool = False) -> None:
    """Raises ConfigError when `path` is a folder that cannot hold a usable model; `role` names it,
    e.g. "slm.path".

    Hub names pass: only a download can tell. `causal` asks for a model type that can generate text.
    """
    if not str(path):
        raise ConfigError(f"{role}: found an empty path; give a model folder or a hub name")
    if not is_folder(path):
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{role}: found {str(path)!r}, which is not a folder; give a Hugging Face model folder"
            " or a hub name"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{role}: {folder} has no config.json; it must be a Hugging Face model folder"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type", "")
    except (ValueError, AttributeError) as failure:
        raise ConfigError(
            f"{role}: {folder / 'config.json'} is not a JSON object ({failure})"
        ) from None
    if not list(folder.glob("*.safetensors")):
        found = sorted(file.name for file in folder.glob("*.bin")) + sorted(
            file.name for file in folder.glob("*.pt")
        )
        other = f"found {', '.join(found)}; " if found else ""
        raise ConfigError(
            f"{role}: {folder} has no *.safetensors weights; {other}only safetensors are loaded"
        )
    if not any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
    ):
        raise ConfigError(
            f"{role}: {folder} has no tokenizer; tokenizer.json (or tokenizer.model, vocab.txt,"
            " vocab.json) is needed"
        )
    if causal and not _writes(kind, bool(config.get("is_decoder", False))):
        raise ConfigError(
            f"{role}: {folder} is of type {kind!r}, which cannot generate text; give a causal LM"
            " (e.g. llama, gpt2)"
        )


def _writes(kind: str, decoder: bool) -> bool:
    """Whether a model of this type can generate text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not encoder
