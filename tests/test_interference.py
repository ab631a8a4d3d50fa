"""What disturbs a cell is said in its row and in the report, and its figures stay."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from builders import doubling, make_case, make_cell
from test_environment import HANDLE, nvml  # noqa: F401 - a fixture
from test_results import CELLS, COMMAND, ENVIRONMENT, ok

from opbench.device import snapshots as conditions
from opbench.device.interference import interference, others_share
from opbench.device.snapshots import cpu_conditions
from opbench.gate.process import GateArm
from opbench.gate.process import _environment as gate_environment
from opbench.report import print_tables, run_tables
from opbench.results.frames import load_results
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.sweeps import runner
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.workload.cell_warning import split_warnings

CPU = {"cores": 4, "clock_s": 100.0, "busy_s": 50.0, "own_busy_s": 7.0, "governor": "performance",
       "cpu_clock_mhz": 3000,
       "thermal_throttle_count": 2, "load_average_1min": 0.1, "cpu_temperature_c": 50.0}  # fmt: skip
GPU = {"sm_clock_mhz": 1755, "memory_clock_mhz": 2619, "power_w": 300.0, "temperature_c": 60, "power_limit_w": 700.0,
       "default_power_limit_w": 700.0, "mig_mode": False, "clock_event_reasons": ["gpu_idle"],
       "other_gpu_processes": []}  # fmt: skip
OTHER = {"pid": 77, "name": "train.py", "used_memory_bytes": None}


def told(before, **after):
    return tuple(map(str, interference(before, {**before, **after})))


def test_a_quiet_machine_gives_no_warning():
    assert told(CPU, clock_s=101.0, busy_s=51.3, own_busy_s=8.0) == ()
    assert told(GPU, sm_clock_mhz=1740, power_w=650.0, temperature_c=70) == ()
    assert interference({}, {}) == ()


@pytest.mark.parametrize(
    ("before", "after", "warning"),
    [
        (CPU, {"clock_s": 101.0, "busy_s": 52.0, "own_busy_s": 8.0},
         "CPU load: other processes used 25% of all cores during warm-up and samples"),
        (CPU, {"governor": "powersave"}, "CPU governor: powersave, so the clock follows the load"),
        (CPU, {"thermal_throttle_count": 5}, "CPU heat: the CPU slowed itself 3 times during the samples"),
        (CPU, {"cpu_clock_mhz": 2000}, "CPU clock: moved from 3000 to 2000 MHz during the samples"),
        (GPU, {"sm_clock_mhz": 1200}, "GPU SM clock: moved from 1755 to 1200 MHz during the samples"),
        (GPU, {"memory_clock_mhz": 810}, "GPU memory clock: moved from 2619 to 810 MHz during the samples"),
        (GPU, {"clock_event_reasons": ["sw_power_cap", "sw_thermal_slowdown"], "temperature_c": 87},
         "GPU clocks limited: by sw_power_cap, sw_thermal_slowdown (60 C before, 87 C after)"),
        (GPU, {"clock_event_reasons": ["sw_power_cap", "gpu_idle"]},
         "GPU at power limit: it lowers its clocks to stay within its limit of 700 W"),
        (GPU, {"clock_event_reasons": ["sw_power_cap"], "power_limit_w": None},
         "GPU at power limit: it lowers its clocks to stay within its power limit"),
        (GPU, {"clock_event_reasons": ["hw_power_brake_slowdown"]},
         "GPU clocks limited: by hw_power_brake_slowdown (60 C before, 60 C after)"),
        (GPU, {"other_gpu_processes": [OTHER]}, "GPU shared: other processes on it: 77 train.py"),
        (GPU, {"mig_mode": True}, "GPU MIG: the device is a slice of a GPU that others may use"),
        (GPU, {"power_limit_w": 400.0}, "GPU power cap: 400 W, below the card's own 700 W"),
    ],
)  # fmt: skip
def test_each_disturbance_is_one_warning(before, after, warning):
    assert told(before, **after) == (warning,)


@pytest.mark.parametrize(
    ("before", "inside", "outside"),
    [
        # 4 cores for one second: 0.4 s are a tenth of them. Own work (0.5 s) is no load.
        (CPU, {"clock_s": 101.0, "own_busy_s": 7.5, "busy_s": 50.899}, {"busy_s": 50.901}),
        # In 0.1 s a tenth is 0.04 s, but what is below 0.05 s is no evidence.
        (CPU, {"clock_s": 100.1, "own_busy_s": 7.1, "busy_s": 50.149}, {"busy_s": 50.151}),
        (CPU, {"cpu_clock_mhz": 3149}, {"cpu_clock_mhz": 3151}),
        (CPU, {"cpu_clock_mhz": 2851}, {"cpu_clock_mhz": 2849}),
        (CPU, {"thermal_throttle_count": 2}, {"thermal_throttle_count": 3}),
        ({"sm_clock_mhz": 1000}, {"sm_clock_mhz": 1050}, {"sm_clock_mhz": 1051}),  # 5 % itself is no move
        (GPU, {"sm_clock_mhz": 1668}, {"sm_clock_mhz": 1667}),  # 5 % of 1755 are 87.75
        (GPU, {"sm_clock_mhz": 1842}, {"sm_clock_mhz": 1843}),
        (GPU, {"memory_clock_mhz": 2489}, {"memory_clock_mhz": 2488}),  # of 2619: 130.95
        (GPU, {"power_limit_w": 700.0}, {"power_limit_w": 699.9}),
    ],
)  # fmt: skip
def test_each_limit_lies_where_it_is_said_to(before, inside, outside):
    assert told(before, **inside) == ()
    assert len(told(before, **{**inside, **outside})) == 1


@pytest.mark.parametrize(
    ("busy_s", "share"), [(0.25, 0.25), (0.05, 0.0), (0.051, 0.051), (0.02, 0.0), (-0.5, 0.0)]
)  # fmt: skip
def test_the_share_of_others_is_known_from_the_counters_alone_and_0_where_it_is_too_little(busy_s, share):
    begin = {"cores": 1, "clock_s": 0.0, "busy_s": 0.0, "own_busy_s": 0.0}
    assert others_share(begin, {**begin, "clock_s": 1.0, "busy_s": busy_s}) == share


def test_a_tenth_of_all_cores_is_no_load_yet():
    begin = {"cores": 1, "clock_s": 0.0, "busy_s": 0.0, "own_busy_s": 0.0}
    assert told(begin, clock_s=1.0, busy_s=0.1) == ()
    assert len(told(begin, clock_s=1.0, busy_s=0.101)) == 1


@pytest.mark.parametrize("known", [{}, {"thermal_throttle_count": 5}])
def test_a_count_that_was_read_on_one_side_alone_is_no_rise(known):
    for sides in (({}, known), (known, {})):
        assert interference(*sides) == ()


def test_a_clock_that_was_read_on_one_side_alone_has_not_moved():
    assert interference({"cpu_clock_mhz": 3000}, {}) == interference({}, {"cpu_clock_mhz": 3000}) == ()
    assert interference({"cpu_clock_mhz": 0}, {"cpu_clock_mhz": 3000}) == ()


def test_a_power_limit_without_the_cards_own_is_no_cap():
    assert interference({}, {"power_limit_w": 400.0}) == interference({}, {"default_power_limit_w": 400.0}) == ()


@pytest.mark.parametrize("missing", ["clock_s", "busy_s", "own_busy_s", "cores"])
def test_load_needs_every_counter_on_both_sides(missing):
    after = {**CPU, "clock_s": 101.0, "busy_s": 52.0, "own_busy_s": 8.0}
    without = [{name: value for name, value in side.items() if name != missing} for side in (CPU, after)]
    assert interference(without[0], after) == interference(CPU, without[1]) == ()


@pytest.mark.parametrize("reason", ["gpu_idle", "applications_clocks_setting", "sync_boost", "display_clock_setting"])
def test_what_somebody_set_is_no_limit_of_the_clocks(reason):
    assert told(GPU, clock_event_reasons=[reason]) == ()
    assert len(told(GPU, clock_event_reasons=[reason, "sw_power_cap"])) == 1


def test_the_steps_of_the_systems_counters_are_no_load():
    assert told(CPU, clock_s=100.1, busy_s=50.14, own_busy_s=7.1) == ()


def test_what_was_there_before_and_left_is_said_too():
    before = {**GPU, "other_gpu_processes": [OTHER], "clock_event_reasons": ["hw_slowdown"]}
    kinds = [warning.kind for warning in interference(before, GPU)]
    assert kinds == ["GPU shared", "GPU clocks limited"]


def test_a_gpu_of_fakes_gives_warnings_through_nvml(nvml):  # noqa: F811
    before = conditions.conditions("cuda:0")
    nvml.answers["nvmlDeviceGetClockInfo", HANDLE, 1] = 900
    nvml.answers["nvmlDeviceGetMigMode", HANDLE] = [1, 1]
    nvml.answers["nvmlDeviceGetEnforcedPowerLimit", HANDLE] = 350000
    warnings = [str(w) for w in interference(before, conditions.conditions("cuda:0")) if w.kind.startswith("GPU")]
    assert warnings == [
        f"GPU shared: other processes on it: {2**22 + 5} unknown, {2**22 + 7} python3",
        "GPU clocks limited: by hw_thermal_slowdown, sw_power_cap, unknown_0x1000 (41 C before, 41 C after)",
        "GPU SM clock: moved from 1755 to 900 MHz during the samples",
        "GPU MIG: the device is a slice of a GPU that others may use",
        "GPU power cap: 350 W, below the card's own 700 W",
    ]


@pytest.mark.parametrize(("namespace", "others"), [("pid:[4026531836]", 1), ("pid:[4026532999]", 0)])
def test_in_a_container_one_unknown_process_is_this_one(nvml, monkeypatch, namespace, others):  # noqa: F811
    # There NVML gives the host's pids, of which none is ours.
    nvml.forget("nvmlDeviceGetGraphicsRunningProcesses")
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = [SimpleNamespace(pid=4242424, usedGpuMemory=1)]
    monkeypatch.setattr("opbench.device.nvml.os.readlink", lambda path: namespace)
    assert len(conditions.gpu_conditions("cuda:0")["other_gpu_processes"]) == others


@pytest.fixture
def gate(monkeypatch):
    """This process is an arm of a gate, and the other arm runs: gives the other arm's pid."""
    arm = "input()"
    code = (
        "import subprocess, sys\n"
        f"arm = subprocess.Popen([sys.executable, '-c', {arm!r}], stdin=subprocess.PIPE)\n"
        "print(arm.pid, flush=True); input(); arm.communicate(b'\\n')"
    )
    # A process of its own: the one that runs the tests may have other children.
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        monkeypatch.setenv(conditions.GATE_VARIABLE, str(process.pid))
        yield int(process.stdout.readline())
        process.communicate(b"\n")


def test_the_other_arm_of_a_gate_is_no_other_process(nvml, gate, monkeypatch):  # noqa: F811
    nvml.forget("nvmlDeviceGetGraphicsRunningProcesses")
    running = [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in (os.getpid(), gate, 2**22 + 1)]
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = running
    assert [p["pid"] for p in conditions.gpu_conditions("cuda:0")["other_gpu_processes"]] == [2**22 + 1]
    monkeypatch.delenv(conditions.GATE_VARIABLE)
    assert [p["pid"] for p in conditions.gpu_conditions("cuda:0")["other_gpu_processes"]] == [gate, 2**22 + 1]


@pytest.mark.parametrize(("unknown", "others"), [(1, 0), (2, 0), (3, 3)])
def test_in_a_container_as_many_unknown_processes_as_arms_are_ours(nvml, gate, monkeypatch, unknown, others):  # noqa: F811
    nvml.forget("nvmlDeviceGetGraphicsRunningProcesses")
    running = [SimpleNamespace(pid=4242424 + number, usedGpuMemory=1) for number in range(unknown)]
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = running
    monkeypatch.setattr("opbench.device.nvml.os.readlink", lambda path: "pid:[4026532999]")
    assert len(conditions.gpu_conditions("cuda:0")["other_gpu_processes"]) == others


@pytest.mark.parametrize("pid", ["", "x", "-1", "0", "99999999"])
def test_a_gate_that_is_not_there_has_no_arms(nvml, monkeypatch, pid):  # noqa: F811
    monkeypatch.setenv(conditions.GATE_VARIABLE, pid)
    assert len(conditions.gpu_conditions("cuda:0")["other_gpu_processes"]) == 2


def test_the_gates_processes_are_told_whose_they_are():
    assert gate_environment(GateArm("head"))[conditions.GATE_VARIABLE] == str(os.getpid())


def test_the_sweep_itself_is_no_other_process(nvml):  # noqa: F811
    import psutil

    parent = psutil.Process().ppid()
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = [SimpleNamespace(pid=parent, usedGpuMemory=1)]
    nvml.forget("nvmlDeviceGetGraphicsRunningProcesses")
    assert conditions.gpu_conditions("cuda:0")["other_gpu_processes"] == []


def test_a_busy_machine_is_said_in_the_row_and_the_figures_stay():
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cpu_conditions()["cores"])]
    try:
        options = RunOptions("cpu", "wall-clock", "warm", time_budget_s=1.0, memory_limit_gib=None, seed=0)
        operator = doubling()
        cell_runner = CellRunner(options, {"double": operator}.__getitem__)
        measurement = cell_runner.run(make_cell(make_case()))
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert measurement.status is Status.OK
    assert measurement.latencies_ms
    assert any(str(warning).startswith("CPU load: other processes used") for warning in measurement.warnings)


def test_warnings_are_a_column_and_a_note(tmp_path, monkeypatch):
    from dataclasses import replace

    from rich.console import Console

    run = Run.create(tmp_path / "run", command=COMMAND, environment=ENVIRONMENT, plan=CELLS)
    with run.append() as journal:
        journal.write(replace(ok(CELLS[0]), warnings=split_warnings("CPU load: 50%; GPU MIG: a slice")))
        journal.write(replace(ok(CELLS[1]), warnings=split_warnings("CPU load: 70%")))
    frame = load_results(run.path)
    assert frame.warnings.tolist() == ["CPU load: 50%; GPU MIG: a slice", "CPU load: 70%", "", ""]
    assert frame.latency_ms[:2].notna().all()
    console = Console(record=True, width=200)
    print_tables(run_tables(run), "terminal", console)
    text = console.export_text()
    assert "Warning, CPU load: 50% (2 cells; see the column `warnings`)." in text
    assert "Warning, GPU MIG: a slice." in text


def test_conditions_are_kept_around_the_samples_of_every_cell(monkeypatch):
    snapshots = iter([CPU, {**CPU, "cpu_clock_mhz": 1000}])
    monkeypatch.setattr(runner, "busy_counters", lambda: {"clock_s": 99.0})
    monkeypatch.setattr(runner, "conditions", lambda device: next(snapshots))
    options = RunOptions("cpu", "wall-clock", "warm", time_budget_s=0.01, memory_limit_gib=None, seed=0)
    measurement = CellRunner(options, {"double": doubling()}.__getitem__).run(make_cell(make_case()))
    assert measurement.conditions["before"]["cpu_temperature_c"] == 50.0
    assert measurement.conditions["after"]["cpu_clock_mhz"] == 1000
    assert [*map(str, measurement.warnings)] == ["CPU clock: moved from 3000 to 1000 MHz during the samples"]
