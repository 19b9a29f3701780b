"""The likeliest tokens at every place of given rows, with their log-probabilities: what an LLM must
say so that others can fuse with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fedduet.lm.decoding.stepper import forward
from fedduet.lm.models.batch import by_length, pad, positions

# at most this much of float32 logits at once, unless one row alone has more [O]
LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PlaceLogprobs:
    """For n successive places of a row, the last one behind it: the k likeliest `tokens` int64 [n,
    k], likeliest first, and their `logprobs` float32 [n, k]; `chosen` float32 [n - 1]: those of the
    row's own tokens there; `last` float32 [V]: all of the last place.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    chosen: torch.Tensor
    last: torch.Tensor


@torch.inference_mode()
def top_logprobs(
    model: Any,
    rows: Sequence[Sequence[int]],
    k: int,
    starts: Sequence[int] | None = None,
    vocabulary: int | None = None,
    batch_tokens: int = 16_384,
) -> list[PlaceLogprobs]:
    """For each row of token ids the law of the places starts[i] (at least 1, by default 1) to
    len(rows[i]), natural logarithms.

    `vocabulary` cuts the logits to that many tokens before they are normalised (embeddings padded
    beyond the tokenizer). Batches hold at most `batch_tokens` tokens, pads among them. Raises
    ValueError for an empty row or a start outside the row.
    """
    begins = list(starts) if starts is not None else [1] * len(rows)
    for number, (row, start) in enumerate(zip(rows, begins, strict=True)):
        if not 1 <= start <= len(row):
            raise ValueError(
                f"row {number}: found start {start} and {len(row)} tokens; the start must be 1 to"
                f" {len(row)}"
            )
    width = min(
        vocabulary or model.get_output_embeddings().weight.shape[0],
        model.get_output_embeddings().weight.shape[0],
    )
    found: list[PlaceLogprobs | None] = [None] * len(rows)
    limit = max(1, LOGITS_BYTES // (4 * width))
    for numbers in by_length([len(row) for row in rows], None, batch_tokens):
        for batch in by_length(
            [len(rows[number]) - begins[number] + 1 for number in numbers], None, limit
        ):
            part = [numbers[i] for i in batch]
            for number, laws in zip(
                part,
                _laws(model, [rows[i] for i in part], [begins[i] for i in part], k, width),
                strict=True,
            ):
                found[number] = laws
    return found  # type: ignore[return-value]


def _laws(
    model: Any, rows: Sequence[Sequence[int]], begins: Sequence[int], k: int, width: int
) -> list[PlaceLogprobs]:
    """One forward pass; left padding puts all asked places at the end, so that only their logits
    are made."""
    counts = [len(row) - begin + 1 for row, begin in zip(rows, begins, strict=True)]
    keep = max(counts)
    tokens, mask = (
        part.to(model.device) for part in pad([list(row) for row in rows], 0, left=True)
    )
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": positions(mask),
        "logits_to_keep": keep,
    }
    laws = (
        forward(model, **inputs, use_cache=False)
        .logits[:, -keep:, :width]
        .float()
        .log_softmax(dim=-1)
    )
    values, best = laws.topk(min(k, width), dim=-1)
    found = []
    for i, count in enumerate(counts):
        own = tokens[i, tokens.shape[1] - count + 1 :]
        chosen = laws[i, -count:-1].gather(1, own.clamp_max(width - 1)[:, None])[:, 0]
        found.append(
            PlaceLogprobs(
                best[i, -count:].cpu(), values[i, -count:].cpu(), chosen.cpu(), laws[i, -1].cpu()
            )
        )
    return found
