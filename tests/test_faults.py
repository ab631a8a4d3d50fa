"""Sweeps of an operator that misbehaves on purpose: every cell has a row, and the healthy ones do not notice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fault_operators import EXPECTED, HEALTHY, drawn_fault, healthy

from opbench.results.frames import load_results
from opbench.results.run import Run

TESTS = Path(__file__).parent
ENTRY_POINT = "[opbench.operators]\nfaulty = fault_operators:OPERATOR\n"


@pytest.fixture
def place(tmp_path):
    """A folder with an installed package of faults beside it, and its own temporary folder."""
    package = tmp_path / "site" / "opbench_faults-0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: opbench-faults\nVersion: 0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINT)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def environment(place, seed=""):
    path = (place / "site", TESTS, os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "TMPDIR": str(place / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(place / "cache"),
        "OPBENCH_FAULT_SEED": seed,
        "MPLCONFIGDIR": str(place / "mpl"),
    }


def write_shapes(place, count):
    rows = (f"  - {{batch: 1, height: {4 + n // 20}, width: {4 + n % 20}, channels: 8}}\n" for n in range(count))
    (place / "many.yaml").write_text("shapes:\n" + "".join(rows))


def sweep(place, out, *arguments, seed=""):
    command = [
        sys.executable, "-m", "opbench", "sweep", "--shapes", "many.yaml", "--ops", "faulty", "--device", "cpu",
        "--time-budget", "0.02", "--memory-limit", "0.5", "--no-plots", "--out", out, *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, cwd=place, env=environment(place, seed), timeout=900)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert nothing_is_left(place)
    return done


def nothing_is_left(place):
    """No temporary file, no core file, and no process that was started for this folder's sweeps."""
    leftovers = [*(place / "tmp").iterdir(), *place.rglob("core*"), *place.rglob("*.part")]
    return not leftovers and not processes_of(place)


def processes_of(place):
    mark = str(place / "tmp")
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and mark in tmp_of(process)]


def tmp_of(process):
    try:
        return process.environ().get("TMPDIR", "")
    except (psutil.Error, OSError):
        return ""


def rows_by_cell(path):
    return {(row.shape, row.dtype, row.provider): row for row in Run.open(path).rows()}


def test_each_fault_is_one_row_with_its_reason(place):
    write_shapes(place, 1)
    done = sweep(place, "run", "--dtypes", "fp32", "--providers", "faulty=all", "--cell-timeout", "6")
    assert done.returncode == 1
    rows = {row.provider: row for row in Run.open(place / "run").rows()}
    assert len(rows) == len(EXPECTED) + 3
    for fault, (status, reason) in EXPECTED.items():
        row = rows[fault.__name__]
        assert row.status == status, (fault.__name__, row.reason)
        assert reason is None or re.search(reason, row.reason), (fault.__name__, row.reason)
        assert len(row.reason) < 1000
        assert row.reason.isprintable()
    assert rows[HEALTHY].status == rows["healthy_again"].status == "ok"
    changed = rows["change_flags"].warnings
    for name in ("torch.set_num_threads", "torch.set_default_dtype", "torch.use_deterministic_algorithms",
                 "torch.backends.cudnn", "os.environ", "the working folder", "signal handlers"):  # fmt: skip
        assert name in changed
    assert "global state" not in rows["healthy_again"].warnings
    assert (
        b"global state"
        in subprocess.run(
            [sys.executable, "-m", "opbench", "report", "run"], cwd=place, env=environment(place), capture_output=True
        ).stdout
    )


def check_lottery(place, shapes, seeds):
    """Sweeps with a random fault per cell against one without any."""
    write_shapes(place, shapes)
    dtypes = ("--dtypes", "fp32,fp16,bf16", "--cell-timeout", "5")
    assert sweep(place, "well", *dtypes).returncode == 0
    well = rows_by_cell(place / "well")
    assert len(well) == 3 * shapes
    for seed in seeds:
        assert sweep(place, f"ill-{seed}", *dtypes, seed=seed).returncode == 1
        ill = rows_by_cell(place / f"ill-{seed}")
        assert ill.keys() == well.keys()
        keys = {(str(c.case.shape), str(c.case.dtype), c.provider): c.case.key
                for c in Run.open(place / "well").plan()}  # fmt: skip
        unharmed = 0
        for cell, row in ill.items():
            fault, _ = drawn_fault(keys[cell], seed)
            assert row.status == (EXPECTED[fault][0] if fault is not healthy else "ok"), (fault, row.reason)
            if fault is healthy:
                for column in ("max_rel_error", "timer", "cache", "kernel_source_hash", "flop_count", "reason"):
                    assert getattr(row, column) == getattr(well[cell], column)
                assert "global state" not in row.warnings
                assert row.latency_ms > 0  # how much, a busy machine decides
                unharmed += 1
        assert unharmed > shapes
        assert load_results(place / f"ill-{seed}").status.notna().all()


def test_random_faults_leave_the_other_cells_alone(place):
    check_lottery(place, shapes=4, seeds=["1"])


@pytest.mark.slow
def test_hundreds_of_random_faults_over_several_seeds(place):
    check_lottery(place, shapes=60, seeds=["2", "3", "4"])
