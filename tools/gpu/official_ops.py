"""The official CUDA operators of DCNv4 and DCNv3 as providers of opbench's operators.

Their sources are not part of this repository; official.py says where they are expected. The modules around the cores
are opbench's own, so that the sampling is all that differs from the other providers.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from opbench.operators import _dcn, dcnv3, dcnv4
from opbench.registry.registry import registered
from opbench.workload.case import Case, Dtype, Level
from opbench.workload.operator import Forward, Operator, Provider, Tensors

PROVIDER = "official"
FOLDERS = {"dcnv4": Path("DCNv4/DCNv4_op/src"), "dcnv3": Path("InternImage/classification/ops_dcnv3/src")}
"""Under the folder of the sources, as the two repositories have them."""

UPDATE = ("input.type(), ", "input.scalar_type(), ")
"""What AT_DISPATCH of today's PyTorch refuses in DCNv3's sources of 2023; DCNv4's have no such line."""

IMAGES_PER_LAUNCH = 256
"""im2col_step of the official modules; a smaller batch is one launch."""
MOST_PIXELS = 64
MOST_THREADS = {"forward": 512, "backward": 256}
"""Bounds of the official search over blocks; at least one pixel is allowed whatever it takes."""
CHANNELS_PER_THREAD = {"forward": {2: (4, 8, 16), 4: (4, 8)}, "backward": {2: (1, 2, 4), 4: (1, 2, 4)}}
"""d_stride by pass and bytes of an element; the official tables hold these."""

Launch = tuple[int, int]
"""Channels per thread (d_stride) and threads per block (block_thread)."""


def build_extension(operator: str, sources: Path, build: Path) -> Any:
    """Compile and load one operator's extension for the GPU at hand; minutes the first time, then kept in `build`.

    Raises:
        FileNotFoundError: its sources are not there.
    """
    from torch.utils.cpp_extension import load

    copied = copy_sources(sources / FOLDERS[operator], build / operator / "src")
    folder = build / operator / "out"
    folder.mkdir(parents=True, exist_ok=True)
    return load(
        name=f"official_{operator}",
        sources=[str(path) for path in sorted(copied) if path.suffix in (".cpp", ".cu")],
        extra_include_paths=[str(build / operator / "src")],
        extra_cflags=["-O3", "-DWITH_CUDA"],
        extra_cuda_cflags=["-O3", "-DWITH_CUDA", "-DCUDA_HAS_FP16=1"],
        build_directory=str(folder),
        verbose=True,
    )


def copy_sources(source: Path, target: Path) -> list[Path]:
    """The sources with UPDATE applied; a file that did not change keeps its time, so that it is not compiled again."""
    files = [path for path in source.rglob("*") if path.is_file()]
    if not files:
        raise FileNotFoundError(f"no sources at {source}: put a checkout of the official repository there")
    copies = []
    for path in files:
        text = path.read_text(encoding="utf-8").replace(*UPDATE)
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
        copies.append(copy)
    return copies


def source_digest(source: Path) -> str:
    """16 hexadecimal digits of a SHA-256 over the files of a folder, by name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def launches(direction: str, pixels: int, groups: int, group_channels: int, element_bytes: int) -> Iterator[Launch]:
    """Launches whose block holds a number of pixels that divides Ho * Wo: no other one is right.

    Args:
        direction: forward or backward.
        pixels: Ho * Wo of one image.
        groups, group_channels: of the value.
        element_bytes: of the value.
    """
    for channels in CHANNELS_PER_THREAD[direction][element_bytes]:
        if group_channels % channels:
            continue
        per_pixel = groups * group_channels // channels
        for block_pixels in range(1, min(MOST_PIXELS, pixels) + 1):
            fits = block_pixels * per_pixel <= MOST_THREADS[direction] or (block_pixels == 1 and per_pixel <= 1024)
            if pixels % block_pixels == 0 and fits:
                yield channels, block_pixels * per_pixel


class FastestLaunch:
    """Of the right launches the fastest for each shape, found when a shape is first seen, which is never timed.

    Args:
        trials: timed launches of each candidate.
    """

    def __init__(self, trials: int = 5) -> None:
        self._trials = trials
        self._chosen: dict[tuple[object, ...], Launch] = {}
        self._last: dict[str, Launch] = {}

    def __call__(self, direction: str, value: torch.Tensor, groups: int, run: Callable[[Launch], object]) -> Launch:
        """The launch for a value (B, H, W, C), the output being as large; `run` launches once."""
        key = (direction, tuple(value.shape), value.dtype, groups)
        if key not in self._chosen:
            _, height, width, channels = value.shape
            candidates = launches(direction, height * width, groups, channels // groups, value.element_size())
            self._chosen[key] = _fastest(candidates, run, value.device, self._trials)
        self._last[direction] = self._chosen[key]
        return self._chosen[key]

    def configuration(self) -> str:
        """The last launches, for a row."""
        return ";".join(
            f"{name}_d_stride={channels};{name}_block_thread={threads}"
            for name, (channels, threads) in self._last.items()
        )


def _fastest(
    candidates: Iterator[Launch], run: Callable[[Launch], object], device: torch.device, trials: int
) -> Launch:
    times: dict[Launch, float] = {}
    refusal: RuntimeError | None = None
    for candidate in candidates:
        try:
            run(candidate)
            times[candidate] = min(_milliseconds(partial(run, candidate), device) for _ in range(trials))
        except RuntimeError as error:  # too many registers for so many threads
            refusal = error
    if not times:
        raise refusal or ValueError("no launch has a block that divides Ho * Wo")
    return min(times, key=times.__getitem__)


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - started)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _numbers(case: Case) -> tuple[int | float, ...]:
    """kernel, stride, padding, dilation (height, width each), groups, channels per group, offset_scale."""
    kernel, groups = case.int_setting("kernel_size"), _dcn.groups(case)
    return (kernel, kernel, 1, 1, kernel // 2, kernel // 2, 1, 1, groups, case.int_setting("group_channels"), 1.0)


class _DCNv4(torch.autograd.Function):
    """The official core between autograd and the extension."""

    @staticmethod
    def forward(ctx, value, offset_mask, extension, choose, case):
        ctx.save_for_backward(value, offset_mask)
        ctx.rest = extension, choose, case
        fixed = (value, offset_mask, *_numbers(case), IMAGES_PER_LAUNCH, 0)

        def run(launch):
            return extension.dcnv4_forward(*fixed, *launch, False)

        return run(choose("forward", value, _dcn.groups(case), run))

    @staticmethod
    def backward(ctx, gradient):
        value, offset_mask = ctx.saved_tensors
        extension, choose, case = ctx.rest
        fixed = (value, offset_mask, *_numbers(case), IMAGES_PER_LAUNCH, gradient.contiguous(), 0)

        def run(launch):
            return extension.dcnv4_backward(*fixed, *launch, False)

        return *run(choose("backward", value, _dcn.groups(case), run)), None, None, None


class _DCNv3(torch.autograd.Function):
    """The same for DCNv3, which chooses its launches itself."""

    @staticmethod
    def forward(ctx, value, offset, mask, extension, case):
        ctx.save_for_backward(value, offset, mask)
        ctx.rest = extension, case
        return extension.dcnv3_forward(value, offset, mask, *_numbers(case), IMAGES_PER_LAUNCH, 0)

    @staticmethod
    def backward(ctx, gradient):
        extension, case = ctx.rest
        gradients = extension.dcnv3_backward(
            *ctx.saved_tensors, *_numbers(case), gradient.contiguous(), IMAGES_PER_LAUNCH, 0
        )
        return *gradients, None, None


def _build_dcnv4(extension: Any, choose: FastestLaunch, case: Case, tensors: Tensors) -> Forward:
    def core(value: torch.Tensor, offset_mask: torch.Tensor) -> torch.Tensor:
        return _DCNv4.apply(value, offset_mask, extension, choose, case)

    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset_mask"])
    inputs, output_proj = dcnv4.module_inputs(tensors), _dcn.linear("output_proj", tensors)
    return lambda: output_proj(core(*inputs()))


def _build_dcnv3(extension: Any, case: Case, tensors: Tensors) -> Forward:
    def core(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _DCNv3.apply(value, offset, mask, extension, case)

    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset"], tensors["mask"])
    inputs, output_proj = dcnv3.module_inputs(case, tensors), _dcn.linear("output_proj", tensors)
    return lambda: output_proj(core(*inputs()))


def _not_applicable(case: Case, _device_type: str) -> str | None:
    if case.dtype is Dtype.BF16:
        return "the official backward pass takes no bf16"
    if case.int_setting("kernel_size") != 3:
        return "the official kernels take 3x3 points"
    if case.int_setting("group_channels") % 16:
        return "the official kernels take channels per group in multiples of 16"
    return None


def official_provider(operator: str, extension: Any, choose: FastestLaunch | None = None) -> Provider:
    """The extension as a provider.

    Args:
        operator: dcnv4 or dcnv3.
        extension: the compiled module, or one that takes the same arguments.
        choose: the launch of DCNv4; the fastest right one by default.
    """
    chooser = choose or FastestLaunch()
    build = partial(_build_dcnv4, extension, chooser) if operator == "dcnv4" else partial(_build_dcnv3, extension)
    configuration = chooser.configuration if operator == "dcnv4" else str
    return Provider(
        PROVIDER, build, "official CUDA kernel", configuration=configuration, not_applicable=_not_applicable
    )


def with_official(providers: Mapping[str, Provider]) -> dict[str, Operator]:
    """Every registered operator; those named have the official provider beside their own."""
    return {
        name: replace(operator, providers=(*operator.providers, providers[name])) if name in providers else operator
        for name, operator in registered().items()
    }
