"""Documents to blocks of token ids: each document closed by EOS, packed whole where it fits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100


def encode_documents(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of every text followed by EOS, as int32 arrays; no other special tokens."""
    encoded: list[np.ndarray] = []
    for start in range(0, len(texts), 2000):
        batch = tokenizer(
            list(texts[start : start + 2000]), add_special_tokens=False, verbose=False
        )["input_ids"]
        encoded.extend(np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in batch)
    return encoded


@dataclass(frozen=True)
class Blocks:
    """`ids` [blocks, length] int32, filled up with pads at the right; `used` [blocks]: tokens that
    are not pads."""

    ids: np.ndarray
    used: np.ndarray

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Input ids and labels [len(rows), longest used], int64; labels are -100 at pads, not
        shifted."""
        length = int(self.used[rows].max())
        ids = torch.from_numpy(self.ids[rows, :length].astype(np.int64))
        pads = (
            torch.arange(length)[None, :]
            >= torch.from_numpy(self.used[rows].astype(np.int64))[:, None]
        )
        return ids.to(device), ids.masked_fill(pads, IGNORED).to(device)


def pack(documents: Sequence[np.ndarray], length: int, pad: int, order: Sequence[int]) -> Blocks:
    """Best-fit packing of the documents, taken in `order`, so that every block starts with the
    start of a document.

    A document longer than a block is cut into pieces of `length` (only those pieces start a block
    in mid-document). Each piece goes to the fullest block it still fits, else to a new one. Our
    choice: against plain concatenation no document is cut needlessly, at the price of a few per
    cent of pads.
    """
    blocks: list[list[np.ndarray]] = []
    free: list[list[int]] = [[] for _ in range(length + 1)]
    open_sizes = 0  # bit s is set when some block has s free places
    for index in order:
        document = documents[index]
        for start in range(0, len(document), length):
            piece = document[start : start + length]
            fitting = open_sizes >> len(piece)
            if fitting:
                size = len(piece) + (fitting & -fitting).bit_length() - 1
                block = free[size].pop()
                if not free[size]:
                    open_sizes &= ~(1 << size)
                blocks[block].append(piece)
                left = size - len(piece)
            else:
                block = len(blocks)
                blocks.append([piece])
                left = length - len(piece)
            if left:
                free[left].append(block)
                open_sizes |= 1 << left
    ids = np.full((len(blocks), length), pad, dtype=np.int32)
    used = np.zeros(len(blocks), dtype=np.int32)
    for row, pieces in enumerate(blocks):
        joined = np.concatenate(pieces)
        ids[row, : len(joined)] = joined
        used[row] = len(joined)
    return Blocks(ids, used)


def epoch_blocks(
    documents: Sequence[np.ndarray],
    repeats: Sequence[int],
    length: int,
    pad: int,
    seed: int,
    epoch: int,
) -> Blocks:
    """One epoch: every document as often as it repeats, packed in an order that depends on (seed,
    epoch) only."""
    random = np.random.default_rng([seed, 1, epoch])
    order = random.permutation(np.repeat(np.arange(len(documents)), repeats))
    packed = pack(documents, length, pad, order)
    shuffled = random.permutation(len(packed.ids))
    return Blocks(packed.ids[shuffled], packed.used[shuffled])
