"""What `opbench inspect` knows of the depthwise kernels: their cases, their launches, and how they are counted.

Nearly all instructions of such a kernel are in one loop, whose trip is a chunk: ROWS rows of a kernel over ROWS rows of
a tile. What is counted is that trip, and its instructions per multiply-add of a warp.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from opbench.inspection import depthwise_gemm
from opbench.inspection.compile import Binary
from opbench.inspection.family import Counted
from opbench.inspection.sass import Instruction, branch_target
from opbench.workload.case import Case, Direction, Dtype, Level, Shape
from opbench.workload.operator import by_direction

if TYPE_CHECKING:
    from opbench_kernels.depthwise.geometry import Kernel
    from opbench_kernels.launch import Launch

__all__ = [
    "Chunk",
    "cached_bytes",
    "cases",
    "chunk_of",
    "chunks",
    "count",
    "is_depthwise",
    "launch",
    "moved_elements",
    "multiply_adds",
    "name",
]

SHAPE_LIST = "large_kernel"
STAGES: tuple[tuple[str, dict[str, int], Shape], ...] = (
    ("depthwise_conv", {"kernel_size": 31}, Shape(32, 56, 56, 128)),
    ("depthwise_conv", {"kernel_size": 27}, Shape(32, 14, 14, 512)),
    ("slak", {"kernel_size": 51, "small_kernel": 5}, Shape(32, 56, 56, 124)),
)
"""The first and the third stage of RepLKNet-31B, and SLaK-T's first."""
WARP_SIZE = 32


class Chunk(NamedTuple):
    """The loop of a kernel with the most multiply-adds.

    Attributes:
        instructions: of its body.
        multiply_adds: of a lane; one instruction may have two.
        trips: chunks that the body does, where the compiler unrolls it.
    """

    instructions: list[Instruction]
    multiply_adds: int
    trips: int


def is_depthwise(case: Case) -> bool:
    """Whether the case is one of these."""
    return any(case.operator == operator for operator, _, _ in STAGES)


def cases(direction: Direction, dtype: Dtype) -> list[Case]:
    """Of a direction and a dtype. The input gradient is the forward kernel; bwd is the weight gradient.

    Half precision has both kernels, float32 the direct one, which is all that it takes without tf32.
    """
    kinds: list[dict[str, int]] = [{}] if dtype is Dtype.FP32 else [{}, {depthwise_gemm.SETTING: 1}]
    return [
        Case(operator, Level.CORE, direction, SHAPE_LIST, shape, dtype, tuple((settings | kind).items()))
        for kind in kinds
        for operator, settings, shape in STAGES
    ]


def name(case: Case) -> str:
    """The variant's: direction, dtype, kernels, rows of a tile."""
    sizes = "+".join(f"{kernel.height}x{kernel.width}" for kernel in _kernels(case))
    kind = "gemm" if depthwise_gemm.is_gemm(case) else f"rows{launch(case).constants['ROWS']}"
    return f"{case.direction}-{case.dtype}-depthwise{sizes}-{kind}"


def _kernels(case: Case) -> tuple["Kernel", ...]:
    """Those of the launch; SLaK's weight gradients are three launches, of which this is the tall kernel's."""
    from opbench_kernels.depthwise.geometry import Kernel

    side = case.int_setting("kernel_size")
    if case.operator == "depthwise_conv":
        sizes = [(side, side)]
    else:
        small = case.int_setting("small_kernel")
        sizes = [(side, small), (small, side), (small, small)]
    kernels = tuple(Kernel(height, width, height // 2, width // 2) for height, width in sizes)
    return kernels if case.direction is Direction.FWD else kernels[:1]


def launch(case: Case) -> "Launch":
    """The launch of a case of `cases`, its channels filled up to whole vectors."""
    import torch
    from opbench_kernels.depthwise.launch import forward_launch, vector, weight_grad_launch, weight_grad_slices

    kernels, dtype = _kernels(case), getattr(torch, case.dtype.torch_name)
    channels = case.shape.channels + -case.shape.channels % vector(dtype)
    x = torch.empty(case.shape.batch, case.shape.height, case.shape.width, channels, dtype=dtype, device="meta")
    taps = sum(kernel.taps for kernel in kernels)
    if depthwise_gemm.is_gemm(case):
        return depthwise_gemm.launch(x, torch.empty(taps, channels, device="meta"), kernels, case.direction)
    if case.direction is Direction.FWD:
        return forward_launch(x, torch.empty(taps, channels, device="meta"), None, x, kernels)
    partial = torch.empty(weight_grad_slices(x, x, kernels[0]), taps, channels, device="meta")
    return weight_grad_launch(x, x, partial, kernels[0])


def count(case: Case, launched: "Launch", binary: Binary) -> Counted:
    """What is counted of a compiled case."""
    constants = launched.constants
    if depthwise_gemm.is_gemm(case):
        body = depthwise_gemm.loop_of(binary.instructions)
        return Counted(
            body,
            len(body) * binary.num_warps / depthwise_gemm.multiply_adds_of_a_trip(launched),
            block_rows=constants["BLOCK_M"] * constants["BLOCK_X"],
            lanes_per_row=1,
            wide_loads=depthwise_gemm.wide_loads(case, launched),
        )
    chunk = chunk_of(binary.instructions, constants, binary.num_warps)
    per_lane = 1 if case.direction is Direction.BWD else 1 + (case.dtype.element_bytes == 2)
    return Counted(
        chunk.instructions,
        len(chunk.instructions) / chunk.multiply_adds,
        block_rows=constants["ROWS"] * constants["BLOCK_W"],
        lanes_per_row=constants["BLOCK_C"] * case.dtype.element_bytes // 16,
        wide_loads=chunk.trips * constants["ROWS"] * (1 + per_lane),  # weights are float32
    )


def multiply_adds(case: Case, launched: "Launch") -> float:
    """Of all programs, for a warp."""
    if depthwise_gemm.is_gemm(case):
        return depthwise_gemm.multiply_adds(case, launched)
    constants = launched.constants
    of_a_trip = constants["ROWS"] ** 2 * constants["BLOCK_W"] * constants["BLOCK_C"] / WARP_SIZE
    return chunks(case, launched) * float(of_a_trip)


def chunk_of(instructions: Sequence[Instruction], constants: Mapping[str, Any], num_warps: int) -> Chunk:
    """The chunk's loop, in a whole listing.

    Raises:
        ValueError: no loop has as many multiply-adds as a chunk.
    """
    loops = []
    for instruction in instructions:
        target = branch_target(instruction) if instruction.name == "BRA" else None
        if target is not None and target < instruction.address:
            loops.append([each for each in instructions if target <= each.address <= instruction.address])
    innermost = [
        loop
        for loop in loops
        if not any(loop is not other and loop[0].address <= other[0].address and other[-1].address <= loop[-1].address
                   for other in loops)
    ]  # fmt: skip
    body = max(innermost, key=_multiply_adds, default=[])
    once = constants["ROWS"] ** 2 * constants["BLOCK_W"] * constants["BLOCK_C"] // (WARP_SIZE * num_warps)
    trips = round(_multiply_adds(body) / once)  # a few of them may be written as a product and a sum
    if trips < 1:
        raise ValueError(f"no loop has the {once} multiply-adds of a chunk")
    return Chunk(body, trips * once, trips)


def _multiply_adds(loop: Sequence[Instruction]) -> int:
    return sum({"FFMA": 1, "FFMA2": 2}.get(instruction.name, 0) for instruction in loop)


def chunks(case: Case, launched: "Launch") -> float:
    """Trips of all programs; a trip with fewer rows of a kernel counts by its rows."""
    constants, (height, width) = launched.constants, (case.shape.height, case.shape.width)
    rows, columns = int(constants["ROWS"]), int(constants["BLOCK_W"])
    trips = 0.0
    for kernel in _kernels(case):
        if case.direction is Direction.FWD:
            down = sum(_kernel_chunks(kernel.height, y - kernel.pad_h, height, rows) for y in range(0, height, rows))
            across = sum(
                min(width - left, kernel.width) - max(1 - columns - left, 0)
                for left in (x - kernel.pad_w for x in range(0, width, columns))
            )
        else:
            ups, lefts = (
                range(-kernel.pad_h, kernel.height - kernel.pad_h, rows),
                range(-kernel.pad_w, kernel.pad_w + 1),
            )
            down = sum(max(0, -(-min(height, height - up) // rows) - max(-up - rows + 1, 0) // rows) for up in ups)
            across = sum(-(-min(width, width - left) // columns) - max(-left, 0) // columns for left in lefts)
        trips += down * across
    blocks = math.ceil(case.shape.channels / int(constants["BLOCK_C"]))
    return trips * case.shape.batch * blocks


def _kernel_chunks(kernel_height: int, top: int, height: int, rows: int) -> float:
    """Chunks of a kernel whose first row is at `top` of the image, as the forward kernel skips them."""
    whole = kernel_height // rows
    first, last = min(max(-top - rows + 1, 0) // rows, whole), min(max(height - top + rows - 1, 0) // rows, whole)
    return last - first + (kernel_height % rows / rows if last == whole else 0)


def cached_bytes(case: Case, launched: "Launch") -> float:
    """Bytes that all trips load: ROWS rows, and the weights, or as many rows of the output's gradient."""
    if depthwise_gemm.is_gemm(case):
        return depthwise_gemm.loaded_bytes(case, launched)
    constants = launched.constants
    channels = int(constants["BLOCK_C"])
    row = int(constants["BLOCK_W"]) * channels * case.dtype.element_bytes
    weights = int(launched.options["num_warps"]) * channels * 4
    other = weights if case.direction is Direction.FWD else row
    return chunks(case, launched) * float(constants["ROWS"]) * (row + other)


def moved_elements(case: Case) -> int:
    """Input and output, or both operands of the weight gradient, once. Weights are few beside them."""
    return by_direction(case, fwd=2 * case.shape.elements, bwd=2 * case.shape.elements)
