"""A key-value cache with its room set aside beforehand: one write per token instead of a copy of
everything so far."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A full-attention layer for `room` positions. `keys` and `values` [B, H, T, D] are views of
    the positions written so far."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes states [B, H, t, D] behind what is there; returns all keys and all values. Raises
        RuntimeError beyond the room."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all_keys, self._all_values = (
                states.new_empty(*states.shape[:2], self.room, states.shape[3])
                for states in (key_states, value_states)
            )
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        self._all_keys[:, :, begin:end] = key_states
        self._all_values[:, :, begin:end] = value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        length = self.get_seq_length()
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self.keys, self.values = self._all_keys[:, :, :length], self._all_values[:, :, :length]


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """The cache that a model of `config` wants, its full-attention layers with room for `room`
    positions, all else as it comes."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
