"""Warnings of cells: their texts, what an unknown one means, and which disturb a comparison."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_fixtures import make_run, measurement

from opbench.compare.readings import Arm
from opbench.compare.runs import compare_runs
from opbench.compare.verdicts import Verdict
from opbench.results.measurement import Measurement
from opbench.workload.case import Shape
from opbench.workload.cell_warning import (
    CellWarning,
    Effect,
    WarningKind,
    disturb_comparison,
    join_warnings,
    split_warnings,
)

NEWER = CellWarning("GPU moonlight", "by a newer opbench: 3 %")
DOCS = Path(__file__).parents[1] / "docs"
OK = measurement("conv3x3", Shape(1, 28, 28, 64), "fp32", 1.0)


@pytest.mark.parametrize("text", ["CPU load: 20 %", "x: y: z", "x:y", "no detail", "ends: ", ": starts", ""])
def test_every_text_reads_back_as_it_was_written(text):
    assert str(CellWarning.parse(text)) == text


def test_kind_and_detail():
    assert CellWarning.parse("CPU load: of 2: 20 %") == CellWarning(WarningKind.CPU_LOAD, "of 2: 20 %")
    assert CellWarning.parse("no detail") == CellWarning("no detail")


def test_the_column_holds_several():
    warnings = (CellWarning(WarningKind.CPU_HEAT, "twice"), NEWER)
    assert join_warnings(warnings) == "CPU heat: twice; GPU moonlight: by a newer opbench: 3 %"
    assert split_warnings(join_warnings(warnings)) == warnings
    assert split_warnings("") == ()


def test_a_journal_holds_texts_and_unknown_kinds_read(tmp_path):
    written = replace(OK, warnings=(CellWarning(WarningKind.CPU_LOAD, "20 %"), NEWER))
    line = written.to_json_line()
    assert json.loads(line)["warnings"] == ["CPU load: 20 %", "GPU moonlight: by a newer opbench: 3 %"]
    assert Measurement.from_json(json.loads(line)) == written
    [row] = make_run(tmp_path, [written]).rows()
    assert row.warnings == "CPU load: 20 %; GPU moonlight: by a newer opbench: 3 %"


@pytest.mark.parametrize("wrong", [[3], [None], [["CPU load", "20 %"]], ["CPU load: a\nb"]])
def test_a_warning_in_a_journal_must_be_a_printable_text(wrong):
    with pytest.raises((TypeError, ValueError)):
        Measurement.from_json({**json.loads(OK.to_json_line()), "warnings": wrong})


DISTURBING = {
    "CPU load", "CPU heat", "CPU clock", "GPU shared", "GPU clocks limited", "GPU SM clock", "GPU memory clock",
    "resumed elsewhere",
}  # fmt: skip


def test_every_kind_is_documented():
    table = (DOCS / "reliability.md").read_text().partition("## Warnings")[2].partition("\n\nLoad")[0]
    kinds = [kind for line in table.splitlines() for kind in re.findall("`(.*?)`", "|".join(line.split("|")[:2]))]
    assert sorted(kinds) == sorted(WarningKind)
    comparing = (DOCS / "compare.md").read_text()
    assert [kind for kind in WarningKind if kind.effect is not Effect.NONE and f"`{kind}`" not in comparing] == []


def test_what_disturbs_and_what_only_describes():
    assert {kind for kind in WarningKind if kind.effect is Effect.DISTURBED} == DISTURBING
    assert NEWER.effect is Effect.NONE
    for kind in DISTURBING:
        warning = (CellWarning.parse(f"{kind}: as a journal has it"),)
        assert disturb_comparison(warning, ())
        assert disturb_comparison((), warning)
        assert disturb_comparison(warning, warning)
    harmless = [CellWarning(kind, "x") for kind in ("CPU governor", "GPU MIG", "GPU power cap", "host time", "y")]
    assert not disturb_comparison(harmless, ())


def test_a_power_limit_on_both_sides_is_fair():
    limited, lower = (CellWarning("GPU at power limit", f"its limit of {watts} W") for watts in (700, 400))
    load = CellWarning("CPU load", "20 %")
    assert not disturb_comparison((limited,), (limited, NEWER))
    assert disturb_comparison((limited,), ())
    assert disturb_comparison((), (limited,))
    assert disturb_comparison((limited,), (lower,))
    assert disturb_comparison((limited, load), (limited,))


def test_a_power_limit_decides_what_a_comparison_calls_slower(tmp_path):
    sides = {"base": 1.0, "head": 2.0}
    limited = (CellWarning("GPU at power limit", "its limit of 700 W"),)

    def verdict(**warnings):
        runs = [
            make_run(
                tmp_path / f"{name}-{len(warnings)}",
                [replace(measurement("conv3x3", Shape(1, 28, 28, 64), "fp32", ms), warnings=warnings.get(name, ()))],
            )
            for name, ms in sides.items()
        ]
        return compare_runs(*map(Arm.of_run, runs)).verdict

    assert verdict() is Verdict.SLOWER
    assert verdict(head=limited) is Verdict.INCONCLUSIVE
    assert verdict(base=limited, head=limited) is Verdict.SLOWER
