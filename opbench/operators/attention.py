"""Global self-attention with the score matrix materialised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbench.operators._attention import (
    HEAD_DIM,
    REFERENCE_QUERIES,
    around,
    attend_exactly,
    attention_bytes,
    attention_flops,
    attention_tolerance,
    heads_not_applicable,
    make_inputs,
    merge_heads,
    split_heads,
)
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Tensors, compiled

if TYPE_CHECKING:
    import torch


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Exact attention between its projections."""
    import torch.nn.functional as F

    head_dim = case.int_setting("head_dim")
    if case.level is Level.CORE:
        q, k, v = (split_heads(tensors[name], head_dim) for name in ("q", "k", "v"))
        return merge_heads(attend_exactly(q, k, v), tensors["q"].shape)
    x = tensors["x"]
    qkv = F.linear(x, tensors["qkv_weight"], tensors["qkv_bias"])
    q, k, v = (split_heads(part, head_dim) for part in qkv.chunk(3, dim=-1))
    merged = merge_heads(attend_exactly(q, k, v), x.shape)
    return F.linear(merged, tensors["proj_weight"], tensors["proj_bias"])


def flop_count(case: Case) -> int:
    """As attention_flops, every pixel of an image a key."""
    return attention_flops(case, case.shape.pixels, case.shape.height * case.shape.width)


def score_elements(case: Case) -> int:
    """B * heads * N^2."""
    heads = case.shape.channels // case.int_setting("head_dim")
    return heads * case.shape.pixels * case.shape.height * case.shape.width


def reference_elements(case: Case) -> int:
    """q, k, v, output and projections, and one block of scores; all the scores where gradients keep them."""
    tokens = case.shape.height * case.shape.width
    scores = 3 * score_elements(case)
    if case.direction == "fwd":
        scores = scores * min(REFERENCE_QUERIES, tokens) // tokens
    return 9 * case.shape.elements + scores


def _build(case: Case, tensors: Tensors) -> Forward:
    head_dim = case.int_setting("head_dim")
    scale = head_dim**-0.5

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = (split_heads(q, head_dim) * scale) @ split_heads(k, head_dim).transpose(-2, -1)
        return merge_heads(scores.softmax(dim=-1) @ split_heads(v, head_dim), q.shape)

    return around(attend, case, tensors)


TORCH = Provider("torch", _build, "matrix product, softmax, matrix product")

OPERATOR = Operator(
    name="attention",
    family="attention",
    summary="global self-attention, scores materialised; module adds the qkv and output Linears",
    timed="whatever copies torch makes to form the heads from NHWC; module: both projections",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=lambda case: attention_bytes(case, case.shape.pixels, score_elements(case)),
    memory_bytes=lambda case: case.dtype.element_bytes * (8 * case.shape.elements + 2 * score_elements(case)),
    reference_elements=reference_elements,
    tolerance=lambda case: attention_tolerance(case, materialised=3),
    providers=(TORCH, compiled(TORCH)),
    settings={"head_dim": HEAD_DIM},
    not_applicable=heads_not_applicable,
)
