"""Poor machines: one core, no /proc, home or fork, little memory, an ASCII locale, a narrow terminal, a full disk."""

import ast
import errno
import io
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import doubling, make_case, make_cell
from opbench_kernels import tuning
from rich.console import Console
from test_runner import OPTIONS
from test_terminal import in_a_terminal, show_progress

from opbench.device import environment
from opbench.device import snapshots as conditions
from opbench.device.ceiling_cache import device_cache_path
from opbench.errors import StorageError, UsageError
from opbench.host import system, user_cache
from opbench.host.standard_streams import ASCII, plain
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.results.run_json import free_run_path
from opbench.sweeps.console_progress import ConsoleProgress
from opbench.sweeps.isolation import worker
from opbench.sweeps.isolation.executor import WorkerExecutor
from opbench.sweeps.isolation.worker_process import Workers
from opbench.sweeps.runner import CellRunner
from opbench.workload.operator import Provider

ROOT = Path(__file__).parents[1]
SHAPES = "shapes:\n" + "".join(f"  - {{batch: 1, height: {side}, width: 4, channels: 32}}\n" for side in (4, 5))
SWEEP = ("sweep", "--shapes", "two.yaml", "--dtypes", "fp32", "--device", "cpu", "--time-budget", "0.02")
BAD_HOME = "/dev/null/home"

NO_LINUX = """
import builtins, ctypes, errno, io, os, resource, signal, socket, sys

for module, names in {
    os: ("fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "pidfd_open", "waitid", "pipe2"),
    socket: ("SOCK_CLOEXEC", "SOCK_NONBLOCK", "MSG_CMSG_CLOEXEC"),
    signal: ("sigtimedwait", "sigwaitinfo"),
    resource: ("prlimit",),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def without_proc(opens):
    def opened(path, *arguments, **options):
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        return opens(path, *arguments, **options)
    return opened

builtins.open = io.open = without_proc(io.open)
os.open = without_proc(os.open)

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = Library
sys.modules["triton"] = None
"""
"""Python's start-up file of a machine that is not Linux, as far as calls that are taken away can show it."""

NO_FORK = "import os; del os.fork\n"

NO_UNIX = """
import os, signal, socket, sys

for name in ("SIGHUP", "SIGKILL", "SIGCHLD", "SIGALRM", "set_wakeup_fd", "pthread_sigmask"):
    delattr(signal, name)
for name in ("fork", "posix_spawn", "O_NOFOLLOW", "O_CLOEXEC", "getloadavg", "sched_getaffinity", "killpg"):
    delattr(os, name)
for name in ("send_fds", "recv_fds"):
    delattr(socket, name)
sys.modules.update(fcntl=None, resource=None, termios=None, pwd=None)
import opbench.host.system
opbench.host.system.POSIX = False
"""


@pytest.fixture
def folder(tmp_path):
    """A place for a sweep of two shapes whose ceilings are not measured."""
    (tmp_path / "two.yaml").write_text(SHAPES)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ceilings.json").write_text('{"reason": "not measured"}')
    return tmp_path


def opbench(folder, *arguments, start_up="", options=(), at_start=None, **variables):
    """Run opbench with a start-up file of Python's; variables that are None are taken away."""
    (folder / "start").mkdir(exist_ok=True)
    (folder / "start" / "sitecustomize.py").write_text(start_up)
    variables = {"PYTHONPATH": str(folder / "start"), "OPBENCH_TRACEBACK": "1", **variables}
    kept = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    return subprocess.run(
        [sys.executable, *options, "-m", "opbench", *map(str, arguments)], cwd=folder, env=kept, capture_output=True,
        timeout=240, preexec_fn=at_start,
    )  # fmt: skip


def test_a_sweep_without_what_only_linux_has(folder):
    done = opbench(folder, *SWEEP, "--ops", "conv3x3", "--out", "run", "--no-plots", start_up=NO_LINUX)
    assert done.returncode == 0, done.stderr.decode()
    run = Run.open(folder / "run")
    assert [row.status for row in run.rows()] == ["ok", "ok"]
    assert run.environment["memory_bytes"] is None
    assert run.environment["cpu"]["load_average"] is not None
    [first, _] = run.measurements()
    assert first.conditions["before"]["governor"] is None
    assert "busy_s" not in first.conditions["before"]


FAKE_WORKER = """
import json, os, signal, subprocess, sys, time

def serve(connection):
    lines = connection.makefile("r")
    json.loads(lines.readline())
    say = lambda **message: connection.sendall(json.dumps(message).encode() + b"\\n")
    say(ready=True)
    for line in lines:
        cell = json.loads(line)
        if cell["provider"] == "crashes":
            os.abort()
        if cell["provider"] == "exits":
            sys.exit("libgomp: Thread creation failed: Cannot allocate memory")
        if cell["provider"] == "hangs":
            subprocess.run(["sleep", os.environ["SECONDS"]])
        say(measurement={"cell": cell, "status": "not_applicable", "reason": str(os.getpid()), "latencies_ms": [],
            "stop_reason": None}, must_restart=False)
"""


@pytest.fixture
def measure(folder, monkeypatch):
    """Measures a cell of a provider and height in a worker that is no fork."""
    (folder / "fake_worker.py").write_text(FAKE_WORKER)
    (folder / "sitecustomize.py").write_text(NO_FORK)
    (folder / "tmp").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv("SECONDS", str(20_000 + os.getpid()))
    monkeypatch.setattr("opbench.sweeps.isolation.executor.can_fork", lambda: False)
    executor = WorkerExecutor(OPTIONS.to_json(), 3.0, Workers("fake_worker:serve"))
    yield lambda provider="p", side=4: executor.run(
        make_cell(make_case(shape=(1, side, 4, 8)), provider=provider), lambda stage: None
    )
    executor.close()
    assert not list((folder / "tmp").iterdir())


def test_without_fork_one_new_interpreter_serves_until_a_cell_ends_it(measure):
    first, second = measure(), measure(side=6)
    assert first.status is second.status is Status.NOT_APPLICABLE, first.reason
    assert first.reason == second.reason
    assert int(first.reason) != os.getpid()
    crash, after = measure("crashes"), measure()
    assert crash.status is Status.ERROR
    assert "signal SIGABRT" in crash.reason
    assert after.status is Status.NOT_APPLICABLE
    assert after.reason != first.reason


def test_without_fork_a_hang_ends_with_what_it_started(measure):
    hang, after = measure("hangs"), measure()
    assert hang.status is Status.TIMEOUT
    assert after.status is Status.NOT_APPLICABLE
    sleeping = subprocess.run(["pgrep", "-f", f"sleep {20_000 + os.getpid()}"], capture_output=True, text=True)
    assert not sleeping.stdout


def test_where_processes_cannot_be_listed_the_worker_s_group_is_killed(measure, folder):
    # The supervisor lists nobody, and adopts nobody.
    (folder / "sitecustomize.py").write_text(
        f"{NO_FORK}import opbench.host.system as s, opbench.sweeps.isolation.supervisor as v\n"
        "s.child_pids = lambda: None\n"
        "v.prctl = lambda *_: None\n"
    )
    test_without_fork_a_hang_ends_with_what_it_started(measure)


def test_a_worker_whose_last_words_are_of_memory_is_out_of_memory(measure):
    assert measure("exits").status is Status.OUT_OF_MEMORY


def test_windows_reads_results_and_says_in_one_line_what_it_cannot(folder):
    done = opbench(folder, "report", "published", start_up=NO_UNIX)
    assert done.returncode == 0, done.stderr.decode()
    for command in (SWEEP, ("gate", "--base", "HEAD")):
        done = opbench(folder, *command, start_up=NO_UNIX)
        assert done.returncode == 2, done.stderr.decode()
        assert done.stderr.startswith(f"opbench: opbench {command[0]} needs Linux or macOS: ".encode())
        assert done.stderr.count(b"\n") == 1


def test_measuring_by_the_api_is_refused_on_windows(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "POSIX", False)
    with pytest.raises(UsageError, match="measuring needs Linux or macOS"):
        Run.create(tmp_path / "run", command={}, environment={}, plan=[])


def test_what_the_system_does_not_tell_is_none(monkeypatch):
    import psutil

    def silent(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/meminfo")

    for name in ("virtual_memory", "cpu_times", "cpu_freq", "Process"):
        monkeypatch.setattr(psutil, name, silent)
    monkeypatch.setattr(os, "getloadavg", silent)
    monkeypatch.setattr(system, "OWN_CGROUPS", Path("/nowhere"))
    monkeypatch.setattr(conditions, "CPU0", Path("/nowhere"))
    assert system.total_memory_bytes() is None
    assert system.available_memory_bytes() is None
    assert system.child_pids() is None
    assert conditions.busy_counters() == {}
    assert set(conditions.cpu_conditions().values()) <= {None}
    with system.data_limit(1) as held:
        assert not held
        torch.ones(2**20)


@pytest.mark.parametrize(
    ("version", "line", "place", "names", "limit", "free"),
    [
        (2, "0::/box/inner", "box", ("memory.max", "memory.current", "inactive_file"), "2147483648", 2**31 - 7 * 2**20),
        (2, "0::/box/inner", "box", ("memory.max", "memory.current", "inactive_file"), "max", None),
        (2, "0::/", "", ("memory.max", "memory.current", "inactive_file"), "9000000", 9_000_000 - 7 * 2**20),
        (
            1, "3:cpu:/x\n4:memory:/box", "memory/box",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), "2147483648", 2**31 - 7 * 2**20,
        ),
    ],
)  # fmt: skip
def test_the_memory_of_a_container_counts(tmp_path, monkeypatch, version, line, place, names, limit, free):
    folder = tmp_path / "cgroups" / place
    folder.mkdir(parents=True)
    for name, text in zip(
        (*names[:2], "memory.stat"), (limit, str(8 * 2**20), f"x 1\n{names[2]} {2**20}\n"), strict=True
    ):
        (folder / name).write_text(text + "\n")
    (tmp_path / "own").write_text(line + "\n")
    monkeypatch.setattr(system, "CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr(system, "OWN_CGROUPS", tmp_path / "own")
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**40, "total": 2**41}))
    assert system.available_memory_bytes() == (2**40 if free is None else free)


def test_a_limit_that_somebody_set_is_never_raised():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    theirs = system._data_bytes() + 2**31
    resource.setrlimit(resource.RLIMIT_DATA, (theirs, before[1]))
    try:
        assert system.available_memory_bytes() <= 2**31
        with system.data_limit(2**40) as held:
            assert held
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == theirs
        with system.data_limit(2**30):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] < theirs
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def run_raising(message, **changes):
    def build(case, tensors):
        raise RuntimeError(message)

    operator = doubling(providers=(Provider("raises", build, "raises"),))
    runner = CellRunner(OPTIONS, lambda name: operator)
    return runner.run(make_cell(provider="raises", **changes))


@pytest.mark.parametrize(
    "message",
    [
        "unable to mmap 1073741824 bytes from file </x>: Cannot allocate memory (12)",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 16 bytes.",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "std::bad_alloc",
    ],
)
def test_every_way_to_say_that_memory_ran_out(message):
    measurement = run_raising(message)
    assert measurement.status is Status.OUT_OF_MEMORY
    assert message.split(":")[0] in measurement.reason


@pytest.mark.parametrize(
    ("message", "left", "status"),
    [
        ("could not create a primitive", 2**20, Status.OUT_OF_MEMORY),
        ("could not create a primitive", 2**40, Status.ERROR),
        ("could not create a primitive descriptor for a matmul", 2**20, Status.ERROR),
        ("could not execute a primitive", None, Status.ERROR),
        ("can't start new thread", 2**20, Status.OUT_OF_MEMORY),
    ],
)
def test_what_onednn_says_means_memory_where_little_is_left(monkeypatch, message, left, status):
    monkeypatch.setattr(system, "available_memory_bytes", lambda: left)
    assert run_raising(message).status is status


def test_where_no_process_can_be_limited_the_estimate_decides():
    runner = CellRunner(OPTIONS, lambda name: doubling())
    runner.estimate_limit_bytes = 2**30
    large = runner.run(make_cell(memory_bytes=3 * 2**30))
    assert large.status is Status.OUT_OF_MEMORY
    assert large.reason == "not run: needs 3 GiB by estimate, 1 GiB are left"
    assert runner.run(make_cell(memory_bytes=2**20)).status is Status.OK


def test_linux_kills_the_worker_before_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "OUT_OF_MEMORY_SCORE", tmp_path / "score")
    worker._be_killed_first()
    assert (tmp_path / "score").read_text() == "1000"
    monkeypatch.setattr(worker, "OUT_OF_MEMORY_SCORE", tmp_path / "not" / "there")
    worker._be_killed_first()


ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def test_two_arm_processors_have_two_names(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(ARM)
    assert environment._cpu_model(tmp_path / "cpuinfo") == "aarch64 implementer 0x41 part 0xd40"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "/elsewhere", "HOME": "/h"}, "/elsewhere"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache"),
        ({"HOME": None}, None),
    ],
)
def test_one_cache_folder_for_everything(monkeypatch, variables, expected):
    for name in ("XDG_CACHE_HOME", "OPBENCH_KERNELS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    if expected is None:  # and no such user, as where a container gives any number
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        import tempfile

        expected = f"{tempfile.gettempdir()}/.cache"
    assert str(user_cache.user_cache_folder()) == expected
    assert tuning.cache_path().parent.parent == user_cache.user_cache_folder()
    kept = device_cache_path("ceilings", {"device_name": "A", "device": "cpu"})
    assert kept.parent.parent == user_cache.user_cache_folder()


def test_a_folder_that_must_be_made_first_is_writable_where_its_parent_is(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert user_cache.writable(tmp_path / "a" / "b")
    assert not user_cache.writable(tmp_path / "file" / "b")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # root may write anywhere
    assert not user_cache.writable(tmp_path / "a" / "b")


def test_where_nothing_is_kept_one_line_says_so_once(monkeypatch, capsys, tmp_path):
    user_cache.say_if_nothing_is_kept.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    user_cache.say_if_nothing_is_kept()
    user_cache.say_if_nothing_is_kept.cache_clear()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("XDG_CACHE_HOME", BAD_HOME)
    for _ in range(2):
        user_cache.say_if_nothing_is_kept()
    user_cache.say_if_nothing_is_kept.cache_clear()
    assert capsys.readouterr().err == (
        f"opbench: {BAD_HOME} cannot be written: nothing is kept for later runs, such as this device's limits; "
        "set XDG_CACHE_HOME to a folder that can\n"
    )


def test_libraries_get_a_place_where_the_home_takes_no_files(monkeypatch, tmp_path):
    for name in ("MPLCONFIGDIR", "TRITON_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with user_cache.places_for_libraries():
        assert "TRITON_HOME" not in os.environ
    monkeypatch.setenv("HOME", BAD_HOME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with user_cache.places_for_libraries():
        assert os.environ["TRITON_HOME"] == os.environ["MPLCONFIGDIR"] == str(tmp_path / "opbench")
    monkeypatch.setenv("XDG_CACHE_HOME", BAD_HOME)
    with user_cache.places_for_libraries():
        place = Path(os.environ["TRITON_HOME"])
        assert place.is_dir()
    assert not place.exists()
    assert "MPLCONFIGDIR" not in os.environ


def one_core():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def test_a_sweep_on_a_poor_machine(folder):
    """One core, no programs, no home, an ASCII locale: plain characters on the screen, UTF-8 in files."""
    done = opbench(
        folder, *SWEEP, "--ops", "conv3x3,dcnv4", "--out", "run", options=("-X", "warn_default_encoding"),
        at_start=one_core, PATH="/nowhere", HOME=BAD_HOME, XDG_CACHE_HOME=None, MPLCONFIGDIR=None, LC_ALL="C",
        PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", TMPDIR=str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stderr.isascii()
    assert b"\\u" not in done.stdout + done.stderr
    assert b"4x4x32" in done.stdout
    assert done.stderr.count(b"XDG_CACHE_HOME") == 1
    assert b"Matplotlib created a temporary" not in done.stderr
    lines = done.stderr.decode().splitlines()
    ours = [line for line in lines if "EncodingWarning" in line and ("/opbench/" in line or "/kernels/" in line)]
    assert not ours
    run = Run.open(folder / "run")
    assert [row.status for row in run.rows()] == ["ok"] * 4
    assert run.environment["cpu"]["torch_threads"] == 1
    assert run.environment["git_revision"] is None
    assert "×" in (folder / "run" / "tables" / "two-module-fwd.md").read_text(encoding="utf-8")
    assert list((folder / "run" / "plots").iterdir())


def test_files_are_utf_8_in_any_locale(folder):
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    written = {}
    for name, locale in {"ascii": variables, "unicode": {"PYTHONUTF8": "1"}}.items():
        done = opbench(folder, "report", "published", "--format", "html", "--out", f"{name}.html", **locale)
        assert done.returncode == 0, done.stderr
        written[name] = (folder / f"{name}.html").read_bytes()
    assert written["ascii"] == written["unicode"]
    assert "×" in written["ascii"].decode("utf-8")


def characters_of(path):
    """Characters beyond ASCII in a file's texts, its docstrings and comments aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in words]
    return {
        character for text in texts if isinstance(text, str) for character in text if character.isprintable()
    } - set(string.printable)


def test_every_character_that_we_show_has_a_plain_one():
    shown = set().union(*map(characters_of, [*ROOT.glob("opbench/**/*.py"), *ROOT.glob("kernels/**/*.py")]))
    assert len(shown) > 10
    assert shown <= ASCII.keys()
    assert all(text.isascii() for text in ASCII.values())
    assert plain("±5 % ▁█ —", "ascii") == "+/-5 % 18 -"
    assert plain("±5 % ▁█ —", "utf-8") == "±5 % ▁█ —"


@pytest.mark.parametrize("arguments", [("report", "published", "--paper", "--samples"), ("sweep", "--help")])
def test_a_terminal_without_unicode(arguments):
    text = in_a_terminal(*arguments, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert text.isascii()
    assert not re.search(r"\\[ux][0-9a-f]{2}", text)


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_progress_fits_the_terminal(monkeypatch, width):
    monkeypatch.delenv("CI", raising=False)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", show_progress(force_terminal=True, width=width, soft_wrap=True))
    lines = re.split(r"[\r\n]+", text)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    assert any(line.rstrip().endswith(": timing") and "[2/3] double" in line for line in lines)
    assert any("█" in line for line in lines)  # the bar gives way, a cell's histogram does not
    for number in (1, 2, 3):
        assert re.search(rf"\[{number}/3\] double \(right\) core fwd 1x4x4x8 fp32: 1\.50 ms", " ".join(text.split()))


def test_a_long_text_leaves_the_count_whole(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with ConsoleProgress(console=console) as progress:
        progress.started(make_cell(), 1, 3)
        progress.stage("long " * 50)
        progress._bar.refresh()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue())
    last = re.split(r"[\r\n]+", text.rstrip())[-1]
    assert re.match(r"0/3 .{20,} long long", last)
    assert "…" not in text
    assert len(last) <= 80


def test_a_histogram_is_not_broken():
    from opbench.sweeps.console_progress import _wrapped

    line = f"{'word ' * 9}1.5 ms ±3.0 % █        ▁ (30 samples, time_budget)"
    for width in (40, 50, 60, 70):
        assert "█        ▁" in _wrapped(line, width)
        assert max(map(len, _wrapped(line, width).splitlines())) <= width


def test_results_that_have_no_place_say_how_to_choose_one(folder):
    (folder / "results").write_text("a file in the way")
    done = opbench(folder, *SWEEP, "--ops", "conv3x3")
    assert done.returncode == 3
    *progress, message = done.stderr.decode().splitlines()
    assert message == "opbench: results: cannot be written: File exists; choose another place for results with --out"
    assert all(re.fullmatch(r"(loading PyTorch|planning), \d+ s", line) for line in progress)
    with pytest.raises(StorageError, match="choose another place for results with --out"):
        free_run_path(Path("/dev/null/results"), "cpu")


def small_files():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_a_disk_that_fills_while_plotting_still_shows_the_tables(folder):
    done = opbench(folder, *SWEEP, "--ops", "conv3x3", "--out", "run", at_start=small_files)
    said = done.stderr.decode().splitlines()
    assert done.returncode == 3, said
    assert b"Latency in ms, fp32: two" in done.stdout
    assert b"2 cells: 2 ok" in done.stdout
    assert re.fullmatch(r"opbench: run/plots/.*: cannot be written: File too large; what .* readable", said[-1])
    assert sum(line.startswith("opbench: ") for line in said) == 1
    assert [row.status for row in Run.open(folder / "run").rows()] == ["ok", "ok"]
