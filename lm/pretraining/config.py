"""Settings of pre-training, its budget and its learning-rate schedule."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from fedduet.lm.pretraining.corpus import Document, Source
from fedduet.lm.pretraining.export import Position
from fedduet.lm.pretraining.probe import Probe

PRECISIONS = ("auto", "bf16", "fp32")
WEIGHTS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WHOLE_NUMBERS = ("vocab_size", "block", "batch", "tokens", "held_out", "seed")
WHOLE_NUMBERS += ("contrast_batch", "contrast_tokens", "contrast_steps", "contrast_documents")
NUMBERS = ("learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip", "minutes")
NUMBERS += (
    "checkpoint_minutes",
    "evaluate_minutes",
    "contrast",
    "final_contrast",
    "contrast_alone",
    "contrast_temperature",
)


@dataclass(frozen=True)
class PretrainConfig:
    """What to train, on what, for how long. All numbers' defaults are our choice.

    `start`: a plain Hugging Face folder with weights, a config.json (or its folder), or a size of
    `PRESETS`. Text is `documents` (plain strings) or `sources` read below `root`, less `forbidden`
    texts. The budget is `minutes` of wall time, `tokens`, or both (the first to be used up ends
    training). With `tokens` alone the run is a function of the seed. The learning rate rises over
    the first `warmup` of the budget, then follows a cosine to `final_learning_rate` times the peak.
    `held_out` documents (at most a tenth of all) measure the loss. With `contrast` above 0 (its
    weight), `contrast_steps` steps on the label contrast follow every step on packed text:
    each on `contrast_batch` documents of sources that declare alternatives, cut to about
    `contrast_tokens` tokens; the summed log-likelihoods are divided by `contrast_temperature`.
    During the part `contrast_alone` of the budget a document is contrasted alone; then after up to
    `contrast_documents` - 1 others whose headers differ in the label alone, while the weight falls
    to `final_contrast` times itself (with several documents from the start, following a label is
    learned late). `command` is only printed in the card.
    """

    out: Path
    start: str = "2m"
    documents: Sequence[str] = ()
    sources: tuple[Source, ...] = ()
    forbidden: tuple[Source, ...] = ()
    root: Path = Path(".")
    tokenizer: str | None = None
    vocab_size: int = 8192
    block: int = 256
    batch: int = 16
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.1
    warmup: float = 0.02
    weight_decay: float = 0.1
    clip: float = 1.0
    minutes: float | None = None
    tokens: int | None = None
    checkpoint_minutes: float = 5.0
    evaluate_minutes: float = 10.0
    held_out: int = 200
    contrast: float = 0.0
    final_contrast: float = 1.0
    contrast_batch: int = 8
    contrast_tokens: int = 96
    contrast_steps: int = 3
    contrast_documents: int = 1
    contrast_alone: float = 0.0
    contrast_temperature: float = 1.0
    precision: str = "auto"
    device: str = "auto"
    weights: str = "float32"
    seed: int = 0
    probe: Probe | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for name in WHOLE_NUMBERS + NUMBERS:
            value, kinds = getattr(self, name), (int,) if name in WHOLE_NUMBERS else (int, float)
            if name in ("minutes", "tokens") and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
                kind = "a whole number" if name in WHOLE_NUMBERS else "a number"
                raise ValueError(f"pretrain: {name} is {value!r}, allowed is {kind} of at least 0")
        if bool(self.documents) == bool(self.sources):
            raise ValueError("pretrain: give either documents or sources, and not both")
        if not self.minutes and not self.tokens:
            raise ValueError(
                "pretrain: minutes and tokens are both missing, one of them must be above 0"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"pretrain: precision is {self.precision!r}, allowed are {', '.join(PRECISIONS)}"
            )
        if self.weights not in WEIGHTS:
            raise ValueError(
                f"pretrain: weights is {self.weights!r}, allowed are {', '.join(WEIGHTS)}"
            )
        if self.block < 8 or self.batch < 1:
            raise ValueError(
                f"pretrain: block is {self.block} and batch {self.batch}, allowed are >= 8 and >= 1"
            )
        if self.contrast and not any(source.contrast for source in self.sources):
            raise ValueError(
                f"pretrain: contrast is {self.contrast}, and no source declares its alternatives"
            )
        if len({len(values) for source in self.sources for values in source.contrast.values()}) > 1:
            raise ValueError(
                "pretrain: all sources with alternatives must have the same number of them"
            )
        for name in (
            "contrast_batch",
            "contrast_tokens",
            "contrast_documents",
            "contrast_temperature",
        ):
            if not getattr(self, name):
                raise ValueError(f"pretrain: {name} is 0, allowed is above 0")
        if self.contrast_alone > 1:
            raise ValueError(
                f"pretrain: contrast_alone is {self.contrast_alone}, allowed is 0 to 1, a part of"
                " the budget"
            )
        if self.documents and self.probe:
            raise ValueError("pretrain: a probe needs sources, plain documents have no columns")


def budget_fraction(config: PretrainConfig, position: Position) -> float:
    """The used part of the budget, 0 to 1: the larger of the parts of time and of tokens."""
    time_part = position.seconds / (60 * config.minutes) if config.minutes else 0.0
    token_part = position.tokens / config.tokens if config.tokens else 0.0
    return min(1.0, max(time_part, token_part))


def learning_rate(config: PretrainConfig, fraction: float) -> float:
    """Linear warm-up, then a cosine from the peak to `final_learning_rate` times the peak, over the
    used budget."""
    if fraction < config.warmup:
        return config.learning_rate * max(fraction / config.warmup, 0.01)
    part = (fraction - config.warmup) / (1 - config.warmup)
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part)))


def contrast_weight(config: PretrainConfig, fraction: float) -> float:
    """`contrast`, and from `contrast_alone` of the budget on falling to `final_contrast` times
    that, fast at first (quadratic)."""
    left = (
        1.0
        if fraction < config.contrast_alone
        else (1 - fraction) / (1 - config.contrast_alone or 1)
    )
    return config.contrast * (config.final_contrast + (1 - config.final_contrast) * left**2)


def fingerprint(config: PretrainConfig, documents: Sequence[Document]) -> str:
    """Identifies what a checkpoint belongs to: the text and all settings but budget, paths of
    output and cadence."""
    free = (
        "out",
        "documents",
        "sources",
        "forbidden",
        "root",
        "minutes",
        "tokens",
        "device",
        "precision",
        "probe",
    )
    free += ("checkpoint_minutes", "evaluate_minutes", "weights", "command")
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    if not config.contrast:
        settings = {name: value for name, value in settings.items() if "contrast" not in name}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for document in documents:
        digest.update(f"\0{document.repeat}\0{document.text}".encode())
        if config.contrast and document.source and document.source.contrast:
            digest.update(f"\0{dict(document.source.contrast)}".encode())
    return digest.hexdigest()
