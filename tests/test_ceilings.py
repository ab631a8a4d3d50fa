"""Ceilings: what they allow a row by hand-worked figures, how they are measured and kept, and a row that beats them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ceiling_fixtures import ceilings, example_ceilings, probe
from report_fixtures import make_run, measurement

from opbench import ceiling_probes
from opbench.case import Dtype, Shape
from opbench.ceiling_cache import ceilings_for, ceilings_path, keep, known_ceilings
from opbench.ceiling_probes import DeviceFacts, cpu_caches, device_facts, measure_ceilings, probe_specs
from opbench.ceilings import Ceilings, Probe, limit_columns, limit_of, read_ceilings
from opbench.environment import collect_environment, comparison_identity
from opbench.errors import ResultsError
from opbench.report import ceiling_table, render, run_tables
from opbench.timing.fake import FakeTimer

ROW = {"dtype": "fp32", "flop_count": 10**9, "bytes_moved": 10**6, "timer": "cuda-event", "cache": "cold",
       "latency_ms": 1.0}  # fmt: skip


def limits(**changes):
    return limit_columns(example_ceilings(), {**ROW, **changes})


@pytest.mark.parametrize(
    ("changes", "limit_ms", "bound_by"),
    [
        # 1e9 FLOP at 10 TFLOP/s are 0.1 ms; 1e6 bytes at 1 TB/s 0.001 ms; a launch takes 0.01 ms.
        ({}, 0.1, "compute"),
        ({"dtype": "fp16"}, 0.025, "compute"),
        ({"dtype": "tf32"}, 0.05, "compute"),
        ({"dtype": "bf16"}, 0.1, "compute"),  # not measured: what fp32 allows
        ({"flop_count": 10**6, "bytes_moved": 10**9}, 1.0, "memory"),
        ({"flop_count": 10**6, "bytes_moved": 3 * 10**6}, 0.01, "launch"),
        ({"flop_count": 10**6, "bytes_moved": 3 * 10**6, "timer": "cuda-graph", "cache": "warm"}, 0.002, "launch"),
        # 4e6 bytes just fit in the cache: 0.001 ms at 4 TB/s, under the wall clock's 0.001 ms times nothing
        ({"flop_count": 1, "bytes_moved": 4 * 10**6, "timer": "cuda-graph", "cache": "warm"}, 0.002, "launch"),
        ({"flop_count": 1, "bytes_moved": 4 * 10**6 + 4, "timer": "cuda-event", "cache": "warm"}, 0.005, "launch"),
        ({"flop_count": None, "bytes_moved": None}, 0.01, "launch"),
    ],
)
def test_the_limit_is_the_largest_of_what_the_ceilings_ask(changes, limit_ms, bound_by):
    columns = limits(**changes)
    assert columns["limit_ms"] == pytest.approx(limit_ms)
    assert columns["bound_by"] == bound_by
    assert columns["limit_fraction"] == pytest.approx(limit_ms / 1.0)
    assert columns["suspicious"] is None


def test_the_cache_takes_the_memorys_place_only_where_it_is_warm_and_large_enough():
    device = ceilings(probe("memory", "copy", 1000.0), probe("cache", "read", 4000.0), cache_bytes=4000)
    given = {"dtype": "fp32", "flop_count": 1, "timer": "cuda-event"}
    assert limit_of(device, bytes_moved=4000, cache="warm", **given).bound_by == "cache"
    assert limit_of(device, bytes_moved=4000, cache="warm", **given).limit_ms == pytest.approx(1e-6)
    assert limit_of(device, bytes_moved=4004, cache="warm", **given).bound_by == "memory"
    assert limit_of(device, bytes_moved=4000, cache="cold", **given).limit_ms == pytest.approx(4e-6)
    # Where the cache's size is unknown nothing is said about bytes at all.
    unknown = dataclasses.replace(device, cache_bytes=None)
    assert limit_of(unknown, bytes_moved=10**9, cache="warm", **given) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latency_ms": 0.05}, "implies 20 TFLOP/s in fp32, but 10 is the most measured here"),
        ({"latency_ms": 0.5, "flop_count": 1, "bytes_moved": 10**9},
         "implies 2e+03 GB/s from memory, but 1e+03 is the most measured here"),
        ({"latency_ms": 0.0005, "flop_count": 1, "bytes_moved": 1},
         "0.0005 ms, but the shortest launch measured here takes 0.01 ms"),
    ],
)  # fmt: skip
def test_a_row_that_beats_its_limit_is_suspicious_with_the_figures(changes, words):
    assert limits(**changes)["suspicious"] == words


def test_a_row_at_its_limit_is_not_suspicious():
    assert limits(latency_ms=0.1)["suspicious"] is None
    assert limits(latency_ms=0.1 / 1.049)["suspicious"] is None
    assert limits(latency_ms=0.1 / 1.051)["suspicious"] is not None


def test_without_ceilings_or_without_a_value_there_is_no_fraction():
    assert set(limit_columns(None, ROW).values()) == {None}
    columns = limits(latency_ms=None)
    assert columns["limit_ms"] == pytest.approx(0.1)
    assert columns["limit_fraction"] is None
    assert set(limit_columns(ceilings(), ROW).values()) == {None}


def test_every_table_of_a_run_marks_a_suspicious_row(tmp_path):
    shape = Shape(1, 8, 8, 16)
    run = make_run(
        tmp_path,
        [
            measurement("conv3x3", shape, "fp32", 0.05, flop_count=10**9),
            measurement("dcnv4", shape, "fp32", 2.0, flop_count=10**9),
        ],
    )
    assert {row["limit_ms"] for row in run.rows()} == {None}
    run.write_ceilings(example_ceilings())
    first, second = run.rows()
    assert first["suspicious"].startswith("implies 20 TFLOP/s")
    assert first["limit_fraction"] == pytest.approx(2.0)
    assert second["suspicious"] is None
    assert second["limit_fraction"] == pytest.approx(0.05)
    [table] = run_tables(run)
    for form in ("terminal", "markdown", "csv", "latex"):
        assert "!0.0500" in render(table, form)
    for form in ("terminal", "markdown", "latex"):  # csv has no notes; measurements.csv has the column
        text = " ".join(render(table, form).split())
        assert "implies 20 TFLOP/s in fp32, but 10 is the most measured here" in text
    assert "implies 20 TFLOP/s" in run.write_measurements_csv().read_text()


def test_ceilings_survive_the_disk_and_damage_is_named(tmp_path):
    path = tmp_path / "ceilings.json"
    assert read_ceilings(path) is None
    path.write_text(json.dumps(example_ceilings().to_json()))
    assert read_ceilings(path) == example_ceilings()
    path.write_text('{"reason": "no such luck"}')
    assert read_ceilings(path) is None
    for damaged in ("{", "[]", '{"probes": [{"kind": "magic"}]}', '{"probes": 1}', "null"):
        path.write_text(damaged)
        with pytest.raises(ResultsError, match=r"ceilings\.json: damaged"):
            read_ceilings(path)
    good = example_ceilings().to_json()
    for change in ({"cache_bytes": "4"}, {"device_name": "a\nb"}, {"identity": {"device": 3}}, {"conditions": []}):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ResultsError, match=r"ceilings\.json: damaged"):
            read_ceilings(path)
    path.write_text(json.dumps(good | {"probes": [good["probes"][0] | {"amount": "many"}]}))
    with pytest.raises(ResultsError, match="not a probe"):
        read_ceilings(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ResultsError, match="must be a regular file"):
        read_ceilings(path)
    path.rmdir()
    negative = dataclasses.replace(probe("compute", "fp32", 1.0), latency_ms_min=-1.0)
    path.write_text(json.dumps(ceilings(negative).to_json()))
    with pytest.raises(ResultsError, match="not a probe"):
        read_ceilings(path)


SMALL = DeviceFacts("cpu", l2_bytes=2**16, cache_bytes=2**18, free_bytes=2**30)


def test_probes_of_a_cuda_device_cover_dtypes_timers_and_both_cache_states():
    """Without a GPU: what would be measured, driven by the fake timer on CPU tensors. The figures mean nothing."""
    facts = DeviceFacts("cuda", l2_bytes=2**20, cache_bytes=2**20, free_bytes=2**24)
    specs = list(probe_specs(facts))
    names = {(spec.kind, spec.name) for spec in specs}
    assert {name for kind, name in names if kind == "compute"} == {"fp32", "tf32", "fp16", "bf16"}
    assert {name for kind, name in names if kind == "memory"} == {"copy", "read", "write"}
    assert {name for kind, name in names if kind == "cache"} == {"copy", "read", "write"}
    launches = {"cuda-event/cold", "cuda-event/warm", "cuda-graph/cold", "cuda-graph/warm"}
    assert {name for kind, name in names if kind == "launch"} == launches
    assert {spec.timer for spec in specs if spec.kind == "cache"} == {"cuda-graph"}
    for spec in specs:
        if spec.kind == "memory":  # four buffers of it fit in what is free
            assert spec.size == "4 MiB"


def test_figures_follow_from_the_timers_samples(monkeypatch):
    monkeypatch.setattr("opbench.ceiling_probes.MATRIX_SIZES", {"cuda": (8,)})
    facts = DeviceFacts("cuda", l2_bytes=2**16, cache_bytes=2**16, free_bytes=2**20)
    asked = []

    def timer_of(name, cache):
        asked.append((name, cache))
        return FakeTimer([2.0, 4.0, 8.0] * 100)

    found = measure_ceilings("cuda:0", facts=facts, timer_of=timer_of, tensors_on="cpu")
    assert {p.latency_ms_min for p in found.probes} == {2.0}
    assert {p.latency_ms for p in found.probes} == {4.0}
    assert found.compute_tflops("fp16") == pytest.approx(2 * 8**3 / 2e-3 / 1e12)
    assert found.bandwidth_gbps("cache") == pytest.approx(2**15 / 2e-3 / 1e9)
    assert found.launch_ms("cuda-graph", "cold") == 2.0
    assert found.launch_ms("wall-clock", "warm") is None
    assert ("cuda-event", "cold") in asked


def test_this_cpu_is_measured(monkeypatch):
    monkeypatch.setattr("opbench.ceiling_probes.MATRIX_SIZES", {"cpu": (64, 128)})
    monkeypatch.setattr("opbench.ceiling_probes.LEAST_MEMORY_BYTES", {"cpu": 2**24})
    rule = dataclasses.replace(ceiling_probes.RULE, time_budget_s=0.02)
    monkeypatch.setattr("opbench.ceiling_probes.RULE", rule)
    monkeypatch.setattr("opbench.ceiling_probes.WARM_UP_S", 0.01)
    heard = []
    found = measure_ceilings("cpu", facts=SMALL, on_probe=lambda *probe: heard.append(probe))
    assert {p.name for p in found.of("compute")} == {"fp32", "fp16", "bf16"}  # tf32 is a mode of CUDA devices
    assert len(heard) == len(found.probes)
    assert heard[1] == ("compute fp32 128x128x128", 2, len(heard))
    assert all(p.best > 0 and p.samples >= 5 for p in found.probes)
    # A product of 128 is 8 times one of 64; a launch is far below either.
    assert found.launch_ms("wall-clock", "warm") < max(p.latency_ms_min for p in found.of("compute"))
    assert found.identity == comparison_identity(collect_environment("cpu"))
    assert Ceilings.from_json(json.loads(json.dumps(found.to_json()))) == found
    text = render(ceiling_table(found), "terminal")
    assert "compute" in text
    assert "L2 cache: 0.0625 MiB; a warm cache keeps up to 0.25 MiB" in text


def test_the_cpus_caches_are_read_where_linux_tells(tmp_path):
    for index, (kind, level, size) in enumerate(
        [("Data", "1", "32K"), ("Instruction", "1", "64K"), ("Unified", "2", "2048K"), ("Unified", "3", "480M")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("type", kind), ("level", level), ("size", size)):
            (folder / name).write_text(value + "\n")
    assert cpu_caches(tmp_path) == {1: 32 * 2**10, 2: 2 * 2**20, 3: 480 * 2**20}
    assert cpu_caches(tmp_path / "none") == {}
    facts = device_facts("cpu")
    assert facts.device_type == "cpu"
    assert facts.free_bytes > 0


def test_a_busy_machine_is_said():
    def notes(**conditions):
        return " ".join(ceiling_table(ceilings(conditions=conditions)).notes)

    assert "Ceilings may be too low: the machine was busy, load 1.50" in notes(load_average_1min=1.5)
    assert "too low" not in notes(load_average_1min=0.1)
    gpu = {"load_average_1min": 9.0, "sm_clock_mhz": 1000}
    assert "too low" not in notes(**gpu, other_gpu_processes=[])
    assert "other processes were on the GPU" in notes(**gpu, other_gpu_processes=[{"pid": 1}])


def test_ceilings_are_kept_per_device_and_versions(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = collect_environment("cpu")
    assert known_ceilings(environment) is None
    path = keep(example_ceilings(), environment)
    assert path == ceilings_path(environment)
    assert path.is_relative_to(tmp_path)
    assert known_ceilings(environment) == example_ceilings()
    assert ceilings_for(environment) == example_ceilings()
    other = environment | {"packages": environment["packages"] | {"torch": "0.1"}}
    assert known_ceilings(other) is None
    path.write_text("{")
    assert known_ceilings(environment) is None  # measured again, not an error
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert keep(example_ceilings(), environment) is None


def test_a_measurement_that_fails_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = collect_environment("cpu") | {"device": "cuda:99"}
    reason = ceilings_for(environment)
    assert isinstance(reason, str)
    assert reason.startswith("measuring failed: opbench: device cuda:99")
    run = make_run(tmp_path / "run", [])
    run.write_ceilings(reason)
    assert run.ceilings is None
    assert json.loads((run.path / "ceilings.json").read_text()) == {"reason": reason}


def test_the_command_prints_what_is_kept():
    done = subprocess.run(
        [sys.executable, "-m", "opbench", "ceilings", "--device", "cpu"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""  # nothing measured: the tests' made-up ceilings are in the cache
    assert "compute  fp32" in done.stdout
    machine = subprocess.run(
        [sys.executable, "-m", "opbench", "ceilings", "--device", "cpu", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Ceilings.from_json(json.loads(machine.stdout)).compute_tflops(Dtype.BF16) == pytest.approx(1e6)


def test_a_probes_figures_have_their_kinds_unit():
    assert Probe("compute", "fp32", "", 2 * 10**9, 4.0, 2.0, 5).best == pytest.approx(1.0)  # 2 GFLOP in 2 ms
    assert Probe("memory", "copy", "", 10**6, 4.0, 2.0, 5).typical == pytest.approx(0.25)  # 1 MB in 4 ms
    assert Probe("launch", "x", "", 0, 4.0, 2.0, 5).best == 2.0
    assert Path(ceilings_path({"device": "cuda:0", "device_name": "NVIDIA H200"})).name.startswith("ceilings-h200-")
