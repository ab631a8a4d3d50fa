"""Causes of steps, in series whose truth is known."""

from datetime import timedelta

import numpy as np
import pytest
from history_folder import BEGIN, NOISE, factor, planned_cells

from opbench.compare.causes import Cause, shifts
from opbench.compare.change_points import change_points
from opbench.compare.run_figures import RunEntry
from opbench.compare.trends import Point, RunSeries, Trend, logarithms
from opbench.device.identity import Identity

RUNS, CELLS = 40, 20
CODE_AT, MACHINE_AT = RUNS // 2, 3 * RUNS // 4  # of history_folder.factor
MOVED = 2  # cells of dcnv4 under triton


def series_of(factor=factor, cells=CELLS, revision=lambda night: f"{night}", source=lambda night: "same", set_up=None):
    """A series of made-up medians with 1 % of noise; where `factor` says so, a cell is slower."""
    runs = [RunEntry(f"{night}", f"{night}", BEGIN + timedelta(days=night), revision(night)) for night in range(RUNS)]
    noise = np.random.default_rng(1)
    trends = []
    for cell in planned_cells(cells):
        medians = [factor(cell, night, RUNS) * noise.normal(1, NOISE) for night in range(RUNS)]
        points = [
            Point(run, median, median, median, source=source(night))
            for night, (run, median) in enumerate(zip(runs, medians, strict=True))
        ]
        [starts] = change_points([logarithms(points)])
        trends.append(Trend(cell, tuple(points), tuple(starts)))
    set_ups = tuple(Identity(set_up(night)) for night in range(RUNS)) if set_up else ()
    return RunSeries(Identity({}), tuple(runs), tuple(trends), set_ups)


def told(series):
    """What each shift says: cause, why, place of the first step's run, and number of steps."""
    return [(one.cause, one.why, series.runs.index(one.steps[0][1].run), len(one.steps)) for one in shifts(series)]


def only(operator, provider, at=CODE_AT):
    """A factor: 8 % slower from a run on."""
    return lambda cell, night, _: (
        1.08 if (cell.case.operator, cell.provider) == (operator, provider) and night >= at else 1.0
    )


def test_one_provider_that_moves_alone_is_the_code_and_all_cells_are_the_machine():
    alone = (Cause.CODE, "moved alone", CODE_AT, 1)
    assert told(series_of()) == [*[alone] * MOVED, (Cause.MACHINE, "20 of 20 cells", MACHINE_AT, CELLS)]


@pytest.mark.parametrize(
    ("options", "cause", "why"),
    [
        ({"revision": lambda night: "same"}, Cause.UNKNOWN, ""),
        ({"revision": lambda night: ""}, Cause.UNKNOWN, ""),
        ({"revision": lambda night: "new" if night >= CODE_AT + 1 else "old"}, Cause.CODE, "moved alone"),
        ({"revision": lambda night: "new" if night >= CODE_AT + 2 else "old"}, Cause.UNKNOWN, ""),
        ({"source": lambda night: "new" if night >= CODE_AT else "old"}, Cause.CODE, "source changed"),
        ({"source": lambda night: "new" if night >= CODE_AT else ""}, Cause.CODE, "moved alone"),
        (
            {"revision": lambda night: "same", "source": lambda night: "new" if night >= CODE_AT + 5 else "old"},
            Cause.UNKNOWN,
            "",
        ),
    ],
)
def test_the_code_is_the_cause_where_revision_or_source_changed_beside_the_step(options, cause, why):
    found = told(series_of(only("dcnv4", "triton"), **options))
    assert found == [(cause, why, CODE_AT, 1)] * MOVED


def test_two_providers_that_move_are_neither_one_alone_nor_the_machine():
    both = lambda cell, *rest: only("dcnv4", "triton")(cell, *rest) * only("dcnv3", "torch")(cell, *rest)  # noqa: E731
    found = told(series_of(both))
    assert {(cause, why) for cause, why, *_ in found} == {(Cause.UNKNOWN, "")}
    assert len(found) == 2 * MOVED


def test_cells_of_one_provider_cannot_tell_the_machine_from_the_code():
    series = series_of(lambda cell, night, _: 1 + 0.1 * (night >= CODE_AT))
    one = [trend for trend in series.trends if (trend.cell.case.operator, trend.cell.provider) == ("dcnv4", "triton")]
    assert {cause for cause, *_ in told(RunSeries(series.identity, series.runs, tuple(one)))} == {Cause.UNKNOWN}


def test_three_of_four_cells_are_the_machine_and_fewer_are_not():
    for share, expected in ((0.75, Cause.MACHINE), (0.7, Cause.UNKNOWN)):
        moved = {cell.key for cell in planned_cells(CELLS)[: round(share * CELLS)]}
        found = told(series_of(lambda cell, night, _, moved=moved: 1 + 0.1 * (cell.key in moved and night >= CODE_AT)))
        assert {cause for cause, *_ in found} == {expected}
        assert sum(count for *_, count in found) == len(moved)


def test_the_machine_shows_three_runs_after_it_changed():
    found = told(series_of(lambda cell, night, _: 1 + 0.2 * (night >= RUNS - 3)))
    assert found == [(Cause.MACHINE, "20 of 20 cells", RUNS - 3, CELLS)]


@pytest.mark.parametrize(
    ("part", "cause"), [("torch", Cause.ENVIRONMENT), ("driver", Cause.ENVIRONMENT), ("host", Cause.MACHINE)]
)
def test_versions_and_hosts_that_change_with_the_steps(part, cause):
    series = series_of(set_up=lambda night: {part: "new" if night >= MACHINE_AT else "old", "torch triton": "same"})
    assert told(series)[MOVED:] == [(cause, f"{part} old → new", MACHINE_AT, CELLS)]


def test_a_host_that_only_some_runs_tell_has_not_changed():
    series = series_of(set_up=lambda night: {"host": "new"} if night >= MACHINE_AT else {})
    assert series.set_up_changes == ()
    assert told(series)[-1][1] == "20 of 20 cells"


def test_versions_that_change_elsewhere_explain_no_step():
    series = series_of(only("dcnv4", "triton"), set_up=lambda night: {"torch": "2.2" if night >= 5 else "2.1"})
    assert [str(change) for change in series.set_up_changes] == ["torch 2.1 → 2.2"]
    assert {why for _, why, *_ in told(series)} == {"moved alone"}
