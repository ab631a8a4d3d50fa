"""Deformable attention of DAT: all queries attend to samples of the image at places that they predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from opbench.operators._attention import HEAD_DIM, attend_exactly
from opbench.operators._dcn import depthwise
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch

Attend = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""softmax(q k^T / sqrt(head_dim) + bias) v of (B, heads, tokens, head_dim) and (B, heads, tokens, samples)."""
Sample = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Bilinear samples (B, Ho, Wo, G, D) of (B, H, W, G, D) at places (B, Ho, Wo, G, 2), (y, x) from -1 to 1."""

MEAN_FEATURE = 0.98
"""E[GELU(1 + z)] for standard normal z."""
GELU_SECOND_MOMENT = 0.4252
"""E[GELU(z)^2] for standard normal z, so that the offsets before their tanh can be scaled to spread 1."""


def group_channels(case: Case) -> int:
    """Channels of an offset group: the setting, or all where there are fewer."""
    return min(case.shape.channels, case.int_setting("group_channels"))


def groups(case: Case) -> int:
    """G, the number of offset groups."""
    return case.shape.channels // group_channels(case)


def heads(case: Case) -> int:
    """h, the number of attention heads."""
    return case.shape.channels // case.int_setting("head_dim")


def scores(case: Case) -> int:
    """S = h P N: a sample for each pixel of an image, and a score for each query, sample and head."""
    return heads(case) * case.shape.pixels * case.shape.height * case.shape.width


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """x (B, H, W, C) and the module's parameters; rpe_table (h, 2 H - 1, 2 W - 1) is the bias by distance."""
    import torch

    shape, channels, group = case.shape, case.shape.channels, group_channels(case)
    size = case.int_setting("dw_kernel_size")
    tensors = {
        "x": normal(generator, shape.batch, shape.height, shape.width, channels),
        "offset_dw_weight": normal(generator, group, 1, size, size) / size,
        "offset_dw_bias": 0.1 * normal(generator, group),
        "offset_norm_weight": torch.ones(group, device=generator.device),
        "offset_norm_bias": torch.zeros(group, device=generator.device),
        "offset_proj_weight": linear_weight(2, group, GELU_SECOND_MOMENT**-0.5, generator),
        "rpe_table": 0.5 * normal(generator, heads(case), 2 * shape.height - 1, 2 * shape.width - 1),
    }
    for layer in ("proj_q", "proj_k", "proj_v", "proj_out"):
        tensors[f"{layer}_weight"] = linear_weight(channels, channels, 1.0, generator)
        tensors[f"{layer}_bias"] = 0.1 * normal(generator, channels)
    return tensors


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Places that no rounding carries across a pixel, neither of the image nor of the table.

    A place of the plain grid is a multiple of 1 / (2 H) of a pixel, in both. So all are moved by about 1 / (4 H): by
    weights of one sign, whose sum over the features' mean is what the offset's tanh must be.
    """
    import torch

    weight = tensors["offset_proj_weight"]
    sides = (case.shape.height, case.shape.width)
    moves = [0.5 / max(side - 1, 1) / case.int_setting("offset_range_factor") for side in sides]
    each = weight.new_tensor(moves).view(2, 1) / (MEAN_FEATURE * weight.shape[1])
    return {
        **tensors,
        "offset_proj_weight": each * (1 + 0.5 * weight.sign()),
        "offset_norm_bias": torch.ones_like(tensors["offset_norm_bias"]),
    }


def _grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """(height, width, 2): the centres of equal parts of the range from -1 to 1, (y, x), float32 or better."""
    import torch

    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    y, x = ((torch.arange(side, device=like.device, dtype=dtype) + 0.5) * (2 / side) - 1 for side in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def _sample_by_formula(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    from opbench_kernels.bilinear_reference import sample

    y, x = ((places[..., axis] + 1) / 2 * (image.shape[axis + 1] - 1) for axis in (0, 1))
    return sample(image, y, x)


def _by_grid_sample() -> Sample:
    """grid_sample, in the places' dtype: in half precision it would move them by hundredths of a pixel."""
    import torch.nn.functional as F

    def sample(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        batch, _, _, group, _ = image.shape
        nchw = image.permute(0, 3, 4, 1, 2).flatten(0, 1).to(places.dtype)
        flat = places.permute(0, 3, 1, 2, 4).flatten(0, 1).flip(-1)
        sampled = F.grid_sample(nchw, flat, align_corners=True).to(image.dtype)
        by_group: torch.Tensor = sampled.unflatten(0, (batch, group))
        return by_group.permute(0, 3, 4, 1, 2)

    return sample


def _attended(case: Case, tensors: Tensors, sample: Sample, attend: Attend) -> Forward:
    """The closure that computes the module with these two parts."""
    import torch.nn.functional as F

    x, (batch, height, width) = tensors["x"], (case.shape.batch, case.shape.height, case.shape.width)
    group, head_dim = groups(case), case.int_setting("head_dim")
    proj_q, proj_k, proj_v, proj_out = (linear(f"proj_{name}", tensors) for name in ("q", "k", "v", "out"))
    dw = depthwise(tensors["offset_dw_weight"], tensors["offset_dw_bias"])
    norm = (tensors["offset_norm_weight"], tensors["offset_norm_bias"])
    weight = tensors["offset_proj_weight"]
    grid = _grid(height, width, x)
    reach = grid.new_tensor([case.int_setting("offset_range_factor") / side for side in (height, width)])
    table = tensors["rpe_table"].unflatten(0, (group, -1)).permute(2, 3, 0, 1).expand(batch, -1, -1, -1, -1)

    def split(tokens: torch.Tensor) -> torch.Tensor:
        by_head: torch.Tensor = tokens.flatten(1, 2).unflatten(-1, (-1, head_dim))
        return by_head.transpose(1, 2)

    def module() -> torch.Tensor:
        q = proj_q(x)
        by_group = q.unflatten(-1, (group, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        features = F.gelu(F.layer_norm(dw(by_group), norm[0].shape, *norm))
        offset = F.linear(features, weight).to(grid.dtype).tanh() * reach
        places = (grid + offset).unflatten(0, (batch, group)).permute(0, 2, 3, 1, 4)  # (B, H, W, G, 2)
        sampled = sample(x.unflatten(-1, (group, -1)), places).flatten(-2)
        distance = (grid.view(1, -1, 1, 1, 2) - places.flatten(1, 2).unsqueeze(1)) * 0.5  # (B, H W, samples, G, 2)
        bias = sample(table, distance).flatten(-2).permute(0, 3, 1, 2)
        out = attend(split(q), split(proj_k(sampled)), split(proj_v(sampled)), bias)
        return proj_out(out.transpose(1, 2).reshape(x.shape))

    return module


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """Samples and attention by their formulas between the module's stages."""
    return _attended(case, tensors, _sample_by_formula, attend_exactly)()


def _build(case: Case, tensors: Tensors) -> Forward:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        return found.softmax(-1) @ v

    return _attended(case, tensors, _by_grid_sample(), attend)


def _build_sdpa(case: Case, tensors: Tensors) -> Forward:
    import torch.nn.functional as F

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    return _attended(case, tensors, _by_grid_sample(), attend)


def not_applicable(case: Case) -> str | None:
    """Why the channels cannot be split into heads and groups, or None."""
    channels, head_dim, group = case.shape.channels, case.int_setting("head_dim"), group_channels(case)
    if channels % group or group % head_dim:
        return (
            f"{channels} channels are not groups of {group} channels that are heads of {head_dim} "
            f"(--set {case.operator}.group_channels=N, head_dim)"
        )
    return None


def flop_count(case: Case) -> int:
    """8 P C^2 + 4 P N C + 5 S; the offsets' convolution 2 k^2 P C and product 4 P C.

    Samples of the image are 8 P C + 30 P G, and of the table 8 S + 30 P N G; backward 16 and 30. The rest is twice the
    forward there.
    """
    shape, group = case.shape, groups(case)
    samples = shape.height * shape.width
    products = 8 * shape.pixels * shape.channels**2 + 4 * shape.pixels * samples * shape.channels + 5 * scores(case)
    products += (2 * case.int_setting("dw_kernel_size") ** 2 + 4) * shape.elements
    corners = 8 * (shape.elements + scores(case))
    coordinates = 30 * shape.pixels * group * (1 + samples)
    return by_direction(case, fwd=products + corners + coordinates, bwd=2 * (products + corners) + coordinates)


def bytes_moved(case: Case) -> int:
    """The stages' inputs and outputs once, each stage on its own; the weights once.

    Stages: proj_q, depthwise, LayerNorm with GELU, offsets, samples, proj_k, proj_v, bias, attention, proj_out. The
    bias is written and read; scores are not. Backward moves twice the forward's bytes.
    """
    shape, group = case.shape, group_channels(case)
    parameters = 4 * shape.channels**2 + (case.int_setting("dw_kernel_size") ** 2 + 2) * group
    parameters += heads(case) * (2 * shape.height - 1) * (2 * shape.width - 1)
    forward = 19 * shape.elements + 6 * shape.pixels * groups(case) + 2 * scores(case) + parameters
    return by_direction(case, fwd=forward, bwd=2 * forward) * case.dtype.element_bytes


def gathered_bytes(case: Case) -> int:
    """Four corners of each sample of the image, a number for each channel, and of the table, one for each score."""
    one_pass = 4 * (case.shape.elements + scores(case)) * case.dtype.element_bytes
    return by_direction(case, fwd=one_pass, bwd=one_pass)


def memory_bytes(case: Case) -> int:
    """Activations, scores and weights; distances and bias, which are float32."""
    shape = case.shape
    places = shape.pixels * shape.height * shape.width * groups(case)
    features = 10 * shape.elements + 4 * shape.channels**2 + 3 * scores(case)
    return case.dtype.element_bytes * features + 4 * (2 * scores(case) + 4 * places)


def reference_elements(case: Case) -> int:
    """Activations and the corners of the samples of image and table; the distances."""
    places = case.shape.pixels * case.shape.height * case.shape.width * groups(case)
    return 24 * case.shape.elements + 16 * scores(case) + 16 * places + 4 * case.shape.channels**2


def tolerance(case: Case) -> float:
    """Rounded to the dtype: the offsets' features, samples, q, k, v, bias, scores or weights, heads, output.

    In float32 sums run over channels or samples, and coordinates are as large as the table.
    """
    shape = case.shape
    growth = max(shape.channels, shape.pixels) ** 0.5 + 4 * max(shape.height, shape.width)
    return rounding_budget(case, storage_roundings=9, float32_growth=growth)


TORCH = Provider("torch", _build, "grid_sample, matrix product, softmax, matrix product")

OPERATOR = Operator(
    name="dat_attention",
    family="attention",
    by_default=False,
    summary="deformable attention of DAT's first version, a sample for each pixel; with its projections",
    timed="whatever copies torch makes to form groups and heads from NHWC; projections, offsets, samples, bias",
    make_inputs=make_inputs,
    reference=reference,
    flop_count=flop_count,
    bytes_moved=bytes_moved,
    gathered_bytes=gathered_bytes,
    memory_bytes=memory_bytes,
    reference_elements=reference_elements,
    smooth_inputs=smooth_inputs,
    tolerance=tolerance,
    providers=(
        TORCH,
        compiled(TORCH),
        Provider("sdpa", _build_sdpa, "grid_sample, torch scaled_dot_product_attention with the bias"),
    ),
    settings={
        "head_dim": HEAD_DIM,
        "group_channels": Setting(128, 1, "channels with offsets of their own; where there are fewer, one group"),
        "dw_kernel_size": Setting(5, 1, "side of the depthwise convolution before the offsets, odd"),
        "offset_range_factor": Setting(2, 1, "largest offset, in half pixels"),
    },
    not_applicable=not_applicable,
    levels=(Level.MODULE,),
)
