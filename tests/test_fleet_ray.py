"""A sweep on a real Ray cluster of several nodes on this machine, and what becomes of it when they fail."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import opbench
import opbench.errors
from opbench.compare.cards import card_readings
from opbench.results.run import Run
from opbench.sweeps.progress import NullProgress

pytestmark = pytest.mark.slow
OPERATORS = str(Path(__file__).with_name("fleet_operators.py"))


@pytest.fixture
def cluster(monkeypatch):
    """Give a function that starts a cluster of a head without processors and so many nodes with one each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster

    made = []

    def start(nodes):
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 0}))
        return made[-1], [made[-1].add_node(num_cpus=1) for _ in range(nodes)]

    yield start
    for each in made:
        each.shutdown()


def write_shapes(path, count):
    rows = (f"  - {{batch: 1, height: {1 + n // 40}, width: {1 + n % 40}, channels: 8}}\n" for n in range(count))
    path.write_text("shapes:\n" + "".join(rows))
    return str(path)


def arguments(tmp_path, shapes, **changes):
    factors = ",".join(map(str, range(1, 26)))
    return {
        "ops": OPERATORS, "shapes": write_shapes(tmp_path / "shapes.yaml", shapes), "dtypes": "fp32,bf16",
        "device": "cpu", "settings": [f"twice.factor={factors}"], "threads": 1, "ceilings_budget": 0, "plots": False,
        **changes,
    }  # fmt: skip


def without_fleet(tmp_path):
    """The same cells in a process of their own: it loads the operators, and with them their timer."""
    factors = ",".join(map(str, range(1, 26)))
    command = [
        sys.executable, "-m", "opbench", "sweep", "--ops", OPERATORS, "--shapes", "shapes.yaml",
        "--set", f"twice.factor={factors}", "--dtypes", "fp32,bf16", "--device", "cpu", "--threads", "1",
        "--ceilings-budget", "0", "--isolation", "none", "--out", "plain", "--quiet", "--no-plots",
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return Run.open(tmp_path / "plain")


class Faults(NullProgress):
    """Does something to the fleet when so many cells have ended."""

    def __init__(self, at):
        self.at, self.count, self.notes = at, 0, []

    def ended(self, measurement):
        self.count += 1
        if what := self.at.get(self.count):
            what()

    def note(self, text):
        self.notes.append(text)


def beside_cards():
    """Processes beside the cards of this test's clusters, which are children of its own."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if "ray::CardWorker" in " ".join(cmdline(process))]


def assert_none_is_left(*others):
    """Ray ends an actor a moment after it was told to."""
    assert psutil.wait_procs([*beside_cards(), *others], timeout=20)[1] == []


def cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def of_node(node):
    raylet = next(p.process.pid for kind, ps in node.all_processes.items() if kind == "raylet" for p in ps)
    return next(process for process in beside_cards() if process.ppid() == raylet)


def essence(rows):
    keys = (
        "operator",
        "provider",
        "shape",
        "dtype",
        "settings",
        "status",
        "reason",
        "latency_ms",
        "flop_count",
        "checked_shape",
    )
    return [tuple(getattr(row, key, None) for key in keys) for row in rows]


def test_nodes_that_fail_cost_nothing_but_time(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("opbench.sweeps.fleet.ray_fleet.SILENCE_S", 12.0)
    monkeypatch.setattr("opbench.sweeps.fleet.ray_fleet.PING_S", 0.5)
    ray_cluster, nodes = cluster(4)
    stalled = []

    def stall():
        stalled.append(of_node(nodes[2]))
        stalled[0].suspend()

    def kill_worker():
        [supervisor] = of_node(nodes[3]).children()
        for worker in supervisor.children():
            worker.kill()

    faults = Faults({
        100: lambda: ray_cluster.remove_node(nodes[0], allow_graceful=False),
        200: lambda: of_node(nodes[1]).kill(),
        300: stall,
        400: kill_worker,
    })  # fmt: skip
    given = arguments(tmp_path, 20)
    try:
        run = opbench.sweep(**given, fleet=f"ray:{ray_cluster.address}", out=tmp_path / "fleet", progress=faults)
    finally:
        for process in stalled:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    plain = without_fleet(tmp_path)

    lines, rows = run.measurements(), run.rows()
    assert len(rows) == len(plain.rows()) == 1000
    lost = [line for line in lines if " lost: " in line.reason]
    again = [row for row in rows if "card lost" in row.warnings]
    killed = [row for row in rows if row.status == "out_of_memory"]
    assert {line.reason.partition(": ")[2] for line in lost} <= {
        f"{why} (card-{number})"
        for why in ("the node died", "the process beside the card died", "no answer for 12 s")
        for number in range(1, 5)
    }
    assert len(lost) == 3
    assert {line.cell.key for line in lost} == {
        key for key, count in Counter(line.cell.key for line in lines).items() if count == 2
    }
    assert len(lines) == 1003  # nothing twice but the cells whose card was lost
    assert len(again) == 3
    assert all(row.status == "ok" for row in again)
    assert len(killed) <= 1  # a worker may have ended its group at that moment
    healthy = [place for place, row in enumerate(rows) if row not in killed]
    mine, theirs = essence(rows), essence(plain.rows())
    assert [mine[place] for place in healthy] == [theirs[place] for place in healthy]
    assert Counter(row.status for row in rows) == {"ok": 1000 - len(killed), **({"out_of_memory": 1} if killed else {})}
    assert len({row.actor for row in rows}) == 4
    assert sum("is lost" in note for note in faults.notes) == 3
    assert_none_is_left()
    before_after = [(card.before_ms is None, card.after_ms is None) for card in card_readings(run)]
    assert sorted(before_after) == [(False, False), (False, True), (False, True), (False, True)]


def test_a_cell_stays_on_its_card_through_its_repetitions_and_a_run_goes_on(cluster, tmp_path):
    ray_cluster, _ = cluster(2)
    where = f"ray:{ray_cluster.address}"

    def stop():
        raise KeyboardInterrupt

    given = arguments(tmp_path, 4, repeat=2, dtypes="fp32")
    with pytest.raises(KeyboardInterrupt):
        opbench.sweep(**given, fleet=where, out=tmp_path / "run", progress=Faults({25: stop}))
    assert_none_is_left()
    assert len(Run.open(tmp_path / "run").measurements()) == 25
    run = opbench.sweep(**given, fleet=where, out=tmp_path / "run", resume=True)
    lines = run.measurements()
    assert Counter((line.cell.key, line.repetition) for line in lines).most_common(1)[0][1] == 1
    assert len(lines) == 200
    homes = {line.cell.key: line.origin for line in lines}
    assert all(line.origin == homes[line.cell.key] for line in lines)
    assert {row.actor for row in run.rows()} == {"card-1", "card-2"}
    assert {row.status for row in run.rows()} == {"ok"}


def test_every_card_measures_every_cell_to_compare_them(cluster, tmp_path):
    ray_cluster, _ = cluster(2)
    options = [
        "--ops", OPERATORS, "--shapes", write_shapes(tmp_path / "shapes.yaml", 4), "--dtypes", "fp32",
        "--device", "cpu", "--threads", "1", "--ceilings-budget", "0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "opbench", "sweep", *options, "--fleet", f"ray:{ray_cluster.address}"]
    done = subprocess.run(
        [*command, "--fleet-mode", "replicate", "--out", "cards"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "8 cells on 2 cards: 8 ok" in done.stdout
    runs = [Run.open(tmp_path / "cards" / f"card-{number}") for number in (1, 2)]
    assert all(len(run.measurements()) == 4 for run in runs)
    assert [{row.actor for row in run.rows()} for run in runs] == [{"card-1"}, {"card-2"}]
    assert (tmp_path / "cards" / "cards.csv").read_text().splitlines()[1] == "twice,4,card-1,1.0"
    for name in ("tables/cards.md", "tables/cards-spread.md", "plots/cards.svg"):
        assert (tmp_path / "cards" / name).exists()


def test_an_interrupt_leaves_no_process_behind(cluster, tmp_path):
    ray_cluster, _ = cluster(1)
    options = ["--ops", OPERATORS, "--shapes", write_shapes(tmp_path / "shapes.yaml", 300), "--dtypes", "fp32"]
    command = [
        sys.executable, "-m", "opbench", "sweep", *options, "--device", "cpu", "--threads", "1",
        "--ceilings-budget", "0", "--out", "run", "--fleet", f"ray:{ray_cluster.address}", "--no-plots",
    ]  # fmt: skip
    sweep = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "run" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") > 5):
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    supervised = [child for process in beside_cards() for child in process.children(recursive=True)]
    assert supervised
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, errors
    assert "interrupted; continue with: opbench sweep --resume --fleet ray --out run --ops" in errors
    assert_none_is_left(*supervised)


def test_nodes_with_other_versions_are_refused_by_name(cluster, tmp_path, monkeypatch):
    ray_cluster, _ = cluster(1)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nreal = m.version\n"
        "m.version = lambda name: '0.0.1' if name == 'triton' else real(name)\n"
    )
    ray_cluster.add_node(num_cpus=1)
    monkeypatch.delenv("PYTHONPATH")
    given = arguments(tmp_path, 1)
    with pytest.raises(opbench.errors.FleetError, match=r"triton: \S+ there, \S+ here.*--accept-differences"):
        opbench.sweep(**given, fleet=f"ray:{ray_cluster.address}", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def head(tmp_path, monkeypatch):
    """The address of a cluster as `ray start` makes one, with whatever token it asks for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=1",
    ]
    ray = subprocess.Popen([*command, "--include-dashboard=false"], stdout=subprocess.PIPE, text=True)
    for line in ray.stdout:
        if "Ray runtime started" in line:
            break
    yield f"127.0.0.1:{port}"
    ray.terminate()
    ray.communicate(timeout=60)


def test_a_cluster_of_ray_start_is_found_by_its_address(head, tmp_path):
    options = ["--ops", OPERATORS, "--shapes", write_shapes(tmp_path / "shapes.yaml", 1), "--dtypes", "fp32", "--quiet"]
    command = [
        sys.executable,
        "-m",
        "opbench",
        "sweep",
        *options,
        "--device",
        "cpu",
        "--ceilings-budget",
        "0",
        "--no-plots",
    ]
    for where, out in ((f"ray:{head}", "named"), ("ray:auto", "found")):
        done = subprocess.run([*command, "--fleet", where, "--out", out], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"1 cells: 1 ok\nresults: {out}\n"
        assert head not in (tmp_path / out / "run.json").read_text()


def test_what_is_no_cluster_is_refused_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("opbench.sweeps.fleet.ray_fleet.ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(opbench.errors.FleetError, match=f"what answers at {where} is no Ray cluster"):
            opbench.sweep(**arguments(tmp_path, 1), fleet=f"ray:{where}", out=tmp_path / "run")
