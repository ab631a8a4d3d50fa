"""The official CUDA kernels of DCNv4 and DCNv3, compiled and counted like ours.

Their sources are not part of this project. What is known of them here (names, template arguments, loops, and which
kernel a shape takes) is from github.com/OpenGVLab/DCNv4 at 4b848f7.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from opbench.errors import UsageError
from opbench.inspection.compile import cuobjdump
from opbench.inspection.launches import POINTS
from opbench.inspection.loop_nest import inside_path
from opbench.inspection.nvcc import Nvcc
from opbench.inspection.sass import classify, memory_accesses, parse_sass
from opbench.workload.case import Direction, Dtype

__all__ = ["HEADERS", "Kernel", "OfficialVariant", "Sources", "find_sources", "inspect_official", "kernels", "read"]

PUBLISHED = {Direction.FWD: 8, Direction.BWD: 1}
"""d_stride that the official launch rule takes for every published shape (functions/table.py, dcnv4_func.py)."""
FORWARD_STRIDES = {2: (4, 8, 16), 4: (4, 8)}
"""d_stride that tools/gpu/official.py tries forward, by bytes of an element.

Backward only the published one is counted. With more channels per thread, groups share a warp and reduce with masks of
their own, and how often the warp then diverges is not seen in the code.
"""
HEADERS = {
    "dcnv4": ("DCNv4_op/src", ("cuda/dcnv4_im2col_cuda.cuh", "cuda/dcnv4_col2im_cuda.cuh")),
    "dcnv3": ("classification/ops_dcnv3/src", ("cuda/dcnv3_im2col_cuda.cuh",)),
}
"""By operator: a folder of the checkout, and the files in it that hold the kernels."""
FUNCTIONS: dict[tuple[str, Direction], str] = {
    ("dcnv4", Direction.FWD): "forward_kernel_dcn_reg",
    ("dcnv4", Direction.BWD): "backward_kernel_dcn_warp_primitive",
    ("dcnv3", Direction.FWD): "dcnv3_im2col_gpu_kernel",
    ("dcnv3", Direction.BWD): "dcnv3_col2im_gpu_kernel_shm_blocksize_aware_reduce_v1",
}
"""The templates that the launch rules take for groups of 32 channels without a softmax."""
TYPES = {
    Dtype.FP32: ("float", "f"),
    Dtype.FP16: ("at::Half", "N3c104HalfE"),
    Dtype.BF16: ("at::BFloat16", "N3c108BFloat16E"),
}
"""In C++, and in the names of the object file."""
TRANSFERS = {4: "uint", 8: "uint2", 16: "uint4", 32: "ulonglong4"}
"""The type by which a thread loads its channels, by bytes."""
SHUFFLES = 5
"""Steps of the reduction over the 32 lanes of a group."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One instantiation of an official kernel for groups of 32 channels and 3x3 points.

    Attributes:
        operator: dcnv4 or dcnv3.
        direction: fwd or bwd.
        dtype: of value.
        d_stride: channels per thread.
    """

    operator: str
    direction: Direction
    dtype: Dtype
    d_stride: int

    @property
    def name(self) -> str:
        """Such as dcnv4-fwd-fp16-stride8."""
        return f"{self.operator}-{self.direction}-{self.dtype}-stride{self.d_stride}"

    @property
    def is_published(self) -> bool:
        """Whether the published shapes take it."""
        return self.operator == "dcnv3" or self.d_stride == PUBLISHED[self.direction]

    @property
    def function(self) -> str:
        """Name of the template."""
        return FUNCTIONS[self.operator, self.direction]

    @property
    def instantiation(self) -> str:
        """The template with its arguments."""
        scalar = TYPES[self.dtype][0]
        if self.operator == "dcnv3":
            return f"{self.function}<{scalar}{', 32' if self.direction is Direction.BWD else ''}>"
        bytes_per_thread = self.d_stride * self.dtype.element_bytes
        transfer = scalar if bytes_per_thread == 2 else TRANSFERS[bytes_per_thread]
        return f"{self.function}<{scalar}, {self.d_stride}, {transfer}, 1, {POINTS}, false>"

    @property
    def symbol(self) -> str:
        """A pattern of the function's name in the object file."""
        stride = f"Li{self.d_stride}E" if self.operator == "dcnv4" else ""
        return rf"^_Z\d+{self.function}I{TYPES[self.dtype][1]}{stride}"

    @property
    def trips(self) -> tuple[int, ...]:
        """Loops of the source: columns and rows of the kernel; DCNv3's have a loop over the grid around them."""
        if self.operator == "dcnv3":
            return (1, 3, 3)
        return (3, 3) if self.direction is Direction.FWD else (3, 3, SHUFFLES)


@dataclass(frozen=True, slots=True)
class OfficialVariant:
    """Figures of one official kernel for one architecture.

    Attributes:
        name: of the Kernel.
        is_published: whether the published shapes take it.
        registers: per thread.
        stack_bytes: local memory per thread.
        rows: (pixel, group) rows that a warp computes.
        instructions: that a warp executes where every point lies inside the image.
        classes: those instructions by class.
        loads, stores, atomics: global accesses among them by width in bits.
    """

    name: str
    is_published: bool
    registers: int
    stack_bytes: int
    rows: int
    instructions: int
    classes: Mapping[str, int]
    loads: Mapping[int, int]
    stores: Mapping[int, int]
    atomics: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Sources:
    """One operator's sources in a checkout.

    Attributes:
        operator: dcnv4 or dcnv3.
        folder: with the folder `cuda` in it.
        digest: 16 hexadecimal digits of a SHA-256 over the files by name; tools/gpu/official.py prints the same.
    """

    operator: str
    folder: Path
    digest: str


def find_sources(checkout: Path) -> list[Sources]:
    """The operators whose sources a checkout has.

    Raises:
        UsageError: it has not DCNv4's.
    """
    found = []
    for operator, (folder, headers) in HEADERS.items():
        source = checkout / folder
        missing = [header for header in headers if not (source / header).is_file()]
        if not missing:
            found.append(Sources(operator, source, _digest(source)))
        elif operator == "dcnv4":
            raise UsageError(
                f"{checkout}: no {folder}/{missing[0]} there; --official takes a checkout of github.com/OpenGVLab/DCNv4"
            )
    return found


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def kernels(operator: str, dtypes: Sequence[Dtype], directions: Sequence[Direction]) -> list[Kernel]:
    """The kernels that exist: no backward pass of either takes bf16, and no pass of DCNv3."""
    found = []
    for direction in directions:
        for dtype in dtypes:
            if dtype is Dtype.BF16 and (operator == "dcnv3" or direction is Direction.BWD):
                continue
            by_stride = operator == "dcnv4" and direction is Direction.FWD
            strides = FORWARD_STRIDES[dtype.element_bytes] if by_stride else (1,)
            found += [Kernel(operator, direction, dtype, stride) for stride in strides]
    return found


def inspect_official(
    nvcc: Nvcc,
    sources: Sequence[Sources],
    architectures: Sequence[str],
    dtypes: Sequence[Dtype],
    directions: Sequence[Direction],
) -> Iterator[tuple[str, list[OfficialVariant]]]:
    """Compile the official kernels and count them.

    Yields:
        Architecture and variants, once for each operator that has some. One compiler per core runs.

    Raises:
        UsageError: they do not compile, or are not what is expected.
    """
    tasks = [
        (architecture, source, wanted)
        for architecture in architectures
        for source in sources
        if (wanted := kernels(source.operator, dtypes, directions))
    ]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        listings = [pool.submit(_compile, nvcc, *task) for task in tasks]
        for (architecture, _, wanted), listing in zip(tasks, listings, strict=True):
            usage, sass = listing.result()
            yield architecture, [read(kernel, usage, sass) for kernel in wanted]


def _compile(nvcc: Nvcc, architecture: str, sources: Sources, wanted: Sequence[Kernel]) -> tuple[str, str]:
    """Resource usage and SASS of an operator's kernels, as cuobjdump prints them."""
    lines = [f'#include "{header}"' for header in HEADERS[sources.operator][1]]
    # An address taken on the host is what makes the compiler instantiate a kernel.
    lines += ["const void *const wanted[] = {"]
    lines += [f"    reinterpret_cast<const void *>({kernel.instantiation})," for kernel in wanted]
    lines += ["};", ""]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        nvcc.cubin("\n".join(lines), architecture, sources.folder, Path(file.name))
        return cuobjdump("--dump-resource-usage", file.name), cuobjdump("--dump-sass", file.name)


def read(kernel: Kernel, usage: str, sass: str) -> OfficialVariant:
    """A kernel's figures from what cuobjdump prints of the object file that holds it.

    Raises:
        UsageError: it is not there, or its loops are not those of the source.
    """
    functions = _by_function(r"^\s*Function : (\S+)$", sass)
    usages = _by_function(r"^\s*Function ([^\s:]+):$", usage)
    names = [name for name in functions if re.search(kernel.symbol, name)]
    if len(names) != 1:
        raise UsageError(f"{kernel.name}: {len(names)} functions match {kernel.symbol}: other sources than expected")
    try:
        path = inside_path(parse_sass(functions[names[0]]), kernel.trips)
    except ValueError as error:
        raise UsageError(f"{kernel.name}: its instructions cannot be counted: {error}") from error
    used = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", usages[names[0]])}
    return OfficialVariant(
        name=kernel.name,
        is_published=kernel.is_published,
        registers=used["REG"],
        stack_bytes=used["STACK"],
        rows=kernel.d_stride,
        instructions=len(path),
        classes=classify(path),
        loads=memory_accesses(path, "load"),
        stores=memory_accesses(path, "store"),
        atomics=memory_accesses(path, "atomic"),
    )


def _by_function(heading: str, text: str) -> dict[str, str]:
    """What follows each heading, by the function that it names."""
    parts = re.split(heading, text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
