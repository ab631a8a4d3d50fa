"""Are pixels of the official DCNv4 operator wrong where its own launch does not divide an image?

usage: python tools/gpu/wrong_pixels.py --out DIR [--sources third_party] [--build build/official] [--dry-run]

By reading, the kernel places a whole block in the image of its first pixel. So a block whose pixels do not divide
Ho * Wo computes its last ones in the wrong image, and says nothing. Here the official forward pass runs with the launch
that its Python function takes, in float32, and every pixel is compared with opbench_kernels. The table has, by shape,
how many pixels differ, and how many should by that reading.

--dry-run has a stand-in in the official operator's place, on the CPU: it shows that this program works, nothing else.

Exit codes: 0 compared, whatever was found; 2 the extension cannot be built; 77 no CUDA device here.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from official_launch import DefaultLaunch, read_tables
from official_ops import IMAGES_PER_LAUNCH, build_extension
from opbench_kernels import dcnv4
from stand_in import StandIn, misplaced

from opbench.workload.shapes import load_shape_list

NEEDS_GPU = 77
GROUP_CHANNELS = 16
"""The narrowest group that the official kernels take: blocks then hold most pixels."""
SMALL = ((8, 7, 7, 64), (64, 7, 7, 64), (64, 14, 14, 64))
"""Small images of few channels, beside the published shapes."""
DRY = ((2, 5, 7, 64), (4, 7, 7, 64))
ALLOWED = 1e-4
"""Of the largest output: a hundred times what float32 sums of nine points lose."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one shape: the launch, and the wrong pixels.

    Attributes:
        shape: (B, H, W, C).
        group_channels: channels of a group.
        block_pixels: output pixels of a block of the launch.
        wrong: pixels that differ from opbench_kernels.
        expected: pixels whose block leaves their image.
        pixels: B * H * W.
    """

    shape: tuple[int, ...]
    group_channels: int
    block_pixels: int
    wrong: int
    expected: int
    pixels: int


def compare(extension: Any, launch: DefaultLaunch, shape: tuple[int, ...], group_channels: int, device: str) -> Found:
    """One forward pass with the official launch, beside ours."""
    batch, height, width, channels = shape
    groups = channels // group_channels
    generator = torch.Generator(device).manual_seed(0)
    value = torch.randn(shape, generator=generator, device=device)
    packed = -(-27 * groups // 8) * 8
    offset_mask = torch.randn(batch, height, width, packed, generator=generator, device=device)
    per_thread, threads = launch.launch("forward", shape, groups)
    numbers = (3, 3, 1, 1, 1, 1, 1, 1, groups, group_channels, 1.0)
    theirs = extension.dcnv4_forward(
        value, offset_mask, *numbers, IMAGES_PER_LAUNCH, 0, per_thread, threads, False
    ).view(shape)
    ours = dcnv4(value, offset_mask, groups=groups)
    differs = ((theirs - ours).abs() > ALLOWED * ours.abs().max()).any(-1)
    block_pixels = threads * per_thread // channels
    expected = int(misplaced(shape, block_pixels).sum())
    return Found(shape, group_channels, block_pixels, int(differs.sum()), expected, differs.numel())


def published_shapes() -> list[tuple[int, ...]]:
    """(B, H, W, C) of the paper's tables."""
    lists = [load_shape_list(name) for name in ("standard", "high_resolution")]
    return [(shape.batch, shape.height, shape.width, shape.channels) for each in lists for shape in each.shapes]


def table(found: Sequence[Found]) -> str:
    """Markdown."""
    lines = [
        "| shape | channels per group | pixels per block | wrong pixels | expected by reading |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        wrong, expected = (f"{count} ({count / each.pixels:.1%})" for count in (each.wrong, each.expected))
        shape = "x".join(map(str, each.shape))
        lines.append(f"| {shape} | {each.group_channels} | {each.block_pixels} | {wrong} | {expected} |")
    agree = all(each.wrong == each.expected for each in found)
    verdict = "confirmed" if agree and any(each.expected for each in found) else "not confirmed"
    return "\n".join([*lines, "", f"The reading is {verdict}: the counts {'agree' if agree else 'differ'}.", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", type=Path, default=Path("third_party"))
    parser.add_argument("--build", type=Path, default=Path("build/official"))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    device, extension, shapes = "cpu", StandIn(), [(shape, GROUP_CHANNELS) for shape in DRY]
    if not given.dry_run:
        if not torch.cuda.is_available():
            print("needs a CUDA device, none here: nothing was compared (--dry-run tries the code)", file=sys.stderr)
            return NEEDS_GPU
        try:
            extension = build_extension("dcnv4", given.sources, given.build)
        except (OSError, ImportError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"the official extension did not build: {error}", file=sys.stderr)
            return 2
        shapes = [(shape, width) for shape in published_shapes() for width in (32, GROUP_CHANNELS)]
        device, shapes = "cuda", shapes + [(shape, GROUP_CHANNELS) for shape in SMALL]
    launch = DefaultLaunch(read_tables(given.sources))
    found = [compare(extension, launch, shape, width, device) for shape, width in shapes]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "wrong_pixels.json").write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    (given.out / "wrong_pixels.md").write_text(table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
