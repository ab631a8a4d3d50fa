"""What a gate of any revision may ask of this one: the interface between revisions, kept for good.

A gate starts a process that imports this module by its name, takes a protocol that both speak from PROTOCOLS, and calls
`serve`. What crosses is JSON values, and cells are named by their keys. A new field of an answer is no new protocol,
since a gate ignores what it does not know; nor is a further method that Served has, since a gate does without those
that it does not find. Anything else that an older gate would not understand is.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opbench.sweeps.runner import CellRunner
    from opbench.workload.case import Cell
    from opbench.workload.operator import Operator, Provider

__all__ = ["PROTOCOLS", "Served", "serve"]

PROTOCOLS = (1,)
"""What this revision speaks; 0 is how a gate drives one from before this module (opbench/gate/arm.py)."""


class Served:
    """This revision's opbench in this process, as protocol 1 has it.

    Args:
        options: what to measure and how, as make_request takes it.
        inject: operators that are slowed on purpose, with the fraction.
    """

    def __init__(self, options: Mapping[str, Any], inject: Mapping[str, float]) -> None:
        from opbench.errors import RegistryError
        from opbench.gate.slowdown import slowed
        from opbench.registry import registry
        from opbench.sweeps.request import make_request
        from opbench.sweeps.runner import CellRunner
        from opbench.sweeps.start import plan

        operators = dict(registry.registered())
        if left_out := registry.left_out():  # it may be what the gate is about
            raise RegistryError("; ".join(left_out))
        asked = make_request(options, operators)
        self.device = asked.device
        self._cells = {cell.key: cell for cell in plan(asked, operators)}
        for name, fraction in inject.items():
            operators[name] = slowed(operators[name], fraction)
        self._asked, self._operators = asked, operators
        self._runner = CellRunner(asked, operators.__getitem__)

    def plan(self) -> dict[str, Any]:
        """The cells (`plan`), what must be equal to compare (`identity`) and the whole `environment`.

        Without the GPU's UUID: both arms run on one card, and a gate that does not know it would call it a difference.
        """
        from opbench.device.environment import collect_environment
        from opbench.device.identity import GPU_UUID, Identity

        environment = collect_environment(self.device)
        cells = [cell.to_json() for cell in self._cells.values()]
        identity = dict(Identity.of(environment).without(GPU_UUID).parts)
        return {"plan": cells, "identity": identity, "environment": environment}

    def sources(self) -> dict[str, Any]:
        """Which files each operator and provider of the plan runs, which ones time them, and the digests of all."""
        from opbench.gate.own_code import sources

        return sources([self._parts(cell) for cell in self._cells.values()])

    def kernels(self, key: str) -> dict[str, Any]:
        """Digests of the machine code that a planned cell launches by Triton (`kernels`), or why not (`unknown`)."""
        from opbench.gate.own_code import kernels

        return kernels(*self._parts(self._cells[key]), self._cells[key].case, self.device)

    def _parts(self, cell: "Cell") -> "tuple[Operator, Provider]":
        operator = self._operators[cell.case.operator]
        return operator, operator.provider(cell.provider)

    def measure(self, key: str) -> dict[str, Any]:
        """The `measurement` of a planned cell, and why this process can measure no other (`ended`) where it cannot."""
        return self._answer(self._runner, key)

    def measure_in_bursts(self, key: str) -> dict[str, Any]:
        """As measure, with the samples in short bursts, for a device that slows itself when it is kept busy."""
        from opbench.sweeps.runner import CellRunner
        from opbench.timing.bursts import BurstTimer

        return self._answer(CellRunner(self._asked, self._operators.__getitem__, around_timer=BurstTimer), key)

    def conditions(self) -> dict[str, Any]:
        """Of the GPU, now, as opbench.device.snapshots.gpu_conditions; nothing on the CPU."""
        from opbench.device.snapshots import gpu_conditions

        return {} if self.device == "cpu" else gpu_conditions(self.device)

    def _answer(self, runner: "CellRunner", key: str) -> dict[str, Any]:
        measurement = runner.run(self._cells[key])
        answer: dict[str, Any] = {"measurement": json.loads(measurement.to_json_line())}
        if runner.device_broken:
            answer["ended"] = f"{self.device} no longer answers this process since {key}"
        return answer


def serve(protocol: int, options: Mapping[str, Any], inject: Mapping[str, float]) -> Served:
    """This revision's opbench, to be driven by a protocol of PROTOCOLS.

    Args:
        protocol: which.
        options, inject: as Served takes them.

    Raises:
        ValueError: this revision does not speak that protocol.
        OpbenchError: options that this revision cannot follow.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be of {PROTOCOLS}, got {protocol}")
    return Served(options, inject)
