"""Decides where bf16 and int8 products pay: on processors and accelerators that have instructions
for them."""

from __future__ import annotations

import torch


def has_fast_bf16(device: str = "cpu") -> bool:
    """Whether this machine multiplies bf16 in hardware (AVX-512 BF16 or AMX; any recent CUDA
    device)."""
    if str(device).startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_fast_int8(device: str = "cpu") -> bool:
    """Whether this machine multiplies int8 in hardware without overflow (AVX-512 VNNI); never said
    of another device than a CPU."""
    return str(device) == "cpu" and torch.cpu._is_vnni_supported()


def use_bf16(precision: str, device: str = "cpu") -> bool:
    """Whether `precision` ("auto", "fp32", "bf16", "int8") means bf16 here; "auto" does where it is
    fast, and so does "int8", which is of generation's products alone."""
    return precision == "bf16" or (precision in ("auto", "int8") and has_fast_bf16(device))
