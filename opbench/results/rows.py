"""The row of a measurement: what the journal holds of a cell, and what follows from it."""

from collections.abc import Mapping
from typing import Any

from opbench.device.ceilings import Ceilings
from opbench.device.identity import gpu_uuid, host_of
from opbench.device.limits import Work, limit_columns
from opbench.results.energy import energy_columns
from opbench.results.measurement import Measurement, Status
from opbench.results.metrics import derived_metrics
from opbench.results.row import Row
from opbench.workload.cell_warning import join_warnings

__all__ = ["row_of"]


def row_of(
    measurement: Measurement,
    *,
    run_id: str,
    environment: Mapping[str, Any],
    command: Mapping[str, Any],
    ceilings: Ceilings | None,
    actor: str = "",
) -> Row:
    """The row of one cell.

    Args:
        measurement: of the cell.
        run_id: of the run.
        environment: where the cell was measured; only the device's name of one that was not.
        command: what the run was asked for: the timer and the cache state of a cell that was not timed.
        ceilings: of the device, if they were measured.
        actor: the card of a fleet that measured the cell.
    """
    cell = measurement.cell
    shape = cell.case.shape
    timer = measurement.timer or command["timer"]
    cache = measurement.cache or command["cache"]
    labels: Mapping[str, Any] = cell.case.labels()
    metrics = derived_metrics(measurement)
    clocks = measurement.sm_clocks_mhz
    limits = limit_columns(
        ceilings,
        Work(
            dtype=str(cell.case.dtype),
            flop_count=cell.flop_count,
            bytes_moved=cell.bytes_moved,
            gathered_bytes=cell.gathered_bytes,
            warp_instructions=measurement.warp_instructions,
        ),
        timer=timer,
        cache=cache,
        latency_ms=metrics["latency_ms"],
        sm_clock_mhz=max(filter(None, clocks), default=None),
    )
    return Row(
        run_id=run_id,
        **labels,
        provider=cell.provider,
        batch=shape.batch,
        height=shape.height,
        width=shape.width,
        channels=shape.channels,
        device=str(environment["device_name"]),
        timer=timer,
        cache=cache,
        status=str(measurement.status),
        reason=measurement.reason,
        warnings=join_warnings(measurement.warnings),
        stop_reason=str(measurement.stop_reason) if measurement.stop_reason else None,
        flop_count=cell.flop_count,
        bytes_moved=cell.bytes_moved,
        gathered_bytes=cell.gathered_bytes or None,
        warp_instructions=measurement.warp_instructions,
        first_call_ms=measurement.first_call_ms,
        cached_call_ms=measurement.cached_call_ms,
        kernels_compiled=measurement.kernels_compiled,
        parameter_count=cell.parameter_count or None,
        mac_count=cell.mac_count or None,
        sm_clock_start_mhz=clocks[0],
        sm_clock_end_mhz=clocks[1],
        peak_memory_bytes=measurement.peak_memory_bytes,
        max_rel_error=measurement.max_rel_error,
        tolerance=measurement.tolerance,
        kernel_source_hash=measurement.kernel_source_hash or None,
        configuration=measurement.configuration or None,
        processes=measurement.processes if measurement.status is Status.OK else None,
        host=host_of(environment),
        gpu_uuid=gpu_uuid(environment),
        origin=measurement.origin,
        actor=actor,
        **metrics,
        **limits,
        **energy_columns(measurement.energy, cell.flop_count),
    )
