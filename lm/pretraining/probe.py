"""Zero-shot probe: does the model find a text likelier under the header that tells its true
label?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from fedduet.lm.pretraining.blocks import IGNORED
from fedduet.lm.pretraining.corpus import Document, fill_template, template_columns
from torch.nn import functional


@dataclass(frozen=True)
class Probe:
    """`templates`: answer -> template with `{text}` in it; `column` tells a held-out document's
    true answer."""

    column: str
    templates: Mapping[str, str]
    documents: int = 200
    text: str = "text"

    def __post_init__(self) -> None:
        if len(self.templates) < 2:
            raise ValueError(
                f"probe.templates has {len(self.templates)} entries, at least 2 are needed"
            )
        for answer, template in self.templates.items():
            if "{" + self.text + "}" not in template:
                raise ValueError(
                    f"probe.templates.{answer} is {template!r}, it must hold {{{self.text}}}"
                )


@dataclass(frozen=True)
class ProbeItem:
    """One document worded by every template: (whole text, length of the header in characters) each;
    true answer."""

    worded: tuple[tuple[str, int], ...]
    answer: int


def probe_items(probe: Probe, documents: Sequence[Document]) -> tuple[ProbeItem, ...]:
    """The first `probe.documents` held-out documents whose answer column names one of the
    templates."""
    items = [item for document in documents if (item := probe_item(probe, document))]
    if not items:
        raise ValueError(
            f"probe: no held-out document has {probe.column!r} among {', '.join(probe.templates)}"
        )
    return tuple(items[: probe.documents])


def probe_item(probe: Probe, document: Document) -> ProbeItem | None:
    """The document worded by every template; None when its answer column names none of them."""
    answers = list(probe.templates)
    if document.row.get(probe.column) not in answers:
        return None
    worded = []
    for name, template in probe.templates.items():
        missing = sorted(template_columns(template) - set(document.row))
        if missing:
            found = ", ".join(sorted(document.row))
            raise ValueError(
                f"probe: template {name!r} names the column {missing[0]!r}, a row has {found}"
            )
        header = fill_template(template.partition("{" + probe.text + "}")[0], document.row)
        worded.append((fill_template(template, document.row), len(header.rstrip())))
    return ProbeItem(tuple(worded), answers.index(document.row[probe.column]))


@torch.inference_mode()
def text_log_likelihoods(
    model, tokenizer, worded: Sequence[tuple[str, int]], max_length: int
) -> torch.Tensor:
    """Sum of log p(token | everything before) of each text's tokens, float32 [len(worded)] on the
    CPU."""
    return text_scores(model, tokenizer, worded, max_length)[0].cpu()


def text_scores(
    model, tokenizer, worded: Sequence[tuple[str, int]], max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of log p(token | everything before) over the text's tokens, their number), float32
    [len(worded)] each.

    Differentiable. Texts are cut to `max_length` tokens. A token counts as text when it ends after
    the header's last visible character.
    """
    batch = tokenizer(
        [text for text, _ in worded],
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=True,
        max_length=max_length,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    headers = torch.tensor([header for _, header in worded])[:, None]
    counted = mask & (batch["offset_mapping"][..., 1] > headers)
    targets = ids.masked_fill(~counted, IGNORED)[:, 1:].to(model.device)
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view(targets.shape).sum(dim=1), (targets != IGNORED).sum(dim=1).float()


def probe_accuracy(
    model, tokenizer, items: Sequence[ProbeItem], max_length: int, batch: int = 8
) -> float:
    """Share of items whose true template gives the text the highest likelihood (uniform prior over
    templates)."""
    right = 0
    ordered = sorted(items, key=lambda item: len(item.worded[0][0]))
    for start in range(0, len(ordered), batch):
        chosen = ordered[start : start + batch]
        flat = [pair for item in chosen for pair in item.worded]
        scores = text_log_likelihoods(model, tokenizer, flat, max_length).view(len(chosen), -1)
        right += sum(
            int(row.argmax()) == item.answer for row, item in zip(scores, chosen, strict=True)
        )
    return right / len(items)
