"""Checkpoints, finished folders and the model card of pre-training, all replaced atomically."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fedduet.lm.pretraining.corpus import SourceCount
from transformers import GenerationConfig


@dataclass(frozen=True)
class Position:
    """Where training stands: `epoch` and `block` (the next block of that epoch), and totals so far.

    `contrasts` counts the steps on the label contrast, which `step` counts too.
    """

    epoch: int = 0
    block: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    contrasts: int = 0


@dataclass(frozen=True)
class Measurement:
    """One evaluation: mean loss per held-out token (nats) and, with a probe, its accuracy; None:
    not measured."""

    step: int
    tokens: int
    seconds: float
    held_out_loss: float | None
    probe_accuracy: float | None


def save_checkpoint(folder: Path, state: dict) -> None:
    """Write `state` to folder/state.pt so that a kill at any moment leaves the old or the new file,
    never a part."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "state.pt.unfinished"
    with unfinished.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, folder / "state.pt")


def load_checkpoint(folder: Path) -> dict | None:
    """The state that `save_checkpoint` wrote, on the CPU; None when there is none."""
    path = folder / "state.pt"
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


def write_folder(folder: Path, model, tokenizer, card: str, weights: torch.dtype) -> None:
    """A plain Hugging Face folder (safetensors, tokenizer, generation_config, README.md), seen only
    when complete."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    kept = model.config.dtype
    tensors = {
        name: (
            tensor.detach().to("cpu", weights, copy=True)
            if tensor.is_floating_point()
            else tensor.detach().cpu()
        )
        for name, tensor in model.state_dict().items()
    }
    try:
        model.config.dtype = weights
        model.save_pretrained(unfinished, state_dict=tensors)
    finally:
        model.config.dtype = kept
    tokenizer.save_pretrained(unfinished)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(unfinished)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    for file in unfinished.iterdir():
        file.chmod(0o644)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(unfinished, folder)
    if old.exists():
        shutil.rmtree(old)


def point_latest(out: Path, target: Path) -> None:
    """Make out/latest a link to `target` (inside `out`) in one step, and delete exports older than
    the last two.

    A reader that follows `latest` while it moves still finds its folder: the one before is kept.
    """
    link = out / "latest.unfinished"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, out), target_is_directory=True)
    os.replace(link, out / "latest")
    exports = sorted((out / "exports").glob("step-*"))
    for old in [
        folder for folder in exports if folder != target and not folder.name.endswith(".unfinished")
    ][:-1]:
        shutil.rmtree(old)


def model_card(
    start: str,
    parameters: int,
    settings: dict[str, object],
    counts: Sequence[SourceCount],
    documents: tuple[int, int],
    position: Position,
    measurements: Sequence[Measurement],
    finished: bool,
) -> str:
    """README.md of an exported folder: what the model started from, what it saw, how, and how well
    it does.

    `documents` are (trained on, held out), each counted once.
    """
    lines = [
        "# Causal language model pre-trained by FedDuet",
        "",
        f"- Started from: {start}",
        f"- Parameters: {parameters:,}",
        (
            f"- State: {'finished' if finished else 'training goes on'}, {position.step:,} steps "
            f"({position.contrasts:,} of them on the label contrast)"
        ),
        (
            f"- Saw: {position.tokens:,} tokens ({position.epoch} whole epochs) in"
            f" {position.seconds / 60:.1f} minutes"
        ),
        (
            f"- Documents: {documents[0]:,} trained on, {documents[1]:,} held out (never trained on"
            " here)"
        ),
        "",
        (
            "| file | rows | refused by filters | forbidden text | repeated text | documents |"
            " times per epoch |"
        ),
        "|---|---|---|---|---|---|---|",
        *(
            f"| {c.path} | {c.rows} | {c.filtered} | {c.forbidden} | {c.repeated} | {c.documents} |"
            f" {c.repeat} |"
            for c in counts
        ),
        "",
        "| step | tokens | minutes | held-out loss | probe accuracy |",
        "|---|---|---|---|---|",
        *(
            f"| {m.step} | {m.tokens} | {m.seconds / 60:.1f} | {_show(m.held_out_loss)} |"
            f" {_show(m.probe_accuracy)} |"
            for m in measurements
        ),
        "",
        (
            "Held-out loss is nats per token. The model this one started from may have seen the"
            " held-out documents."
        ),
        "",
        "Settings:",
        "",
        *(f"    {name}: {value}" for name, value in settings.items()),
        "",
    ]
    return "\n".join(lines)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
