"""How long the backward kernel's additions to value's gradient take alone: a bound that no other change can pass.

usage: python tools/gpu/additions_probe.py --out DIR [--dry-run]

The probe makes the same vector additions to the same addresses as deform_bwd_kernel, from corners that torch has found
before, and computes nothing. Both are timed by Triton's do_bench (median, cold L2), in each configuration. Writes
additions_probe.json. docs/tuning.md says what follows from its figures.

--dry-run runs a small case in Triton's interpreter, on the CPU: sums are checked and no time is measured.

Exit codes: 0, 1 where the probe's sums are wrong, 2 usage, 77 no CUDA device here.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from opbench_kernels.bilinear_launch import Config
    from opbench_kernels.deform.launch import Sampled
    from opbench_kernels.launch import Launch

NEEDS_GPU = 77
GROUP_CHANNELS = 32
SHAPES = ((64, 56, 56, 128), (64, 14, 14, 512))
DRY_SHAPES = ((1, 6, 5, 64),)
STDS = (1.0, 4.0)
"""Of the offsets, pixels: what a sweep draws, and far ones."""
CONFIGS = tuple((vectors, num_warps) for vectors in (1, 2, 4) for num_warps in (1, 2))


def draw(shape: Sequence[int], std: float, device: str) -> "Sampled":
    """Operands in float16 of DCNv4's core with normal offsets."""
    from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels
    from opbench_kernels.deform.launch import sampled_dcnv4

    generator = torch.Generator(device).manual_seed(0)
    *image, channels = shape
    groups = channels // GROUP_CHANNELS
    packed = padded_offset_mask_channels(groups, 9)
    value, offset_mask = (
        torch.randn(*image, size, device=device, generator=generator).half() for size in (channels, packed)
    )
    offset_mask[..., : 27 * groups].unflatten(-1, (groups, 27))[..., :18].mul_(std)
    return sampled_dcnv4(value, offset_mask, groups, Geometry())


def find_corners(sampled: "Sampled") -> torch.Tensor:
    """What additions_kernel reads, int32 (rows, K); for images of at least two rows and columns."""
    geometry, size, points = sampled.geometry, sampled.size, sampled.geometry.points
    out_height, out_width = geometry.output_size(*size)
    pixel = torch.arange(sampled.offset.shape[0], device=sampled.offset.device).view(-1, 1, 1)
    places = (pixel // out_width % out_height, pixel % out_width)
    lows, touches = [], []
    for axis in (0, 1):
        taps = torch.tensor([float(tap[axis]) for tap in geometry.taps()], device=pixel.device, dtype=torch.float64)
        scale, base = geometry.offset_scale, geometry.base[axis]
        start = places[axis] * geometry.stride[axis] - geometry.padding[axis] + base * (1 - scale)
        place = start + (taps * geometry.dilation[axis] + sampled.offset[..., 1 - axis].double()) * scale
        floor = place.floor()
        low = floor.clamp(0, size[axis] - 2)
        lows.append(low.long())
        touches.append(((floor <= low) & (place > -1), (floor >= low) & (place < size[axis])))
    image = pixel // (out_height * out_width)
    upper_left = (image * size[0] + lows[0]) * size[1] + lows[1]
    bits = sum((touches[0][corner // 2] & touches[1][corner % 2]).long() << corner for corner in range(4))
    return (upper_left * 16 + bits).int().view(-1, points)


def expected_sums(corners: torch.Tensor, sampled: "Sampled") -> torch.Tensor:
    """How often each pixel of each group is added to, (N * H * W, G), from the corners alone."""
    groups = sampled.value.shape[1]
    counts = torch.zeros(sampled.value.shape[0] * groups, device=corners.device)
    group = torch.arange(groups, device=corners.device).repeat(corners.shape[0] // groups).unsqueeze(1)
    for corner in range(4):
        pixel = (corners >> 4) + corner // 2 * sampled.size[1] + corner % 2
        there = (corners >> corner) & 1 == 1
        counts.index_add_(0, (pixel * groups + group)[there].long(), torch.ones_like(counts[:1]).expand(there.sum()))
    return counts.view(-1, groups)


def probe_launch(sampled: "Sampled", corners: torch.Tensor, target: torch.Tensor, config: "Config") -> "Launch":
    """The launch of the probe, which adds to `target` (N * H * W, G, Dg), float32, as the backward kernel would."""
    from additions_triton import additions_kernel
    from opbench_kernels.bilinear_launch import GRADIENT_VECTOR
    from opbench_kernels.launch import Launch

    names = ("G", "DG", "K", "BLOCK_ROWS", "BLOCK_D", "VECTORS")
    constants = sampled.constants(config, GRADIENT_VECTOR)
    arguments = (corners, target, sampled.rows, sampled.size[1])
    return Launch.over_rows(additions_kernel, arguments, {name: constants[name] for name in names}, config.num_warps)


def backward(sampled: "Sampled", target: torch.Tensor, config: "Config") -> "Launch":
    """The launch of the whole backward kernel."""
    from opbench_kernels.deform.launch import backward_launch

    out = torch.ones(sampled.rows * GROUP_CHANNELS, device=target.device, dtype=sampled.value.dtype)
    grads = torch.empty_like(sampled.offset), torch.empty_like(sampled.mask)
    return backward_launch(sampled, out, target, *grads, config=config)


def measure(shapes: Sequence[Sequence[int]], device: str, configs: Sequence[tuple[int, int]]) -> Iterator[dict]:
    """A row for each shape, spread of the offsets and configuration."""
    from opbench_kernels.bilinear_launch import Config

    for shape in shapes:
        for std in STDS:
            sampled = draw(shape, std, device)
            corners = find_corners(sampled)
            expected = expected_sums(corners, sampled)
            for config in (Config(*each) for each in configs):
                target = torch.zeros(sampled.value.shape, device=device)
                probe = probe_launch(sampled, corners, target, config)
                probe()
                right = bool((target == expected.unsqueeze(-1)).all())
                added = int(expected.sum()) * GROUP_CHANNELS * target.element_size()
                row = {"shape": list(shape), "offset_std": std, **config._asdict(), "right": right, "bytes": added}
                if device != "cpu":
                    row |= _times(probe, backward(sampled, target, config), added)
                yield row


def _times(probe: "Launch", whole: "Launch", added: int) -> dict[str, float]:
    from triton.testing import do_bench

    probe_ms, backward_ms = (do_bench(launch.__call__, return_mode="median") for launch in (probe, whole))
    return {"probe_ms": probe_ms, "backward_ms": backward_ms, "probe_gbps": added / probe_ms / 1e6}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
    elif not torch.cuda.is_available():
        print("needs a CUDA device, none here: nothing was measured (--dry-run tries the code)", file=sys.stderr)
        return NEEDS_GPU
    device = "cpu" if given.dry_run else "cuda"
    rows = []
    for row in measure(DRY_SHAPES if given.dry_run else SHAPES, device, CONFIGS):
        rows.append(row)
        print(json.dumps(row), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "none: a dry run"
    text = json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1)
    (given.out / "additions_probe.json").write_text(text + "\n", encoding="utf-8")
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
