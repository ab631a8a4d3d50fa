"""Swin's window attention: pad, partition into 7x7 windows, attend with a relative position bias, reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opbench.operators import _attention, _timm
from opbench.operators._attention import (
    HEAD_DIM,
    attend_exactly,
    attention_bytes,
    attention_flops,
    attention_tolerance,
)
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, compiled

if TYPE_CHECKING:
    import torch


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """As attention's, with bias_table ((2w-1)^2, heads): the relative position bias."""
    tensors = _attention.make_inputs(case, generator)
    heads = case.shape.channels // case.int_setting("head_dim")
    distances = (2 * case.int_setting("window_size") - 1) ** 2
    tensors["bias_table"] = 0.5 * normal(generator, distances, heads)
    return tensors


def padded_sides(case: Case) -> tuple[int, int]:
    """Height and width rounded up to whole windows."""
    window = case.int_setting("window_size")
    return -(-case.shape.height // window) * window, -(-case.shape.width // window) * window


def padded_pixels(case: Case) -> int:
    """P', batch * padded height * padded width."""
    height, width = padded_sides(case)
    return case.shape.batch * height * width


def score_elements(case: Case) -> int:
    """Heads * P' * tokens in a window."""
    heads = case.shape.channels // case.int_setting("head_dim")
    return heads * padded_pixels(case) * case.int_setting("window_size") ** 2


def _to_windows(case: Case) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from (B, H, W, C), which it pads, to (windows, window * window, C)."""
    import torch.nn.functional as F

    window = case.int_setting("window_size")
    height, width = padded_sides(case)
    padding = (0, 0, 0, width - case.shape.width, 0, height - case.shape.height)

    def to_windows(x: torch.Tensor) -> torch.Tensor:
        grid: torch.Tensor = F.pad(x, padding).unflatten(2, (-1, window)).unflatten(1, (-1, window))
        return grid.transpose(2, 3).reshape(-1, window * window, x.shape[-1])

    return to_windows


def _from_windows(windows: torch.Tensor, case: Case) -> torch.Tensor:
    """(windows, window * window, C) to (B, H, W, C), the padding cut off."""
    window = case.int_setting("window_size")
    height, width = padded_sides(case)
    grid = windows.view(case.shape.batch, height // window, width // window, window, window, -1)
    image = grid.transpose(2, 3).reshape(case.shape.batch, height, width, -1)
    return image[:, : case.shape.height, : case.shape.width]


def _relative_bias(table: torch.Tensor, window: int) -> torch.Tensor:
    """bias[head, query, key] = table[(dy + w - 1) * (2w - 1) + dx + w - 1, head] with d = query - key."""
    import torch

    place = torch.arange(window * window, device=table.device)
    row, column = place // window, place % window
    down = row.view(-1, 1) - row + window - 1
    across = column.view(-1, 1) - column + window - 1
    return table[down * (2 * window - 1) + across].permute(2, 0, 1)


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Exact attention inside each window; the zero padding takes part, as in Swin."""
    import torch.nn.functional as F

    to_windows, head_dim = _to_windows(case), case.int_setting("head_dim")
    bias = _relative_bias(tensors["bias_table"], case.int_setting("window_size"))
    if case.level is Level.CORE:
        parts = [to_windows(tensors[name]) for name in ("q", "k", "v")]
    else:
        parts = list(F.linear(to_windows(tensors["x"]), tensors["qkv_weight"], tensors["qkv_bias"]).chunk(3, dim=-1))
    q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in parts)
    out = attend_exactly(q, k, v, bias).transpose(1, 2).flatten(-2)
    if case.level is Level.MODULE:
        out = F.linear(out, tensors["proj_weight"], tensors["proj_bias"])
    return _from_windows(out, case)


def _build_timm(case: Case, tensors: Tensors) -> Forward:
    import torch
    from timm.models.swin_transformer import WindowAttention

    to_windows, channels = _to_windows(case), case.shape.channels
    some = next(iter(tensors.values()))
    attention = WindowAttention(
        channels,
        channels // case.int_setting("head_dim"),
        window_size=case.int_setting("window_size"),
        device=some.device,
        dtype=some.dtype,
    ).eval()
    attention.fused_attn = False  # timm's default; the environment must not change what is measured
    _timm.share(attention, "relative_position_bias_table", tensors["bias_table"])
    if case.level is Level.MODULE:
        for layer in ("qkv", "proj"):
            for kind in ("weight", "bias"):
                _timm.share(getattr(attention, layer), kind, tensors[f"{layer}_{kind}"])

        def module() -> torch.Tensor:
            return _from_windows(attention(to_windows(tensors["x"])), case)

        return module

    for layer in ("qkv", "proj"):  # it then takes q, k and v side by side and returns the heads merged
        setattr(attention, layer, torch.nn.Identity())

    def core() -> torch.Tensor:
        qkv = torch.cat([tensors["q"], tensors["k"], tensors["v"]], dim=-1)
        return _from_windows(attention(to_windows(qkv)), case)

    return core


TIMM = Provider(
    "timm",
    _build_timm,
    "timm's WindowAttention, scores materialised",
    unavailable=lambda _device: _timm.unavailable("swin_transformer"),
    needs=_timm.NEEDS,
)

OPERATOR = Operator(
    name="window_attention",
    family="attention",
    summary="self-attention inside 7x7 windows with a relative position bias; module adds both Linears",
    timed="padding to whole windows, partition and reverse; core: q, k and v joined first; module: both projections",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=lambda case: attention_flops(case, padded_pixels(case), case.int_setting("window_size") ** 2),
    bytes_moved=lambda case: attention_bytes(case, padded_pixels(case), score_elements(case)),
    memory_bytes=lambda case: (
        case.dtype.element_bytes * (9 * padded_pixels(case) * case.shape.channels + 3 * score_elements(case))
    ),
    reference_elements=lambda case: 11 * padded_pixels(case) * case.shape.channels + 4 * score_elements(case),
    tolerance=lambda case: attention_tolerance(case, materialised=3),
    providers=(TIMM, compiled(TIMM)),
    settings={"head_dim": HEAD_DIM, "window_size": Setting(7, 1, "side of a window, pixels")},
    not_applicable=_attention.heads_not_applicable,
)
