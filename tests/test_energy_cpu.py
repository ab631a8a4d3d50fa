"""The energy of cells by RAPL's files, which the tests write; no real one has been read."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from builders import doubling, make_cell
from fake_timer import FakeTimer
from test_environment import GPU, HANDLE, nvml  # noqa: F401 - a fixture

import opbench
from opbench.device import energy_counters
from opbench.device.energy_counters import NoEnergyError, energy_counter
from opbench.errors import OpbenchError
from opbench.results.frames import load_results
from opbench.sweeps import energy
from opbench.sweeps.isolation.executor import cell_limit_s
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner

IDLE_W, BUSY_W = 70.0, 400.0


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """The folder of a machine with two packages; a function sets a domain's counter, in uJ."""
    monkeypatch.setattr(energy_counters, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy_counters, "busy_counters", dict)

    def write(domain, microjoules, name=None):
        folder = tmp_path / f"intel-rapl:{domain}"
        folder.mkdir(exist_ok=True)
        if name:
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text("262143328850\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")

    (tmp_path / "intel-rapl").mkdir()  # the control type itself
    (tmp_path / "intel-rapl-mmio:0").mkdir()
    for domain, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys")):
        write(domain, 262_143_000_000, name)
    return write


def test_packages_and_their_memory_are_added_and_begin_anew_at_the_end_of_their_range(powercap):
    with energy_counter("cpu") as counter:
        assert (counter.source, counter.read_mj()) == ("rapl: package-0 + dram + package-1", 0)
        powercap("0", 262_143_000_000 + 200_000)
        assert counter.read_mj() == 200
        powercap("0", 71_150)  # 328,850 uJ to the end
        powercap("0:0", 10**9)
        powercap("2", 10**9)
        assert counter.read_mj() == 400
        powercap("0:1", 262_143_100_000)
        powercap("1", 1)
        assert counter.read_mj() == pytest.approx(400 + 100 + 328.851)


def test_a_machine_without_rapl_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(energy_counters, "POWERCAP", tmp_path / "none")
    with pytest.raises(NoEnergyError, match=r"no RAPL counter in .*: a virtual machine"), energy_counter("cpu"):
        pass


def test_a_counter_that_only_root_may_read_is_named(powercap, tmp_path, monkeypatch):
    whole = energy_counters.Path.read_text

    def refuse(file, **options):
        if file.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return whole(file, **options)

    monkeypatch.setattr(energy_counters.Path, "read_text", refuse)
    with pytest.raises(NoEnergyError, match="intel-rapl:0/energy_uj may be read by root alone"), energy_counter("cpu"):
        pass


def test_a_file_that_cannot_be_read_is_named(powercap, tmp_path):
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").unlink()
    with pytest.raises(NoEnergyError, match="max_energy_range_uj: No such file or directory"), energy_counter("cpu"):
        pass


BUSY = "other processes used 12% of all cores, and the counter is of all"


@pytest.mark.parametrize(
    ("others_s", "outcome"), [(0.3, nullcontext()), (0.5, pytest.raises(NoEnergyError, match=BUSY))]
)
def test_other_programs_on_the_cpu_leave_no_figure(powercap, monkeypatch, others_s, outcome):
    counters = iter([
        {"cores": 4, "clock_s": 0.0, "busy_s": 0.0, "own_busy_s": 0.0},
        {"cores": 4, "clock_s": 1.0, "busy_s": 1.0 + others_s, "own_busy_s": 1.0},
    ])  # fmt: skip
    monkeypatch.setattr(energy_counters, "busy_counters", lambda: next(counters))
    with outcome, energy_counter("cpu"):
        pass


OPTIONS = RunOptions("cpu", "wall-clock", "warm", 0.01, None, 0, energy=True)


def test_a_cell_that_is_wrong_has_no_energy_and_a_sweep_without_the_option_measures_none(monkeypatch):
    monkeypatch.setattr(energy, "energy_counter", lambda device: pytest.fail("nobody asked"))
    for options, provider in ((OPTIONS, "wrong"), (replace(OPTIONS, energy=False), "right")):
        stages = []
        runner = CellRunner(options, lambda name: doubling(), FakeTimer([1.0]))
        assert runner.run(make_cell(provider=provider), stages.append).energy is None
        assert "energy" not in stages


class PoweredCpu:
    """A clock that goes on by 20 ms whenever it is read, and the files of a CPU that works all the while."""

    def __init__(self, write):
        self.now, self.used_uj, self.write = 0.0, 0, write

    def spend(self, seconds, watts):
        self.now += seconds
        self.used_uj += round(1e6 * seconds * watts)
        self.write("0", self.used_uj)

    def perf_counter(self):
        self.spend(0.02, BUSY_W)
        return self.now

    def sleep(self, seconds):
        self.spend(seconds, IDLE_W)


def sweep(folder, **options):
    shapes = folder.parent / "one.yaml"
    shapes.write_text("description: one\nshapes:\n  - {batch: 1, height: 4, width: 4, channels: 8}\n")
    return opbench.sweep(
        operators=[doubling()], shapes=[str(shapes)], dtypes=["fp32"], device="cpu", time_budget=0.001, level="core",
        out=folder, plots=False, ceilings_budget=0, **options,
    )  # fmt: skip


def test_a_sweep_on_a_cpu_keeps_the_energy_and_a_resumed_one_reads_it(powercap, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "time", PoweredCpu(powercap))
    run = sweep(tmp_path / "run", energy=True)
    assert run.command["energy"] is True
    frame = load_results(run.path)
    assert frame.status.eq("ok").all()
    assert frame.energy_source.eq("rapl: package-0 + dram + package-1").all()
    assert frame.energy_mj.gt(0).all()
    assert frame.average_power_w.tolist() == pytest.approx([BUSY_W] * len(frame))
    assert (
        frame.energy_mj.sub(frame.average_power_w * frame.energy_window_s * 1e3 / frame.energy_launches).abs().max()
        < 1e-6
    )
    assert frame.attrs["units"]["energy_mj"] == "mJ"
    before = (run.path / "journal.jsonl").read_bytes()
    assert sweep(run.path, energy=True, resume=True).rows() == run.rows()
    assert (run.path / "journal.jsonl").read_bytes() == before
    with pytest.raises(OpbenchError, match="energy: True there, False now"):
        sweep(run.path, energy=False, resume=True)
    assert (run.path / "tables" / "energy-one-core-fwd.md").exists()


def test_the_limit_of_a_cell_has_room_for_its_energy():
    assert cell_limit_s(1.0, energy=True) - cell_limit_s(1.0) == 30
    longest_s = energy.SETTLE_S + energy.IDLE_S + energy.WARM_UP_S + energy.LONGEST_WINDOW_S + energy.PATIENCE_S
    assert longest_s < 30
