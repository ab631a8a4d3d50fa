"""Arms whose opbench is another revision: what the gate asks of it, and what it says where that cannot be answered."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import make_case, make_cell
from test_fuzz import call
from typer.testing import CliRunner

import opbench
from opbench.cli.app import app
from opbench.errors import NotComparableError
from opbench.gate import command as gate_command
from opbench.gate import serve
from opbench.gate.launcher import Launcher
from opbench.gate.process import GateArm
from opbench.results.measurement import Measurement, Status
from opbench.workload.case import Dtype

CELLS = [make_cell(make_case(dtype=dtype)) for dtype in (Dtype.FP32, Dtype.BF16)]
SERVE = """
import json

PROTOCOLS = {protocols}
PLAN = json.loads({plan!r})
MEASUREMENTS = json.loads({measurements!r})


class Served:
    device = "cpu"

    def plan(self):
        return {{"plan": PLAN, "identity": {{"torch": "2"}}, "environment": {{"new": {{}}}}, "newer": 1}}

    def measure(self, key):
        return {{"measurement": MEASUREMENTS[key], "newer": 1}}


def serve(protocol, options, inject):
    assert protocol in PROTOCOLS
    return Served()
"""


def place_of(folder, modules):
    """A place that holds an opbench of these modules alone, by the names of their files."""
    for name, text in {"__init__": "", "gate/__init__": "", **modules}.items():
        path = folder / "opbench" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def serving(folder, cells=CELLS, protocols=(1,), **extra):
    """A place whose opbench has the entry point and nothing else; `extra` goes into every measurement."""
    measurements = {
        cell.key: json.loads(Measurement(cell, Status.OK, latencies_ms=(1.0,)).to_json_line()) | extra for cell in cells
    }
    plan = json.dumps([cell.to_json() | {"newer": 1} for cell in cells])
    text = SERVE.format(protocols=protocols, plan=plan, measurements=json.dumps(measurements))
    return place_of(folder, {"gate/serve": text})


def one_round(base, head, options=None):
    return Launcher(options or {}).run({"base": GateArm("old", base), "head": GateArm("new", head)}, None, "base")


def test_an_arm_is_driven_by_the_entry_point_alone_and_unknown_fields_are_left_out(tmp_path):
    pair = one_round(*(serving(tmp_path / name, newer={"field": [1]}) for name in ("base", "head")))
    for process in pair.values():
        assert process.failure == ""
        assert process.plan == tuple(CELLS)
        assert [m.latencies_ms for m in process.measurements.values()] == [(1.0,), (1.0,)]
        assert set(process.sentinel) == {"matrix product", "memory copy"}
        assert process.identity == {"torch": "2"}


def test_a_cell_whose_costs_are_counted_otherwise_is_the_same_cell(tmp_path):
    recounted = [make_cell(cell.case, flop_count=2 * cell.flop_count) for cell in CELLS]
    pair = one_round(serving(tmp_path / "base"), serving(tmp_path / "head", recounted))
    assert pair["base"].plan != pair["head"].plan
    for process in pair.values():
        assert list(process.measurements) == [cell.key for cell in CELLS]


def test_another_protocol_is_one_line_that_names_the_revision_and_what_it_speaks(tmp_path):
    with pytest.raises(NotComparableError) as refusal:
        one_round(serving(tmp_path / "base"), serving(tmp_path / "head", protocols=(2, 3)))
    assert str(refusal.value) == (
        "new: its opbench speaks protocol 2, 3 of the gate, this one 0, 1; run the gate from a revision that speaks "
        "the protocols of both arms (PROTOCOLS in opbench/gate/serve.py)"
    )


@pytest.mark.parametrize(
    "modules",
    [
        {},
        {"options": "", "registry": "", "run": "", "runner": "", "environment": ""},
        {"registry": "registered = dict", "options": "from opbench.workload.case import Case"},
    ],
    ids=["nothing", "empty", "from-another-installation"],
)
def test_a_revision_that_is_too_old_is_one_line_that_says_from_which_on_it_works(tmp_path, modules):
    """Though an editable installation may offer this revision's modules in place of what is not there."""
    with pytest.raises(NotComparableError) as refusal:
        one_round(place_of(tmp_path / "base", modules), serving(tmp_path / "head"))
    message = str(refusal.value)
    assert message.startswith("old: its opbench cannot be driven by protocol 0 of the gate (")
    assert message.endswith("); the gate works from revision 7ab3d03 on")
    assert message.isprintable()


def test_an_answer_that_means_nothing_here_is_one_line(tmp_path):
    with pytest.raises(NotComparableError, match=r"^new: this opbench cannot read .*molten.*$"):
        one_round(serving(tmp_path / "base"), serving(tmp_path / "head", latencies_ms="molten"))


NAMES_OF_PROTOCOL_0 = {
    "registry": ["registry.registry"],
    "options": ["sweeps.request"],
    "run": ["sweeps.start"],
    "runner": ["sweeps.runner", "sweeps.request"],
    "environment": ["device.environment"],
}
"""Modules that opbench had before its entry point, and where what they held is now."""


def test_a_revision_from_before_the_entry_point_is_measured_as_before(tmp_path):
    package = Path(opbench.__file__).parent
    left_out = shutil.ignore_patterns("serve.py", "__pycache__")
    shutil.copytree(package, tmp_path / "base" / "opbench", ignore=left_out)
    for name, where in NAMES_OF_PROTOCOL_0.items():
        place = tmp_path / "base" / "opbench" / name
        (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).write_text(
            "".join(f"from opbench.{place} import *\n" for place in where)
        )
    environment = tmp_path / "base" / "opbench" / "environment.py"
    environment.write_text(
        f"{environment.read_text()}from opbench.device.identity import Identity\n"
        "def comparison_identity(environment):\n    return Identity.of(environment).parts\n"
    )
    (tmp_path / "one.yaml").write_text("shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n")
    options = {"shapes": [str(tmp_path / "one.yaml")], "ops": ["conv3x3"], "dtypes": ["fp32"], "device": "cpu",
               "time_budget": 0.001}  # fmt: skip
    pair = one_round(tmp_path / "base", None, options)
    base, head = pair["base"], pair["head"]
    assert (base.failure, head.failure) == ("", "")
    assert base.plan == head.plan
    assert base.identity == head.identity
    assert {m.status for process in pair.values() for m in process.measurements.values()} == {Status.OK}
    assert list(base.measurements) == list(head.measurements) != []
    assert set(base.sentinel) == set(head.sentinel) == {"matrix product", "memory copy"}


def test_the_command_ends_with_one_line_and_the_code_of_not_comparable(tmp_path, monkeypatch):
    places = {"base": serving(tmp_path / "base"), "head": serving(tmp_path / "head", protocols=(2,))}

    @contextmanager
    def installed(sources, work):
        yield places

    monkeypatch.setattr(gate_command, "installed", installed)
    for place in places.values():
        (place / "pyproject.toml").touch()
    done = CliRunner().invoke(
        app,
        ["gate", "--base", str(places["base"]), "--head", str(places["head"]), "--quiet", "--out", str(tmp_path / "o")],
    )
    assert done.exit_code == 4
    assert done.stdout == ""
    assert done.stderr.startswith(f"opbench: {places['head']}: its opbench speaks protocol 2 of the gate")
    assert done.stderr.count("\n") == 1


def test_only_protocols_that_are_offered_are_served():
    assert 1 in serve.PROTOCOLS  # kept for good: gates of other revisions rely on it
    with pytest.raises(ValueError, match=r"protocol must be of \(1,\), got 0"):
        serve.serve(0, {}, {})


def test_what_is_served_is_compared_without_the_card(tmp_path, monkeypatch):
    """A gate from before the UUID was recorded compares name by name, and its own revision gives none."""
    from opbench.device import environment

    card = {"device": "cuda:0", "device_name": "NVIDIA H100", "driver_version": "1", "gpu": {"uuid": "GPU-1"}}
    monkeypatch.setattr(environment, "collect_environment", lambda device: card)
    told = serve.serve(1, {"ops": ["conv3x3"], "shapes": ["smoke"], "device": "cpu"}, {}).plan()
    assert told["identity"].keys() == {"device", "torch", "triton", "cuda", "driver"}
    assert told["environment"]["gpu"]["uuid"] == "GPU-1"


def test_the_threads_of_a_gate_are_those_of_its_processes(tmp_path):
    (tmp_path / "one.yaml").write_text("shapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n")
    options = {"shapes": [str(tmp_path / "one.yaml")], "ops": ["conv3x3"], "dtypes": ["fp32"], "device": "cpu",
               "time_budget": 0.001, "threads": 3}  # fmt: skip
    for process in one_round(None, None, options).values():
        assert (process.failure, process.identity["torch threads"]) == ("", "3")


def test_threads_that_cannot_be_are_refused_before_anything_is_installed():
    code, _, err = call("gate", "--base", "HEAD", "--threads", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert "threads" in err
