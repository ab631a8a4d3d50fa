"""The attention module around FlashAttention-2: the flash_attn package, or the same kernels inside PyTorch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from opbench.operators._attention import (
    HEAD_DIM,
    around,
    attention_bytes,
    attention_tolerance,
    heads_not_applicable,
    make_inputs,
    split_heads,
)
from opbench.operators.attention import flop_count, reference, reference_elements
from opbench.workload.case import Case, Dtype
from opbench.workload.operator import Forward, Operator, Provider, Tensors

if TYPE_CHECKING:
    import torch


def _build_flash_attn(case: Case, tensors: Tensors) -> Forward:
    from flash_attn import flash_attn_func

    head_dim = case.int_setting("head_dim")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = (t.flatten(1, 2).unflatten(-1, (-1, head_dim)) for t in (q, k, v))
        return flash_attn_func(*heads).reshape(q.shape)  # type: ignore[no-any-return]

    return around(attend, case, tensors)


def _build_sdpa(case: Case, tensors: Tensors) -> Forward:
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    head_dim = case.int_setting("head_dim")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(
                split_heads(q, head_dim), split_heads(k, head_dim), split_heads(v, head_dim)
            )
        return out.transpose(1, 2).reshape(q.shape)

    return around(attend, case, tensors)


def _flash_attn_unavailable(device_type: str) -> str | None:
    if device_type != "cuda":
        return f"flash_attn needs a CUDA device, this is {device_type}"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash_attn is not installed (pip install 'opbench[flash-attn]')"
    return None


def _half_only_on_cuda(case: Case, device_type: str) -> str | None:
    if device_type == "cuda" and case.dtype in (Dtype.FP32, Dtype.TF32):
        return f"FlashAttention-2 has no {case.dtype} kernels on CUDA"
    return None


OPERATOR = Operator(
    name="flash_attention_2",
    family="attention",
    summary="global self-attention without materialised scores; module adds the qkv and output Linears",
    timed="the head split is a view; module: both projections",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=lambda case: attention_bytes(case, case.shape.pixels, 0),
    memory_bytes=lambda case: case.dtype.element_bytes * 8 * case.shape.elements,
    reference_elements=reference_elements,
    tolerance=lambda case: attention_tolerance(case, materialised=1),
    providers=(
        Provider(
            "flash_attn",
            _build_flash_attn,
            "flash_attn_func of the flash-attn package",
            unavailable=_flash_attn_unavailable,
            needs="a CUDA device, and the package flash-attn",
            not_applicable=_half_only_on_cuda,
        ),
        Provider(
            "sdpa_flash",
            _build_sdpa,
            "torch scaled_dot_product_attention pinned to its flash backend (FlashAttention-2 on CUDA)",
            not_applicable=_half_only_on_cuda,
        ),
    ),
    settings={"head_dim": HEAD_DIM},
    not_applicable=heads_not_applicable,
)
