"""Noise between processes: what is measured and kept, what compare makes of it, and verdicts between processes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gate_evidence import read_rounds
from report_fixtures import DEVICE, made_noise, make_run, measurement
from test_fuzz import call

from opbench.compare.estimate import Estimate, Unit
from opbench.compare.noise import ASSUMED_SPREAD, Noise, keep_noise, known_noise, spread_of
from opbench.compare.readings import Arm
from opbench.compare.rules import Rules, decide, settle
from opbench.compare.runs import _weak_verdict, compare_runs, judge, ratio_interval
from opbench.compare.verdicts import Verdict
from opbench.device.environment import collect_environment
from opbench.errors import UsageError
from opbench.results.measurement import Measurement, Status
from opbench.stats import median, median_interval
from opbench.sweeps.noise_step import measure_noise, noise_request
from opbench.sweeps.progress import NullProgress
from opbench.workload.case import Shape
from opbench.workload.cell_warning import CellWarning

SMALL, LARGE = Shape(1, 28, 28, 64), Shape(1, 56, 56, 64)
RESULTS = Path(__file__).parents[1] / "results"
LOADED = (CellWarning.parse("CPU load: other processes used 40% of all cores during warm-up and samples"),)


def conv(value, shape=SMALL, **changes):
    return replace(measurement("conv3x3", shape, "fp32", value), **changes)


def compared(tmp_path, base, head, **options):
    arms = (Arm.of_run(make_run(tmp_path / name, lines), name) for name, lines in (("base", base), ("head", head)))
    return compare_runs(*arms, **options)


# One process against one.


@pytest.mark.parametrize(
    ("ratio", "spread", "verdict"),
    [
        (1.497, 0.6, Verdict.INCONCLUSIVE),
        (1.497, 0.4, Verdict.SLOWER),
        (1 / 1.497, 0.6, Verdict.INCONCLUSIVE),
        (1 / 1.497, 0.4, Verdict.FASTER),
        (1.0, 0.6, Verdict.SAME),
    ],
)
def test_a_change_within_the_devices_noise_is_inconclusive_at_most(tmp_path, ratio, spread, verdict):
    found = compared(tmp_path, [conv(1.0)], [conv(ratio)], noise=made_noise(spread))
    assert found.verdict is verdict
    if verdict is Verdict.INCONCLUSIVE:
        assert found.cells[0].reason == "within ±60 %, by which two processes of the same code may differ"
    assert (
        f"differ by up to {100 * spread:g} % on this device, as `opbench noise` measured it 2026-01-02 in"
        in found.notes[1]
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_devices_noise_ends_at_its_bounds_which_swapping_the_arms_mirrors(sign):
    def verdict(value):
        return _weak_verdict(Estimate(value, value, value, Unit.RATIO), 0.1, 0.5, disturbed=False)[0]

    assert verdict(1 / 1.5 if sign < 0 else 1.5) is Verdict.INCONCLUSIVE
    assert verdict(1.499**sign) is Verdict.INCONCLUSIVE
    assert verdict(1.501**sign) is (Verdict.SLOWER if sign > 0 else Verdict.FASTER)


def test_without_known_noise_some_is_assumed_and_said(tmp_path):
    found = compared(tmp_path, [conv(1.0), conv(1.0, LARGE)], [conv(1.14), conv(1.16, LARGE)])
    assert [cell.verdict for cell in found.cells] == [Verdict.INCONCLUSIVE, Verdict.SLOWER]
    assert "15 % are assumed, and `opbench noise` measures it" in found.notes[1]


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_disturbed_row_is_inconclusive_at_most(tmp_path, side):
    sides = {"base": [conv(1.0)], "head": [conv(3.0)]}
    assert compared(tmp_path / "quiet", **sides).verdict is Verdict.SLOWER
    governor = (CellWarning("CPU governor", "powersave"),)
    standing = {name: [replace(line, warnings=governor) for line in lines] for name, lines in sides.items()}
    assert compared(tmp_path / "standing", **standing).verdict is Verdict.SLOWER  # it holds for both alike
    sides[side] = [replace(sides[side][0], warnings=LOADED)]
    found = compared(tmp_path / "loaded", **sides)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.cells[0].reason.startswith("something else disturbed the samples")
    assert found.cells[0].change.value == pytest.approx(3.0)


# Between processes.


def repeated(values, shape=SMALL, **changes):
    return [conv(value, shape, repetition=number, **changes) for number, value in enumerate(values, start=1)]


def test_repeated_runs_are_judged_between_processes(tmp_path):
    base = [*repeated((1.0, 1.3, 0.8, 1.1, 0.9)), *repeated((1.0, 1.01, 0.99, 1.0, 1.02), LARGE)]
    head = [*repeated((1.5, 1.0, 1.2, 1.6, 1.4), warnings=LOADED), *repeated((1.5, 1.52, 1.49, 1.5, 1.51), LARGE)]
    found = compared(tmp_path, base, head)
    # Each process's samples are narrow; between the processes only the second cell's change is one.
    assert [cell.verdict for cell in found.cells] == [Verdict.INCONCLUSIVE, Verdict.SLOWER]
    assert found.cells[0].reason == "5 processes of each do not settle it"
    logs = np.log(np.array([1.5, 1.52, 1.49, 1.5, 1.51]) / np.array([1.0, 1.01, 0.99, 1.0, 1.02]))
    assert found.cells[1].change.value == pytest.approx(math.exp(logs.mean()))
    half = 2.776445 * logs.std(ddof=1) / math.sqrt(5)  # Student's t with 4 degrees of freedom
    assert found.cells[1].change.high == pytest.approx(math.exp(logs.mean() + half), rel=1e-6)
    assert found.notes[0].startswith("Intervals are 95 %. All cells are judged between processes")
    assert len(found.notes) == 1


def test_repeated_runs_of_the_same_code_are_the_same(tmp_path):
    found = compared(tmp_path, repeated((1.0, 1.02, 0.99, 1.01)), repeated((1.01, 1.0, 1.0, 0.99)))
    assert (found.verdict, found.cells[0].reason) == (Verdict.SAME, "")


def test_few_processes_or_one_against_several_settle_nothing(tmp_path):
    found = compared(tmp_path / "two", repeated((1.0, 1.0)), repeated((3.0, 3.0)))
    assert (found.verdict, found.cells[0].reason) == (
        Verdict.INCONCLUSIVE, "2 and 2 processes: a verdict between processes needs 3 of each",
    )  # fmt: skip
    one = compared(tmp_path / "one", [conv(1.0)], repeated((3.0,) * 5))
    assert one.cells[0].reason == "1 and 5 processes: a verdict between processes needs 3 of each"
    assert "each figure is from one process" in one.notes[0]


def test_three_processes_of_each_are_judged_and_a_cell_of_one_beside_them(tmp_path):
    base = [*repeated((0.10, 0.102, 0.101)), conv(1.0, LARGE)]
    found = compared(tmp_path, base, [*repeated((0.15, 0.152, 0.151)), conv(2.0, LARGE)])
    change = found.cells[0].change
    assert (found.cells[0].verdict, change.value) == (Verdict.SLOWER, pytest.approx(1.495, abs=0.001))
    assert 1.48 < change.low < change.high < 1.51
    assert found.notes[0].startswith("Intervals are 95 %. 1 cells are judged between processes")
    assert "each figure is from one process" in found.notes[1]


def test_processes_are_not_judged_where_one_took_no_time_or_ran_otherwise(tmp_path):
    zero = compared(tmp_path / "zero", repeated((0.1, 0.1, 0.1)), [*repeated((0.1, 0.1)), conv(0.0, repetition=3)])
    assert (zero.verdict, zero.cells[0].reason) == (
        Verdict.INCONCLUSIVE, "a process's median of 0: shorter than the timer's step",
    )  # fmt: skip
    assert zero.notes[0].startswith("Intervals are 95 %. One stored run against another")
    other = compared(tmp_path / "other", repeated((0.1, 0.1, 0.1)), repeated((0.1, 0.1, 0.1), timer="cuda-graph"))
    assert other.verdict is Verdict.NOT_COMPARABLE
    assert other.notes[0].startswith("Intervals are 95 %. One stored run against another")


def test_the_rule_is_the_gates(monkeypatch):
    """Where no cell is suspect the gate's second stage and this differ by the level of the family alone."""
    generator = np.random.default_rng(3)
    rounds = generator.normal([0.0, 0.0, 0.3, -0.3], 0.01, (8, 4))
    rules = Rules(tolerance=0.1, unsettled_level=0.01, screen_level=0.0)
    decision = decide(rounds[:3], rounds[3:], np.ones(4, dtype=bool), rules)
    verdicts, changes = settle(rounds[3:].T.tolist(), rules)
    assert verdicts == decision.verdicts == (Verdict.SAME, Verdict.SAME, Verdict.SLOWER, Verdict.FASTER)
    assert changes[2:] == decision.changes[2:]


def test_no_alarm_in_sessions_of_the_same_code_with_noisy_processes():
    """The level holds: 400 comparisons of nine cells, 8 % from process to process, five processes each."""
    generator = np.random.default_rng(11)
    rules = Rules(tolerance=0.1)
    alarms = sum(
        Verdict.SLOWER in settle(generator.normal(0, 0.08 * math.sqrt(2), (9, 5)).tolist(), rules)[0]
        for _ in range(400)
    )
    assert alarms <= 4


# What is measured and kept.


def test_a_spread_by_hand():
    # Two cells of three processes: logs -d, 0, d: a pooled variance of d^2 on 4 degrees of freedom, where t is 8.610.
    d = 0.01
    cells = {name: (math.exp(-d), 1.0, math.exp(d)) for name in ("a", "b")}
    assert spread_of(cells) == pytest.approx(math.expm1(8.610302 * math.sqrt(2) * d), rel=1e-6)
    # What was seen counts in any case.
    quiet = {str(number): (1.0,) * 30 for number in range(30)}
    assert spread_of(quiet | {"odd": (1.0, 1.5)}) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="fewer than two processes"):
        spread_of({"a": (1.0,)})


def test_the_assumed_spread_on_the_gates_pairs_of_the_same_code():
    """99 % of them are within it; by their intervals alone 10 differ, and with it 3: docs/noise.md."""
    pairs = [
        one.cells[key]
        for path in (
            RESULTS / "gate/pool/processes.jsonl.gz",
            *sorted((RESULTS / "gate/selftest").glob("*-0.jsonl.gz")),
        )
        for one in read_rounds(path)
        for key in one.cells
    ]
    assert len(pairs) == 1089
    changes = [
        ratio_interval(*(Estimate(median(arm), *median_interval(arm), Unit.MS) for arm in pair)) for pair in pairs
    ]
    within = [change for change in changes if 1 / (1 + ASSUMED_SPREAD) < change.value < 1 + ASSUMED_SPREAD]
    assert len(within) >= 0.99 * len(pairs)
    differ = {Verdict.SLOWER, Verdict.FASTER}
    assert sum(judge(change, 0.1) in differ for change in changes) == 10
    found = [_weak_verdict(change, 0.1, ASSUMED_SPREAD, disturbed=False)[0] for change in changes]
    assert sum(verdict in differ for verdict in found) == 3


def test_noise_is_kept_per_device_and_damage_is_no_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = {"device_name": DEVICE, "device": "cuda:0", "driver_version": "1"}
    assert known_noise(environment) is None
    assert known_noise(None) is None
    path = keep_noise(made_noise(0.2), environment)
    assert path.is_relative_to(tmp_path)
    kept = known_noise(environment)
    assert (kept.spread, kept.processes) == (0.2, 3)
    assert known_noise(environment | {"driver_version": "2"}) is None
    for damaged in ("{", "[]", json.dumps(made_noise(0.1).to_json() | {"spread": "much"}),
                    json.dumps(made_noise(0.1).to_json() | {"medians_ms": {"a": [-1]}})):  # fmt: skip
        path.write_text(damaged)
        assert known_noise(environment) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert keep_noise(made_noise(0.1), environment) is None


class Scripted:
    """An executor whose process number n is slower by n %, and in which one cell fails."""

    def __init__(self):
        self.process = 0

    def renew(self):
        self.process += 1

    def run(self, cell, on_stage):
        if cell.case.operator == "dcnv4":
            return Measurement(cell, Status.ERROR, "no luck")
        before = {"clock_s": 0.0, "busy_s": 0.0, "own_busy_s": 0.0, "cores": 2}
        after = {**before, "clock_s": 1.0, "busy_s": 0.5}
        return Measurement(cell, Status.OK, latencies_ms=(1 + self.process / 100,) * 6,
                           conditions={"before": before, "after": after})  # fmt: skip


def test_noise_is_measured_in_a_new_process_each_time():
    request = noise_request("cpu", None, 3)
    found = measure_noise(request, collect_environment("cpu"), Scripted(), NullProgress())
    assert len(found.medians_ms) == 6  # two operators at three shapes; the third has no figure
    assert set(found.medians_ms.values()) == {(1.01, 1.02, 1.03)}
    assert found.spread == pytest.approx(spread_of(found.medians_ms))
    assert found.conditions == {"other_cpu_share": 0.25}
    assert Noise.from_json(json.loads(json.dumps(found.to_json()))).spread == found.spread


def test_the_command_shows_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_noise(made_noise(0.07, conditions={"other_cpu_share": 0.5}), collect_environment("cpu"))
    code, out, _ = call("noise", "--device", "cpu")
    text = " ".join(out.split())
    assert code == 0
    assert "calls no change slower or faster that is within 7 %" in text
    assert "Other processes used up to 50% of all cores meanwhile" in text
    assert json.loads(call("noise", "--device", "cpu", "--json")[1])["spread"] == 0.07
    assert call("noise", "--processes", "1")[0] == 2
    with pytest.raises(UsageError, match="--threads must be an integer"):
        noise_request("cpu", 0, 3)
