"""The built-in world's models: a small stand-in LLM made from the public part of the world, once,
and kept in a cache.

`builtin:llm` in a configuration means that model; every report names it as a stand-in.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedduet.conf.check import ConfigError
from fedduet.lm.models.embedded import embedded_folder, is_embedded, title
from fedduet.lm.pretraining.corpus import Source
from fedduet.lm.progress import Progress as Part
from fedduet.lm.progress import listening
from fedduet.tasks.builtin import arithmetic_standin
from fedduet.tasks.builtin.world import (
    CONTROL_CODE,
    LABELS,
    PUBLIC_DOMAINS,
    made_up_records,
    public_documents,
    world_records,
)
from fedduet.tasks.task import Record
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fedduet.lm.pretraining.pretrain import PretrainStep


@dataclass(frozen=True)
class Recipe:
    """How a built-in model is made; a changed recipe is another model. Sizes and budgets are our
    choice.

    `reviews` labelled ones of each public domain and 8 of each of `made_up` invented ones, on which
    the label contrast teaches the model to mean its rating, alone and after other reviews (up to as
    many as a prompt shows), and `documents` of several reviews each, from which it learns to go on
    as a context does. Steps are small, since following a label sets in after so many steps.
    """

    start: str
    tokens: int
    reviews: int = 450
    made_up: int = 150
    documents: int = 4000
    vocabulary: int = 1024
    block: int = 256  # a prompt of four examples has about 200 tokens
    batch: int = 2
    learning_rate: float = 3e-3
    contrast: float = 0.4
    contrast_documents: int = 5


_SLM = Recipe(
    "tiny",
    tokens=40_000,
    reviews=0,
    made_up=0,
    block=128,
    batch=8,
    learning_rate=4e-3,
    contrast=0.0,
)
RECIPES = {"llm": Recipe("2m", tokens=420_000), "slm": _SLM}
PREFIX = "builtin:"


def cache_folder() -> Path:
    """Where built-in models are kept: $FEDDUET_CACHE, else $XDG_CACHE_HOME/fedduet, else
    ~/.cache/fedduet."""
    base = os.environ.get("FEDDUET_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fedduet"
    )
    return Path(base).expanduser()


def resolve(path: str) -> str:
    """`path`, or the folder of the built-in or embedded model (or GGUF file) it names, made first
    when it is not there. Raises ConfigError for an unknown one."""
    if path.startswith(PREFIX):
        return str(_ensure(path.removeprefix(PREFIX)))
    return str(embedded_folder(path, cache_folder())) if is_embedded(path) else path


def is_made(path: str) -> bool:
    """Whether the built-in model that `path` names is there already; any other path is."""
    return (
        not path.startswith(PREFIX) or (_place(path.removeprefix(PREFIX)) / "config.json").exists()
    )


def describe(path: str) -> str:
    """How reports name a model: the built-in ones say that they are stand-ins."""
    if path.startswith(PREFIX):
        return f"built-in world, stand-in {path.removeprefix(PREFIX).upper()}"
    if is_embedded(path):
        return title(path)
    return Path(path).name if path else ""


def _place(role: str) -> Path:
    if role in RECIPES:
        described = [role, asdict(RECIPES[role]), public_documents(0, 20)]
        digest, prefix = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12], "world-"
    elif role in arithmetic_standin.ROLES:
        digest, prefix = arithmetic_standin.digest(role), ""
    else:
        known = [PREFIX + name for name in (*RECIPES, *arithmetic_standin.ROLES)]
        raise ConfigError(
            f"{PREFIX}{role}: there is no such built-in model; allowed: {', '.join(known)}"
        )
    return cache_folder() / f"{prefix}{role}-{digest}"


def _ensure(role: str) -> Path:
    folder = _place(role)
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs started together make it once
            if not (folder / "config.json").exists():
                _announced(role, folder)
    return folder


def _announced(role: str, folder: Path) -> None:
    print(
        f"Making the built-in world's {role.upper()} from its public texts (once, kept in"
        f" {folder})",
        file=sys.stderr,
    )
    began, work = time.monotonic(), folder.with_name(f".{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    if role in RECIPES:
        _make(RECIPES[role], role, work, folder)
    else:
        with _told(role):
            arithmetic_standin.make(role, work, _ensure)
        work.rename(folder)
    shutil.rmtree(work, ignore_errors=True)
    print(f"made in {time.monotonic() - began:.0f} s", file=sys.stderr)


def _make(recipe: Recipe, role: str, work: Path, folder: Path) -> None:
    from fedduet.lm.pretraining.config import PretrainConfig
    from fedduet.lm.pretraining.pretrain import pretrain

    config = PretrainConfig(
        out=work,
        start=recipe.start,
        root=work,
        sources=_write_sources(recipe, work),
        vocab_size=recipe.vocabulary,
        block=recipe.block,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        tokens=recipe.tokens,
        contrast=recipe.contrast,
        final_contrast=0.125,
        contrast_steps=1,
        contrast_documents=recipe.contrast_documents,
        contrast_alone=0.4,
        contrast_batch=8,
        contrast_tokens=48,
        command=f"built-in world, {role}",
    )
    with _progress_bar(role) as shown:
        result = pretrain(config, shown)
    shutil.copytree(result.folder, folder)


def public_reviews(recipe: Recipe) -> list[Record]:
    """The labelled reviews that a built-in model is made from: of public domains and of made-up
    ones."""
    records = [
        record for domain in PUBLIC_DOMAINS for record in world_records(domain, recipe.reviews, 0)
    ]
    return records + made_up_records(0, recipe.made_up, 8)


def _write_sources(recipe: Recipe, work: Path) -> tuple[Source, ...]:
    """The public part of the world as files that pre-training reads."""
    work.mkdir(parents=True)
    with (work / "documents.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"text": text}) + "\n" for text in public_documents(0, recipe.documents)
        )
    documents = Source("documents.jsonl")
    if not recipe.reviews:
        return (documents,)
    records = public_reviews(recipe)
    with (work / "reviews.jsonl").open("w", encoding="utf-8") as file:
        rows = (
            {"text": record.text, "label": LABELS[record.label], "domain": record.domain}
            for record in records
        )
        file.writelines(json.dumps(row) + "\n" for row in rows)
    labelled = Source(
        "reviews.jsonl", CONTROL_CODE + " {text}", contrast={"label": LABELS}, held_out=False
    )
    return (labelled, documents)


@contextmanager
def _progress_bar(role: str) -> Iterator[Callable[[PretrainStep], None]]:
    columns = (
        TextColumn(f"making the stand-in {role.upper()}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, note="")

        def show(step: PretrainStep) -> None:
            bar.update(
                task,
                completed=step.fraction,
                note=f"loss {step.loss:.2f}, {step.tokens_per_second:,.0f} tokens/s",
            )

        yield show


@contextmanager
def _told(role: str) -> Iterator[None]:
    """Shows how far each part of a making is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        shown: dict[str, TaskID] = {}

        def show(part: Part) -> None:
            if part.phase not in shown:
                shown[part.phase] = bar.add_task(part.phase, unit=part.unit)
            bar.update(shown[part.phase], completed=part.done, total=part.total)

        with listening(show):
            yield
