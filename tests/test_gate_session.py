"""Sessions of the gate on simulated processes: the order of things, and every way to end."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from gate_simulation import Noise, SimulatedProcesses, simulated_cells

from opbench.compare.rules import Rules
from opbench.compare.verdicts import Verdict
from opbench.errors import GateError
from opbench.gate.outcome import SAME_SOURCE
from opbench.gate.process import GateArm
from opbench.gate.session import SessionSettings, run_session
from opbench.results.measurement import Measurement, Status

BASE, HEAD = GateArm("base"), GateArm("head")
CELLS = simulated_cells(10)
QUIET = Noise(process=0.001, cell=0.001, drift=0.01)


def session(processes, **settings):
    return run_session(BASE, HEAD, processes, SessionSettings(**settings))


def slowed(size, *cells):
    return {cell.key: math.log1p(size) for cell in cells}


class Recorder:
    """Passes processes on, remembers what was asked for, and changes what `change` says."""

    def __init__(self, inner, change=lambda arm, cells, process: process):
        self.inner, self.change, self.asked = inner, change, []

    def __call__(self, arms, cells, first):
        pair = {}
        for name in sorted(arms, key=lambda name: name != first):
            self.asked.append((name, None if cells is None else [cell.key for cell in cells]))
            pair[name] = self.change(arms[name], cells, self.inner.process(arms[name], cells))
        return pair


def test_nothing_changed_is_shown_to_be_the_same():
    comparison = session(SimulatedProcesses(CELLS, QUIET)).comparison
    assert comparison.verdict is Verdict.SAME
    assert comparison.exit_code == 0
    assert {row.verdict for row in comparison.cells} == {Verdict.SAME}


def test_one_slower_cell_is_named():
    comparison = session(SimulatedProcesses(CELLS, QUIET, slower=slowed(0.03, CELLS[4]))).comparison
    assert comparison.exit_code == 1
    assert [row.cell for row in comparison.cells if row.verdict is Verdict.SLOWER] == [CELLS[4]]
    [row] = [row for row in comparison.cells if row.cell == CELLS[4]]
    assert row.change.low < row.change.value == pytest.approx(1.03, abs=0.005)
    assert row.head_ms / row.base_ms == pytest.approx(1.03, rel=0.01)


def test_a_faster_cell_passes():
    comparison = session(SimulatedProcesses(CELLS, QUIET, slower=slowed(-0.05, CELLS[0]))).comparison
    assert comparison.verdict is Verdict.FASTER
    assert comparison.exit_code == 0


def test_a_faster_cell_does_not_hide_a_slower_one():
    changes = slowed(-0.5, *CELLS[1:]) | slowed(0.05, CELLS[0])
    assert session(SimulatedProcesses(CELLS, QUIET, slower=changes)).comparison.exit_code == 1


def test_a_uniform_slow_down_below_the_tolerance_of_a_cell_is_caught_by_the_suite():
    found = session(SimulatedProcesses(CELLS, QUIET, slower=slowed(0.007, *CELLS))).comparison
    assert {row.verdict for row in found.cells} <= {Verdict.SAME, Verdict.INCONCLUSIVE}
    assert found.verdict is Verdict.SLOWER
    assert "geometric mean" in found.reason


def test_the_reason_says_by_how_much_the_suite_is_slower():
    still = Noise(process=0.0, cell=1e-6, drift=0.0)
    found = session(SimulatedProcesses(CELLS, still, slower=slowed(0.007, *CELLS))).comparison
    assert found.reason == "the geometric mean over the cells is slower: +0.7%"


def test_means_are_given_of_all_cells_and_of_each_operator():
    still = Noise(process=0.0, cell=1e-6, drift=0.0)
    changes = [0.02, 0.04, 0.0, 0.02, 0.02, -0.04, -0.08, 0.0, -0.04, -0.04]  # five shapes of op0 and of op1
    slower = {cell.key: change for cell, change in zip(CELLS, changes, strict=True)}
    means = session(SimulatedProcesses(CELLS, still, slower=slower)).comparison.means
    assert [name for name, _ in means] == ["all cells", "op0", "op1"]
    for (_, mean), expected in zip(means, (-0.01, 0.02, -0.04), strict=True):
        assert math.log(mean.value) == pytest.approx(expected, abs=1e-5)
        # From round to round they are alike, however much the cells differ.
        assert 0 < mean.value - mean.low < 1e-5
        assert 0 < mean.high - mean.value < 1e-5


def test_rows_of_a_gate_that_stopped_say_that_they_were_not_measured_further():
    def other(arm, cells, process):
        process = failing({CELLS[3].key})(arm, cells, process)
        return replace(process, identity={**process.identity, "torch": "9.9"}) if arm is HEAD else process

    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), other)).comparison
    failed = comparison.cells[3]
    assert (failed.verdict, failed.reason) == (Verdict.MISSING, "error in the head: broken")
    rest = [row for row in comparison.cells if row is not failed]
    assert {(row.verdict, row.reason) for row in rest} == {(Verdict.NOT_COMPARABLE, "not measured further")}

    # A process that ended early costs the cells that it did not reach, and no others.
    def dying(arm, cells, process):
        process = other(arm, cells, process)
        left = {key: m for key, m in process.measurements.items() if key != CELLS[9].key}
        return replace(process, measurements=left, failure="exit code 1")

    rows = session(Recorder(SimulatedProcesses(CELLS, QUIET), dying)).comparison.cells
    assert [row.verdict for row in rows] == [*["not comparable"] * 3, "missing", *["not comparable"] * 5, "missing"]
    assert rows[9].reason == "a process of the base ended early: exit code 1"
    # Where nothing was measured, each row is missing, whatever it says.
    keys = {cell.key for cell in CELLS}
    nothing = session(Recorder(SimulatedProcesses(CELLS, QUIET), failing(keys, arms=("base",)))).comparison
    assert {(row.verdict, row.reason) for row in nothing.cells} == {(Verdict.MISSING, "error in the base: broken")}
    assert nothing.reason == "no cell was measured in both arms"


@pytest.mark.parametrize(("head", "reason"), [("a", SAME_SOURCE), ("b", "")])
def test_a_cell_that_is_slower_with_the_same_source_says_so(head, reason):
    sources = {"base": "a", "head": head}
    processes = SimulatedProcesses(CELLS, QUIET, slower=slowed(0.05, CELLS[4]), sources=sources)
    cells = session(processes, same_source_allowed=True).comparison.cells
    assert cells[4].verdict is Verdict.SLOWER
    assert cells[4].reason.startswith(reason)
    assert {row.reason for row in cells if row.verdict is not Verdict.SLOWER or not reason} == {""}


def test_arms_alternate_and_share_the_order_of_cells_within_a_round():
    recorder = Recorder(SimulatedProcesses(CELLS, Noise()))
    taken = session(recorder)
    screen = recorder.asked[2:14]
    assert [arm for arm, _ in recorder.asked[:2]] == ["base", "head"]
    assert [arm for arm, _ in screen] == ["base", "head", "head", "base"] * 3
    orders = [tuple(cells) for _, cells in screen]
    assert orders[0::2] == orders[1::2]
    assert len(set(orders)) == 6
    assert {record.stage for record in taken.records} == {"setup", "screen", "confirm"}


def test_the_second_stage_measures_suspects_alone_where_the_rest_need_not_be_settled():
    recorder = Recorder(SimulatedProcesses(CELLS, Noise(0.02, 0.02), slower=slowed(0.3, CELLS[2])))
    session(recorder, settle=False)
    confirm = recorder.asked[14:]
    assert len(confirm) == 32
    assert {tuple(cells) for _, cells in confirm} == {(CELLS[2].key,)}


def test_noise_is_inconclusive_not_the_same():
    comparison = session(SimulatedProcesses(CELLS, Noise(0.1, 0.1))).comparison
    assert comparison.exit_code == 3
    assert comparison.reason == "10 of 10 cells"


def test_the_same_source_in_both_arms_is_refused_at_once():
    processes = Recorder(SimulatedProcesses(CELLS, QUIET, sources={"base": "a", "head": "a"}))
    comparison = session(processes).comparison
    assert comparison.exit_code == 4
    assert "same source" in comparison.reason
    assert len(processes.asked) == 2


def test_aa_compares_the_same_source():
    processes = SimulatedProcesses(CELLS, QUIET, sources={"base": "a", "head": "a"})
    comparison = session(processes, same_source_allowed=True).comparison
    assert comparison.exit_code == 0
    assert {row.base_source for row in comparison.cells} == {"a"}


def test_a_sentinel_that_moves_takes_the_verdict_back():
    def disturb(arm, cells, process):
        factor = 1.2 if arm is HEAD else 1.0
        return replace(process, sentinel={name: factor * ms for name, ms in process.sentinel.items()})

    processes = Recorder(SimulatedProcesses(CELLS, QUIET, slower=slowed(0.2, *CELLS)), disturb)
    comparison = session(processes).comparison
    assert comparison.exit_code == 3
    assert "matrix product +2" in comparison.reason


def test_arms_on_other_software_are_not_comparable():
    def other(arm, cells, process):
        return replace(process, identity={**process.identity, "torch": "9.9"}) if arm is HEAD else process

    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), other)).comparison
    assert comparison.exit_code == 4
    assert comparison.reason == "torch: none in the base, 9.9 in the head"


def failing(keys, status=Status.ERROR, arms=("head",), stages=range(1000)):
    count = iter(range(1000))

    def fail(arm, cells, process):
        if next(count) not in stages or arm.label not in arms:
            return process
        broken = {
            key: Measurement(m.cell, status, "broken") if key in keys else m for key, m in process.measurements.items()
        }
        return replace(process, measurements=broken)

    return fail


@pytest.mark.parametrize("stages", [range(1000), range(5, 6)], ids=["always", "once"])
def test_a_cell_that_fails_in_the_head_is_missing(stages):
    processes = Recorder(
        SimulatedProcesses(CELLS, QUIET), failing({CELLS[3].key}, stages=stages, arms=("base", "head"))
    )
    comparison = session(processes).comparison
    assert comparison.exit_code == 5
    [row] = [row for row in comparison.cells if row.verdict is Verdict.MISSING]
    assert row.cell == CELLS[3]
    assert "broken" in row.reason


def test_a_base_without_a_measurable_cell_never_passes():
    keys = {cell.key for cell in CELLS}
    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), failing(keys, arms=("base",)))).comparison
    assert comparison.exit_code == 5
    nothing = session(SimulatedProcesses((), QUIET)).comparison
    assert nothing.exit_code == 5
    inapplicable = failing(keys, Status.NOT_APPLICABLE, arms=("base", "head"))
    assert session(Recorder(SimulatedProcesses(CELLS, QUIET), inapplicable)).comparison.exit_code == 5


def test_cells_that_have_no_meaning_in_both_arms_do_not_count():
    inapplicable = failing({CELLS[0].key}, Status.NOT_APPLICABLE, arms=("base", "head"))
    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), inapplicable)).comparison
    assert comparison.exit_code == 0
    assert comparison.not_applicable == (CELLS[0].key,)
    assert len(comparison.cells) == 9


def test_a_process_that_dies_costs_the_cells_it_did_not_reach():
    def die(arm, cells, process):
        if cells is None or arm is BASE:
            return process
        left = {key: m for key, m in process.measurements.items() if key != CELLS[9].key}
        return replace(process, measurements=left, failure="exit code -11: Segmentation fault")

    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), die)).comparison
    assert comparison.exit_code == 5
    [row] = [row for row in comparison.cells if row.verdict is Verdict.MISSING]
    assert "Segmentation fault" in row.reason


def test_a_cost_that_is_counted_otherwise_is_no_missing_cell_and_the_heads_counts():
    def counted(arm, cells, process):
        plan = (replace(CELLS[0], flop_count=CELLS[0].flop_count + 1), *CELLS[1:])
        return replace(process, plan=plan) if arm is HEAD and cells is None else process

    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), counted)).comparison
    assert (comparison.exit_code, comparison.verdict) == (0, Verdict.SAME)
    assert [row.cell.flop_count for row in comparison.cells[:2]] == [CELLS[0].flop_count + 1, CELLS[1].flop_count]
    [note] = comparison.notes
    assert note == (
        f"The revisions count the costs of {CELLS[0].case.operator} otherwise; latencies are compared all the same."
    )
    assert session(SimulatedProcesses(CELLS, QUIET)).comparison.notes == ()


def test_a_cell_that_the_head_no_longer_has_is_missing_and_a_new_one_is_listed():
    def plan(arm, cells, process):
        if cells is not None:
            return process
        planned = CELLS[:9] if arm is BASE else CELLS[1:]
        measured = {cell.key: process.measurements[cell.key] for cell in planned}
        return replace(process, plan=planned, measurements=measured)

    comparison = session(Recorder(SimulatedProcesses(CELLS, QUIET), plan)).comparison
    assert comparison.exit_code == 5
    assert comparison.only_in_head == (CELLS[9].key,)
    assert [(row.cell, row.reason) for row in comparison.cells if row.verdict is Verdict.MISSING] == [
        (CELLS[0], "the head has no such cell")
    ]


def test_a_budget_that_is_too_small_is_no_verdict_that_could_be_accepted():
    with pytest.raises(GateError, match="need about 5 minutes"):
        session(SimulatedProcesses(CELLS, QUIET, process_s=10), budget_s=60)


def test_a_sentinel_that_moves_does_not_hide_a_cell_that_failed():
    fail = failing({CELLS[3].key})

    def disturb(arm, cells, process):
        factor = 1.2 if arm is HEAD else 1.0
        process = replace(process, sentinel={name: factor * ms for name, ms in process.sentinel.items()})
        return fail(arm, cells, process)

    assert session(Recorder(SimulatedProcesses(CELLS, QUIET), disturb)).comparison.exit_code == 5


def test_a_budget_decides_how_many_rounds_confirm():
    processes = Recorder(SimulatedProcesses(CELLS, QUIET, slower=slowed(0.1, CELLS[0]), process_s=10))
    taken = session(processes, budget_s=600)
    assert len(processes.asked) == 2 + 12 + 2 * 23
    assert taken.seconds <= 600


def test_records_hold_every_sample_as_it_was_taken():
    taken = session(SimulatedProcesses(CELLS, QUIET))
    for record in taken.records:
        line = json.loads(record.to_json_line())
        samples = {key: tuple(cell["latencies_ms"]) for key, cell in line["cells"].items()}
        assert samples == {key: m.latencies_ms for key, m in record.process.measurements.items()}


def test_rates_with_typical_noise():
    """A short version of docs/gate.md's simulation: 40 sessions of 40 cells of each kind."""
    cells, noise = simulated_cells(40), Noise(process=0.007, cell=0.007)
    alarms = caught = 0
    for seed in range(40):
        unchanged = SimulatedProcesses(cells, noise, seed=seed)
        alarms += session(unchanged, settle=False).comparison.exit_code == 1
        slower = SimulatedProcesses(cells, noise, seed=1000 + seed, slower=slowed(0.03, cells[7]))
        caught += session(slower, settle=False).comparison.exit_code == 1
    assert alarms <= 1
    assert caught >= 36


def test_rules_can_be_changed():
    recorder = Recorder(SimulatedProcesses(CELLS, Noise(0.1, 0.1)))
    session(recorder, rules=Rules(screen_rounds=3, confirm_rounds=4))
    assert len(recorder.asked) == 2 + 6 + 8


def test_settings_are_stored_under_the_names_of_older_sessions():
    stored = Path(__file__).parents[1] / "results" / "gate" / "selftest" / "selftest.json"
    assert SessionSettings(settle=False).to_json() == json.loads(stored.read_text())["settings"]
