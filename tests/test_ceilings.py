"""Ceilings: what they allow a row by hand-worked figures, how they are measured and kept, and a row that beats them."""

import dataclasses
import json
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from ceiling_fixtures import ceilings, example_ceilings, probe
from fake_timer import FakeTimer
from report_fixtures import make_run, measurement

from opbench.device.ceiling_cache import ceilings_path, keep, known_ceilings
from opbench.device.ceiling_probes import DeviceFacts, cpu_caches, device_facts, measure_ceilings, probe_families
from opbench.device.ceilings import (
    BOUNDS,
    Ceilings,
    Missing,
    Probe,
    emulated_dtypes,
    missing_notes,
    read_ceilings,
)
from opbench.device.environment import collect_environment
from opbench.device.identity import Identity
from opbench.device.limits import Work, limit_columns, limit_of
from opbench.errors import ResultsError
from opbench.report import ceiling_table, render, run_tables
from opbench.sweeps.ceiling_step import ceilings_for, serve_ceilings
from opbench.sweeps.isolation.worker_process import WorkerDied, Workers
from opbench.sweeps.progress import NullProgress
from opbench.workload.case import Dtype, Shape

ROW = {"dtype": "fp32", "flop_count": 10**9, "bytes_moved": 10**6, "timer": "cuda-event", "cache": "cold",
       "latency_ms": 1.0}  # fmt: skip


def columns_of(device, **changes):
    """limit_columns with the fields of Work among its arguments."""
    given = {**ROW, **changes}
    work = Work(**{field.name: given.pop(field.name) for field in dataclasses.fields(Work) if field.name in given})
    return limit_columns(device, work, **given)


def limits(**changes):
    return columns_of(example_ceilings(), **changes)


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
    assert columns["limit_ms"] == pytest.approx(limit_ms, rel=1e-12)
    assert columns["bound_by"] == bound_by
    assert columns["limit_fraction"] == pytest.approx(limit_ms / 1.0)
    assert columns["suspicious"] is None


def test_the_cache_takes_the_memorys_place_only_where_it_is_warm_and_large_enough():
    device = ceilings(probe("memory", "copy", 1000.0), probe("cache", "read", 4000.0), cache_bytes=4000)

    def limit(bytes_moved, cache, of=device):
        return limit_of(of, Work("fp32", 1, bytes_moved), timer="cuda-event", cache=cache)

    assert limit(4000, "warm").bound_by == "cache"
    assert limit(4000, "warm").limit_ms == pytest.approx(1e-6)
    assert limit(4004, "warm").bound_by == "memory"
    assert limit(4000, "cold").limit_ms == pytest.approx(4e-6)
    # Where the cache's size is unknown nothing is said about bytes at all.
    unknown = dataclasses.replace(device, cache_bytes=None)
    assert limit(10**9, "warm", unknown) is None


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


def test_five_percent_above_the_limit_is_not_suspicious_yet():
    device = ceilings(probe("launch", "cuda-event/cold", 1.05))
    assert columns_of(device, latency_ms=1.0)["limit_fraction"] == 1.05
    assert columns_of(device, latency_ms=1.0)["suspicious"] is None
    assert columns_of(device, latency_ms=0.9999)["suspicious"] is not None


def gpu(**changes):
    """100 multiprocessors at 1000 MHz: their L1s give 12.8e9 bytes a millisecond, they issue 400e6 instructions."""
    probes = dataclasses.replace(probe("compute", "fp32", 10.0), sm_clock_mhz=1000.0), probe("memory", "copy", 1000.0)
    return dataclasses.replace(ceilings(*probes), **{"multiprocessors": 100, "max_sm_clock_mhz": 1000, **changes})


@pytest.mark.parametrize(
    ("work", "bound_by", "limit_ms", "at_half_the_clock"),
    [
        ({"gathered_bytes": 256 * 10**8}, "l1", 2.0, 4.0),
        ({"gathered_bytes": 256 * 10**8, "warp_instructions": 12 * 10**8}, "issue", 3.0, 6.0),
        ({"gathered_bytes": 256 * 10**8, "warp_instructions": 4 * 10**8}, "l1", 2.0, 4.0),
        ({"gathered_bytes": 128 * 10**8, "bytes_moved": 15 * 10**8}, "memory", 1.5, 2.0),  # then the L1 is slower
        ({"flop_count": 10**10}, "compute", 1.0, 2.0),
        ({"bytes_moved": 15 * 10**8, "flop_count": 1}, "memory", 1.5, 1.5),  # its clock is another
    ],
)
def test_gathering_and_issuing_are_limits_of_a_gpu_at_its_clock(work, bound_by, limit_ms, at_half_the_clock):
    """The limit is that of the highest clock, since a cell may run at it; beside it that of the cell's clock."""
    given = {"flop_count": None, "bytes_moved": None, "latency_ms": 10.0, **work}
    columns = columns_of(gpu(), sm_clock_mhz=500.0, **given)
    assert (columns["bound_by"], columns["limit_ms"]) == (bound_by, pytest.approx(limit_ms))
    assert columns["limit_at_clock_ms"] == pytest.approx(at_half_the_clock)
    assert columns_of(gpu(), **given)["limit_at_clock_ms"] is None  # not told


@pytest.mark.parametrize("unknown", [{"multiprocessors": None}, {"max_sm_clock_mhz": None}])
def test_a_device_that_does_not_tell_has_no_such_limits(unknown):
    work = {"gathered_bytes": 10**12, "warp_instructions": 10**12}
    assert columns_of(gpu(**unknown), **work)["bound_by"] == "compute"
    assert columns_of(ceilings(probe("compute", "fp32", 10.0)), **work)["bound_by"] == "compute"  # a CPU


def test_a_probe_without_a_clock_is_not_slowed():
    device = gpu(probes=(probe("compute", "fp32", 10.0),))
    assert columns_of(device, bytes_moved=None, sm_clock_mhz=500.0)["limit_at_clock_ms"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ({"gathered_bytes": 128 * 10**8},
         "implies 2.56e+04 GB/s from the L1s, but they give 1.28e+04 at the highest clock"),
        ({"warp_instructions": 4 * 10**8}, "0.5 ms, but issuing its counted instructions takes 1 ms"),
    ],
)  # fmt: skip
def test_a_row_that_beats_its_l1_or_its_instructions_is_suspicious(work, words):
    assert columns_of(gpu(), latency_ms=0.5, **work)["suspicious"] == words


def test_the_ends_of_what_a_probe_may_hold(tmp_path):
    path = tmp_path / "ceilings.json"
    good = Probe("compute", "fp32", "8", 1, 1.0, 1.0, 1)
    for change, valid in (
        ({"amount": 0}, True), ({"amount": 2**63 - 1}, True), ({"amount": 2**63}, False), ({"amount": -1}, False),
        ({"latency_ms_min": 0.5}, True), ({"latency_ms_min": 1.5}, False), ({"latency_ms": float("inf")}, False),
        ({"latency_ms_min": 0}, False), ({"latency_ms_min": 1e-9}, True), ({"samples": 0.5}, True),
    ):  # fmt: skip
        found = ceilings(dataclasses.replace(good, **change))
        path.write_text(json.dumps(found.to_json()))
        if valid:
            assert read_ceilings(path) == found
        else:
            with pytest.raises(ResultsError, match="not a probe"):
                read_ceilings(path)


def test_without_ceilings_or_without_a_value_there_is_no_fraction():
    assert set(columns_of(None).values()) == {None}
    columns = limits(latency_ms=None)
    assert columns["limit_ms"] == pytest.approx(0.1)
    assert columns["limit_fraction"] is None
    assert set(columns_of(ceilings()).values()) == {None}


def test_the_fastest_of_a_dtypes_probes_is_its_ceiling():
    device = ceilings(
        probe("compute", "fp32", 0.18), probe("compute", "fp32 convolution", 0.22), probe("compute", "bf16", 0.4)
    )
    assert device.compute_tflops("fp32") == pytest.approx(0.22)
    assert device.matrix_tflops("bf16") == pytest.approx(0.4)


def test_every_table_of_a_run_marks_a_suspicious_row(tmp_path):
    shape = Shape(1, 8, 8, 16)
    run = make_run(
        tmp_path,
        [
            measurement("conv3x3", shape, "fp32", 0.05, flop_count=10**9),
            measurement("dcnv4", shape, "fp32", 2.0, flop_count=10**9),
        ],
    )
    assert {row.limit_ms for row in run.rows()} == {None}
    run.write_ceilings(example_ceilings())
    first, second = run.rows()
    assert first.suspicious.startswith("implies 20 TFLOP/s")
    assert first.limit_fraction == pytest.approx(2.0)
    assert second.suspicious is None
    assert second.limit_fraction == pytest.approx(0.05)
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
    for change in (
        {"name": "fp\n32"}, {"size": "4\x1b"}, {"name": 3}, {"size": None}, {"kind": "magic"}, {"amount": -1},
        {"amount": 2**63}, {"samples": True}, {"latency_ms_min": 0}, {"latency_ms": 0},
    ):  # fmt: skip
        path.write_text(json.dumps(good | {"probes": [good["probes"][0] | change]}))
        with pytest.raises(ResultsError, match=r"not a probe|damaged: AttributeError"):
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
CUDA = DeviceFacts("cuda", l2_bytes=2**20, cache_bytes=2**20, free_bytes=2**24)


def test_probes_of_a_cuda_device_cover_dtypes_timers_and_both_cache_states():
    """Without a GPU: what would be measured. fp32 comes first, since without it no row has a limit."""
    families = list(probe_families(CUDA))
    names = [(family.kind, family.name) for family in families]
    assert names[0] == ("compute", "fp32")
    assert len(set(names)) == len(names)
    assert {name for kind, name in names if kind == "compute"} == {"fp32", "tf32", "fp16", "bf16"}
    assert {name for kind, name in names if kind == "memory"} == {"copy", "read", "write"}
    assert {name for kind, name in names if kind == "cache"} == {"copy", "read", "write"}
    launches = {"cuda-event/cold", "cuda-event/warm", "cuda-graph/cold", "cuda-graph/warm"}
    assert {name for kind, name in names if kind == "launch"} == launches
    assert {family.timer for family in families if family.kind == "cache"} == {"cuda-graph"}
    for family in families:
        if family.kind == "memory":  # four buffers of it fit in what is free
            assert [size.text for size in family.sizes] == ["4 MiB"]
    [products] = [family for family in families if family.name == "fp32"]
    assert [size.text for size in products.sizes] == []  # 1024 squared three times is more than half of 16 MiB
    [products] = [
        family for family in probe_families(dataclasses.replace(CUDA, free_bytes=2**30)) if family.name == "fp32"
    ]
    assert [size.text for size in products.sizes] == ["1024x1024x1024", "2048x2048x2048", "4096x4096x4096"]


class Stopwatch:
    """A clock, and timers that move it by what one FLOP takes at each size of a matrix product."""

    def __init__(self, seconds_of=lambda launch: 1e-3):
        self.seconds = 1e5
        self.launches = []
        self._seconds_of = seconds_of

    def __call__(self):
        return self.seconds

    def timer_of(self, name, cache):
        watch = self

        class Timer(FakeTimer):
            def now(self):
                return watch.seconds

            def prepare(self, launch, seconds):
                self.sample(launch, 2)

            def sample(self, launch, count):
                taken = watch._seconds_of(launch)
                watch.launches += [taken] * count
                watch.seconds += count * taken
                return [1e3 * taken] * count

        return Timer([1.0])


def products(watch, budget_s, monkeypatch, rates):
    """The sizes of fp32's products that are measured where size n runs at rates[n] FLOP/s."""
    monkeypatch.setattr("opbench.device.ceiling_probes.MATRIX_SIZES", {"cpu": tuple(rates)})
    monkeypatch.setattr("opbench.device.ceiling_probes._matrix_product", lambda size, dtype: lambda place: size)
    watch._seconds_of = lambda size: 2 * size**3 / rates[size]
    skip = {(f.kind, f.name) for f in probe_families(SMALL)} - {("compute", "fp32")}
    found = measure_ceilings(
        "cpu", budget_s, facts=SMALL, skip=skip, timer_of=watch.timer_of, clock=watch, tensors_on="cpu"
    )
    return [int(result.size.partition("x")[0]) for result in found]


def test_a_product_grows_while_its_rate_rises_and_its_time_lasts(monkeypatch):
    rates = {128: 1e10, 256: 2e10, 512: 4e10, 1024: 8e10, 2048: 9e10, 4096: 9e10}
    # 4096 cubed would take 5 times 1.5 s; the share of 15 s is 2.1 s. 1024 cubed 5 times 54 ms; that of 4 s is 0.56 s.
    assert products(Stopwatch(), 15.0, monkeypatch, rates) == [128, 256, 512, 1024, 2048]
    assert products(Stopwatch(), 4.0, monkeypatch, rates) == [128, 256, 512]
    # A dip of short launches may be another process; a long one means that larger sizes gain nothing.
    assert products(Stopwatch(), 1e6, monkeypatch, rates | {256: 5e9}) == [128, 256, 512, 1024, 2048, 4096]
    assert products(Stopwatch(), 1e6, monkeypatch, rates | {512: 5e9}) == [128, 256, 512]


def test_an_emulated_dtype_costs_its_share_of_the_budget_and_not_more(monkeypatch):
    """As bf16 is on a CPU with AVX2 alone: a fixed size of 2048 took 19 s for one launch there."""
    watch = Stopwatch()
    rates = {128: 3.5e9, 256: 3.2e9, 512: 2.1e9, 1024: 0.9e9, 2048: 0.9e9, 4096: 0.9e9}
    assert products(watch, 15.0, monkeypatch, rates) == [128, 256, 512]
    assert watch.seconds - 1e5 <= 0.14 * 15


def test_probes_after_a_spent_budget_are_named_and_those_before_are_kept():
    watch = Stopwatch(lambda launch: 0.5)
    found = list(measure_ceilings("cpu", 4.0, facts=SMALL, timer_of=watch.timer_of, clock=watch))
    figures = [(p.kind, p.name) for p in found if isinstance(p, Probe)]
    assert figures == [("compute", "fp32"), ("compute", "fp32 convolution")]
    missing = [entry for entry in found if isinstance(entry, Missing)]
    assert [(m.kind, m.name) for m in missing][:2] == [("memory", "copy"), ("memory", "read")]
    assert {m.reason for m in missing} == {"the budget of 4 s was spent before its turn"}
    assert not any(m.begun for m in missing)
    assert watch.seconds - 1e5 == 4.0 + 2 * 0.5  # scripted; the last probe began within the budget


def test_a_probe_that_fails_is_named_and_its_finished_sizes_count(monkeypatch):
    def fails_from(size):
        def product(side, dtype):
            def build(place):
                if side >= size and dtype is Dtype.FP16:
                    raise RuntimeError('"addmm_impl" not implemented for Half')
                return side

            return build

        return product

    monkeypatch.setattr("opbench.device.ceiling_probes.MATRIX_SIZES", {"cpu": (64, 128)})

    def figures_of_fp16(size):
        watch = Stopwatch()
        monkeypatch.setattr("opbench.device.ceiling_probes._matrix_product", fails_from(size))
        found = list(measure_ceilings("cpu", 15.0, facts=SMALL, timer_of=watch.timer_of, clock=watch))
        return [result for result in found if (result.kind, result.name) == ("compute", "fp16")]

    [failed] = figures_of_fp16(64)
    assert failed.reason == 'RuntimeError: "addmm_impl" not implemented for Half'
    assert failed.begun
    [kept] = figures_of_fp16(128)
    assert kept.size == "64x64x64"


def test_a_cache_of_unknown_size_is_missing_with_its_reason():
    watch = Stopwatch()
    facts = dataclasses.replace(SMALL, l2_bytes=None)
    found = list(measure_ceilings("cpu", 15.0, facts=facts, timer_of=watch.timer_of, clock=watch))
    unknown = [entry for entry in found if isinstance(entry, Missing)]
    assert [(entry.kind, entry.name) for entry in unknown] == [("cache", "copy"), ("cache", "read"), ("cache", "write")]
    assert {entry.reason for entry in unknown} == {"the system does not tell how large it is"}


def test_figures_follow_from_the_timers_samples(monkeypatch):
    monkeypatch.setattr("opbench.device.ceiling_probes.MATRIX_SIZES", {"cuda": (8,)})
    facts = DeviceFacts("cuda", l2_bytes=2**16, cache_bytes=2**16, free_bytes=2**20)
    asked = []

    def timer_of(name, cache):
        asked.append((name, cache))
        return FakeTimer([2.0, 4.0, 8.0] * 100)

    probes = list(measure_ceilings("cuda:0", 1e6, facts=facts, timer_of=timer_of, tensors_on="cpu"))
    found = ceilings(*probes)
    assert {p.latency_ms_min for p in found.probes} == {2.0}
    assert {p.latency_ms for p in found.probes} == {4.0}
    assert found.compute_tflops("fp16") == pytest.approx(2 * 8**3 / 2e-3 / 1e12)
    assert found.bandwidth_gbps("cache") == pytest.approx(2**15 / 2e-3 / 1e9)
    assert found.launch_ms("cuda-graph", "cold") == 2.0
    assert found.launch_ms("wall-clock", "warm") is None
    assert ("cuda-event", "cold") in asked


def test_this_cpu_is_measured(monkeypatch):
    monkeypatch.setattr("opbench.device.ceiling_probes.MATRIX_SIZES", {"cpu": (64, 128)})
    monkeypatch.setattr("opbench.device.ceiling_probes.CONVOLUTION_SIDES", (4, 8))
    monkeypatch.setattr("opbench.device.ceiling_probes.LEAST_MEMORY_BYTES", {"cpu": 2**24})
    monkeypatch.setattr("opbench.device.ceiling_probes.SAMPLE_S", dict.fromkeys(BOUNDS, 0.02))
    monkeypatch.setattr("opbench.device.ceiling_probes.WARM_UP_S", 0.01)
    heard = []
    probes = list(measure_ceilings("cpu", 1e6, facts=SMALL, on_family=lambda *family: heard.append(family)))
    found = ceilings(*probes, l2_bytes=2**16, cache_bytes=2**18)
    dtypes = {"fp32", "fp16", "bf16"}  # tf32 is a mode of CUDA devices
    assert {p.name for p in found.of("compute")} == dtypes | {f"{dtype} convolution" for dtype in dtypes}
    assert [number for _, _, number, _ in heard] == list(range(1, heard[0][3] + 1))
    assert heard[0][:2] == ("compute", "fp32")
    assert all(p.best > 0 and p.samples >= 3 for p in found.probes)
    # A product of 128 is 8 times one of 64; a launch is far below either.
    assert found.launch_ms("wall-clock", "warm") < max(p.latency_ms_min for p in found.of("compute"))
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
    assert "load 0.50" in notes(load_average_1min=0.5)
    assert "too low" not in notes(load_average_1min=0.49)
    assert "too low" not in notes()
    gpu = {"load_average_1min": 9.0, "sm_clock_mhz": 1000}
    assert "too low" not in notes(**gpu, other_gpu_processes=[])
    assert "other processes were on the GPU" in notes(**gpu, other_gpu_processes=[{"pid": 1}])


def test_what_ran_beside_the_ceilings_counts_more_than_the_load():
    assert ceilings(conditions={"load_average_1min": 3.0, "other_cpu_share": 0.02}).busy == ""
    assert ceilings(conditions={"other_cpu_share": 0.1}).busy == ""
    assert ceilings(conditions={"other_cpu_share": 0.101}).busy
    share = ceilings(conditions={"load_average_1min": 0.1, "other_cpu_share": 0.4})
    assert share.busy == "other processes used 40% of all cores"
    assert "too low: other processes used 40% of all cores when" in " ".join(ceiling_table(share).notes)
    with pytest.raises(TypeError, match="other_cpu_share must be a number"):
        Ceilings.from_json(ceilings(conditions={"other_cpu_share": "much"}).to_json())


def test_ceilings_are_kept_per_device_and_versions(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = collect_environment("cpu")
    assert known_ceilings(environment) is None
    path = keep(example_ceilings(), environment)
    assert path == ceilings_path(environment)
    assert path.is_relative_to(tmp_path)
    assert known_ceilings(environment) == example_ceilings()
    other = environment | {"packages": environment["packages"] | {"torch": "0.1"}}
    assert known_ceilings(other) is None
    path.write_text("{")
    assert known_ceilings(environment) is None  # measured again, not an error
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert keep(example_ceilings(), environment) is None


CPU_PROBES = [(family.kind, family.name) for family in probe_families(SMALL)]


class ScriptedWorkers:
    """Workers that answer as told: each script is what one worker does with the probes it is asked for, in order."""

    def __init__(self, *scripts):
        self._scripts = list(scripts)
        self.requests = []
        self.running = 0

    def start(self):
        assert not self.running
        self.running = 1

    def send(self, message):
        self.requests.append(message["ceilings"])
        skip = {tuple(name) for name in message["ceilings"]["skip"]}
        todo = [name for name in CPU_PROBES if name not in skip]
        self._answers = iter(self._scripts.pop(0)(todo))

    def receive(self, deadline):
        answer = next(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def kill(self):
        self.running = 0


FACTS = {"facts": {"l2_bytes": 2**16, "cache_bytes": 2**18, "conditions": {"load_average_1min": 0.0}}}


def answers(todo, *, until=None, end=None):
    """Facts, then a figure for each probe; at `until` what happens there instead, and no more."""
    yield FACTS
    for number, (kind, name) in enumerate(todo, start=1):
        yield {"family": [kind, name], "number": number, "total": len(todo)}
        if (kind, name) == until:
            yield end
            return
        yield {"probe": dataclasses.asdict(probe(kind, name, 1.0))}
    yield {"done": True}


def the_cpus(workers, monkeypatch, tmp_path, budget_s=15.0, **options):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = ceilings_for(collect_environment("cpu"), workers, budget_s, **options)
    assert not workers.running
    return found


class Heard(NullProgress):
    """Keeps what is said."""

    def __init__(self, heard):
        self.note = self.stage = heard.append


def names(probes):
    return [(probe.kind, probe.name) for probe in probes]


def test_what_is_kept_is_not_measured_again(tmp_path, monkeypatch):
    heard = []
    found = the_cpus(ScriptedWorkers(answers), monkeypatch, tmp_path, progress=Heard(heard))
    assert names(found.probes) == CPU_PROBES
    assert found.identity == Identity.of(collect_environment("cpu")).parts
    assert heard[0].startswith("measuring what this device can do at most: up to 15 s")
    assert heard[1] == f"ceilings 1/{len(CPU_PROBES)}: compute fp32"
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path) == found
    again = the_cpus(ScriptedWorkers(answers), monkeypatch, tmp_path, again=True)
    assert names(again.probes) == CPU_PROBES


def test_a_gpus_multiprocessors_and_highest_clock_are_kept_with_its_ceilings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = {**collect_environment("cpu"), "gpu": {"multiprocessors": 132, "max_sm_clock_mhz": 1980}}
    found = ceilings_for(environment, ScriptedWorkers(answers), 15.0)
    assert (found.multiprocessors, found.max_sm_clock_mhz) == (132, 1980)
    assert Ceilings.from_json(json.loads(json.dumps(found.to_json()))) == found


def beside(share):
    """A script in which other processes use that share of the CPU."""

    def script(todo):
        for answer in answers(todo):
            yield {**answer, "other_cpu_share": share} if "probe" in answer else answer

    return script


def test_ceilings_of_a_busy_machine_are_measured_again_once_it_is_idle(tmp_path, monkeypatch):
    now = [0.6]
    monkeypatch.setattr("opbench.sweeps.ceiling_step.others_now", lambda: now[0])
    busy = the_cpus(ScriptedWorkers(beside(0.5)), monkeypatch, tmp_path)
    assert busy.conditions["other_cpu_share"] == 0.5
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path) == busy  # still busy
    now[0] = 0.02
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path, 0) == busy  # no budget
    heard = []
    workers = ScriptedWorkers(beside(0.3))
    better = the_cpus(workers, monkeypatch, tmp_path, progress=Heard(heard))
    assert len(workers.requests) == 1  # once per sweep, whatever comes of it
    assert workers.requests[0]["skip"] == []
    assert heard[0] == (
        "the device's limits are measured again: other processes used 50% of all cores when they were measured before"
    )
    assert better.conditions["other_cpu_share"] == 0.3
    assert the_cpus(ScriptedWorkers(beside(0.7)), monkeypatch, tmp_path) == better  # the load came back: no better
    calm = the_cpus(ScriptedWorkers(beside(0.0)), monkeypatch, tmp_path)
    assert calm.busy == ""
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path) == calm


def test_ceilings_are_measured_with_the_threads_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    workers = ScriptedWorkers(answers)
    found = ceilings_for(collect_environment("cpu", 3), workers, 15.0)
    assert workers.requests[0]["threads"] == 3
    assert found.identity["torch threads"] == "3"
    assert known_ceilings(collect_environment("cpu", 4)) is None


def test_a_worker_measures_with_the_threads_that_it_is_told(monkeypatch):
    seen, said = [], []
    result = Missing("compute", "fp32", "made up", "2026-01-01T00:00:00+00:00", begun=True)

    def measure(*arguments, **options):
        seen.append(torch.get_num_threads())
        yield result

    monkeypatch.setattr("opbench.device.ceiling_probes.measure_ceilings", measure)
    serve_ceilings({"device": "cpu", "budget_s": 1.0, "skip": [], "threads": 5}, lambda **answer: said.append(answer))
    assert seen == [5]
    assert said[1]["missing"] == dataclasses.asdict(result)
    assert said[1]["other_cpu_share"] >= 0


def test_a_probe_that_kills_its_process_costs_itself_and_not_the_others(tmp_path, monkeypatch):
    def dies(todo):
        return answers(todo, until=("cache", "read"), end=WorkerDied(-11, "boom"))

    workers = ScriptedWorkers(dies, answers)
    found = the_cpus(workers, monkeypatch, tmp_path)
    assert sorted(names(found.probes)) == sorted(set(CPU_PROBES) - {("cache", "read")})
    [missing] = found.missing
    assert (missing.kind, missing.name, missing.begun) == ("cache", "read", True)
    assert missing.reason == "signal SIGSEGV (boom)"
    assert ["memory", "copy"] in [list(name) for name in workers.requests[1]["skip"]]  # not measured twice
    # Nothing is paid twice: neither the figures nor the failure, for a day.
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path) == found
    path = ceilings_path(collect_environment("cpu"))
    data = json.loads(path.read_text())
    yesterday = datetime.now(UTC) - timedelta(days=1, seconds=1)
    data["missing"][0]["at"] = yesterday.isoformat(timespec="seconds")
    path.write_text(json.dumps(data))
    mended = the_cpus(ScriptedWorkers(answers), monkeypatch, tmp_path)
    assert mended.missing == ()
    assert sorted(names(mended.probes)) == sorted(CPU_PROBES)


def test_a_probe_that_exceeds_the_budget_is_cut_and_the_rest_is_measured_next_time(tmp_path, monkeypatch):
    clock = [1e5]
    monkeypatch.setattr("opbench.sweeps.ceiling_step.time.monotonic", lambda: clock[0])

    def hangs(todo):
        for answer in answers(todo, until=("memory", "copy"), end=TimeoutError()):
            if isinstance(answer, TimeoutError):
                clock[0] += 16.0
            yield answer

    found = the_cpus(ScriptedWorkers(hangs), monkeypatch, tmp_path)
    done = [("compute", "fp32"), ("compute", "fp32 convolution")]
    assert names(found.probes) == done
    reasons = {(entry.kind, entry.name): entry.reason for entry in found.missing}
    assert reasons["memory", "copy"] == "the budget of 15 s was spent while it ran"
    assert reasons["memory", "read"] == "the budget of 15 s was spent before its turn"
    assert set(reasons) == set(CPU_PROBES) - set(done)
    assert missing_notes(found)[0] == "no ceiling for memory copy: the budget of 15 s was spent while it ran"
    workers = ScriptedWorkers(answers)
    later = the_cpus(workers, monkeypatch, tmp_path)
    assert {tuple(name) for name in workers.requests[0]["skip"]} == {*done, ("memory", "copy")}
    assert names(later.missing) == [("memory", "copy")]


def test_without_a_budget_nothing_is_measured_and_what_is_kept_is_taken(tmp_path, monkeypatch):
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path, 0) == "not measured: a budget of 0 s"
    found = the_cpus(ScriptedWorkers(answers), monkeypatch, tmp_path)
    assert the_cpus(ScriptedWorkers(), monkeypatch, tmp_path, 0) == found


def test_a_measurement_that_fails_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment = collect_environment("cpu") | {"device": "cuda:99"}
    with closing(Workers()) as workers:
        reason = ceilings_for(environment, workers, 1.0)
    assert isinstance(reason, str)
    assert reason.startswith("measuring failed: exit code 1 (")
    run = make_run(tmp_path / "run", [])
    run.write_ceilings(reason)
    assert run.ceilings is None
    assert json.loads((run.path / "ceilings.json").read_text()) == {"reason": reason}


def test_a_dtype_far_below_fp32_is_called_emulated():
    slow = ceilings(probe("compute", "fp32", 0.1), probe("compute", "bf16", 0.0009), probe("compute", "fp16", 0.051))
    assert emulated_dtypes(slow) == ["bf16 matmul: 0.9 GFLOP/s, emulated (111 times slower than fp32)"]
    assert emulated_dtypes(slow, ["fp32", "fp16"]) == []
    for tflops, shown in ((0.0009545, "0.95"), (0.0009554, "0.96")):
        [line] = emulated_dtypes(ceilings(probe("compute", "fp32", 0.1), probe("compute", "bf16", tflops)))
        assert line.startswith(f"bf16 matmul: {shown} GFLOP/s")
    half = ceilings(*(Probe("compute", name, "", 10**9, ms, ms, 1) for name, ms in (("fp32", 1.0), ("fp16", 2.0))))
    assert emulated_dtypes(half) == []
    assert emulated_dtypes(example_ceilings()) == []
    assert any("Bf16 matmul: 0.9 GFLOP/s, emulated" in note for note in ceiling_table(slow).notes)


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
    assert Probe("compute", "fp32", "", 2 * 10**9, 4.0, 2.0, 5).best == pytest.approx(1.0, rel=1e-12)  # 2 GFLOP in 2 ms
    assert Probe("memory", "copy", "", 10**6, 4.0, 2.0, 5).typical == pytest.approx(0.25, rel=1e-12)  # 1 MB in 4 ms
    assert Probe("launch", "x", "", 0, 4.0, 2.0, 5).best == 2.0
    assert Path(ceilings_path({"device": "cuda:0", "device_name": "NVIDIA H200"})).name.startswith("ceilings-h200-")
