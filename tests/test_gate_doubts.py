"""What a gate says of a cell that it could not decide: its samples on one axis, and what would decide it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from gate_effort import estimates, normal, share_decided
from gate_simulation import Noise, SimulatedProcesses, simulated_cells

from opbench.compare.effort import SHARE, chance_of_verdict, rounds_to_decide
from opbench.compare.rules import Rules
from opbench.compare.verdicts import Doubt, Verdict
from opbench.gate.process import GateArm
from opbench.gate.session import SessionSettings, run_session
from opbench.report.annotations import workflow_commands
from opbench.report.comparison import comparison_tables, markdown
from opbench.report.junit import junit_xml
from opbench.report.value_text import sparkline, sparklines

RULES = Rules()
CELLS = simulated_cells(3)


@pytest.mark.parametrize(
    ("mean", "spread"), [(0.0, 0.03), (0.003, 0.02), (0.03, 0.03), (-0.05, 0.06)], ids=["none", "small", "slow", "fast"]
)
def test_the_estimate_is_right_within_a_factor_of_2(mean, spread):
    """Half of the median estimate decides fewer than SHARE of the gates, and twice as many rounds more than that."""
    draw = normal(mean, spread, np.random.default_rng(5))
    told = estimates(draw, RULES, 80)
    assert len(told) >= 30
    estimate = int(np.median(told))
    assert share_decided(draw, estimate // 2, RULES) < SHARE < share_decided(draw, 2 * estimate, RULES)


def test_an_estimate_is_more_than_was_measured_and_none_at_the_tolerance():
    random = np.random.default_rng(1)
    rounds = random.normal(0, 0.02, 22)
    assert rounds_to_decide(rounds, 1, RULES) > 22
    centred = (rounds - rounds.mean()) / rounds.std(ddof=1)
    assert rounds_to_decide(0.02 * centred + math.log1p(RULES.tolerance), 1, RULES) is None
    few, many = (rounds_to_decide(0.02 * centred + 0.03, suspects, RULES) for suspects in (1, 50))
    assert 22 < few < many
    assert rounds_to_decide(np.array([0.0, 1e-9, 0.0]), 1, RULES) == RULES.screen_rounds + 2


def test_the_chance_grows_with_rounds_and_is_alike_for_slower_and_faster():
    counts = np.array([10, 20, 40, 80, 160])
    for mean in (0.0, 0.02, 0.05):
        chances = chance_of_verdict(mean, 0.03, counts, 1, RULES)
        assert (np.diff(chances) >= -1e-12).all()
        assert chance_of_verdict(-mean, 0.03, counts, 1, RULES) == pytest.approx(chances)


def comparison(noise=0.02, **settings):
    processes = SimulatedProcesses(CELLS, Noise(noise, noise), seed=3)
    return run_session(GateArm("base"), GateArm("head"), processes, SessionSettings(**settings)).comparison


def test_an_undecided_cell_has_its_samples_and_what_would_decide_it():
    found = comparison()
    doubtful = [row for row in found.cells if row.verdict is Verdict.INCONCLUSIVE]
    assert doubtful
    for row in found.cells:
        assert (row.doubt is not None) == (row in doubtful)
    for doubt in (row.doubt for row in doubtful):
        assert len(doubt.base_ms) == len(doubt.head_ms) == doubt.rounds == 22  # a simulated process has one sample
        assert doubt.spread == pytest.approx(0.028, rel=0.5)
        assert doubt.more_s == pytest.approx(8.0 * doubt.more_rounds)  # two processes of 4 s
    most = max(row.doubt.more_rounds for row in doubtful)
    [note] = [note for note in found.notes if "would decide" in note]
    assert note == (
        f"about {8 * most / 60:.1f} more minutes would decide the {len(doubtful)} inconclusive cells, with a chance of "
        f"80% each: {most} rounds more, --rounds 6+{22 + most - 6}"
    )


def test_cells_that_the_second_stage_left_out_are_estimated_from_the_first():
    found = comparison(settle=False)
    doubts = [row.doubt for row in found.cells if row.doubt]
    assert doubts
    assert {doubt.rounds for doubt in doubts} == {6}
    assert all(doubt.more_rounds is None or doubt.more_rounds > 0 for doubt in doubts)


def test_what_no_number_of_rounds_decides_is_said():
    [note] = [note for note in comparison(noise=0.5).notes if "would not decide" in note]
    assert note.startswith("1000 rounds would not decide the 3 inconclusive cells: ")


def doubtful(more_s):
    found = comparison()
    doubt = Doubt((1.0, 1.0, 1.1, 2.0), (1.1, 1.2), 0.021, 22, None if more_s is None else 30, more_s)
    row = replace(found.cells[0], verdict=Verdict.INCONCLUSIVE, doubt=doubt, base_ms=1.05, head_ms=1.15)
    return replace(found, cells=(row,), verdict=Verdict.INCONCLUSIVE)


def test_both_arms_are_shown_on_one_axis():
    [table] = [table for table in comparison_tables(doubtful(400.0)) if table.name == "inconclusive"]
    base, head = table.rows
    assert (base[1], base[3:]) == ("base", ("1.00 to 1.81", "1.05", "2.1%", "6.7 min"))
    assert (head[0], head[1], head[3:]) == ("", "head", ("", "1.15", "", ""))
    assert (base[2], head[2]) == ("█·▄····················▄", "··█··█··················")
    assert "█·▄····················▄" in markdown(doubtful(400.0))
    [table] = [table for table in comparison_tables(doubtful(None)) if table.name == "inconclusive"]
    assert table.rows[0][-1] == "beyond 1000 rounds"


def test_forms_for_machines_say_what_would_decide_it():
    assert "inconclusive, head / base" in junit_xml(doubtful(400.0))
    assert "about 6.7 more minutes would decide it" in junit_xml(doubtful(400.0))
    assert "a thousand rounds would not decide it" in junit_xml(doubtful(None))
    assert "about 6.7 more minutes would decide it" in workflow_commands(doubtful(400.0))


def test_one_axis_holds_every_sample():
    assert sparklines(([*range(101)], [50]), bins=4)[1:] == (0, 100)
    assert sparklines(([*range(101), 1000], [50]), bins=4)[1:] == (0, 151.5)
    lines, low, high = sparklines(([1.0, 2.0], [3.0]), bins=4)
    assert (low, high) == (1.0, 3.0)
    assert lines == ["█·█·", "···█"]
    assert sparklines(([1.0], [1.0]), bins=3) == (["█··", "█··"], 1.0, 1.0)
    assert sparkline([float(n) for n in range(101)]) == "▆▅▆▅▆▅▆▅▆█"


def test_the_data_keep_what_would_decide(tmp_path):
    from opbench.gate import command

    kept = json.loads(json.dumps(command._doubt(doubtful(400.0).cells[0].doubt)))
    assert kept == {"spread": 0.021, "rounds": 22, "more_rounds": 30, "more_s": 400.0}
