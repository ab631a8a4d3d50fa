"""Figures that a row derives from its samples, by hand."""

import numpy as np
import pytest
from builders import make_cell

from opbench.results.measurement import Measurement, Status
from opbench.results.metrics import derived_metrics

CELL = make_cell(flop_count=6 * 10**9, bytes_moved=3 * 10**6)
SAMPLES = (9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0)


def test_statistics_come_from_the_samples_and_rates_from_their_median():
    assert derived_metrics(Measurement(CELL, Status.OK, latencies_ms=SAMPLES)) == {
        "latency_ms": 5.0,
        "latency_ms_p20": pytest.approx(np.quantile(SAMPLES, 0.2)),
        "latency_ms_p80": pytest.approx(np.quantile(SAMPLES, 0.8)),
        "latency_ms_min": 1.0,
        "ci_low_ms": 1.0,  # of 8 samples the range: from the second to the seventh it is 93 %
        "ci_high_ms": 9.0,
        "samples": 8,
        "tflops": pytest.approx(1.2, rel=1e-12),  # 6e9 FLOP in 5 ms
        "gbps": pytest.approx(0.6, rel=1e-12),  # 3e6 bytes in 5 ms
        "images_per_second": None,  # of a module
    }


def test_the_interval_is_as_wide_as_the_timers_step_at_least():
    found = derived_metrics(Measurement(CELL, Status.OK, latencies_ms=(0.01,) * 6, resolution_ms=0.5e-3))
    assert (found["ci_low_ms"], found["ci_high_ms"]) == (pytest.approx(0.00975), pytest.approx(0.01025))


def test_no_rate_follows_from_a_median_of_zero():
    found = derived_metrics(Measurement(CELL, Status.OK, latencies_ms=(0.0,) * 6))
    assert (found["latency_ms"], found["tflops"], found["gbps"]) == (0.0, None, None)


def test_a_cell_that_is_not_ok_has_no_figures():
    found = derived_metrics(Measurement(CELL, Status.WRONG, "off by 1", latencies_ms=SAMPLES))
    assert found == dict.fromkeys(derived_metrics(Measurement(CELL, Status.OK, latencies_ms=SAMPLES)))
