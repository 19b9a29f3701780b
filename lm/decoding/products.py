"""Products with weights that do not change: laid out once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

TILED_FOR = 64  # rows of a product that the layout of weights is chosen for; others work as well

Product = Callable[[torch.Tensor], torch.Tensor]


def product(weight: torch.Tensor) -> Product:
    """x -> x @ weight.T. On CPUs that multiply in bf16 the weight is laid out once as oneDNN wants
    it, not in every call; same bits."""
    if (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        tiled = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TILED_FOR)
        # what torch.compile makes of a linear layer
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, tiled, None, "none", [], "")
    return partial(functional.linear, weight=weight)
