"""Two stored runs: intervals by hand, verdicts, circumstances, and what must never pass."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixtures import make_run, measurement

from opbench.compare.estimate import Estimate, Unit
from opbench.compare.open_arm import open_arm
from opbench.compare.readings import Arm, Reading
from opbench.compare.runs import compare_runs, geometric_mean, judge, ratio_interval
from opbench.compare.verdicts import Verdict
from opbench.device.identity import Identity
from opbench.errors import UsageError
from opbench.results.measurement import Status
from opbench.stats import median, median_interval
from opbench.text import parse_percent
from opbench.workload.case import Shape

SMALL, LARGE = Shape(1, 28, 28, 64), Shape(1, 56, 56, 64)
MIRROR = {Verdict.SLOWER: Verdict.FASTER, Verdict.FASTER: Verdict.SLOWER}


def arm(tmp_path, name, measurements):
    return Arm.of_run(make_run(tmp_path / name, measurements), name)


def compare(tmp_path, base, head, *arguments, **options):
    return compare_runs(arm(tmp_path, "base", base), arm(tmp_path, "head", head), *arguments, **options)


def conv(value, shape=SMALL, dtype="fp32", **options):
    return measurement("conv3x3", shape, dtype, value, **options)


def time(*values):
    return Estimate(*values, Unit.MS)


def ratio(*values):
    return Estimate(*values, Unit.RATIO)


def test_times_ratios_and_logarithms_are_not_mixed():
    with pytest.raises(ValueError, match="must be an estimate in ms, got one in ratio"):
        ratio_interval(time(2, 1, 3), ratio(2, 1, 3))
    with pytest.raises(ValueError, match="must be an estimate in ms, got one in log"):
        ratio_interval(time(2, 1, 3).log(), time(2, 1, 3))
    with pytest.raises(ValueError, match="must be an estimate in ratio, got one in ms"):
        judge(time(2, 1, 3), 0.1)
    with pytest.raises(ValueError, match="must be an estimate in ratio, got one in ms"):
        geometric_mean([ratio(2, 1, 3), time(2, 1, 3)])


def test_a_ratio_of_intervals_by_hand():
    # Base 2 (1.9 to 2.2), head 3 (2.8 to 3.3): in logarithms the lower arm is the root of ln(3/2.8)^2 + ln(2.2/2)^2.
    change = ratio_interval(time(2, 1.9, 2.2), time(3, 2.8, 3.3))
    assert change.value == pytest.approx(1.5)
    assert change.low == pytest.approx(1.5 * math.exp(-math.sqrt(0.0689928715**2 + 0.0953101798**2)), rel=1e-9)
    assert change.high == pytest.approx(1.5 * math.exp(math.sqrt(0.0953101798**2 + 0.0512932944**2)), rel=1e-9)


def test_equal_arms_give_the_interval_of_a_difference_of_normals():
    # MOVER is exact where both are normal in the logarithm: 1.96 standard errors become 1.96 * sqrt(2).
    arm_ = time(1, math.exp(-1.96 * 0.01), math.exp(1.96 * 0.01))
    change = ratio_interval(arm_, arm_)
    assert math.log(change.high) == pytest.approx(1.96 * 0.01 * math.sqrt(2))
    assert math.log(change.low) == pytest.approx(-1.96 * 0.01 * math.sqrt(2))


def test_a_geometric_mean_by_hand():
    mean = geometric_mean([ratio(2, 1, 4), ratio(8, 4, 16), ratio(4, 4, 4)])
    half = math.sqrt(2 * math.log(2) ** 2) / 3
    assert mean.value == pytest.approx(4)
    assert mean.low == pytest.approx(4 * math.exp(-half))
    assert mean.high == pytest.approx(4 * math.exp(half))
    with pytest.raises(ValueError, match="no ratios"):
        geometric_mean([])


def test_the_interval_covers_the_ratio_of_medians():
    """Coverage on skewed samples with a known ratio: at least 95 %, less what 400 trials leave open."""
    generator = np.random.default_rng(0)

    def estimate(scale):
        samples = (scale * generator.lognormal(0, 0.3, 30)).tolist()
        return time(median(samples), *median_interval(samples))

    changes = [ratio_interval(estimate(1.0), estimate(1.2)) for _ in range(400)]
    assert np.mean([change.low <= 1.2 <= change.high for change in changes]) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.11, 1.2, Verdict.SLOWER),
        (1.1, 1.2, Verdict.INCONCLUSIVE),  # not wholly above
        (0.95, 1.1, Verdict.SAME),
        (0.95, 1.11, Verdict.INCONCLUSIVE),
        (0.905, 0.95, Verdict.INCONCLUSIVE),  # 1 / 1.1 lies between
        (1 / 1.1, 0.95, Verdict.SAME),
        (0.5, 1 / 1.1, Verdict.INCONCLUSIVE),  # not wholly below
        (0.5, 0.9, Verdict.FASTER),
        (0.0, math.inf, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_by_the_bounds(low, high, verdict):
    assert judge(ratio(1, low, high), 0.1) is verdict


latencies = st.floats(0.01, 100)


@given(
    values=st.lists(st.tuples(latencies, latencies, st.floats(0, 0.3), st.floats(0, 0.3)), min_size=1, max_size=4),
    threshold=st.floats(0.001, 0.5),
)
def test_swapping_the_arms_mirrors_every_verdict(tmp_path_factory, values, threshold):
    shapes = [Shape(1, 7 + index, 7, 32) for index in range(len(values))]
    sides = []
    for place, spread in ((0, 2), (1, 3)):
        readings = {}
        for shape, value in zip(shapes, values, strict=True):
            middle, width = value[place], value[spread]
            reading = made_reading(shape, middle, middle * (1 - width), middle * (1 + width))
            readings[reading.cell.key] = reading
        sides.append(Arm("side", readings))
    there, back = compare_runs(*sides, threshold), compare_runs(*reversed(sides), threshold)
    for one, other in zip(there.cells, back.cells, strict=True):
        assert one.verdict is MIRROR.get(other.verdict, other.verdict)
        assert one.change.value == pytest.approx(1 / other.change.value)
        assert one.change.low <= one.change.value <= one.change.high
    assert there.means[0][1].low == pytest.approx(1 / back.means[0][1].high)


def made_reading(shape, middle, low, high):
    return Reading(conv(1.0, shape).cell, Status.OK, "", middle, low, high, 30, Identity({"timer": "made up"}))


def test_each_cell_gets_its_verdict_and_the_worst_is_the_whole(tmp_path):
    base = [conv(1.0), conv(1.0, LARGE), conv(1.0, dtype="fp16"), conv(1.0, LARGE, "fp16", wide=True)]
    head = [conv(1.2), conv(1.0, LARGE), conv(0.8, dtype="fp16"), conv(1.0, LARGE, "fp16", wide=True)]
    found = compare(tmp_path, base, head)
    # The second half of a wide cell's samples reaches 0.9 to 1.5 times the median.
    assert [cell.verdict for cell in found.cells] == ["slower", "same", "faster", "inconclusive"]
    assert (found.verdict, found.exit_code, found.reason) == (
        Verdict.SLOWER, 1, "1 of 4 cells: slower by more than 10 %",
    )  # fmt: skip
    assert found.cells[3].reason == "the interval reaches across a bound of ±10 %"
    assert found.cells[0].change.value == pytest.approx(1.2)
    assert (found.cells[0].base_ms, found.cells[0].head_ms) == (1.0, 1.2)
    assert "one process" in found.notes[0]


def test_means_are_geometric_per_operator_and_over_all(tmp_path):
    base = [conv(1.0), conv(1.0, LARGE), measurement("dcnv4", SMALL, "fp32", 1.0)]
    head = [conv(1.2), conv(0.3, LARGE), measurement("dcnv4", SMALL, "fp32", 2.0)]
    means = dict(compare(tmp_path, base, head).means)
    assert list(means) == ["all cells", "conv3x3", "dcnv4"]
    assert means["conv3x3"].value == pytest.approx(math.sqrt(1.2 * 0.3))
    assert means["all cells"].value == pytest.approx((1.2 * 0.3 * 2) ** (1 / 3))


@pytest.mark.parametrize("status", [Status.ERROR, Status.OUT_OF_MEMORY, Status.NOT_RUN, Status.NOT_APPLICABLE])
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_cell_without_a_figure_in_one_arm_is_missing(tmp_path, status, side):
    sides = {"base": [conv(1.0), conv(1.0, LARGE)], "head": [conv(1.0), conv(1.0, LARGE)]}
    sides[side][1] = conv(status, LARGE)
    found = compare(tmp_path, sides["base"], sides["head"])
    assert (found.cells[1].verdict, found.exit_code) == (Verdict.MISSING, 5)
    assert found.cells[1].reason.startswith(f"{status} in the {side}: ")


def test_a_cell_that_only_one_run_has(tmp_path):
    found = compare(tmp_path, [conv(1.0), conv(1.0, LARGE)], [conv(1.0), conv(1.0, dtype="fp16")])
    assert [cell.verdict for cell in found.cells] == [Verdict.SAME, Verdict.MISSING]
    assert found.cells[1].reason == "the head does not have it"
    assert found.only_in_head == (conv(1.0, dtype="fp16").cell.key,)
    assert found.exit_code == 5


def test_not_applicable_in_both_counts_for_nothing(tmp_path):
    cells = [conv(Status.NOT_APPLICABLE, LARGE), conv(1.0)]
    found = compare(tmp_path, cells, cells)
    assert (len(found.cells), found.not_applicable, found.exit_code) == (1, (cells[0].cell.key,), 0)


@pytest.mark.parametrize("cells", [[], [conv(Status.ERROR)], [conv(Status.NOT_APPLICABLE)], [conv(Status.NOT_RUN)]])
def test_a_base_that_measured_nothing_never_passes(tmp_path, cells):
    for head in (cells, [conv(1.0)]):
        found = compare_runs(
            arm(tmp_path, f"base{len(head)}{head == cells}", cells), arm(tmp_path, f"head{head == cells}", head)
        )
        assert found.exit_code == 5
        assert found.reason in ("the base has no cell to compare", "the base has no measured cell")


def change_run(run, **environment):
    path = run.path / "run.json"
    data = json.loads(path.read_text())
    data["environment"] |= environment
    path.write_text(json.dumps(data))
    return open_arm(run.path)


def test_another_environment_is_named_unless_allowed(tmp_path):
    base = change_run(make_run(tmp_path / "base", [conv(1.0)]), packages={"torch": "2.11"}, driver_version="570")
    head = change_run(make_run(tmp_path / "head", [conv(1.0)]), packages={"torch": "2.12"}, driver_version="580")
    found = compare_runs(base, head)
    assert (found.verdict, found.exit_code) == (Verdict.NOT_COMPARABLE, 4)
    assert found.cells[0].reason == (
        "torch: 2.11 in the base, 2.12 in the head; driver: 570 in the base, 580 in the head"
    )
    assert found.means == ()
    assert compare_runs(base, head, allow=["torch"]).cells[0].reason == "driver: 570 in the base, 580 in the head"
    allowed = compare_runs(base, head, allow=["torch", "Driver"])
    assert allowed.exit_code == 0
    assert "Allowed to differ: torch: 2.11 in the base, 2.12 in the head." in allowed.notes


def test_another_timer_or_cache_is_named(tmp_path):
    head = replace(conv(1.0), timer="cuda-graph", cache="warm")
    assert compare(tmp_path, [conv(1.0)], [head]).cells[0].reason == (
        "timer: cuda-event in the base, cuda-graph in the head; cache: cold in the base, warm in the head"
    )


def on_card(tmp_path, name, uuid, value=1.0):
    """An arm measured on a card of one model."""
    run = make_run(tmp_path / name, [conv(value)])
    about = json.loads((run.path / "run.json").read_text())
    about["environment"]["device"] = "cuda:0"
    about["environment"]["gpu"] = {} if uuid is None else {"uuid": uuid}
    (run.path / "run.json").write_text(json.dumps(about))
    return open_arm(run.path)


def test_another_card_of_one_model_is_named_unless_allowed(tmp_path):
    one, other = on_card(tmp_path, "one", "GPU-1"), on_card(tmp_path, "other", "GPU-2")
    found = compare_runs(one, other)
    assert (found.exit_code, found.cells[0].verdict) == (4, Verdict.NOT_COMPARABLE)
    assert found.cells[0].reason == "gpu uuid: GPU-1 in the base, GPU-2 in the head"
    allowed = compare_runs(one, other, allow=["gpu-uuid"])
    assert allowed.exit_code == 0
    assert "Allowed to differ: gpu uuid: GPU-1 in the base, GPU-2 in the head." in allowed.notes


@pytest.mark.parametrize("uuid", [None, ""])
def test_a_card_that_is_not_known_is_comparable_with_any(tmp_path, uuid):
    unknown, known = on_card(tmp_path, "unknown", uuid), on_card(tmp_path, "known", "GPU-1")
    for base, head in ((unknown, known), (known, unknown), (unknown, unknown)):
        assert compare_runs(base, head).exit_code == 0


def test_other_settings_are_named_unless_allowed(tmp_path):
    base, head = ([measurement("dcnv4", SMALL, "fp32", 1.0, settings=(("offset_std_px", v),))] for v in (1.0, 2.0))
    found = compare(tmp_path, base, head)
    assert found.cells[0].reason == "dcnv4.offset_std_px: 1.0 in the base, 2.0 in the head"
    assert (found.exit_code, found.only_in_head) == (4, ())
    arms = (open_arm(tmp_path / name) for name in ("base", "head"))
    assert compare_runs(*arms, allow=["dcnv4.offset-std-px"]).exit_code == 0


def test_too_few_samples_and_zeros_are_inconclusive(tmp_path):
    few = replace(conv(1.0), latencies_ms=(1.0,) * 5)
    found = compare(tmp_path, [few, conv(1.0, LARGE)], [conv(9.0), replace(conv(1.0, LARGE), latencies_ms=(0.0,) * 30)])
    assert [cell.verdict for cell in found.cells] == [Verdict.INCONCLUSIVE] * 2
    assert found.cells[0].reason == "5 and 30 samples: a 95 % interval needs 6"
    assert (found.cells[0].change.low, found.cells[0].change.high) == (0, math.inf)
    assert found.cells[1].reason == "a median of 0: shorter than the timer's step"
    assert found.exit_code == 3


def test_cells_that_differ_by_settings_alone_are_partners_in_order(tmp_path):
    base, head = (
        [measurement("dcnv4", SMALL, "fp32", 1.0, settings=(("offset_std_px", value),)) for value in values]
        for values in ((1.0, 2.0), (3.0, 4.0))
    )
    assert [cell.reason for cell in compare(tmp_path, base, head).cells] == [
        "dcnv4.offset_std_px: 1.0 in the base, 3.0 in the head",
        "dcnv4.offset_std_px: 2.0 in the base, 4.0 in the head",
    ]


def test_six_samples_are_enough(tmp_path):
    sides = ([replace(conv(1.0), latencies_ms=(value,) * 6)] for value in (1.0, 2.0))
    assert compare(tmp_path, *sides).verdict is Verdict.SLOWER


@pytest.mark.parametrize(
    ("base", "head", "said"),
    [(("abc", "d"), ("abc", "d"), True), (("abc", "d"), ("abc", "e"), False), (("abc", ""), ("abc", ""), False)],
)
def test_the_same_source_in_both_is_said(tmp_path, base, head, said):
    sides = (
        [
            replace(conv(value, shape), kernel_source_hash=source)
            for shape, source in zip((SMALL, LARGE), one, strict=True)
        ]
        for one, value in ((base, 1.0), (head, 2.0))
    )
    found = compare(tmp_path, *sides)
    assert any("same operator and kernel source" in note for note in found.notes) is said
    assert [(cell.base_source, cell.head_source) for cell in found.cells] == [*zip(base, head, strict=True)]


def test_the_same_source_is_not_said_where_nothing_was_compared(tmp_path):
    found = compare(tmp_path, [conv(1.0)], [conv(Status.ERROR)])
    assert not any("same operator and kernel source" in note for note in found.notes)


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), ("0.03", 0.03), (" 12.5 % ", 0.125), ("1e-3", 0.001)])
def test_percentages(text, value):
    assert parse_percent("--threshold", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["3", "100%", "0", "-1%", "nan", "", "%", "3%%", "three", "inf", "3% 4"])
def test_what_is_no_percentage_is_a_usage_error(text):
    with pytest.raises(UsageError, match=r"--threshold must be a percentage like 3% or a fraction like 0.03"):
        parse_percent("--threshold", text)
