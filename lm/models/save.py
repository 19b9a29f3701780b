"""Writes trained models as plain Hugging Face folders, and hands their trainable weights out as
arrays and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedduet.lm.models.load import merged, quiet, trainable
from peft import PeftModel


def save_model(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Writes `folder` (made if need be): weights with LoRA folded in, config and tokenizer; any
    `from_pretrained` reads it."""
    with quiet():
        merged(model).save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def name_labels(folder: str | Path, labels: Sequence[str]) -> None:
    """Puts the words of a saved classifier's labels into its config, so that a pipeline says
    them."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["id2label"] = {str(number): word for number, word in enumerate(labels)}
    config["label2id"] = {word: number for number, word in enumerate(labels)}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def keep_trained(model: Any, tokenizer: Any, folder: str | Path, base: str) -> None:
    """Writes what training changed: the LoRA adapter of the model in `base`, or, where there is
    none, the whole model."""
    if not isinstance(model, PeftModel):
        return save_model(model, tokenizer, folder)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False)


def trainable_arrays(model: Any) -> dict[str, np.ndarray]:
    """Copies of the trainable weights by name, float32, as FedAvg sends them."""
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in trainable(model).items()
    }


def set_trainable_arrays(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Overwrites the trainable weights. Raises ValueError when names or shapes differ from the
    model's."""
    parameters = trainable(model)
    if parameters.keys() != arrays.keys():
        odd = sorted(parameters.keys() ^ arrays.keys())
        raise ValueError(
            f"found {len(arrays)} arrays for {len(parameters)} trainable weights; the first that"
            f" differs: {odd[0]}"
        )
    for name, parameter in parameters.items():
        if tuple(arrays[name].shape) != tuple(parameter.shape):
            raise ValueError(
                f"{name}: found shape {tuple(arrays[name].shape)}, the model has"
                f" {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))
