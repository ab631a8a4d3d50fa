"""What rows say together: pairs and fits by hand-worked figures, and the summary's sentence."""

from dataclasses import replace

import pytest
from ceiling_fixtures import example_ceilings
from report_fixtures import make_run, measurement

from opbench.report.analysis import (
    intensity,
    is_clear,
    is_faster,
    launches,
    measured,
    precision_gains,
    scaling_fits,
    speedups,
    time_splits,
)
from opbench.report.summary import fastest, summary_line
from opbench.results.measurement import Status
from opbench.results.row import Row
from opbench.workload.case import Shape

SMALL, LARGE = Shape(1, 8, 8, 16), Shape(1, 16, 16, 16)


def row(**changes):
    values = {
        "run_id": "r", "operator": "conv3x3", "provider": "torch", "level": "module", "direction": "fwd",
        "shape_list": "tiny", "shape": "1x8x8x16", "batch": 1, "height": 8, "width": 8, "channels": 16,
        "dtype": "fp32", "device": "d", "timer": "cuda-event", "cache": "warm", "settings": "", "status": "ok",
        "latency_ms": 2.0, "max_rel_error": 1e-6, "flop_count": 100, "bytes_moved": 50,
    }  # fmt: skip
    return Row(**{**values, **changes})


def test_projections_are_the_module_less_its_core():
    module, core = row(latency_ms=5.0), row(level="core", latency_ms=3.0)
    [split] = time_splits([module, core, row(dtype="fp16"), row(level="core", operator="dcnv4")])
    assert split.module is module
    assert split.core is core
    assert split.projections_ms == 2.0
    assert time_splits([module, row(level="core", timer="cuda-graph")]) == []  # never across timers
    assert time_splits([module, row(level="core", run_id="other")]) == []
    assert time_splits([module, row(level="core", status="error", latency_ms=None)]) == []


def test_speed_ups_divide_by_the_first_provider_with_a_value():
    slow = row(operator="dcnv3", provider="b", latency_ms=8.0)
    rows = [row(operator="dcnv3", provider="a", status="error", latency_ms=None), slow, row(latency_ms=2.0)]
    found = {ratio.row.operator: ratio for ratio in speedups(rows, "dcnv3")}
    assert found["conv3x3"].speedup == 4.0
    assert found["conv3x3"].base is slow
    assert found["dcnv3"].speedup == 1.0
    assert speedups(rows, "dcnv4") == []
    assert len(speedups([*rows, row(shape="1x9x9x16")], "dcnv3")) == 2  # no base at that shape


def test_a_precision_gain_has_its_error_beside_it():
    full, half = row(latency_ms=4.0), row(dtype="fp16", latency_ms=1.0, max_rel_error=1e-3)
    gains = precision_gains([full, half, row(dtype="bf16", operator="dcnv4")])
    assert [(gain.speedup, gain.error, gain.full_error) for gain in gains] == [(1.0, 1e-6, 1e-6), (4.0, 1e-3, 1e-6)]


def test_event_and_graph_time_pair_across_runs_of_one_device():
    event, graph = row(latency_ms=0.010, run_id="a"), row(latency_ms=0.004, timer="cuda-graph", run_id="b")
    [pair] = launches([event, graph, row(timer="wall-clock")])
    assert pair.overhead_ms == pytest.approx(0.006)
    assert launches([event, replace(graph, device="other")]) == []
    assert launches([event, replace(graph, cache="cold")]) == []


def scaled(side, latency_ms, channels=16):
    return row(shape=f"1x{side}x{side}x{channels}", height=side, width=side, channels=channels, latency_ms=latency_ms)


def test_the_exponent_is_found_again():
    rows = [scaled(side, 3.0 * (side * side) ** 1.5) for side in (8, 16, 32, 64)]
    [fit] = scaling_fits(rows)
    assert fit.exponent == pytest.approx(1.5)
    assert fit.scale_ms == pytest.approx(3.0)
    assert fit.r_squared == pytest.approx(1.0)
    assert fit.channels == 16
    assert [r.height for r in fit.rows] == [8, 16, 32, 64]


def test_what_a_fit_leaves_is_told_by_r_squared():
    # Logarithms to base 2: x = 6, 8, 10 and y = 0, 3, 3. The line has slope 3/4 through (8, 2): off by -1/2, 1, -1/2.
    # So 1.5 of a variance of 6 is left.
    [fit] = scaling_fits([scaled(8, 1.0), scaled(16, 8.0), scaled(32, 8.0)])
    assert fit.exponent == pytest.approx(0.75)
    assert fit.scale_ms == pytest.approx(2.0**-4)
    assert fit.r_squared == pytest.approx(0.75)


def test_a_latency_that_does_not_change_is_explained_by_any_line():
    [fit] = scaling_fits([scaled(side, 2.0) for side in (8, 16, 32)])
    assert (fit.exponent, fit.scale_ms, fit.r_squared) == (0.0, pytest.approx(2.0), 1.0)


def test_changing_channels_are_said_and_two_points_are_no_fit():
    mixed = [scaled(side, float(side), channels=1024 // side) for side in (8, 16, 32)]
    [fit] = scaling_fits(mixed)
    assert fit.channels is None
    assert fit.exponent == pytest.approx(0.5)
    assert scaling_fits(mixed[:2]) == []
    # Three of equal channels are fitted alone, whatever else is in the list.
    [clean] = scaling_fits([*[scaled(side, float(side) ** 2) for side in (8, 16, 32)], scaled(99, 1.0, channels=3)])
    assert clean.channels == 16
    assert clean.exponent == pytest.approx(1.0)


def test_intensity_needs_both_counts():
    assert intensity(row()) == 2.0
    assert intensity(row(bytes_moved=None)) is None
    assert intensity(row(flop_count=0)) is None


def test_faster_is_what_is_faster_by_the_whole_of_both_intervals():
    fast, touching, slow = (row(ci_low_ms=low, ci_high_ms=low + 1.0) for low in (1.0, 2.0, 2.25))
    assert is_faster(fast, slow)
    assert not is_faster(slow, fast)
    assert not is_faster(fast, touching)
    [_, gain] = precision_gains([slow, replace(fast, dtype="fp16")])
    assert is_clear(gain)
    [_, gain] = precision_gains([touching, replace(fast, dtype="fp16")])
    assert not is_clear(gain)


@pytest.mark.parametrize("published", [0, 1])
def test_a_published_figure_has_no_interval_and_its_latency_counts(published):
    def pair(*latencies_ms):
        rows = [row(latency_ms=ms, ci_low_ms=0.0, ci_high_ms=9.0) for ms in latencies_ms]
        rows[published] = replace(rows[published], ci_low_ms=None, ci_high_ms=None)
        return rows

    assert is_faster(*pair(1.0, 1.5))
    assert not is_faster(*pair(1.5, 1.5))
    assert not is_faster(*pair(1.5, 1.0))


def test_only_ok_rows_with_a_latency_are_measured():
    rows = [row(), row(status="wrong"), row(status="error", latency_ms=None), row(latency_ms=0.0), row(latency_ms=0.5)]
    assert measured(rows) == [rows[0], rows[-1]]


def test_the_summary_says_who_is_fastest_what_precision_gave_and_how_far_the_limit_is(tmp_path):
    cells = [
        measurement("conv3x3", SMALL, "fp32", 4.0, flop_count=10**9),
        measurement("conv3x3", SMALL, "fp16", 1.0, flop_count=10**9),
        measurement("dcnv4", SMALL, "fp32", 2.0, flop_count=10**9),
        measurement("dcnv4", SMALL, "fp16", 1.6, flop_count=10**9),
        measurement("dcnv4", LARGE, "fp32", Status.ERROR),
    ]
    run = make_run(tmp_path, cells)
    run.write_ceilings(example_ceilings())
    rows = run.rows()
    assert [(r.operator, r.dtype) for r in fastest(rows)] == [("dcnv4", "fp32"), ("conv3x3", "fp16")]
    # Limits: 1e9 FLOP at 10 TFLOP/s are 0.1 ms, at 40 TFLOP/s 0.025 ms: 2.5, 2.5, 5 and 1.6 % of the latencies.
    assert summary_line(run) == (
        "fastest of 2 columns: DCNv4 in 1, Conv (3×3) in 1; largest precision gain: 4.00× from fp16 "
        "(Conv (3×3) module 1×8×8×16); 4 of 4 cells below 10 % of their limit, closest DCNv4 module 1×8×8×16 fp32 at "
        "5.00 % (compute)."
    )


def precision_part(tmp_path, cells, errors=None):
    """What the summary says about precision; errors against the reference by dtype."""
    measurements = [measurement(operator, SMALL, dtype, ms) for operator, dtype, ms in cells]
    measurements = [replace(entry, max_rel_error=(errors or {}).get(entry.cell.case.dtype)) for entry in measurements]
    return " | ".join(
        part for part in summary_line(make_run(tmp_path, measurements)).split("; ") if "fastest" not in part
    )


def test_a_loss_is_never_called_a_gain(tmp_path):
    cells = [("conv3x3", "fp32", 1.0), ("conv3x3", "bf16", 4.0), ("dcnv4", "fp32", 1.0), ("dcnv4", "bf16", 1.75)]
    assert precision_part(tmp_path / "loss", cells) == "bf16 gains nothing here: 0.250× to 0.571×."
    assert precision_part(tmp_path / "one", cells[:2]) == "bf16 gains nothing here: 0.250×."
    # Faster, but within the noise: the samples' intervals overlap.
    noisy = [
        replace(measurement("dcnv4", SMALL, dtype, ms, wide=True)) for dtype, ms in (("fp32", 1.0), ("bf16", 0.95))
    ]
    assert "bf16 gains nothing here: 1.05×." in summary_line(make_run(tmp_path / "noise", noisy))


def test_a_gain_is_named_with_its_errors_in_words_and_other_dtypes_are_not_hidden(tmp_path):
    cells = [("conv3x3", "fp32", 2.0), ("conv3x3", "bf16", 1.0), ("conv3x3", "fp16", 8.0)]
    errors = {"fp32": 4.5e-7, "bf16": 0.0041}
    assert precision_part(tmp_path, cells, errors) == (
        "largest precision gain: 2.00× from bf16 (Conv (3×3) module 1×8×8×16 | values off by at most 0.41 %, in fp32 "
        "0.000045 %) | fp16 gains nothing here: 0.250×."
    )


def cells_of(*cells, wide=()):
    return [
        measurement(operator, shape, "fp32", ms, provider=provider, wide=(operator, provider) in wide)
        for operator, provider, shape, ms in cells
    ]


def test_a_column_whose_best_two_overlap_has_no_fastest(tmp_path):
    wide = {("conv3x3", "torch"), ("dcnv4", "torch")}
    cells = cells_of(
        ("conv3x3", "torch", SMALL, 1.0), ("dcnv4", "torch", SMALL, 1.1), ("dcnv3", "torch", SMALL, 9.0),
        ("conv3x3", "torch", LARGE, 1.0), ("dcnv4", "torch", LARGE, 5.0),
        wide=wide,
    )  # fmt: skip
    run = make_run(tmp_path, cells)
    assert [found and found.operator for found in fastest(run.rows())] == [None, "conv3x3"]
    assert summary_line(run) == "fastest of 2 columns: Conv (3×3) in 1, undecided in 1."
    assert summary_line(make_run(tmp_path / "one", cells[:3])) == "fastest of 1 column: undecided in 1."


def test_the_provider_is_named_where_an_operator_has_several(tmp_path):
    cells = cells_of(
        ("rmsnorm", "torch", SMALL, 2.0), ("rmsnorm", "triton", SMALL, 1.0), ("rmsnorm", "torch", LARGE, 1.0),
        ("rmsnorm", "triton", LARGE, 3.0), ("rmsnorm", "torch", Shape(1, 32, 32, 16), 1.0),
        ("rmsnorm", "triton", Shape(1, 32, 32, 16), 3.0),
    )  # fmt: skip
    assert summary_line(make_run(tmp_path / "one", cells)) == (
        "fastest provider of 3 columns: torch in 2, triton in 1."
    )
    others = cells_of(("dcnv4", "torch", SMALL, 5.0))
    assert summary_line(make_run(tmp_path / "two", [*cells, *others])) == (
        "fastest of 3 columns: rmsnorm [torch] in 2, rmsnorm [triton] in 1."
    )


def test_the_largest_gain_is_not_that_of_an_uncertain_cell(tmp_path):
    def gain(operator, ms, *, wide):
        return [measurement(operator, SMALL, dtype, value, wide=wide) for dtype, value in (("fp32", ms), ("bf16", 1.0))]

    uncertain, certain = gain("conv3x3", 55.8, wide=True), gain("dcnv4", 2.0, wide=False)
    summary = summary_line(make_run(tmp_path / "both", [*uncertain, *certain]))
    assert "largest precision gain: 2.00× from bf16 (DCNv4 " in summary
    alone = summary_line(make_run(tmp_path / "one", uncertain))
    assert "largest precision gain: ~55.8× from bf16 (Conv (3×3) " in alone


def test_the_cell_closest_to_its_limit_is_named_only_where_it_is_closer_beyond_the_noise(tmp_path):
    cells = [
        measurement("conv3x3", SMALL, "fp32", 1.0, flop_count=10**9, wide=True),
        measurement("dcnv4", SMALL, "fp32", 1.02, flop_count=10**9, wide=True),
    ]
    run = make_run(tmp_path, cells)
    run.write_ceilings(example_ceilings())
    assert summary_line(run) == (
        "fastest of 1 column: undecided in 1; 1 of 2 cells below 10 % of their limit, closest at about 10.0 %."
    )


def test_a_run_without_a_value_has_a_summary_too(tmp_path):
    assert (
        summary_line(make_run(tmp_path, [measurement("dcnv4", SMALL, "fp32", Status.ERROR)])) == "No cell has a value."
    )


def test_a_run_of_one_operator_and_dtype_without_limits_is_not_said_to_be_empty(tmp_path):
    cells = [measurement("dcnv4", shape, "fp32", 1.0) for shape in (SMALL, LARGE)]
    assert summary_line(make_run(tmp_path, cells)) == "2 cells with a value, and nothing to compare."
