"""Multi-scale deformable attention of Deformable DETR: each pixel samples a few points in every level of a pyramid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from opbench.operators import _dcn, _offsets, _triton
from opbench.operators._linear import linear, linear_weight
from opbench.operators._random import normal
from opbench.workload.case import Case, Level
from opbench.workload.operator import Forward, Operator, Provider, Setting, Tensors, by_direction, compiled
from opbench.workload.tolerance import rounding_budget

if TYPE_CHECKING:
    import torch
    from opbench_kernels.implementation import Implementation

Core = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""The output (B, Lq, C) from value (B, S, M, D), locations (B, Lq, M, L, P, 2) and weights (B, Lq, M, L, P)."""


def pyramid(case: Case) -> list[tuple[int, int]]:
    """(height, width) of each level: the case's image, and half of the level before it, rounded up.

    An image of 100 x 167 has the levels of Deformable DETR for 800 x 1333 pixels: then 50 x 84, 25 x 42 and 13 x 21.
    """
    sizes = [(case.shape.height, case.shape.width)]
    while len(sizes) < case.int_setting("n_levels"):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


def length(case: Case) -> int:
    """S, pixels of a pyramid."""
    return sum(height * width for height, width in pyramid(case))


def points(case: Case) -> int:
    """L * P, points of a query and head."""
    return case.int_setting("n_levels") * case.int_setting("n_points")


def taps(case: Case) -> int:
    """M * L * P, points of a query."""
    return case.int_setting("n_heads") * points(case)


def _layout(case: Case) -> tuple[int, int, int]:
    return case.int_setting("n_heads"), case.int_setting("n_levels"), case.int_setting("n_points")


def _centres(case: Case, like: torch.Tensor) -> torch.Tensor:
    """Each query's place as (x, y) shares of the image, float32 or better: (H, W, 1, 1, 1, 2)."""
    import torch

    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    y, x = ((torch.arange(n, device=like.device, dtype=dtype) + 0.5) / n for n in (case.shape.height, case.shape.width))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
    return grid[:, :, None, None, None]


def _sizes(case: Case, like: torch.Tensor) -> torch.Tensor:
    """(width, height) of each level, in the dtype of _centres: (L, 1, 2)."""
    sizes = [[[width, height]] for height, width in pyramid(case)]
    centres = _centres(case, like)
    return centres.new_tensor(sizes)


def make_inputs(case: Case, generator: torch.Generator) -> Tensors:
    """Queries are the pixels of the finest level: B, H, W and C of the case. S is the length of its pyramid.

    Core: value (B, S, C), locations (B, H, W, M L P 2), the query's own place and offsets of offset_distribution in
    pixels of each level, and weights (B, H, W, M L P), softmaxes of standard normal logits. Module:
    query (B, H, W, C), x (B, S, C) and the parameters.
    """
    import torch

    shape = (case.shape.batch, case.shape.height, case.shape.width)
    channels, offset_std = case.shape.channels, case.float_setting("offset_std_px")
    layout = _layout(case)
    value = normal(generator, case.shape.batch, length(case), channels)
    if case.level is Level.CORE:
        offsets = _offsets.distributed(case, normal(generator, *shape, *layout, 2)) / _sizes(case, value)
        logits = normal(generator, *shape, layout[0], points(case))
        return {
            "value": value,
            "locations": (_centres(case, value) + offsets).flatten(3),
            "weights": logits.softmax(-1).flatten(3),
        }
    tensors = {
        "query": normal(generator, *shape, channels),
        "x": value,
        "sampling_offsets_weight": linear_weight(2 * taps(case), channels, offset_std, generator),
        "sampling_offsets_bias": torch.zeros(2 * taps(case), device=generator.device),
        "attention_weights_weight": linear_weight(taps(case), channels, 1.0, generator),
        "attention_weights_bias": torch.zeros(taps(case), device=generator.device),
    }
    for layer in ("value_proj", "output_proj"):
        tensors[f"{layer}_weight"] = linear_weight(channels, channels, 1.0, generator)
        tensors[f"{layer}_bias"] = 0.1 * normal(generator, channels)
    return tensors


def smooth_inputs(case: Case, tensors: Tensors) -> Tensors:
    """Points that no rounding carries across a pixel: at module level by offsets that are nearly constant.

    A query's own place in a level is a multiple of half a pixel of that level over the finest one's side. So a quarter
    of that leads away from every pixel.
    """
    layout = (*_layout(case), 2)
    if case.level is Level.CORE:
        sizes = _sizes(case, tensors["value"]).to(tensors["locations"].dtype)
        places = tensors["locations"].unflatten(-1, layout) * sizes - 0.5
        return {**tensors, "locations": ((_dcn.away_from_kinks(places) + 0.5) / sizes).flatten(3)}
    weight, bias = tensors["sampling_offsets_weight"], tensors["sampling_offsets_bias"]
    quarters = bias.new_tensor([0.25 / case.shape.width, 0.25 / case.shape.height])
    spread = 0.1 * quarters.expand(layout).reshape(-1, 1) / max(case.float_setting("offset_std_px"), 0.01)
    return {
        **tensors,
        "sampling_offsets_weight": weight * spread,
        "sampling_offsets_bias": quarters.expand(layout).reshape(-1),
    }


def _module_inputs(case: Case, tensors: Tensors) -> Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A closure that gives the core's value, locations and weights of the module, without their flat axes.

    Locations are float32 or better, as they are where a model's reference points are.
    """
    centres, sizes = _centres(case, tensors["x"]), _sizes(case, tensors["x"])
    query, x, layout = tensors["query"], tensors["x"], _layout(case)
    value_proj, offsets, weights = (
        linear(name, tensors) for name in ("value_proj", "sampling_offsets", "attention_weights")
    )

    def module_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        locations = centres + offsets(query).to(sizes.dtype).unflatten(-1, (*layout, 2)) / sizes
        shares = weights(query).unflatten(-1, (layout[0], -1)).softmax(-1)
        value = value_proj(x).unflatten(-1, (layout[0], -1))
        return value, locations.flatten(1, 2), shares.unflatten(-1, layout[1:]).flatten(1, 2)

    return module_inputs


def _core_inputs(case: Case, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The core's inputs as its providers take them: views."""
    layout = _layout(case)
    return (
        tensors["value"].unflatten(-1, (layout[0], -1)),
        tensors["locations"].unflatten(-1, (*layout, 2)).flatten(1, 2),
        tensors["weights"].unflatten(-1, layout).flatten(1, 2),
    )


def reference(case: Case, tensors: Tensors) -> torch.Tensor:
    """The sampling formula between the module's Linears."""
    from opbench_kernels.msda.reference import attend

    inputs = _core_inputs(case, tensors) if case.level is Level.CORE else _module_inputs(case, tensors)()
    value, locations, weights = inputs
    out = attend(value, pyramid(case), locations, weights).flatten(2)
    image = out.unflatten(1, (case.shape.height, case.shape.width))
    result: torch.Tensor = image if case.level is Level.CORE else linear("output_proj", tensors)(image)
    return result


def not_applicable(case: Case) -> str | None:
    """Why the channels cannot be split into heads, or the offsets not be so distributed, or None."""
    heads = case.int_setting("n_heads")
    if case.shape.channels % heads:
        return f"{case.shape.channels} channels are not a multiple of n_heads {heads} (--set {case.operator}.n_heads=N)"
    return _offsets.not_applicable(case)


def flop_count(case: Case) -> int:
    """8 K P C + 30 K P M with K = L * points; the module adds 2 B S C^2 + 2 P C^2 + 6 K M P C and 5 K M P of softmax.

    Backward: 16 K P C + 30 K P M, and twice what the module adds.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    corners, coordinates = 8 * points(case) * pixels * channels, 30 * taps(case) * pixels
    added = 0
    if case.level is Level.MODULE:
        projections = 2 * channels**2 * (case.shape.batch * length(case) + pixels)
        added = projections + 6 * taps(case) * pixels * channels + 5 * taps(case) * pixels
    return by_direction(case, fwd=corners + coordinates + added, bwd=2 * corners + coordinates + 2 * added)


def bytes_moved(case: Case) -> int:
    """value, locations, weights and output once; backward these with the output's gradient, and the inputs' gradients.

    Module stages beside the core: value_proj, the Linears of offsets and of weights, the softmax and output_proj.
    """
    pixels, channels = case.shape.pixels, case.shape.channels
    value = case.shape.batch * length(case) * channels
    inputs, output = value + 3 * taps(case) * pixels, pixels * channels
    elements = by_direction(case, fwd=inputs + output, bwd=2 * inputs + output)
    if case.level is Level.MODULE:
        stages = 2 * value + pixels * (4 * channels + 5 * taps(case))
        weights = 2 * channels**2 + 3 * taps(case) * channels
        elements += by_direction(case, fwd=stages + weights, bwd=2 * (stages + weights))
    return case.dtype.element_bytes * elements


def gathered_bytes(case: Case) -> int:
    """Four corners of each point and channel, in either pass; what is added to the gradient of value is not read."""
    one_pass = 4 * points(case) * case.shape.elements * case.dtype.element_bytes
    return by_direction(case, fwd=one_pass, bwd=one_pass)


def memory_bytes(case: Case) -> int:
    """Activations; the torch provider's corner indices and weights dominate, and are 4 bytes wide in any dtype."""
    value = case.shape.batch * length(case) * case.shape.channels
    activations = 2 * value + 3 * case.shape.elements + 3 * taps(case) * case.shape.pixels
    return case.dtype.element_bytes * activations + 4 * 12 * 4 * taps(case) * case.shape.pixels


def reference_elements(case: Case) -> int:
    """Corners and samples of one point, of all where gradients keep them; value, locations and weights."""
    kept = 1 if case.direction == "fwd" else points(case)
    value = case.shape.batch * length(case) * case.shape.channels
    return 3 * value + (12 * kept + 3) * case.shape.elements + 8 * taps(case) * case.shape.pixels


def tolerance(case: Case) -> float:
    """Rounded to the dtype: weights and output; in the module also value, offsets (of several pixels) and output.

    In float32 the coordinates are the largest numbers: their rounding grows with the image's side.
    """
    side = max(case.shape.height, case.shape.width) * max(1.0, case.float_setting("offset_std_px"))
    roundings = 1 if case.level is Level.CORE else 6
    return rounding_budget(case, storage_roundings=roundings, float32_growth=2 * side + case.shape.channels**0.5)


def _around(case: Case, tensors: Tensors, core: Core) -> Forward:
    """The closure to time, around a core: the Linears at module level, nothing at core."""
    size = (case.shape.height, case.shape.width)
    if case.level is Level.CORE:
        inputs = _core_inputs(case, tensors)
        return lambda: core(*inputs).unflatten(1, size)
    module_inputs, output_proj = _module_inputs(case, tensors), linear("output_proj", tensors)
    return lambda: output_proj(core(*module_inputs())).unflatten(1, size)


def _build(implementation: Implementation, case: Case, tensors: Tensors) -> Forward:
    import torch
    from opbench_kernels import ms_deform_attn

    levels = torch.tensor(pyramid(case), device=next(iter(tensors.values())).device)
    pixels = levels.prod(-1)
    starts = pixels.cumsum(0) - pixels

    def core(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ms_deform_attn(value, levels, starts, locations, weights, implementation=implementation)

    return _around(case, tensors, core)


def _build_grid_sample(case: Case, tensors: Tensors) -> Forward:
    import torch
    import torch.nn.functional as F

    levels = pyramid(case)

    def core(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        batch, _, heads, _ = value.shape
        grids = (2 * locations.float() - 1).transpose(1, 2).flatten(0, 1)  # (B M, Lq, L, P, 2)
        samples = []
        for level, part in enumerate(value.float().split([height * width for height, width in levels], 1)):
            image = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, levels[level])
            samples.append(F.grid_sample(image, grids[:, :, level], align_corners=False))
        shares = weights.float().transpose(1, 2).flatten(3).flatten(0, 1).unsqueeze(1)  # (B M, 1, Lq, L P)
        out = (torch.cat(samples, -1) * shares).sum(-1)  # (B M, D, Lq)
        return out.view(batch, heads * out.shape[1], -1).transpose(1, 2).to(value.dtype)

    return _around(case, tensors, core)


TORCH = Provider("torch", partial(_build, "torch"), "vectorised torch, embedding_bag")

OPERATOR = Operator(
    name="ms_deform_attn",
    family="attention",
    by_default=False,
    summary="multi-scale deformable attention, a query a pixel of the finest level; module adds Linears and softmax",
    timed="no layout conversion; module: value_proj, offsets, locations in float32, weights, softmax, output_proj",
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
        _triton.triton_provider(_build),
        TORCH,
        compiled(TORCH),
        Provider(
            "grid_sample", _build_grid_sample, "torch's grid_sample level by level, in float32 whatever the dtype"
        ),
    ),
    settings={
        "n_levels": Setting(4, 1, "levels of the pyramid, each half as large as the one before it, rounded up"),
        "n_heads": Setting(8, 1, "attention heads"),
        "n_points": Setting(4, 1, "points of a head in each level"),
        **_offsets.SETTINGS,
    },
    implied_settings=_offsets.implied_settings,
    not_applicable=not_applicable,
)
