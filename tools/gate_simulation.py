"""Processes with a scripted clock: the gate's sessions without a device, in milliseconds instead of minutes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from opbench.gate.process import ArmProcess, GateArm
from opbench.results.measurement import Measurement, Status
from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape

__all__ = ["Noise", "SimulatedProcesses", "simulated_cells"]

IDENTITY = {"device": "simulated", "torch": "none"}
ENVIRONMENT = {"device": "cpu", "device_name": "simulated"}


@dataclass(frozen=True, slots=True)
class Noise:
    """How the medians of processes scatter, as standard deviations of their logarithm.

    Attributes:
        process: common to all cells of a process: its clock, its neighbours.
        cell: of each cell in each process: memory layout, caches.
        spike_rate: share of cells that a neighbour disturbs for a whole process.
        spike: by how much it is slower then, at most.
        drift: change of the machine over a session.
    """

    process: float = 0.007
    cell: float = 0.007
    spike_rate: float = 0.0
    spike: float = 0.0
    drift: float = 0.01

    def draw(self, count: int, random: np.random.Generator) -> NDArray[np.float64]:
        """Log factors of one process for `count` cells."""
        factors = self.process * random.standard_normal() + self.cell * random.standard_normal(count)
        if self.spike_rate:
            factors += (random.random(count) < self.spike_rate) * self.spike * random.random(count)
        return factors


def simulated_cells(count: int) -> tuple[Cell, ...]:
    """Cells of operators op0, op1, ... with five shapes each."""
    return tuple(
        Cell(
            Case(f"op{index // 5}", Level.CORE, Direction.FWD, "simulated", Shape(1, 1 + index % 5, 8, 8), Dtype.FP32),
            "fake", 0, 0, 0,
        )
        for index in range(count)
    )  # fmt: skip


@dataclass(slots=True)
class SimulatedProcesses:
    """Runs rounds as Launcher.run does, from a seed.

    Attributes:
        cells: what both arms plan.
        noise: of the medians.
        seed: of the noise.
        slower: log slow-down of the head by cell key.
        head: label of the arm that is slower.
        sources: kernel_source_hash by arm's label; its label where it has none.
        process_s: seconds that a process is said to take.
    """

    cells: Sequence[Cell]
    noise: Noise = field(default_factory=Noise)
    seed: int = 0
    slower: Mapping[str, float] = field(default_factory=dict)
    head: str = "head"
    sources: Mapping[str, str] = field(default_factory=dict)
    process_s: float = 4.0
    count: int = 0
    _random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def __call__(self, arms: Mapping[str, GateArm], cells: Sequence[Cell] | None, first: str) -> dict[str, ArmProcess]:
        """One round, the first arm's process before the other's."""
        return {name: self.process(arms[name], cells) for name in sorted(arms, key=lambda name: name != first)}

    def process(self, arm: GateArm, cells: Sequence[Cell] | None) -> ArmProcess:
        """One process."""
        chosen = self.cells if cells is None else cells
        drift = self.noise.drift * np.sin(self.count / 20)
        factors = np.exp(drift + self.noise.draw(len(chosen) + 1, self._random))
        self.count += 1
        changes = self.slower if arm.label == self.head else {}
        source = self.sources.get(arm.label, arm.label)
        measurements = {
            cell.key: Measurement(
                cell,
                Status.OK,
                latencies_ms=(float(factor * np.exp(changes.get(cell.key, 0.0))),),
                kernel_source_hash=source,
            )
            for cell, factor in zip(chosen, factors, strict=False)
        }
        return ArmProcess(
            measurements=measurements,
            sentinel={"matrix product": float(factors[-1])},
            seconds=self.process_s,
            plan=tuple(self.cells) if cells is None else (),
            identity=IDENTITY if cells is None else {},
            environment=ENVIRONMENT if cells is None else {},
        )
