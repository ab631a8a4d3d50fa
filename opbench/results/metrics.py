"""Figures derived from a measurement on read; nothing here is stored in the journal."""

from typing import Any

from opbench.results.measurement import Measurement, Status
from opbench.stats import median_interval, quantile
from opbench.workload.case import Level

__all__ = ["derived_metrics"]


def derived_metrics(measurement: Measurement) -> dict[str, Any]:
    """Latency statistics (ms) and rates (tflops: 1e12 FLOP/s, gbps: 1e9 byte/s) of one cell; None where not ok."""
    names = ("latency_ms", "latency_ms_p20", "latency_ms_p80", "latency_ms_min", "ci_low_ms", "ci_high_ms")
    if measurement.status is not Status.OK:
        return dict.fromkeys((*names, "samples", "tflops", "gbps", "images_per_second"))
    case = measurement.cell.case
    ordered = sorted(measurement.latencies_ms)
    latency_ms = quantile(ordered, 0.5)
    low, high = median_interval(ordered, measurement.resolution_ms)
    values = (latency_ms, quantile(ordered, 0.2), quantile(ordered, 0.8), ordered[0], low, high)
    return {
        **dict(zip(names, values, strict=True)),
        "samples": len(ordered),
        # A median below the timer's resolution is 0, and no rate follows from it.
        "tflops": measurement.cell.flop_count / latency_ms / 1e9 if latency_ms else None,
        "gbps": measurement.cell.bytes_moved / latency_ms / 1e6 if latency_ms else None,
        "images_per_second": 1e3 * case.shape.batch / latency_ms if latency_ms and case.level is Level.MODEL else None,
    }
