"""Model cards: a README.md in a model's folder that says what it is, what it saw, what protects
that, and how to load it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
TEST_ACCURACY = "test accuracy"
_FRONT = "---\n"
_METRICS = "## Metrics\n"


@dataclass(frozen=True)
class Card:
    """What a card says. Nothing here may be private text: `data` describes, it does not quote.

    `kind`: a transformers pipeline, "text-classification" or "text-generation". `adapter`: the
    folder holds a PEFT adapter of `base`, not a whole model. `privacy`: sentences. `notes`:
    sentences that a reader must not miss (a stand-in, an upper bound).
    """

    title: str
    kind: str
    base: str
    data: str
    privacy: Sequence[str]
    adapter: bool = False
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def guarantee(epsilon: float, delta: float, unit: str = "record") -> str:
    """One sentence on (epsilon, delta)."""
    if math.isinf(epsilon):
        return "There is no formal privacy guarantee (epsilon is infinite)."
    return (
        f"({epsilon:.4g}, {delta:.2g})-differentially private with respect to adding or removing"
        f" one {unit}."
    )


def write_card(
    folder: str | Path, card: Card, metrics: Mapping[str, tuple[float, int]] | None = None
) -> Path:
    """Write `folder`/README.md, replacing one that is there. `metrics`: name to (value, number of
    rows behind it)."""
    front = {
        "license": "unknown",
        # a folder of this machine is no model of the hub
        **({"base_model": card.base} if _of_the_hub(card.base) else {}),
        "library_name": "peft" if card.adapter else "transformers",
        "pipeline_tag": card.kind,
        "tags": ["fedduet"],
    }
    lines = [f"# {card.title}", "", *(f"> {note}\n" for note in card.notes)]
    lines += [f"Base model: `{card.base}`.", ""] if card.base else []
    lines += [
        (
            "The licence is unknown: that of the base model and of the data holds, and nobody has"
            " checked either for this folder."
        ),
        "",
    ]
    lines += [
        "## Training data",
        "",
        card.data,
        "",
        "## Privacy",
        "",
        *(f"- {sentence}" for sentence in card.privacy),
        "",
    ]
    lines += [_METRICS, *_metric_lines(metrics or {}), ""]
    if card.settings:
        lines += [
            "## Settings",
            "",
            *(f"- {name}: {value}" for name, value in card.settings.items()),
            "",
        ]
    if card.labels:
        lines += [
            "## Labels",
            "",
            *(f"- {number}: {wording}" for number, wording in enumerate(card.labels)),
            "",
        ]
    lines += ["## Load it", "", "```python", *_code(card), "```", ""]
    file = Path(folder) / CARD
    file.write_text(_with_front(front, "\n" + "\n".join(lines)), encoding="utf-8")
    return file


def _with_front(front: Mapping[str, Any], body: str) -> str:
    return _FRONT + yaml.safe_dump(dict(front), sort_keys=False) + _FRONT + body


def _index(body: str, front: Mapping[str, Any], accuracy: float) -> dict[str, Any]:
    """The measurement as Hugging Face shows it beside a card."""
    title = body.partition("# ")[2].partition("\n")[0]
    private = {"name": "the site's own test rows, which are private", "type": "private"}
    result = {
        "task": {"type": front["pipeline_tag"]},
        "dataset": private,
        "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
    }
    return {"name": title, "results": [result]}


def _of_the_hub(base: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()


def add_metric(folder: str | Path, name: str, value: float, rows: int) -> None:
    """Put a measurement into the card of `folder`, in place of an older one of that name; nothing
    where there is no card."""
    file = Path(folder) / CARD
    if not file.is_file():
        return
    before, heading, after = file.read_text(encoding="utf-8").partition(_METRICS)
    if not heading:
        return
    old, mark, rest = after.partition("\n## ")
    kept = [
        line
        for line in old.splitlines()
        if line.startswith("- ") and not line.startswith(f"- {name}: ")
    ]
    lines = [*kept, *_metric_lines({name: (value, rows)})]
    front, body = before.split(_FRONT, 2)[1:]
    if name == TEST_ACCURACY:
        known = yaml.safe_load(front)
        before = _with_front(known | {"model-index": [_index(body, known, value)]}, body)
    file.write_text(
        before + heading + "\n" + "\n".join(lines) + "\n" + mark + rest, encoding="utf-8"
    )


def _metric_lines(metrics: Mapping[str, tuple[float, int]]) -> list[str]:
    if not metrics:
        return ["", "Not measured."]
    return [
        f"- {name}: {value:.4f}" + (f" ({rows} rows)" if rows else "")
        for name, (value, rows) in metrics.items()
    ]


def _code(card: Card) -> list[str]:
    """Three lines, run from within the folder (or with its path instead of the dot)."""
    if not card.adapter:
        return [
            "from transformers import pipeline",
            f'model = pipeline("{card.kind}", model=".")',
            'print(model("a text"))',
        ]
    return [
        "from peft import PeftConfig, PeftModel",
        "from transformers import AutoModelForCausalLM as Base",
        (
            "model ="
            ' PeftModel.from_pretrained(Base.from_pretrained(PeftConfig.from_pretrained(".")'
            ".base_model_name_or_path),"
            ' ".")'
        ),
    ]
