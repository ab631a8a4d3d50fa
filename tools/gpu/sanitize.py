"""compute-sanitizer's memcheck and racecheck over every Triton kernel, at small shapes with offsets far outside.

usage: python tools/gpu/sanitize.py --out DIR [--tools memcheck,racecheck]
       python tools/gpu/sanitize.py --cases        (what the tool watches; runs in Triton's interpreter without a GPU)
       python tools/gpu/sanitize.py --dry-run      (the smallest of them, in the interpreter)

Before the kernels, each tool must find a planted fault (sanitize_controls.cu, built with nvcc).

Exit codes: 0 every tool found its planted fault and nothing in the kernels, 1 a tool found something or a case failed,
2 usage, 77 it cannot be told: no CUDA device, no compute-sanitizer, no nvcc, or the planted fault was not found.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOOLS = ("memcheck", "racecheck")
CANNOT_TELL = 77
LIMIT_S = 480
CONTROLS = Path(__file__).with_name("sanitize_controls.cu")
SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}
# Programs that it starts, such as compilers, are not watched; libraries may make calls that they expect to fail.
OPTIONS = {
    "memcheck": ("--target-processes", "application-only", "--report-api-errors", "no"),
    "racecheck": ("--target-processes", "application-only"),
}
REACH = (1.0, 40.0, 1e4, 1e30, float("inf"), float("nan"))
"""Offsets are these times a normal number: inside, at and beyond the borders, and beyond any integer."""
SHAPES = ((1, 1, 1, 32, 1), (2, 5, 7, 64, 2), (1, 6, 3, 60, 4))
"""Batch, height, width, channels, groups: one pixel, odd sizes, channels per group that no vector divides."""


def cases(shapes: Sequence[tuple[int, ...]] = SHAPES, reaches: Sequence[float] = REACH) -> Iterator[str]:
    """Run every kernel once per shape, dtype and reach of the offsets; yields what ran.

    Points that are not finite must contribute nothing, so every output is finite; AssertionError where one is not.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    for shape in shapes:
        for dtype in (torch.float16, torch.float32):
            for reach in reaches:
                _run(generator, shape, dtype, reach)
                if device == "cuda":
                    torch.cuda.synchronize()
                yield f"{shape}, {dtype}, offsets * {reach}"


def _run(generator: "torch.Generator", shape: tuple[int, ...], dtype: "torch.dtype", reach: float) -> None:
    import torch
    from opbench_kernels import dcnv3, dcnv4
    from opbench_kernels.deform.dcnv4_fused import dcnv4_from_input, pack_offset_mask
    from opbench_kernels.deform.geometry import Geometry, padded_offset_mask_channels

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=generator.device).to(dtype)

    *image, channels, groups = shape
    taps, packed = 9 * groups, padded_offset_mask_channels(groups, 9)
    value = normal(*image, channels).requires_grad_()
    offset, mask = (normal(*image, 2 * taps) * reach).requires_grad_(), normal(*image, taps).requires_grad_()
    _forward_and_backward(lambda: dcnv3(value, offset, mask, groups=groups, implementation="triton"), value)

    both = normal(*image, packed)
    both[..., : 3 * taps].unflatten(-1, (groups, 27))[..., :18].mul_(reach)
    both.requires_grad_()
    _forward_and_backward(lambda: dcnv4(value, both, groups=groups, implementation="triton"), value)

    # In half precision the products themselves overflow: then inf and NaN are made on the way.
    weight, bias = pack_offset_mask(normal(packed, channels) * reach, normal(packed), groups, 9)
    with torch.no_grad():
        dcnv4_from_input(value, weight, bias, groups=groups, geometry=Geometry())


def _forward_and_backward(launch: "Callable[[], torch.Tensor]", value: "torch.Tensor") -> None:
    """Both passes, the backward one also with its deterministic sums."""
    import torch

    out = launch()
    if not bool(out.isfinite().all()):
        raise AssertionError("a point that is not finite reached the output")
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        torch.autograd.grad(out, value, torch.ones_like(out), retain_graph=True)
    torch.use_deterministic_algorithms(False)


def run_cases(shapes: Sequence[tuple[int, ...]] = SHAPES, reaches: Sequence[float] = REACH) -> int:
    """Run them in this process."""
    count = 0
    for text in cases(shapes, reaches):
        print(text, flush=True)
        count += 1
    print(f"{count} cases ran")
    return 0 if count == len(shapes) * 2 * len(reaches) else 1


def dry_run() -> int:
    """The smallest cases in Triton's interpreter, watched by nothing."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before the kernels are imported
    return run_cases(SHAPES[:1], REACH[:1])


def found(tool: str, output: str) -> int | None:
    """How many errors or hazards the tool reports; None where its summary is missing."""
    match = SUMMARY[tool].search(output)
    return int(match[1]) if match else None


def watch(tool: str, command: Sequence[str], log: Path) -> int | None:
    """Run a command under the tool; what it found, or None where that is unknown or the command failed."""
    # One allocation each: in torch's pool, a read past the end of a tensor is inside another one.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                ["compute-sanitizer", "--tool", tool, *OPTIONS[tool], *command],
                stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {LIMIT_S} s\n")
            return None
    count = found(tool, log.read_text(encoding="utf-8", errors="replace"))
    return count if count or done.returncode == 0 else None


def missing() -> str | None:
    """Why nothing can be watched here, or None."""
    import torch

    if not torch.cuda.is_available():
        return "needs a CUDA device, none here"
    return next(
        (f"{tool} is not on the PATH" for tool in ("compute-sanitizer", "nvcc") if not shutil.which(tool)), None
    )


def sanitize(out: Path, tools: Sequence[str]) -> int:
    """The planted faults, then the kernels."""
    if reason := missing():
        print(f"{reason}: nothing was checked", file=sys.stderr)
        return CANNOT_TELL
    out.mkdir(parents=True, exist_ok=True)
    controls = out / "controls"
    if subprocess.run(["nvcc", "-o", str(controls), str(CONTROLS)], check=False).returncode:
        print("nvcc cannot build the planted faults: nothing was checked", file=sys.stderr)
        return CANNOT_TELL
    code = 0
    for tool in tools:
        planted = watch(tool, [str(controls), tool], out / f"{tool}-planted.log")
        if not planted:
            print(f"{tool}: the planted fault was not found, so it cannot be told", file=sys.stderr)
            code = code or CANNOT_TELL
            continue
        count = watch(tool, [sys.executable, __file__, "--cases"], out / f"{tool}.log")
        text = "did not end well" if count is None else f"found {count}"
        print(f"{tool}: found {planted} of the planted fault; over the kernels it {text} ({out / f'{tool}.log'})")
        if count != 0:
            code = 1
    controls.unlink()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--cases", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    if given.cases:
        return run_cases()
    if given.dry_run:
        return dry_run()
    tools = given.tools.split(",")
    if given.out is None or set(tools) - set(TOOLS):
        parser.error(f"--out is needed, and --tools must be of {', '.join(TOOLS)}")
    return sanitize(given.out, tools)


if __name__ == "__main__":
    sys.exit(main())
