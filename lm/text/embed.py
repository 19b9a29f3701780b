"""Sentence embeddings: the mean of a model's last hidden states over a text's tokens, on the unit
sphere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedduet.lm.models.batch import by_length, encode, pad
from fedduet.lm.models.load import load_encoder, load_tokenizer
from fedduet.lm.models.precision import use_bf16
from fedduet.lm.progress import report
from torch.nn import functional


class Embedder:
    """An encoder or causal LM as a map from texts to vectors; `size` is their dimension."""

    def __init__(
        self, path: str | Path, max_tokens: int = 128, precision: str = "auto", device: str = "cpu"
    ) -> None:
        self.model: Any = load_encoder(path, device=device)
        self.tokenizer = load_tokenizer(path)
        self.max_tokens, self.precision, self.size = (
            max_tokens,
            precision,
            int(self.model.config.hidden_size),
        )

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 64, phase: str = "embed") -> np.ndarray:
        """[n, size] float32 rows of length 1, in the order of `texts`; a text without tokens is a
        row of zeros."""
        rows = encode(self.tokenizer, texts, self.max_tokens)
        out = np.zeros((len(rows), self.size), dtype=np.float32)
        device, ready = next(self.model.parameters()).device, 0
        for chosen in by_length([len(ids) for ids in rows], batch_size):
            ready += len(chosen)
            chosen = [i for i in chosen if rows[i]]
            if chosen:
                ids, mask = (
                    tensor.to(device)
                    for tensor in pad([rows[i] for i in chosen], self.tokenizer.pad_token_id)
                )
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=use_bf16(self.precision, device.type)
                ):
                    hidden = self.model(
                        input_ids=ids, attention_mask=mask
                    ).last_hidden_state.float()
                means = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                out[chosen] = functional.normalize(means, dim=-1).cpu().numpy()
            report(phase, ready, len(rows), "texts")
        return out


def hashed_embeddings(texts: Sequence[str], size: int = 1024) -> np.ndarray:
    """[n, size] float32 rows of length 1 without any model: signed hashes of words and word pairs,
    square-root counts.

    Good for grouping texts by shared wording, not by meaning. A text without words is a row of
    zeros.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(
        n_features=size, ngram_range=(1, 2), norm=None, token_pattern=r"(?u)\w+"
    ).transform(list(texts))
    vectors = counts.toarray().astype(np.float32)
    vectors = np.sign(vectors) * np.sqrt(np.abs(vectors))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
