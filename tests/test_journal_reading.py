"""A run's journal is parsed once, however many tables are made of it, and again when it has grown."""

import pytest
from report_fixtures import make_run, measurement
from typer.testing import CliRunner

from opbench.cli.app import app
from opbench.cli.sweep_end import conclude, print_results
from opbench.report.plots.kinds import KINDS
from opbench.results.journal import JournalReader
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.sweeps.sweep import finish
from opbench.workload.case import Shape

SHAPES = [Shape(1, side, side, 16) for side in (8, 16, 32)]
CELLS = [
    measurement(operator, shape, dtype, 1.0 + number)
    for number, shape in enumerate(SHAPES)
    for operator in ("conv3x3", "dcnv4")
    for dtype in ("fp32", "fp16")
]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", CELLS)


@pytest.fixture
def parsed(monkeypatch):
    """Keys of the cells whose lines were parsed, one entry each time."""
    keys = []
    parse = Measurement.from_json.__func__

    def noted(cls, data):
        found = parse(cls, data)
        keys.append(found.cell.key)
        return found

    monkeypatch.setattr(Measurement, "from_json", classmethod(noted))
    return keys


def test_the_end_of_a_sweep_parses_each_line_once(run, parsed, capsys):
    finish(run, plots=False)
    print_results(run, no_color=True)
    with pytest.raises(SystemExit, match="0"):
        conclude(run, interrupted=False, refused=None, quiet=False)
    assert f"{len(CELLS)} cells: {len(CELLS)} ok" in capsys.readouterr().out
    assert sorted(parsed) == sorted(line.cell.key for line in CELLS)


@pytest.mark.parametrize("options", [[], ["--samples"], ["--write"], ["--paper"], ["--format", "html"]], ids=str)
def test_a_report_parses_each_line_once(run, parsed, options, monkeypatch):
    drawn = {name: KINDS[name] for name in ("flops", "heatmap")}  # two figures, for the time that drawing takes
    monkeypatch.setattr("opbench.report.plots.files.KINDS", drawn)
    done = CliRunner().invoke(app, ["report", str(run.path), *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert sorted(parsed) == sorted(line.cell.key for line in CELLS)


def test_a_line_that_another_process_adds_is_seen(run):
    before = run.rows()
    line = measurement("dcnv3", SHAPES[0], "fp32", 1.0)
    with Run.open(run.path).append() as journal:
        journal.write(line)
    assert run.measurements() == (*CELLS, line)
    assert Run.open(run.path).measurements() == run.measurements()
    assert run.rows() == before  # the cell is not in the plan


def test_a_line_that_is_added_while_the_journal_is_read_is_seen_by_the_next_call(run):
    path, lines = run.path / "journal.jsonl", list(CELLS)

    class Overtaken(JournalReader):
        """Another process writes a line just after the end of the file was seen."""

        def _parse(self, file):
            found = super()._parse(file)
            lines.append(measurement("dcnv3", SHAPES[0], "fp32", float(len(lines))))
            with path.open("a") as journal:
                journal.write(lines[-1].to_json_line() + "\n")
            return found

    reader = Overtaken(path)
    for count in (len(CELLS), len(CELLS) + 1, len(CELLS) + 2):
        assert reader.read().measurements == tuple(lines[:count])


def test_what_a_run_writes_itself_is_seen(run):
    retried = measurement("conv3x3", SHAPES[0], "fp32", Status.ERROR)
    assert run.rows()[0].status == "ok"
    with run.append() as journal:
        journal.write(retried)
        assert run.rows()[0].status == "error"
    assert run.finished()[retried.cell.key] == retried
    assert [row.status for row in run.rows()].count("ok") == len(CELLS) - 1


def test_rows_are_kept_while_nothing_changes(run, parsed):
    assert all(one is other for one, other in zip(run.rows(), run.rows(), strict=True))
    run.rows().clear()
    assert len(run.rows()) == len(CELLS)
