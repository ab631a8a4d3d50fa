"""Whatever a file or an option holds, a person sees one line: no traceback, and nothing written outside the run."""

import ast
import copy
import csv
import io
import json
import os
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from builders import doubling, make_case, make_cell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_results import LATENCIES, ok

import opbench
from opbench.cli import app as cli
from opbench.errors import OpbenchError
from opbench.results.measurement import Measurement, Status
from opbench.results.row import COLUMN_NAMES
from opbench.results.run import Run
from opbench.sweeps.request import make_request
from opbench.sweeps.start import continue_run, plan
from opbench.workload.case import Dtype

ROOT = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("OPBENCH_FUZZ_EXAMPLES", "60"))
RELAXED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
fuzz = settings(max_examples=EXAMPLES, **RELAXED)
fuzz_slowly = settings(max_examples=max(3, EXAMPLES // 20), **RELAXED)

NASTY = st.sampled_from(
    ["../../evil", "/etc/passwd", "a/../../b", "\x1b[2J", "\x00", "nan", "", "=1+1", "x" * 5000, "é" * 250,
     "[red]b[/red]", "]]>", "\\", "$(id)", "ok", "not_run", "fp32", "module", "-1", "1e999", "\u202e", "\ud800"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**70), st.floats(), st.text(max_size=12), NASTY
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def paths_in(value, prefix=()):
    """Every place in a JSON document."""
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*prefix, key))


@st.composite
def changed(draw, document):
    """A document with one or two of its values replaced, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(paths_in(document))))
        if not path:
            return draw(VALUES)
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove":
            del holder[path[-1]]
        elif action == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            holder[path[-1]] = draw(VALUES)
    return document


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with rows of several kinds; tests copy it."""
    cells = [make_cell(make_case(dtype=dtype, settings=(("offset_std_px", 0.5),))) for dtype in Dtype]
    path = tmp_path_factory.mktemp("fuzz") / "run"
    environment = {"device_name": "A CPU", "device": "cpu", "packages": {"torch": "2"}, "cpu": {"torch_threads": 2}}
    command = make_request({"device": "cpu", "ops": ["conv3x3"]}, {"conv3x3": doubling(name="conv3x3")}).to_json()
    run = Run.create(path, command=command, environment=environment, plan=cells)
    with run.append() as journal:
        journal.write(ok(cells[0]))
        journal.write(Measurement(cells[1], Status.ERROR, "no luck"))
        journal.write(ok(cells[2], LATENCIES[:7]))
    return path


@pytest.fixture
def place(tmp_path, original):
    """A folder that holds a fresh copy of the run for each example, and a file that nobody may touch."""
    (tmp_path / "precious").write_text("mine")

    def fresh():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(original, tmp_path / "run")
        return tmp_path / "run"

    fresh.root = tmp_path
    return fresh


def call(*arguments):
    """Exit code and output of the command line in this process; nothing but an exit may leave it."""
    out, err, argv = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO(), sys.argv
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    sys.argv = ["opbench", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    else:
        code = 0
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    out.flush()
    assert "Traceback" not in err.getvalue()
    assert "internal error" not in err.getvalue(), err.getvalue()
    return code, out.buffer.getvalue().decode(), err.getvalue()


def check_report(place, run, *options):
    code, out, err = call("report", run, *options)
    assert code in (0, 2)
    assert "\x1b" not in out + err
    if code == 2:
        assert err.startswith("opbench: ")
        assert err.count("\n") == 1
    code, out, err = call("history", place.root)
    assert code in (0, 1, 2)
    assert "\x1b" not in out + err
    assert all(line.startswith("opbench: ") for line in err.splitlines())
    assert sorted(path.name for path in place.root.iterdir()) == ["precious", "run"]
    assert (place.root / "precious").read_text() == "mine"


@fuzz
@given(data=st.data())
def test_any_run_json_is_read_or_refused_in_one_line(place, data):
    run = place()
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(json.dumps(data.draw(changed(json.loads(text)))))
    check_report(place, run, *data.draw(st.sampled_from([(), ("--paper",), ("--format", "csv")])))


@fuzz
@given(data=st.data())
def test_any_journal_is_read_or_refused_in_one_line(place, data):
    run = place()
    lines = (run / "journal.jsonl").read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = json.dumps(data.draw(changed(json.loads(lines[number]))))
    (run / "journal.jsonl").write_text("\n".join(lines) + data.draw(st.sampled_from(["\n", "", "\n\n"])))
    check_report(place, run)


@fuzz
@given(names=st.sets(st.text(max_size=12), min_size=1, max_size=3), value=VALUES)
def test_fields_of_a_newer_opbench_change_no_row(place, names, value):
    run = place()
    before = Run.open(run).rows()
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    lines[0] |= dict.fromkeys(names - set(Measurement.__slots__), value)
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Run.open(run).rows() == before
    check_report(place, run)


@fuzz
@given(data=st.data(), name=st.sampled_from(["run.json", "journal.jsonl"]))
def test_any_bytes_are_read_or_refused_in_one_line(place, data, name):
    run = place()
    content = bytearray((run / name).read_bytes())
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 50)))
    content[start:end] = data.draw(
        st.binary(max_size=20) | st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"9" * 9999])
    )
    (run / name).write_bytes(content)
    check_report(place, run)


@fuzz_slowly
@given(data=st.data())
def test_nothing_is_written_outside_a_hostile_run(place, data):
    run = place()
    document = json.loads((run / "run.json").read_text())
    for cell in document["plan"]:
        cell["shape_list"] = data.draw(NASTY | st.text(max_size=20))
        cell["operator"] = data.draw(NASTY)
    (run / "run.json").write_text(json.dumps(document))
    (run / "journal.jsonl").write_text("")
    check_report(place, run, "--write")


@fuzz_slowly
@given(data=st.data())
def test_a_site_with_any_run_in_it_is_made(place, data):
    run = place()
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(data.draw(changed(document))))
    site = place.root / "site"
    shutil.rmtree(site, ignore_errors=True)
    code, out, err = call("report", "--site", site, run, "published")
    assert (code, out) in ((0, f"{site / 'index.html'}\n"), (1, f"{site / 'index.html'}\n"))
    assert err.count("\n") == code
    assert len(list((site / "runs").iterdir())) == 2 - code


@pytest.mark.parametrize("name", ["tables", "plots"])
def test_a_link_out_of_a_run_is_not_followed_to_write(place, name):
    run = place()
    (place.root / "elsewhere").mkdir()
    (run / name).symlink_to(place.root / "elsewhere")
    code, _, err = call("report", run, "--write")
    assert code == 3
    assert f"{name}: cannot be written: it is a symbolic link" in err
    assert not list((place.root / "elsewhere").iterdir())


def test_a_journal_that_is_a_link_is_not_written(place):
    run = place()
    (run / "journal.jsonl").unlink()
    (run / "journal.jsonl").symlink_to(place.root / "precious")
    with pytest.raises(OpbenchError), Run.open(run).append():
        pass
    assert (place.root / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "nothing"])
def test_what_is_no_file_is_named(place, name, kind):
    path = place() / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    check_report(place, path.parent)


@fuzz
@given(data=st.data())
def test_any_command_in_run_json_is_resumed_or_refused_in_one_line(place, data, monkeypatch):
    run = place()
    document = json.loads((run / "run.json").read_text())
    document["command"] = data.draw(changed(document["command"]))
    (run / "run.json").write_text(json.dumps(document))
    monkeypatch.setattr("opbench.sweeps.start.collect_environment", lambda *_: document["environment"])
    known = opbench.sweeps.start.registry.registered()
    with pytest.raises(OpbenchError) as refusal:  # its plan is of another operator, so it never matches
        continue_run(run, {}, known)
    assert str(refusal.value).isprintable()


ARGUMENTS = (
    st.text(max_size=20) | NASTY.filter(lambda text: "\0" not in text) | st.sampled_from(["dcnv4.", "dcnv4=", "="])
)
SETTINGS = st.one_of(
    ARGUMENTS,
    st.builds(
        "dcnv4.{}={}".format, st.sampled_from(["offset_std_px", "group_channels", "kernel_size", "x"]), ARGUMENTS
    ),
    st.builds("dcnv4.{}={}".format, st.sampled_from(["offset_std_px", "group_channels"]), st.floats() | st.integers()),
)


@fuzz
@given(option=st.sampled_from(["--set", "--ops", "--dtypes", "--providers", "--level", "--shapes"]), text=SETTINGS)
def test_any_option_is_followed_or_refused(place, option, text):
    ops = () if option == "--ops" else ("--ops", "dcnv4")
    code, out, err = call("sweep", "--dry-run", "--device", "cpu", *ops, f"{option}={text}")
    assert code in (0, 2)
    assert "\x1b" not in out + err
    assert (code == 0) == ("cells, none run" in out)


def test_paths_that_are_no_text_are_printed_all_the_same(place):
    run = place()
    odd = run.with_name("run\udcff")
    run.rename(odd)
    assert call("report", odd)[0] == 0
    code, _, err = call("report", place.root / "gone\udcff")
    assert (code, "no run there" in err) == (2, True)
    shutil.rmtree(odd)


LINES = st.lists(
    st.one_of(
        st.just("  - {batch: 1, height: 8, width: 9, channels: 32}"),
        st.builds("  - {{batch: {}, height: {}, width: 9, channels: 32}}".format, SCALARS, ARGUMENTS),
        ARGUMENTS,
        st.sampled_from(
            ["  - !!python/object/apply:os.system [touch precious2]", "a: &a [*a]", "<<: *a", "description: x"]
        ),
    ),
    max_size=4,
)


@fuzz
@given(lines=LINES)
def test_any_shape_file_is_followed_or_refused_in_one_line(place, lines):
    path = place.root / "mine.yaml"
    path.write_text("shapes:\n" + "\n".join(lines), encoding="utf-8", errors="surrogatepass")
    code, out, err = call("sweep", "--dry-run", "--device", "cpu", "--ops", "conv3x3", "--shapes", path)
    path.unlink()
    assert (code == 0) == ("cells, none run" in out)
    assert code == 0 or (code == 2 and err.startswith(f"opbench: {path}") and err.count("\n") == 1)
    assert sorted(p.name for p in place.root.iterdir()) in (["precious"], ["precious", "run"])


@fuzz
@given(text=st.text(max_size=30) | NASTY)
def test_measurements_csv_reads_back_what_went_in(place, text):
    run = Run.open(place())
    cells = run.plan()
    with run.append() as journal:
        journal.write(Measurement(cells[3], Status.ERROR, text or "empty"))
    with run.write_measurements_csv().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMN_NAMES
    assert [row["reason"] for row in rows] == [row.reason for row in run.rows()]


def test_no_format_that_is_read_can_run_code():
    # JSON, CSV and YAML nodes are data; what could run code on reading is not used anywhere.
    forbidden = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "jsonpickle"}
    calls = {"eval", "exec", "compile", "__import__"}
    methods = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle"), ("yaml", "load"),
               ("yaml", "unsafe_load"), ("yaml", "full_load")}  # fmt: skip
    for path in [*(ROOT / "opbench").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        # torch.load that takes tensors alone, and numpy's that takes numbers alone
        safe = [
            node.func
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and {(key.arg, ast.unparse(key.value)) for key in node.keywords}
            & {("weights_only", "True"), ("allow_pickle", "False")}
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in forbidden, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in calls, path
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in methods or node in safe, path


def test_the_fuzzed_command_is_a_real_one():
    known = opbench.sweeps.start.registry.registered()
    assert plan(make_request({"device": "cpu", "ops": ["dcnv4"]}, known), known)
