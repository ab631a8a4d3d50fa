"""How well the wall clock measures a spin of known length; `make bench` runs and reports it, no test does."""

import time

import pytest

from opbench.stats import median, median_interval
from opbench.timing import StoppingRule, WallClockTimer, collect_samples


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("length_ms", [0.01, 0.1, 1.0, 10.0])
def test_spin(benchmark, length_ms, capsys):
    """From 0.1 ms up the median should lie within 1 % on an idle core; the report says what it was."""
    timer = WallClockTimer()
    timer.prepare(lambda: spin(length_ms / 1e3), 0.1)
    samples = collect_samples(timer, lambda: spin(length_ms / 1e3), StoppingRule(time_budget_s=2.0)).latencies_ms
    low, high = median_interval(samples)
    error = median(samples) / length_ms - 1
    benchmark.extra_info.update(median_ms=median(samples), relative_error=error, samples=len(samples))
    benchmark.pedantic(spin, args=(length_ms / 1e3,), rounds=30, warmup_rounds=3)
    with capsys.disabled():
        print(
            f"\nspin of {length_ms:g} ms: median {median(samples):.6g} ms, {100 * error:+.3f} %, 95 % interval "
            f"[{low:.6g}, {high:.6g}], {len(samples)} samples of {timer.launches_per_sample} launches"
        )
