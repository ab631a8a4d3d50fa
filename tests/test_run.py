"""Sweeps through the Python interface: options, plans, resuming, and the worked example of the README."""

import re
from pathlib import Path

import pytest
from builders import doubling

import opbench
from opbench.compare.open_arm import open_arm
from opbench.compare.runs import compare_runs
from opbench.compare.verdicts import Verdict
from opbench.errors import DeviceLostError, OpbenchError, ResultsError, UnknownNameError, UsageError
from opbench.registry import registry
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.sweeps.conduct import Conduct, Isolation
from opbench.sweeps.native_dtypes import DefaultDtypes
from opbench.sweeps.plan import applicability
from opbench.sweeps.request import make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run, plan, start_run
from opbench.workload.case import Dtype, Level
from opbench.workload.operator import Setting

README = Path(__file__).parents[1] / "README.md"
TINY = "description: two tiny shapes\nshapes:\n" + "".join(
    f"  - {{batch: 1, height: {side}, width: {side}, channels: 32}}\n" for side in (4, 6)
)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


class Recorder:
    """Progress that remembers, and can interrupt."""

    def __init__(self, interrupt_at=None):
        self.numbers, self.ends, self.interrupt_at = [], [], interrupt_at

    def started(self, cell, number, total):
        if number == self.interrupt_at:
            raise KeyboardInterrupt
        self.numbers.append((number, total))

    def stage(self, name):
        pass

    def note(self, text):
        pass

    def ended(self, measurement):
        self.ends.append(measurement)


def break_device(monkeypatch, provider):
    """From the cell of a provider on no kernel runs, as after an illegal access."""
    from opbench.sweeps.runner import CellRunner

    whole = CellRunner.run

    def run(runner, cell, on_stage):
        measurement = whole(runner, cell, on_stage)
        runner.device_broken |= cell.provider == provider
        return measurement

    monkeypatch.setattr(CellRunner, "run", run)


def test_without_isolation_a_broken_device_stops_the_sweep_and_a_resumed_one_goes_on(tiny, tmp_path, monkeypatch):
    operator = doubling()
    request = {"shapes": [tiny], "dtypes": ["fp32"], "device": "cpu", "time_budget": 0.01, "out": tmp_path / "run",
               "operators": [operator], "providers": ["double=raising", "double=right"], "plots": False}  # fmt: skip
    with monkeypatch.context() as patched:
        break_device(patched, "raising")
        with pytest.raises(
            DeviceLostError, match=r"^cpu no longer answers .* --resume .* or take --isolation process$"
        ):
            opbench.sweep(**request)
    run = Run.open(tmp_path / "run")
    assert [(m.cell.provider, m.status) for m in run.measurements()] == [("raising", Status.ERROR)]
    opbench.sweep(**request, resume=True)
    assert [m.status for m in run.measurements()].count(Status.OK) == 2
    assert len(list(run.measurements())) == 4


def test_a_device_that_the_last_cell_broke_fails_no_sweep(tiny, tmp_path, monkeypatch):
    break_device(monkeypatch, "right")
    shapes = tmp_path / "one.yaml"
    shapes.write_text("".join(Path(tiny).read_text().splitlines(keepends=True)[:3]))
    run = opbench.sweep(shapes=[str(shapes)], operators=[doubling()], dtypes=["fp32"], device="cpu", time_budget=0.01,
                        out=tmp_path / "run", plots=False)  # fmt: skip
    assert [m.status for m in run.measurements()] == [Status.OK]


def test_a_sweep_of_own_operators_writes_every_file(tiny, tmp_path, one_plot):
    operator = doubling()
    run = opbench.sweep(
        shapes=[tiny], operators=[operator], providers=["double=all"], dtypes=["fp32"], time_budget=0.01,
        out=tmp_path / "run",
    )  # fmt: skip
    frame = opbench.load_results(run.path)
    assert len(frame) == 2 * len(operator.providers)
    assert frame.groupby("provider").status.first().to_dict() == {
        "right": "ok", "wrong": "wrong", "unwritten": "wrong", "raising": "error", "out_of_memory": "out_of_memory",
        "nan_where_not_checked": "ok",
    }  # fmt: skip
    for name in ("run.json", "journal.jsonl", "measurements.csv", "tables", "plots"):
        assert (run.path / name).exists()
    assert list((run.path / "tables").glob("*.md"))
    assert list((run.path / "plots").glob("*.png"))


def test_an_interrupted_sweep_keeps_what_is_finished_and_resumes(tiny, tmp_path):
    operator = doubling()
    known = {operator.name: operator}
    options = {"shapes": [tiny], "dtypes": ["fp32", "fp16"], "time_budget": 0.01}
    run = start_run(make_request(options, known), known, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_cells(run, known, Recorder(interrupt_at=3), Conduct(Isolation.NONE))
    kept = (run.path / "journal.jsonl").read_bytes()
    assert [row.status for row in run.rows()] == ["ok", "ok", "not_run", "not_run"]

    again = Recorder()
    resumed = continue_run(run.path, {}, known)
    run_cells(resumed, known, again, Conduct(Isolation.NONE))
    assert again.numbers == [(3, 4), (4, 4)]
    assert [row.status for row in resumed.rows()] == ["ok"] * 4
    assert (run.path / "journal.jsonl").read_bytes().startswith(kept)
    assert resumed.run_id == run.run_id


def test_resuming_with_other_options_names_both(tiny, tmp_path):
    known = {"double": doubling()}
    run = start_run(make_request({"shapes": [tiny], "dtypes": ["fp32"]}, known), known, tmp_path / "run")
    continue_run(run.path, {"dtypes": ["fp32"], "shapes": [tiny]}, known)
    with pytest.raises(ResultsError, match=r"another dtypes: \['fp32'\] there, \['fp16'\] now"):
        continue_run(run.path, {"dtypes": ["fp16"]}, known)
    with pytest.raises(ResultsError, match="another seed: 0 there, 1 now"):
        continue_run(run.path, {"seed": 1}, known)


def test_resuming_on_another_device_is_refused(tiny, tmp_path):
    known = {"double": doubling()}
    run = start_run(make_request({"shapes": [tiny]}, known), known, tmp_path / "run")
    text = (run.path / "run.json").read_text()
    name = run.device_name
    (run.path / "run.json").write_text(text.replace(f'"device_name": "{name}"', '"device_name": "Abacus"'))
    with pytest.raises(ResultsError, match=r"another set-up: .*Abacus"):
        continue_run(run.path, {}, known)


def test_resume_needs_a_place(tiny):
    with pytest.raises(UsageError, match="--resume needs --out"):
        opbench.sweep(shapes=[tiny], resume=True)


def planned(**options):
    known = registry.registered()
    return plan(make_request({"device": "cpu", **options}, known), known)


def test_the_default_plan_on_a_cpu_is_every_operator_over_the_papers_shapes_at_batch_1(monkeypatch):
    chosen = DefaultDtypes((Dtype.FP32, Dtype.BF16))
    monkeypatch.setattr("opbench.sweeps.request.default_dtypes", lambda device_type: chosen)
    cells = planned()
    assert len(cells) == 7 * 5 * 2
    assert {cell.case.dtype for cell in cells} == {"fp32", "bf16"}
    assert {(cell.case.level, cell.case.direction, cell.case.shape_list) for cell in cells} == {
        ("module", "fwd", "standard_batch1")
    }
    assert {cell.case.operator: cell.provider for cell in cells} == {
        "conv3x3": "torch", "attention": "torch", "flash_attention_2": "sdpa_flash", "window_attention": "timm",
        "dcnv3": "torch", "dcnv4_lightweight": "torch", "dcnv4": "torch",
    }  # fmt: skip
    assert len({cell.key for cell in cells}) == len(cells)


def test_named_providers_settings_and_lists_multiply():
    cells = planned(
        ops=["dcnv4"], providers=["dcnv4=triton", "dcnv4=torch"], settings=["dcnv4.offset_std_px=2"],
        shapes=["standard", "high_resolution"], level=["module", "core"], direction=["fwd", "bwd"], dtypes=["fp16"],
    )  # fmt: skip
    assert len(cells) == 2 * 10 * 2 * 2
    assert {cell.provider for cell in cells} == {"triton", "torch"}
    assert all(cell.case.float_setting("offset_std_px") == 2 for cell in cells)
    forward, backward = (c for c in cells[: 2 * 20 + 1 : 20] if c.case.level == "module")
    assert backward.memory_bytes > forward.memory_bytes


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"ops": ["conv9x9"]}, UnknownNameError, "unknown operator 'conv9x9'; known: conv3x3"),
        ({"providers": ["dcnv4"]}, UsageError, "--providers must be op=provider, got 'dcnv4'"),
        (
            {"providers": ["dcnv4=cuda"]},
            UnknownNameError,
            "unknown provider of dcnv4 'cuda'; known: triton, triton_fused",
        ),
        ({"ops": ["conv3x3"], "providers": ["dcnv4=torch"]}, UsageError, "names dcnv4, which is not swept"),
        ({"settings": ["dcnv4=2"]}, UsageError, "--set must be op.param=value, got 'dcnv4=2'"),
        ({"settings": ["dcnv4.colour=2"]}, UnknownNameError, "unknown setting of dcnv4 'colour'"),
        ({"settings": ["dcn9.colour=2"]}, UnknownNameError, "unknown operator in --set 'dcn9'"),
        ({"dtypes": ["fp8"]}, UsageError, "--dtypes must be of fp32, tf32, fp16, bf16, got 'fp8'"),
        ({"dtypes": []}, UsageError, "--dtypes must name at least one"),
        ({"level": ["kernel"]}, UsageError, "--level must be of module, core"),
        ({"direction": ["sideways"]}, UsageError, "--direction must be of fwd, bwd, fwd_bwd"),
        ({"device": "tpu"}, UsageError, "device"),
        ({"timer": "cuda-event"}, UsageError, "needs a CUDA device"),
        ({"time_budget": 0}, UsageError, "--time-budget must be a positive number, got 0"),
        ({"time_budget": float("nan")}, UsageError, "--time-budget must be a positive number"),
        ({"memory_limit": -1.0}, UsageError, "--memory-limit must be a positive number, got -1"),
        ({"seed": -1}, UsageError, "--seed must be an integer from 0 to 4611686018427387904, got -1"),
        ({"seed": 10**20}, UsageError, "--seed must be an integer from 0 to"),
        ({"shapes": ["nowhere"]}, OpbenchError, "nowhere"),
    ],
)
def test_what_cannot_be_followed_is_named(options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        planned(**options)


def test_the_readmes_operator_runs(tmp_path, monkeypatch, one_plot):
    # The README's worked example: a user's own operator, swept.
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    [example] = [block for block in blocks if "opbench.Operator(" in block]
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    exec(compile(example, "README.md", "exec"), scope)  # noqa: S102 - our own README
    frame = scope["frame"]
    assert set(frame.status) == {"ok"}
    assert frame.latency_ms.gt(0).all()
    assert frame.operator.nunique() == 1
    for row in frame.query("dtype == 'fp32'").itertuples():  # forward: input, output and the 7x7 weight, each once
        pixels = row.batch * row.height * row.width
        assert row.bytes_moved == 4 * row.channels * (2 * pixels + 49)


def test_a_setting_of_words_is_an_axis_of_every_reader(tiny, tmp_path):
    style = Setting("plain", ("plain", "fancy", "odd"), "", added_later=True)
    options = {
        "operators": [doubling(settings={"style": style}), doubling(name="other", settings={})], "device": "cpu",
        "shapes": [tiny], "dtypes": ["fp32"], "level": ["core"], "providers": ["double=right", "other=right"],
        "settings": ["double.style=plain,fancy"], "time_budget": 0.001, "ceilings_budget": 0, "isolation": "none",
        "plots": False,
    }  # fmt: skip
    run = opbench.sweep(**options, out=tmp_path / "run", progress=Recorder())
    again = Recorder()
    opbench.sweep(**options, out=tmp_path / "run", resume=True, progress=again)
    assert again.ends == []
    frame = opbench.load_results(run.path)
    assert list(frame.status) == ["ok"] * 6
    assert list(frame.settings) == [""] * 2 + ["style=fancy"] * 2 + [""] * 2
    assert "style=fancy" in (run.path / "measurements.csv").read_text()
    for name in ("double [default]", "double [style=fancy]"):
        assert name in (run.path / "tables" / "tiny-core-fwd.csv").read_text()
    arms = [open_arm(run.path), open_arm(run.path)]
    assert {cell.verdict for cell in compare_runs(*arms).cells} <= {Verdict.SAME, Verdict.INCONCLUSIVE}
    odd = {**options, "settings": ["double.style=odd"]}
    arms[1] = open_arm(opbench.sweep(**odd, out=tmp_path / "odd", progress=Recorder()).path)
    found = compare_runs(*arms)
    assert "double.style: none in the base, odd in the head" in {cell.reason for cell in found.cells}
    assert found.exit_code == 4
    with pytest.raises(ResultsError, match="cannot resume with another settings"):
        opbench.sweep(**odd, out=run.path, resume=True, progress=again)


def test_an_operator_of_one_level_is_timed_once_and_says_why():
    known = {"double": doubling(levels=(Level.MODULE,))}
    cells = plan(make_request({"shapes": ["smoke"], "dtypes": ["fp32"], "level": ["module", "core"]}, known), known)
    answers = {
        cell.case.level: applicability(known["double"], known["double"].providers[0], cell.case, "cpu")
        for cell in cells
    }
    reason = "double has no such level: all of it is timed as module"
    assert answers == {Level.MODULE: None, Level.CORE: (Status.NOT_APPLICABLE, reason)}


def test_reading_a_run_gives_back_the_plan(tiny, tmp_path):
    known = {"double": doubling()}
    run = start_run(make_request({"shapes": [tiny]}, known), known, tmp_path / "run")
    assert Run.open(run.path).plan() == run.plan()
    assert {row.status for row in run.rows()} == {Status.NOT_RUN}
