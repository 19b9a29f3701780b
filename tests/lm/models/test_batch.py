"""Training strings, truncation, padding and batches of like length."""

import itertools

import numpy as np
import pytest
import torch
from fedduet.lm.models.batch import (
    by_length,
    encode,
    encode_document,
    encode_prompt,
    endless_by_length,
    pad,
)
from hypothesis import given
from hypothesis import strategies as st


def test_a_document_is_control_code_text_and_end(tokenizer):
    row = encode_document(tokenizer, "label good : ", "the film was nice", 32)
    assert tokenizer.convert_ids_to_tokens(row.ids) == [
        "label",
        "good",
        ":",
        "the",
        "film",
        "was",
        "nice",
        "<eos>",
    ]
    assert row.context == 3 and list(row.ids[:3]) == encode_prompt(tokenizer, "label good : ")
    assert encode_document(tokenizer, "", "nice", 32).context == 0


def test_a_cut_document_has_no_end(tokenizer):
    for size in (3, 6, 7):
        row = encode_document(tokenizer, "label good : ", "the film was nice", size)
        assert len(row.ids) == size and 1 not in row.ids
    assert encode_document(tokenizer, "label good : ", "the film was nice", 8).ids[-1] == 1


def test_a_tokenizer_without_end_is_refused(tokenizer):
    class Endless:
        eos_token_id = None

    with pytest.raises(ValueError, match="no end token"):
        encode_document(Endless(), "a", "b", 5)


def test_encode_truncates_and_keeps_order(tokenizer):
    rows = encode(tokenizer, ["one two three", "four", ""], 2)
    assert [tokenizer.convert_ids_to_tokens(row) for row in rows] == [["one", "two"], ["four"], []]
    assert encode(tokenizer, [], 5) == []
    assert len(encode(tokenizer, ["one " * 100], 1000)[0]) == 64  # never more than the model takes


def test_pad_sides():
    ids, mask = pad([[5, 6], [7]], 9)
    assert ids.tolist() == [[5, 6], [7, 9]] and mask.tolist() == [[1, 1], [1, 0]]
    ids, mask = pad([[5, 6], [7]], 9, left=True)
    assert (
        ids.tolist() == [[5, 6], [9, 7]]
        and mask.tolist() == [[1, 1], [0, 1]]
        and ids.dtype == torch.int64
    )


@given(st.lists(st.integers(1, 200), max_size=120), st.integers(1, 16))
def test_every_row_is_in_exactly_one_inference_batch(lengths, size):
    batches = by_length(lengths, size)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert all(0 < len(batch) <= size for batch in batches)


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 16), st.integers(0, 5)
)
def test_training_batches_are_full_and_use_every_row_alike(lengths, size, seed):
    batches = list(
        itertools.islice(endless_by_length(lengths, size, np.random.default_rng(seed)), 40)
    )
    assert all(len(batch) == size for batch in batches)
    counts = np.bincount(list(itertools.chain(*batches)), minlength=len(lengths))
    assert counts.max() - counts.min() <= 1  # whole passes, the last one perhaps unfinished


def test_bucketing_saves_padding_and_stays_random():
    lengths = np.random.default_rng(0).integers(5, 128, 512).tolist()

    def padded(batches):
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / sum(
            sum(lengths[i] for i in b) for b in batches
        )

    def epoch(seed, lengths=lengths):
        return list(
            itertools.islice(endless_by_length(lengths, 16, np.random.default_rng(seed)), 32)
        )

    order = np.random.default_rng(1).permutation(512).tolist()
    assert padded(epoch(2)) < 1.5 < 1.7 < padded([order[i : i + 16] for i in range(0, 512, 16)])
    assert epoch(2) == epoch(2)
    small = [tuple(sorted(batch)) for batch in epoch(3, lengths[:64])]  # 8 passes over 4 batches
    assert len(set(small)) > 25


def test_no_rows_no_batches():
    with pytest.raises(ValueError, match="no rows"):
        next(endless_by_length([], 4, np.random.default_rng(0)))


def test_batches_are_bounded_by_rows_and_by_cells():
    lengths = [3, 9, 5, 1, 4, 30, 2]
    assert by_length(lengths, 3) == [[5, 1, 2], [4, 0, 6], [3]]
    # 1 row too long, 2 x 9, 4 x 4 cells
    assert by_length(lengths, None, 18) == [[5], [1, 2], [4, 0, 6, 3]]
    assert by_length(lengths, 3, 18) == [[5], [1, 2], [4, 0, 6], [3]]
    assert by_length([], None, 18) == []
