"""Embeddings are means over real tokens, of length one, in order; and the hashed ones group by
wording."""

import numpy as np
import pytest
import torch
from fedduet.lm.text.embed import Embedder, hashed_embeddings
from transformers import AutoModel

TEXTS = ["the film was nice", "awful", "one two three four five six seven eight", "a book"]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_mean_of_last_hidden_states(folders, tokenizer, name):
    embedder = Embedder(folders[name], precision="fp32")
    vectors = embedder.embed(TEXTS, batch_size=2)
    model = AutoModel.from_pretrained(folders[name]).eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            mean = (
                model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
                .last_hidden_state[0]
                .mean(dim=0)
                .numpy()
            )
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert vectors.shape == (4, embedder.size) and vectors.dtype == np.float32
    assert embedder.embed([]).shape == (0, 32) and not embedder.embed([""]).any()


def test_hashed_embeddings():
    same, near, far, empty = hashed_embeddings(
        ["the tea kettle leaks", "the tea kettle drips", "shoes run too small", ""]
    )
    assert (
        np.linalg.norm(same) == pytest.approx(1, abs=1e-6)
        and same @ near > 0.4 > 0.1 > abs(same @ far)
        and not empty.any()
    )
