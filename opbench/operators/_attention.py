"""What the operators with attention share: inputs, exact attention row by row, and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Setting, Tensors, by_direction
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch

HEAD_DIM = Setting(32, 1, "channels per attention head")


def heads_not_applicable(case: Case) -> str | None:
    """Why the channels cannot be split into heads, or None."""
    head_dim = case.int_setting("head_dim")
    if case.shape.channels % head_dim:
        return (
            f"{case.shape.channels} channels are not a multiple of head_dim {head_dim} "
            f"(--set {case.operator}.head_dim=N)"
        )
    return None


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """Module: x (B, H, W, C) and the two projections; core: q, k and v, each (B, H, W, C)."""
    shape = (case.shape.batch, case.shape.height, case.shape.width, case.shape.channels)
    channels = case.shape.channels
    if case.level is Level.CORE:
        return {name: normal(generator, *shape) for name in ("q", "k", "v")}
    return {
        "x": normal(generator, *shape),
        "qkv_weight": normal(generator, 3 * channels, channels) / channels**0.5,
        "qkv_bias": 0.1 * normal(generator, 3 * channels),
        "proj_weight": normal(generator, channels, channels) / channels**0.5,
        "proj_bias": 0.1 * normal(generator, channels),
    }


def attend_exactly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias) v for (..., heads, tokens, head_dim), a block of queries at a time."""
    import torch

    tokens = q.shape[-2]
    blocks = []
    for start in range(0, tokens, REFERENCE_QUERIES):
        rows = slice(start, start + REFERENCE_QUERIES)
        scores = q[..., rows, :] @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[..., rows, :]
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        blocks.append(weights @ v / weights.sum(-1, keepdim=True))
    return torch.cat(blocks, dim=-2)


REFERENCE_QUERIES = 256
"""Queries per block of the reference: keeps its score matrix small at any number of tokens."""


def split_heads(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(B, ..., C) to (B, heads, tokens, head_dim), as a view."""
    heads: torch.Tensor = tensor.flatten(1, -2).unflatten(-1, (-1, head_dim))
    return heads.transpose(1, 2)


def merge_heads(tensor: torch.Tensor, like: torch.Size) -> torch.Tensor:
    """(B, heads, tokens, head_dim) to the NHWC size `like`."""
    return tensor.transpose(1, 2).reshape(like)


Attend = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def around(attend: Attend, case: Case, tensors: Tensors) -> Forward:
    """The closure to time, around an attention on NHWC q, k and v: its projections at module level, nothing at core."""
    import torch.nn.functional as F

    if case.level is Level.CORE:
        return lambda: attend(tensors["q"], tensors["k"], tensors["v"])

    def module() -> torch.Tensor:
        qkv = F.linear(tensors["x"], tensors["qkv_weight"], tensors["qkv_bias"])
        return F.linear(attend(*qkv.chunk(3, dim=-1)), tensors["proj_weight"], tensors["proj_bias"])

    return module


def attention_tolerance(case: Case, materialised: int) -> float:
    """Rounded to the dtype: output, q, k and v, the materialised stages; the module's output. Sums run over tokens."""
    roundings = 1 + materialised + (3 if case.level is Level.MODULE else 0)
    return rounding_budget(case, storage_roundings=roundings, float32_growth=case.shape.pixels**0.5)


def attention_flops(case: Case, pixels: int, tokens: int) -> int:
    """4 P T C + 5 h P T with T keys per query, and 8 P C^2 for the module's projections; twice that backward."""
    channels = case.shape.channels
    heads = channels // case.int_setting("head_dim")
    forward = 4 * pixels * tokens * channels + 5 * heads * pixels * tokens
    if case.level is Level.MODULE:
        forward += 8 * pixels * channels**2
    return by_direction(case, fwd=forward, bwd=2 * forward)


def attention_bytes(case: Case, pixels: int, score_elements: int) -> int:
    """q, k, v and the output once; materialised scores written, read, and written and read again as weights.

    The module adds what its Linears read and write, x and q, k, v, then the merged heads and the output, and their
    weights. Backward moves twice the forward's bytes (docs/costs.md).
    """
    channels = case.shape.channels
    elements = 4 * pixels * channels + 4 * score_elements
    if case.level is Level.MODULE:
        elements += 6 * pixels * channels + 4 * channels**2
    return by_direction(case, fwd=elements, bwd=2 * elements) * case.dtype.element_bytes
