"""The cards of the models that a site keeps. They say sizes, names and budgets, never a private
text."""

from __future__ import annotations

from pathlib import Path

from fedduet.clients.vault.config import SiteConfig
from fedduet.lm.models.card import Card, guarantee, write_card
from fedduet.lm.models.save import name_labels
from fedduet.tasks.builtin.standin import describe
from fedduet.tasks.task import Task
from fedduet.wire.messages import Learn, Receipt

STAYS = (
    "Private to the site: it was trained on private texts as they are, no epsilon covers it, and it"
    " must not be given away."
)
GENERATED = (
    "Trained on generated texts alone; what protects the texts behind these is told by their"
    " sender."
)


def write_slm_card(
    folder: Path,
    config: SiteConfig,
    task: Task,
    domain: str,
    request: Learn,
    records: int,
    steps: int,
) -> None:
    """The card of an SLM just trained, in its `folder`, and the words of its labels."""
    name_labels(folder, task.labels)
    averaged = not request.private and not len(request.data)
    privacy = [STAYS] if request.private or averaged or request.start else [GENERATED]
    if request.share_weights or averaged:
        privacy.append(
            "Weights like these left the sites for averaging, without a formal guarantee."
        )
    write_card(
        folder,
        Card(
            f"{request.model}: classifier of {task.noun}s about {domain}",
            "text-classification",
            config.slm.path,
            f"{_seen(config, request, records)}. Task: {task.name}.",
            privacy,
            labels=task.labels,
            notes=_stand_in(config.slm.path),
            settings={
                "method": config.slm.method,
                "steps": steps,
                "learning rate": config.slm.learning_rate,
                "seed": request.seed,
            },
        ),
    )


def _seen(config: SiteConfig, request: Learn, records: int) -> str:
    owner = (
        "all sites together, an upper bound that only a simulation has"
        if config.pooled
        else f"the site {config.client}"
    )
    parts = [f"{records} private texts of {owner}"] * request.private
    parts += [f"{len(request.data)} generated labelled texts that the server sent"] * bool(
        len(request.data)
    )
    parts += [f"what its start, {request.start}, was trained on"] * (request.start is not None)
    return (
        "; ".join(parts)
        or "No text here: the weights are the average of models that several sites trained"
        " on their private texts"
    )


def write_reasoning_card(
    folder: Path, config: SiteConfig, request: Learn, records: int, steps: int, adapter: bool
) -> None:
    """The card of an SLM tuned on a site's worked questions."""
    data = f"{records} private questions of the site {config.client} with their solutions."
    settings = {
        "method": config.slm.method,
        "steps": steps,
        "learning rate": config.slm.learning_rate,
        "seed": request.seed,
    }
    notes, title = (
        _stand_in(config.slm.path),
        f"{request.model}: answers questions of {config.client}",
    )
    write_card(
        folder,
        Card(
            title,
            "text-generation",
            config.slm.path,
            data,
            [STAYS],
            adapter,
            notes=notes,
            settings=settings,
        ),
    )


def write_generator_card(folder: Path, config: SiteConfig, domain: str, receipt: Receipt) -> None:
    """The card of the DP generator whose samples were released under `receipt`."""
    open_ = receipt.mechanism == "none"
    said = guarantee(float("inf") if open_ else receipt.epsilon, receipt.delta, receipt.unit)
    total = guarantee(receipt.epsilon_total, receipt.delta, receipt.unit)
    who = (
        f"{receipt.records} private texts"
        if receipt.unit == "record"
        else f"Private texts of {receipt.records} users"
    )
    privacy = [
        said,
        f"Everything that the site's ledger held then, this training included: {total}",
        (
            f"Mechanism {receipt.mechanism}: noise multiplier {receipt.noise_multiplier:.4f},"
            f" sample rate {receipt.sample_rate:.4g}, {receipt.steps} steps, clipping norm"
            f" {receipt.clip:g}."
        ),
    ]
    if "seeded" in receipt.mechanism:
        privacy.append(
            "The noise came from a seed: whoever knows it can take it off. This model is NOT"
            " private."
        )
    write_card(
        folder,
        Card(
            f"DP generator of texts about {domain}",
            "text-generation",
            str(config.generator.path if config.generator else ""),
            f"{who} of the site {config.client}, by DP-SGD.",
            privacy,
            adapter=(folder / "adapter_config.json").is_file(),
            notes=_stand_in(config.generator.path if config.generator else ""),
        ),
    )


def _stand_in(path: str) -> list[str]:
    said = describe(path)
    if "stand-in" not in said:
        return []
    return [
        f"{said[0].upper()}{said[1:]}: no real model. It shows that the machinery works, not what"
        " it would reach."
    ]
