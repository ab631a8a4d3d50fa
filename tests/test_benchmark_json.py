"""pytest-benchmark's JSON: written so that its own command reads it, read with its interval, bad files refused."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from pytest_benchmark.stats import Stats
from report_fixtures import make_run
from test_compare_command import LARGE, conv
from test_fuzz import call

from opbench.compare.benchmark_json import _statistics, run_as_benchmark_json
from opbench.compare.open_arm import open_arm
from opbench.results.measurement import Status


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def foreign(name="test_a.py::test_it", median=1e-3, iqr=1e-5, rounds=100, **more):
    stats = {"median": median, "iqr": iqr, "rounds": rounds, **more}
    return {"fullname": name, "extra_info": {}, "options": {"timer": "perf_counter"}, "stats": stats}


def write(path, *benchmarks, **changes):
    machine = {"cpu": {"brand_raw": "A CPU"}, "machine": "x86_64", "python_version": "3.12.1"}
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": list(benchmarks), **changes}))
    return path


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 30, 41, 43])
def test_statistics_are_those_of_pytest_benchmark(count):
    samples = np.random.default_rng(count).lognormal(size=count).tolist()
    theirs = Stats()
    theirs.data = samples
    ours = _statistics(samples, 3)
    for field, value in theirs.as_dict().items():
        assert ours[field] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-12)), field


def test_an_export_names_the_project_that_was_measured(place):
    run = make_run(place / "run", [conv(1.0)])
    revisions = {"git_revision": "own", "operator_revisions": {"conv3x3": "theirs"}}
    run.environment = {**run.environment, **revisions}
    document = run_as_benchmark_json(run)
    assert document["commit_info"]["id"] == "theirs"
    assert document["opbench"]["opbench_revision"] == "own"


def test_pytest_benchmark_compare_reads_an_export(place):
    cells = [conv(1.25), conv(2.5, LARGE), conv(Status.ERROR, LARGE, provider="other")]
    make_run(place / "run", cells)
    code, out, err = call("export", "run", "--to", "pytest-benchmark", "--out", "run.json")
    assert (code, out, err) == (0, "", "")
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "run.json", "--columns=median,rounds", "--csv=out.csv"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert cells[0].cell.key in done.stdout
    rows = (place / "out.csv").read_text()
    assert "0.00125," in rows
    assert "0.0025," in rows


def test_an_export_is_the_run(place):
    run = make_run(place / "run", [conv(1.25), conv(Status.ERROR, LARGE, reason="no luck")])
    call("export", "run", "--to", "pytest-benchmark", "--out", "run.json")
    there, back = open_arm(run.path), open_arm(place / "run.json")
    assert back.readings.keys() == there.readings.keys()
    for key, reading in there.readings.items():
        assert back.readings[key].status is reading.status
        assert back.readings[key].median_ms == pytest.approx(reading.median_ms)
        assert back.readings[key].low_ms == pytest.approx(reading.low_ms)
    code, out, _ = call("compare", "run", "run.json")
    assert code == 5  # the failed cell; the other is comparable and the same
    assert "same" in out
    assert "not comparable" not in out


def test_an_export_overwrites_nothing(place):
    make_run(place / "run", [conv(1.0)])
    (place / "taken").write_text("mine")
    code, _, err = call("export", "run", "--to", "pytest-benchmark", "--out", "taken")
    assert (code, err) == (2, "opbench: taken exists; remove it or choose another --out\n")
    assert (place / "taken").read_text() == "mine"
    assert call("export", "run", "--to", "pytest-benchmark", "--out", "gone/file")[0] == 3
    assert json.loads(call("export", "run", "--to", "pytest-benchmark")[1])["benchmarks"]


def test_without_samples_the_interval_is_the_notch(place):
    [reading] = open_arm(write(place / "a.json", foreign(median=2e-3, iqr=4e-4, rounds=100))).readings.values()
    half = 1.57 * 0.4 / math.sqrt(100)
    assert (reading.median_ms, reading.low_ms, reading.high_ms) == pytest.approx((2, 2 - half, 2 + half))
    assert reading.samples == 100


def test_with_samples_it_is_that_of_order_statistics(place):
    data = [1e-3 * value for value in range(1, 31)]
    [reading] = open_arm(write(place / "a.json", foreign(data=data))).readings.values()
    assert (reading.low_ms, reading.high_ms) == pytest.approx((10, 21))  # Hahn and Meeker's table for n = 30
    assert reading.median_ms == pytest.approx(15.5)


def test_files_of_others_are_compared_by_name(place):
    write(place / "base.json", foreign("a"), foreign("b"), foreign("c"))
    write(place / "head.json", foreign("a"), foreign("b", median=2e-3), foreign("d"))
    code, out, _ = call("compare", "base.json", "head.json", "--format", "terminal,csv,markdown,junit,github")
    assert code == 1
    assert "Only in the head, not judged: 1 cell: d." in out
    assert "\nb,,,,,,,,1.0,2.0,2.0," in out
    same = write(place / "elsewhere.json", foreign("a"), machine_info={"cpu": {"brand_raw": "Another CPU"}})
    code, out, _ = call("compare", "base.json", str(same.name))
    assert code == 4
    assert "device: A CPU in the base, Another CPU in the head" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ":1: must be JSON of pytest-benchmark: "),
        ("[]", ": must be JSON of pytest-benchmark: "),
        ('{"benchmarks": 3}', ": must be JSON of pytest-benchmark: "),
        ('{"machine_info": {}}', ": must be JSON of pytest-benchmark: KeyError('benchmarks')"),
        (
            json.dumps({"benchmarks": [foreign(median=float("nan"))]}),
            "a time must be a number of seconds, not negative",
        ),
        (json.dumps({"benchmarks": [foreign(median=-1)]}), "a time must be a number of seconds, not negative, got -1"),
        (json.dumps({"benchmarks": [foreign(data=[1, float("inf")])]}), "a time must be a number of seconds"),
        (json.dumps({"benchmarks": [foreign(rounds=0)]}), "rounds must be a positive integer, got 0"),
        (json.dumps({"benchmarks": [foreign(), foreign()]}), ": holds test_a.py::test_it twice"),
        (json.dumps({"benchmarks": [], "opbench": {"schema_version": 9}}), "schema_version must be 1, got 9"),
    ],
)
def test_a_bad_file_is_one_line_and_2(place, text, message):
    (place / "bad.json").write_text(text)
    write(place / "good.json", foreign())
    for arms in (("bad.json", "good.json"), ("good.json", "bad.json")):
        code, out, err = call("compare", *arms)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("opbench: bad.json")
        assert message in err


def test_a_file_without_benchmarks_never_passes(place):
    write(place / "empty.json")
    assert call("compare", "empty.json", "empty.json")[0] == 5


def test_a_name_with_control_characters_is_printed_as_text(place):
    write(place / "a.json", foreign("\x1b[2Jx"))
    _, out, _ = call("compare", "a.json", "a.json", "--format", "terminal,junit,github")
    assert "\x1b" not in out
