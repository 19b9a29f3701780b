"""Label contrast in pre-training: a text shall be likelier under its own label's header than under
the others'.

Class-conditional language modelling as in GeDi (Krause et al. 2020, arXiv:2009.06367), with Bayes'
rule on summed log-likelihoods, p(y | x) = softmax over y of sum_t log p(x_t | before, header(y),
x_<t), under equal priors [O] (GeDi divides the sums by the text's length and learns the priors).
[O] `before` is no, one or more other labelled documents of the same kind, as in a few-shot prompt,
so that a model learns to hold a label against the labels shown before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from fedduet.lm.pretraining.corpus import Document, cut_to_words
from fedduet.lm.pretraining.probe import Probe, ProbeItem, probe_item
from torch.nn import functional

# [O] this many batches are sorted by length together, so that few pads are computed
SORTED_BATCHES = 16
GAP = "\n\n"  # between two documents, as in few-shot prompts
HIDDEN = -1e9  # added to the attention scores of tokens that must not be seen


@dataclass(frozen=True)
class ContrastLoss:
    """Of a batch: mean loss per text token under the true header (nats), cross-entropy of the
    labels (nats), tokens.

    `tokens` counts the text's tokens once for every label.
    """

    text: torch.Tensor
    labels: torch.Tensor
    tokens: int


def contrast_items(documents: Sequence[Document], tokenizer, tokens: int) -> tuple[ProbeItem, ...]:
    """Documents of sources with `contrast`, worded with every label, cut to at most about `tokens`
    tokens of text.

    Documents whose label is none of the alternatives are left out.
    """
    chosen = [document for document in documents if document.source and document.source.contrast]
    probes = {document.source.path: _probe(document.source) for document in chosen}
    items = []
    for start in range(0, len(chosen), 2000):
        part = chosen[start : start + 2000]
        texts = [document.row[document.source.text] for document in part]
        encoded = tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
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


def contrast_batches(
    items: Sequence[ProbeItem], batch: int, seed: int, epoch: int, longest: int = 1
) -> list[list[tuple[int, ...]]]:
    """One epoch: batches of chains of indices of items, every item once, in an order of (seed,
    epoch) only.

    A chain has 1 to `longest` items, each number as likely, whose headers differ in the label alone
    (so they are of one domain where the header names it). A batch has chains of like length, with
    at most `batch` items in all (or one chain).
    """
    random = np.random.default_rng([seed, 2, epoch])
    chains = list(_chains(items, longest, random))
    chains = [chains[place] for place in random.permutation(len(chains))]
    pools = (np.cumsum([len(chain) for chain in chains]) - 1) // (batch * SORTED_BATCHES)
    lengths = [sum(len(items[index].worded[0][0]) for index in chain) for chain in chains]
    batches: list[list[tuple[int, ...]]] = []
    last = -1
    for place in np.lexsort((lengths, pools)):
        if pools[place] != last or sum(map(len, batches[-1])) + len(chains[place]) > batch:
            batches.append([])
        batches[-1].append(chains[place])
        last = pools[place]
    return [batches[index] for index in random.permutation(len(batches))]


def _chains(
    items: Sequence[ProbeItem], longest: int, random: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    alike: dict[tuple[str, ...], list[int]] = {}
    for index in random.permutation(len(items)):
        headers = tuple(text[:header] for text, header in items[index].worded)
        alike.setdefault(headers, []).append(int(index))
    for indices in alike.values():
        start = 0
        while start < len(indices):
            end = start + int(random.integers(1, longest + 1))
            yield tuple(indices[start:end])
            start = end


def contrast_loss(
    model, tokenizer, chains: Sequence[Sequence[ProbeItem]], temperature: float, max_length: int
) -> ContrastLoss:
    """Both losses of one batch: every document under each label, after the documents before it in
    its chain under their own.

    One forward pass with a row for each chain. All items have the same number of labels. The
    labels' logits are the summed log-likelihoods over `temperature`. What lies beyond `max_length`
    tokens of a chain is left out.
    """
    sums, counts = tree_scores(
        model, tokenizer, [list(_wordings(chain)) for chain in chains], max_length
    )
    items = [item for chain in chains for item in chain]
    sums, counts = sums.view(len(items), -1), counts.view(len(items), -1)
    answers = torch.tensor([item.answer for item in items], device=sums.device)
    there = (counts > 0).all(dim=1)
    sums, counts, answers = sums[there], counts[there], answers[there]
    own = answers[:, None]
    text = -sums.gather(1, own).sum() / counts.gather(1, own).sum()
    return ContrastLoss(
        text, functional.cross_entropy(sums / temperature, answers), int(counts.sum())
    )


def _wordings(chain: Sequence[ProbeItem]) -> Iterator[tuple[str, int]]:
    """(whole text, length in characters of all that is not scored) of every document under every
    label."""
    before = ""
    for item in chain:
        yield from ((before + text, len(before) + header) for text, header in item.worded)
        before += item.worded[item.answer][0] + GAP


def tree_scores(
    model, tokenizer, groups: Sequence[Sequence[tuple[str, int]]], max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fedduet.lm.pretraining.probe.text_scores` of all groups' texts in order, where the texts of
    a group begin alike.

    A group is one row: a tree of its texts' tokens, in which what several begin with stands once. A
    token sees those on its way from the root and has its place in the text as position.
    """
    trees = [_tree(tokenizer, group, max_length) for group in groups]
    longest = max(len(tree.ids) for tree in trees)
    ids = torch.full((len(trees), longest), tokenizer.pad_token_id)
    places = torch.zeros((len(trees), longest), dtype=torch.long)
    mask = torch.full((len(trees), 1, longest, longest), HIDDEN)
    mask.diagonal(dim1=2, dim2=3).zero_()  # a pad sees itself
    scored, first = [], 0
    for row, (tree, group) in enumerate(zip(trees, groups, strict=True)):
        size = len(tree.ids)
        ids[row, :size], places[row, :size] = torch.tensor(tree.ids), torch.tensor(tree.places)
        mask[row, 0, :size, :size].masked_fill_(torch.from_numpy(tree.seen), 0.0)
        scored += [
            (row, tree.parents[node], tree.ids[node], first + number)
            for number, node in tree.scored
        ]
        first += len(group)
    rows, parents, targets, numbers = (
        torch.tensor(scored, device=model.device).view(-1, 4).unbind(1)
    )
    given = {"position_ids": places.to(model.device), "attention_mask": mask.to(model.device)}
    logits = model(input_ids=ids.to(model.device), use_cache=False, **given).logits
    found = functional.cross_entropy(logits[rows, parents].float(), targets, reduction="none")
    sums = torch.zeros(first, device=model.device).index_add(0, numbers, -found)
    return sums, torch.bincount(numbers, minlength=first).float()


@dataclass(frozen=True)
class _Tree:
    """Of each token: id, parent (-1: none), place in its text, which others it sees. `scored`:
    (number of the text, token)."""

    ids: list[int]
    parents: list[int]
    places: list[int]
    seen: np.ndarray
    scored: list[tuple[int, int]]


def _tree(tokenizer, group: Sequence[tuple[str, int]], max_length: int) -> _Tree:
    encoded = tokenizer(
        [text for text, _ in group],
        add_special_tokens=False,
        return_offsets_mapping=True,
        truncation=True,
        max_length=max_length,
    )
    ids: list[int] = []
    parents: list[int] = []
    places: list[int] = []
    scored: list[tuple[int, int]] = []
    children: dict[tuple[int, int], int] = {}
    for number, ((_, header), tokens, offsets) in enumerate(
        zip(group, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ):
        node = -1
        for place, (token, (_, end)) in enumerate(zip(tokens, offsets, strict=True)):
            parent, node = node, children.setdefault((node, token), len(ids))
            if node == len(ids):
                ids.append(token)
                parents.append(parent)
                places.append(place)
            if end > header and parent >= 0:
                scored.append((number, node))
    seen = np.eye(len(ids), dtype=bool)
    for node, parent in enumerate(parents):  # parents stand before their children
        if parent >= 0:
            seen[node] |= seen[parent]
    return _Tree(ids, parents, places, seen, scored)
