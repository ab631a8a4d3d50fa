"""Measures a device's noise: a few small cells, each in several fresh processes, all of them in turns."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from opbench.compare.noise import Noise, spread_of
from opbench.device.identity import Identity
from opbench.device.interference import others_share
from opbench.errors import DeviceLostError
from opbench.registry import registry
from opbench.results.measurement import Measurement, Status
from opbench.stats import median
from opbench.sweeps.isolation.executor import Executor
from opbench.sweeps.plan import plan_cells
from opbench.sweeps.progress import Progress
from opbench.sweeps.request import SweepRequest, make_request
from opbench.workload.shapes import load_shape_lists

__all__ = ["measure_noise", "noise_request"]

CELLS = {
    "shapes": ["smoke"],
    "ops": ["conv3x3", "flash_attention_2", "dcnv4"],
    "level": ["core"],
    "dtypes": ["fp32"],
    "time_budget": 0.1,
}
"""A product, an attention and a gather: what the others are made of. Small, since small cells differ most."""


def noise_request(device: str | None, threads: int | None, processes: int) -> SweepRequest:
    """What is measured.

    Raises:
        UsageError: no such device, or no such number.
    """
    options = {**CELLS, "device": device, "threads": threads, "repeat": processes}
    return make_request(options, registry.registered())


def measure_noise(
    request: SweepRequest, environment: Mapping[str, Any], executor: Executor, progress: Progress
) -> Noise:
    """Measure each cell once in each of request.repeat fresh processes.

    Raises:
        DeviceLostError: no cell was ok in two processes.
    """
    cells = plan_cells(request, load_shape_lists(request.shapes), registry.registered())
    medians: defaultdict[str, list[float]] = defaultdict(list)
    shares = [0.0]
    last: Measurement | None = None
    for repetition in range(request.repeat):
        executor.renew()
        for number, cell in enumerate(cells, start=1 + repetition * len(cells)):
            progress.started(cell, number, request.repeat * len(cells))
            last = executor.run(cell, progress.stage)
            if last.status is Status.OK and (middle := median(last.latencies_ms)) > 0:
                medians[cell.key].append(middle)
                shares.append(others_share(last.conditions.get("before", {}), last.conditions.get("after", {})) or 0.0)
            progress.ended(last)
    kept = {key: tuple(values) for key, values in medians.items() if len(values) > 1}
    if not kept:
        raise DeviceLostError(f"no cell was measured in two processes; the last was {last and last.reason!r}")
    return Noise(
        device_name=str(environment["device_name"]),
        identity=Identity.of(environment).parts,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        medians_ms=kept,
        spread=spread_of(kept),
        conditions={"other_cpu_share": max(shares)},
    )
