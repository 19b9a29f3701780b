"""Label contrast in pre-training: a text shall be likelier under its own label's header than under the others'.

Class-conditional language modelling as in GeDi (Krause et al. 2020, arXiv:2009.06367), with Bayes' rule on summed
log-likelihoods, p(y | x) = softmax over y of sum_t log p(x_t | header(y), x_<t), under equal priors [O] (GeDi divides
the sums by the text's length and learns the priors).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from lm.pretrain_corpus import Document, cut_to_words
from lm.pretrain_probe import Probe, ProbeItem, probe_item, text_scores

SORTED_BATCHES = 16  # [O] this many batches are sorted by length together, so that few pads are computed


@dataclass(frozen=True)
class ContrastLoss:
    """Of a batch: mean loss per text token under the true header (nats), cross-entropy of the labels (nats), tokens.

    `tokens` counts the text's tokens once for every label.
    """

    text: torch.Tensor
    labels: torch.Tensor
    tokens: int


def contrast_items(documents: Sequence[Document], tokenizer, tokens: int) -> tuple[ProbeItem, ...]:
    """Documents of sources with `contrast`, worded with every label, cut to at most about `tokens` tokens of text.

    Documents whose label is none of the alternatives are left out.
    """
    chosen = [document for document in documents if document.source and document.source.contrast]
    probes = {document.source.path: _probe(document.source) for document in chosen}
    items = []
    for start in range(0, len(chosen), 2000):
        part = chosen[start : start + 2000]
        texts = [document.row[document.source.text] for document in part]
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for document, text, offsets in zip(part, texts, encoded["offset_mapping"], strict=True):
            if len(offsets) > tokens:
                whole = text[: offsets[tokens - 1][1]].rsplit(" ", 1)[0]
                text = cut_to_words(text, len(whole.split(" ")))
            row = {**document.row, document.source.text: text}
            items.append(probe_item(probes[document.source.path], replace(document, row=row)))
    return tuple(item for item in items if item)


def _probe(source) -> Probe:
    ((column, values),) = source.contrast.items()
    templates = {value: source.template.replace("{" + column + "}", value) for value in values}
    return Probe(column, templates, text=source.text)


def contrast_batches(items: Sequence[ProbeItem], batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch: indices of every item once, in batches of like length, in an order of (seed, epoch) only."""
    random = np.random.default_rng([seed, 2, epoch])
    order = random.permutation(len(items))
    lengths = np.array([len(item.worded[0][0]) for item in items])
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch * SORTED_BATCHES):
        pool = order[start : start + batch * SORTED_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[place : place + batch] for place in range(0, len(pool), batch)]
    return [batches[index] for index in random.permutation(len(batches))]


def contrast_loss(model, tokenizer, items: Sequence[ProbeItem], temperature: float, max_length: int) -> ContrastLoss:
    """Both losses of one batch from one forward pass with a row for each (document, label).

    All items have the same number of labels. The labels' logits are the summed log-likelihoods over `temperature`.
    """
    sums, counts = text_scores(model, tokenizer, [pair for item in items for pair in item.worded], max_length)
    sums, counts = sums.view(len(items), -1), counts.view(len(items), -1)
    answers = torch.tensor([item.answer for item in items], device=sums.device)
    own = answers[:, None]
    text = -sums.gather(1, own).sum() / counts.gather(1, own).sum()
    return ContrastLoss(text, functional.cross_entropy(sums / temperature, answers), int(counts.sum()))
