"""The parts of `opbench reproduce`, and that it goes on where it stopped."""

import json
from dataclasses import replace

import pytest
from test_fuzz import call

from opbench.registry import registry
from opbench.results.journal import JOURNAL
from opbench.results.run import Run
from opbench.sweeps import reproduction
from opbench.sweeps.as_paper import AS_PAPER
from opbench.sweeps.conduct import make_conduct
from opbench.sweeps.plan import plan_cells
from opbench.sweeps.progress import NullProgress
from opbench.sweeps.reproduction import Part, chosen_parts, parts_for, run_part
from opbench.sweeps.request import make_request
from opbench.workload.shapes import load_shape_lists

TINY = "description: tiny\nshapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n"


def test_the_parts_on_a_gpu_are_what_the_paper_has_and_more(monkeypatch):
    monkeypatch.setattr("opbench.sweeps.request.resolve_device", lambda name: name)
    operators = registry.registered()
    cells, ways = set(), set()
    for part in parts_for("cuda"):
        request = make_request({**part.options, "device": "cuda:0"}, operators)
        ways.add((request.timer, request.cache))
        for cell in plan_cells(request, load_shape_lists(request.shapes), operators):
            case = cell.case
            entry = (request.timer, request.cache, case.operator, case.level, case.direction, case.shape, case.dtype,
                     case.settings, cell.provider)  # fmt: skip
            assert entry not in cells  # measured once
            cells.add(entry)
    assert ways == {("cuda-event", "cold"), ("cuda-event", "warm"), ("cuda-graph", "cold"), ("launch-sync", "warm")}
    # As published 7 operators, 15 shapes, 2 dtypes; 7 forward and 3 backward, 10 shapes, 2 levels, 4 dtypes, 3 timers;
    # beside the published 3 operators with 3 other settings, and 3 providers of convolutions.
    assert len(cells) == (7 + 3 * 3 + 3) * 15 * 2 + (7 + 3) * 10 * 2 * 4 * 3
    assert {name for _, _, name, _, direction, *_ in cells if direction == "bwd"} == set(reproduction.DEFORMABLE)
    assert {name for _, _, name, *_ in cells} == set(registry.PAPER_ORDER)


def test_the_first_part_is_the_papers():
    first, second = parts_for("cuda")[:2]
    assert (first.name, second.name) == ("as-paper", "module-event-cold")
    assert first.options == {**AS_PAPER, "ops": list(registry.PAPER_ORDER), "direction": ["fwd"]}
    assert (second.options["level"], second.options["direction"]) == (["module"], ["fwd"])
    assert "as-paper" not in [part.name for part in parts_for("cpu")]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_an_operator_that_is_not_the_papers_is_in_no_part(device, monkeypatch):
    monkeypatch.setattr("opbench.sweeps.request.resolve_device", lambda name: name)
    operators = {**registry.registered(), "mine": replace(registry.find("conv3x3"), name="mine")}
    for part in chosen_parts(None, device, {}):
        assert set(make_request(part.options, operators).ops) <= set(registry.PAPER_ORDER), part.name


def test_a_part_whose_providers_must_be_alone_is_isolated_whatever_the_others_are(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(reproduction, "start_run", lambda *_: None)
    monkeypatch.setattr(reproduction, "finish", lambda *_, **__: None)

    def watched(run, operators, progress, conduct):
        seen[part.name] = str(conduct.isolation)
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduction, "run_cells", watched)
    monkeypatch.setattr(reproduction, "make_request", lambda *_: None)
    for part in parts_for("cuda"):
        with pytest.raises(KeyboardInterrupt):
            run_part(part, tmp_path, {}, NullProgress(), make_conduct({"isolation": "none"}))
    assert {name for name, isolation in seen.items() if isolation == "process"} == {"as-paper-convolutions"}


def test_what_is_given_for_every_part_stands_in_place_of_its_own():
    parts = chosen_parts(["as-paper"], "cuda:0", {"shapes": ["smoke"], "time_budget": 0.1})
    assert parts == [
        Part("as-paper", {**parts_for("cuda")[0].options, "shapes": ["smoke"], "time_budget": 0.1, "device": "cuda:0"})
    ]


def test_it_runs_and_goes_on(tmp_path, monkeypatch):
    """A tiny shape on the CPU, stopped in the middle and taken up again."""
    monkeypatch.setattr(reproduction, "DTYPES", {"cpu": ("fp32", "bf16")})
    monkeypatch.setattr(reproduction, "PASSES", {"core": {"ops": ["conv3x3"], "level": ["core"], "direction": ["fwd"]}})
    shapes = tmp_path / "tiny.yaml"
    shapes.write_text(TINY)
    out = tmp_path / "out"
    command = ["reproduce", "--out", str(out), "--device", "cpu", "--shapes", str(shapes), "--time-budget", "0.001"]
    assert call(*command, "--dry-run") == (0, "core-wall: 2 cells\n", "")
    assert not out.exists()
    code, said, _ = call(*command)
    assert (code, said) == (0, "core-wall: 2 cells\ncore-wall: 2 ok\n")
    journal = out / "core-wall" / JOURNAL
    first, second = journal.read_text().splitlines()
    journal.write_text(first + "\n" + second[: len(second) // 2])  # as a kill leaves it
    assert call(*command)[0] == 0
    assert journal.read_text().splitlines()[0] == first
    assert [row.status for row in Run.open(out / "core-wall").rows()] == ["ok", "ok"]
    assert (out / "core-wall" / "measurements.csv").exists()
    notes = json.loads((out / "reproduce.json").read_text())
    assert [(note["part"], note["cells"]) for note in notes] == [("core-wall", {"ok": 2})] * 2


def test_it_tries_again_what_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "DTYPES", {"cpu": ("fp32", "bf16")})
    monkeypatch.setattr(reproduction, "PASSES", {"core": {"ops": ["conv3x3"], "level": ["core"], "direction": ["fwd"]}})
    shapes = tmp_path / "tiny.yaml"
    shapes.write_text(TINY)
    journal = tmp_path / "out" / "core-wall" / JOURNAL
    command = [
        "reproduce",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--shapes",
        str(shapes),
        "--time-budget",
        "0.001",
    ]
    code, _, err = call(*command, "--retry", "ok")
    assert (code, err.startswith("opbench: --retry must be of ")) == (2, True)
    assert call(*command, "--retry", "error")[0] == 0  # nothing to try again: all of it is new
    first, second = journal.read_text().splitlines()
    failed = json.loads(first) | {"status": "error", "reason": "a device that was lost", "latencies_ms": []}
    journal.write_text(f"{json.dumps(failed)}\n{second}\n")
    assert call(*command)[0] == 1
    assert call(*command, "--retry", "timeout")[0] == 1
    assert len(journal.read_text().splitlines()) == 2
    assert call(*command, "--retry", "timeout,error")[0] == 0
    assert len(journal.read_text().splitlines()) == 3


def test_a_failed_cell_is_in_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "run_part", lambda *_, **__: {"ok": 3, "wrong": 1})
    command = ["reproduce", "--out", str(tmp_path), "--device", "cpu"]
    assert call(*command, "--parts", "core-wall")[0] == 1
    monkeypatch.setattr(reproduction, "run_part", lambda *_, **__: {"ok": 3, "not_applicable": 1, "out_of_memory": 1})
    assert call(*command, "--parts", "core-wall")[0] == 0


def test_an_unknown_part_is_refused(tmp_path):
    code, _, err = call("reproduce", "--out", str(tmp_path / "out"), "--device", "cpu", "--parts", "all")
    assert code == 2
    assert "unknown part 'all'; known: module-wall, core-wall, backward-wall" in err
    assert not (tmp_path / "out").exists()


def test_interrupted_it_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduction, "run_part", stop)
    code, _, err = call("reproduce", "--out", str(tmp_path), "--device", "cpu", "--parts", "core-wall")
    assert (code, err) == (130, "interrupted; run the same command again to go on\n")
