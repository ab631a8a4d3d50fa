"""The official CUDA operators of DCNv4 and DCNv3 as providers of opbench's operators.

Their sources are not part of this repository; official.py says where they are expected. The modules around the cores
are opbench's own, so that the sampling is all that differs from the other providers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from official_launch import DefaultLaunch, FastestLaunch

from opbench.operators import _dcn, dcnv3, dcnv4
from opbench.operators._linear import linear
from opbench.registry.registry import registered
from opbench.workload.case import Case, Dtype, Level
from opbench.workload.operator import Forward, Operator, Provider, Tensors

PROVIDER = "official"
DEFAULT_PROVIDER = "official_default"
FOLDERS = {"dcnv4": Path("DCNv4/DCNv4_op/src"), "dcnv3": Path("InternImage/classification/ops_dcnv3/src")}
"""Under the folder of the sources, as the two repositories have them."""

UPDATE = ("input.type(), ", "input.scalar_type(), ")
"""What AT_DISPATCH of today's PyTorch refuses in DCNv3's sources of 2023; DCNv4's have no such line."""

IMAGES_PER_LAUNCH = 256
"""im2col_step of the official modules; a smaller batch is one launch."""


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


def _build_dcnv4(extension: Any, choose: FastestLaunch | DefaultLaunch, case: Case, tensors: Tensors) -> Forward:
    choose.forget()  # what an earlier cell had chosen

    def core(value: torch.Tensor, offset_mask: torch.Tensor) -> torch.Tensor:
        return _DCNv4.apply(value, offset_mask, extension, choose, case)

    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset_mask"])
    inputs, output_proj = dcnv4.module_inputs(tensors), linear("output_proj", tensors)
    return lambda: output_proj(core(*inputs()))


def _build_dcnv3(extension: Any, case: Case, tensors: Tensors) -> Forward:
    def core(value: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return _DCNv3.apply(value, offset, mask, extension, case)

    if case.level is Level.CORE:
        return lambda: core(tensors["value"], tensors["offset"], tensors["mask"])
    inputs, output_proj = dcnv3.module_inputs(case, tensors), linear("output_proj", tensors)
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


def default_provider(official: Provider, extension: Any, choose: DefaultLaunch) -> Provider:
    """DCNv4's extension with the launch that its own Python function takes, where that is right.

    Args:
        official: the provider whose launch is chosen.
        extension, choose: as official_provider takes them.
    """

    def not_applicable(case: Case, device_type: str) -> str | None:
        return official.not_applicable(case, device_type) or choose.not_applicable(case)

    return replace(
        official,
        name=DEFAULT_PROVIDER,
        build=partial(_build_dcnv4, extension, choose),
        summary="official CUDA kernel with its own choice of a launch",
        configuration=choose.configuration,
        not_applicable=not_applicable,
    )


def with_official(providers: Mapping[str, Sequence[Provider]]) -> dict[str, Operator]:
    """Every registered operator; those named have these providers beside their own."""
    return {
        name: replace(operator, providers=(*operator.providers, *providers.get(name, ())))
        for name, operator in registered().items()
    }
