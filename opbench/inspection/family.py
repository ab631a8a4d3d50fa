"""What opbench.inspection asks of a family of kernels; a module of functions with these names is one."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from opbench.inspection.compile import Binary
from opbench.inspection.sass import Instruction
from opbench.workload.case import Case, Direction, Dtype

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["Costs", "Counted", "Family", "wide_loads"]

WARP_BYTES = 16 * 32
"""What one load of 16 bytes a lane reads."""


class Counted(NamedTuple):
    """What is counted of a compiled launch.

    Attributes:
        path: instructions of a program, each as often as it is executed.
        per_point: warp instructions per unit of work, as `opbench.inspection.static.Variant` says.
        block_rows, lanes_per_row: as there.
        wide_loads: at least so many on the path are of 16 bytes a lane.
    """

    path: list[Instruction]
    per_point: float
    block_rows: int
    lanes_per_row: int
    wide_loads: int


class Costs(NamedTuple):
    """Bytes of one launch.

    Attributes:
        cached: that its programs load, from L1 at best.
        moved: of its operands and results, each once.
    """

    cached: float
    moved: float


class Family(Protocol):
    """Kernels of one operator."""

    def cases(self, direction: Direction, dtype: Dtype) -> list[Case]:
        """What is compiled of a direction and a dtype, a case for each estimate."""

    def name(self, case: Case) -> str:
        """The variant's: what is computed, dtype, the rest."""

    def launch(self, case: Case) -> "Launch":
        """The launch of a case, on tensors without memory."""

    def count(self, case: Case, launched: "Launch", binary: Binary) -> Counted:
        """What is counted of it."""

    def costs(self, case: Case, launched: "Launch") -> Costs:
        """For the estimates by L1 and HBM."""


def wide_loads(elements: int, element_bytes: int, num_warps: int) -> int:
    """Loads of 16 bytes a lane that read a tile; 0 where it has fewer bytes than that for each lane."""
    return elements * element_bytes // (WARP_BYTES * num_warps)
