"""Static figures of the kernels at the published shapes, and times that they imply.

All of it comes from compiling and from arithmetic: nothing is run, and no time here is a measurement.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opbench.inspection import depthwise
from opbench.inspection.compile import Binary, compile_launch
from opbench.inspection.families import FAMILIES
from opbench.inspection.launches import GROUP_CHANNELS, POINTS, is_fused, launch, uses
from opbench.inspection.sass import Instruction, classify, hot_path, memory_accesses
from opbench.sweeps.isolation.supervisor import PR_SET_PDEATHSIG, prctl
from opbench.workload.case import Case, Direction, Dtype
from opbench.workload.operator import by_direction

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["GPUS", "Estimate", "Gpu", "Variant", "estimate", "figures", "inspect_kernels"]

WARP_SIZE = 32
SCHEDULERS_PER_SM = 4
REGISTERS_PER_SM = 65536
REGISTER_UNIT = 256
PROGRAMS_PER_SM = 32


@dataclass(frozen=True, slots=True)
class Gpu:
    """Nominal figures of one GPU, assumptions of the estimates.

    Attributes:
        name: of the product.
        sms: streaming multiprocessors.
        clock_ghz: under load.
        l1_bytes_per_clock: of one multiprocessor.
        hbm_gbps: memory bandwidth, 1e9 bytes/s.
        warps_per_sm: most that can be resident.
        shared_bytes_per_sm: shared memory that programs may take.
    """

    name: str
    sms: int
    clock_ghz: float
    l1_bytes_per_clock: int
    hbm_gbps: float
    warps_per_sm: int
    shared_bytes_per_sm: int


GPUS = {
    "sm_80": Gpu("A100 80GB SXM", 108, 1.41, 128, 2039, 64, 164 * 1024),
    "sm_90": Gpu("H200 SXM", 132, 1.75, 128, 4800, 64, 228 * 1024),
    "sm_100": Gpu("B200", 148, 1.75, 128, 8000, 64, 228 * 1024),
}
"""By architecture. Vendors' figures; the clocks of sm_90 and sm_100 are assumed, below the largest boost."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel.

    Attributes:
        name: fwd, bwd, strided or fused (opbench.inspection.launches), dtype, groups, and vectors of 16 bytes that a
            lane takes per corner; of a depthwise kernel kernel sizes and rows of a tile; of another the family, and
            what it differs in.
        registers: per thread.
        stack_bytes: local memory per thread.
        local_accesses: spills, loads and stores.
        shared_bytes: per program.
        num_warps: warps per program.
        block_rows: (pixel, group) rows per program; depthwise: pixels, or kernel rows and columns of a chunk; msda:
            (query, head) rows; dcnv2 and pconv: pixels.
        lanes_per_row: lanes that compute the same coordinates.
        occupancy: resident warps over the most possible.
        instructions: on the path where every sum is finite; depthwise: of a chunk (opbench.inspection.depthwise).
        instructions_per_point: warp instructions per sampled point of a group or head, or of 32 channels in dcnv2;
            depthwise: per multiply-add of a warp; pconv: per pixel.
        classes: those instructions by class.
        expected_wide_loads: at least so many are on that path, where each lane reads pixels (and weights of a product)
            by 16 bytes.
        loads, stores, atomics: global accesses on that path by width in bits.
    """

    name: str
    registers: int
    stack_bytes: int
    local_accesses: int
    shared_bytes: int
    num_warps: int
    block_rows: int
    lanes_per_row: int
    occupancy: float
    instructions: int
    instructions_per_point: float
    classes: Mapping[str, int]
    expected_wide_loads: int
    loads: Mapping[int, int]
    stores: Mapping[int, int]
    atomics: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Lower bounds of one launch's time, milliseconds.

    Attributes:
        issue_ms: warps * instructions / (SMs * 4 schedulers * clock).
        l1_ms: 4 corners * K * P * C * element bytes / (SMs * L1 bytes per clock * clock). Fused: also the input once
            per point and block of groups, and the weights once per block of pixels. Depthwise: what the chunks load;
            dcnv2 and pconv: what the tiles load.
        hbm_ms: value, offset_mask (fused: the weights) and output once (backward: also the gradients) / memory
            bandwidth.
    """

    variant: str
    shape_list: str
    shape: str
    issue_ms: float
    l1_ms: float
    hbm_ms: float

    @property
    def bound_by(self) -> str:
        """Which of the three is the largest."""
        return max(("issue", "l1", "hbm"), key=lambda name: float(getattr(self, f"{name}_ms")))


def inspect_kernels(
    architectures: Sequence[str], dtypes: Sequence[Dtype], directions: Sequence[Direction], *, core_only: bool = False
) -> Iterator[tuple[str, Variant, list[Estimate]]]:
    """Each kernel variant that the published shapes use, with the estimates of its shapes, as it is compiled.

    Args:
        architectures: keys of GPUS.
        dtypes: fp32, fp16 or bf16.
        directions: fwd or bwd.
        core_only: leave out what the modules alone launch.

    Yields:
        Architecture, variant and estimates. One process per core compiles.
    """
    cases = uses(dtypes, directions, core_only=core_only)
    tasks = [(architecture, name) for architecture in architectures for name in cases]
    # Forking a process that has started torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context, initializer=_die_with, initargs=(os.getpid(),)) as pool:
        compiled = pool.map(
            figures, (name for _, name in tasks), (cases[name][0] for _, name in tasks), (arch for arch, _ in tasks)
        )
        for (architecture, name), variant in zip(tasks, compiled, strict=True):
            yield architecture, variant, [estimate(variant, GPUS[architecture], case) for case in cases[name]]


def _die_with(parent: int) -> None:
    """Have this process killed when its parent is gone, in whatever way; left alone, it would wait for ever."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        os._exit(1)


def figures(name: str, case: Case, architecture: str) -> Variant:
    """Compile the launch of a case and read its figures."""
    launched = launch(case)
    constants = launched.constants
    binary = compile_launch(launched, int(architecture.removeprefix("sm_")))
    if case.operator in FAMILIES or depthwise.is_depthwise(case):
        count = FAMILIES[case.operator].count if case.operator in FAMILIES else depthwise.count
        counted = count(case, launched, binary)
        return _variant(
            name,
            binary,
            architecture,
            counted.path,
            block_rows=counted.block_rows,
            lanes_per_row=counted.lanes_per_row,
            per_point=counted.per_point,
            wide_loads=counted.wide_loads,
        )
    rows, trips = constants.get("BLOCK_ROWS", 0), list[int]()
    if is_fused(case):
        rows = constants["BLOCK_P"] * constants["BLOCK_G"]
        trips = [constants["K"], math.ceil(constants["C"] / constants["BLOCK_C"])]
    path = hot_path(binary.instructions, trips)
    # The backward kernel's vectors are of the gradient that it sums up in float32.
    vector_bytes = case.dtype.element_bytes if case.direction is Direction.FWD else 4
    return _variant(
        name,
        binary,
        architecture,
        path,
        block_rows=rows,
        lanes_per_row=max(1, constants["BLOCK_D"] * vector_bytes // 16),
        per_point=len(path) * binary.num_warps / (rows * constants["K"]),
        wide_loads=_expected_wide_loads(case, constants, binary.num_warps),
    )


def _variant(
    name: str,
    binary: Binary,
    architecture: str,
    path: list[Instruction],
    *,
    block_rows: int,
    lanes_per_row: int,
    per_point: float,
    wide_loads: int,
) -> Variant:
    return Variant(
        name=name,
        registers=binary.registers,
        stack_bytes=binary.stack_bytes,
        local_accesses=classify(binary.instructions).get("local", 0),
        shared_bytes=binary.shared_bytes,
        num_warps=binary.num_warps,
        block_rows=block_rows,
        lanes_per_row=lanes_per_row,
        occupancy=_occupancy(GPUS[architecture], binary.registers, binary.shared_bytes, binary.num_warps),
        instructions=len(path),
        instructions_per_point=per_point,
        classes=classify(path),
        expected_wide_loads=wide_loads,
        loads=memory_accesses(path, "load"),
        stores=memory_accesses(path, "store"),
        atomics=memory_accesses(path, "atomic"),
    )


def _expected_wide_loads(case: Case, constants: Mapping[str, Any], num_warps: int) -> int:
    corners = 4 * int(constants["K"])
    if case.direction is Direction.BWD:  # as many channels a lane as 16 bytes of a float32 gradient have
        return (corners + 1) * int(constants["VECTORS"]) if case.dtype.element_bytes == 4 else 0
    if not is_fused(case):
        return corners * int(constants["VECTORS"])
    pixels, group_block, channels = (int(constants[name]) for name in ("BLOCK_P", "BLOCK_G", "BLOCK_C"))

    def per_lane(elements: int) -> int:
        # A tile of fewer bytes than 16 for each lane is read by narrower loads.
        return elements * case.dtype.element_bytes // (16 * WARP_SIZE * num_warps)

    product = per_lane(pixels * channels) + per_lane(channels * 4 * group_block)
    sampled = corners * per_lane(pixels * group_block * constants["BLOCK_D"])
    return sampled + int(constants["K"]) * math.ceil(int(constants["C"]) / channels) * product


def _occupancy(gpu: Gpu, registers: int, shared_bytes: int, num_warps: int) -> float:
    """Resident warps over the most possible: registers go out in units of 256 per warp."""
    per_warp = -(-registers * WARP_SIZE // REGISTER_UNIT) * REGISTER_UNIT
    programs = min(REGISTERS_PER_SM // per_warp // num_warps, gpu.warps_per_sm // num_warps, PROGRAMS_PER_SM)
    if shared_bytes:
        programs = min(programs, gpu.shared_bytes_per_sm // (shared_bytes + 1024))  # the driver keeps 1 KiB of each
    return programs * num_warps / gpu.warps_per_sm


def estimate(variant: Variant, gpu: Gpu, case: Case) -> Estimate:
    """Times that a variant's figures imply for a case, as the attributes of Estimate say."""
    shape, element_bytes = case.shape, case.dtype.element_bytes
    groups = shape.channels // GROUP_CHANNELS
    launched = launch(case)
    if depthwise.is_depthwise(case):
        return _depthwise_estimate(variant, gpu, case, launched)
    warps = math.prod(launched.grid) * variant.num_warps
    if case.operator in FAMILIES:
        costs = FAMILIES[case.operator].costs(case, launched)
        return _bounds(variant, gpu, case, warps * variant.instructions, costs.cached, costs.moved)
    packed = -(-3 * POINTS * groups // 8) * 8
    once = by_direction(
        case,
        fwd=2 * shape.elements + shape.pixels * packed,
        bwd=3 * shape.elements + shape.pixels * 2 * packed,
    )
    cached = 4 * POINTS * shape.elements
    if is_fused(case):
        weights = POINTS * shape.channels * 4 * groups
        once = 2 * shape.elements + weights
        pixel_tiles, group_tiles = launched.grid
        cached += POINTS * shape.elements * group_tiles + weights * pixel_tiles
    return _bounds(variant, gpu, case, warps * variant.instructions, cached * element_bytes, once * element_bytes)


def _depthwise_estimate(variant: Variant, gpu: Gpu, case: Case, launched: "Launch") -> Estimate:
    """As all programs run chunks: the rest of a kernel's rows at the price of a chunk's, and nothing between them."""
    once = depthwise.moved_elements(case) * case.dtype.element_bytes
    issued = depthwise.multiply_adds(case, launched) * variant.instructions_per_point
    return _bounds(variant, gpu, case, issued, depthwise.cached_bytes(case, launched), once)


def _bounds(
    variant: Variant, gpu: Gpu, case: Case, instructions: float, cached_bytes: float, hbm_bytes: float
) -> Estimate:
    hertz = gpu.clock_ghz * 1e9
    return Estimate(
        variant=variant.name,
        shape_list=case.shape_list,
        shape=str(case.shape),
        issue_ms=1e3 * instructions / (gpu.sms * SCHEDULERS_PER_SM * hertz),
        l1_ms=1e3 * cached_bytes / (gpu.sms * gpu.l1_bytes_per_clock * hertz),
        hbm_ms=1e3 * hbm_bytes / (gpu.hbm_gbps * 1e9),
    )
