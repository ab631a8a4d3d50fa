"""The index of a folder of runs: what is read again, and that nothing else changes."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from history_folder import make_history

from opbench.compare import history_index
from opbench.compare.history import read_history
from opbench.compare.history_index import index_path
from opbench.compare.run_figures import RunFigures

RUNS, CELLS = 12, 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_history(folder, RUNS, CELLS)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy, with an index for any size, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(history_index, "KEPT_FROM_BYTES", 0)
    return shutil.copytree(made, tmp_path / "runs")


@pytest.fixture
def read(monkeypatch):
    """The names of the runs that were read, as often as they were."""
    counts, of = Counter(), RunFigures.of

    def counted(path, name):
        counts[name] += 1
        return of(path, name)

    monkeypatch.setattr(RunFigures, "of", counted)
    return counts


def test_a_second_look_reads_no_run_and_shows_the_same(folder, read):
    first = read_history(folder)
    assert (len(read), read.total()) == (RUNS, RUNS)
    assert read_history(folder) == first
    assert read.total() == RUNS


def test_only_what_was_added_is_read(folder, read):
    shutil.move(folder / "night-0007", folder.parent / "later")
    read_history(folder)
    read.clear()
    shutil.move(folder.parent / "later", folder / "night-0007")
    [series] = read_history(folder).series
    assert read == {"night-0007": 1}
    assert [run.name for run in series.runs] == [f"night-{night:04d}" for night in range(RUNS)]


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl"])
def test_a_file_that_was_written_to_is_read_again_though_size_and_date_are_the_same(folder, read, name):
    before = read_history(folder)
    read.clear()
    file = folder / "night-0003" / name
    old = file.stat()
    file.write_bytes(file.read_bytes().replace(b"1.", b"2."))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert read_history(folder) != before
    assert read == {"night-0003": 1}


def test_a_run_that_is_gone_is_in_no_series_and_in_no_index(folder, read):
    read_history(folder)
    shutil.rmtree(folder / "night-0003")
    assert [len(series.runs) for series in read_history(folder).series] == [RUNS - 1]
    assert "night-0003" not in index_path(folder).read_text()
    assert read.total() == RUNS


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_text(path.read_text().replace('{"opbench history": 3}', '{"opbench history": 0}')),
        lambda path: path.write_text(path.read_text().replace('"entry"', '"other"')),
        lambda path: path.write_bytes(b"\xff" * 1000),
    ],
)
def test_an_index_that_is_deleted_or_damaged_is_made_again(folder, read, damage):
    first = read_history(folder)
    whole = index_path(folder).read_bytes()
    damage(index_path(folder))
    assert read_history(folder) == first
    assert set(read.values()) == {2}
    assert index_path(folder).read_bytes() == whole


def test_a_damaged_run_is_named_each_time(folder, read):
    (folder / "night-0003" / "journal.jsonl").write_text("{}\n")
    first, second = read_history(folder), read_history(folder)
    assert first == second
    assert len(first.problems) == 1
    assert read["night-0003"] == 2


def test_a_small_folder_and_a_cache_that_takes_no_files_have_no_index(folder, read, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    first = read_history(folder)
    assert read_history(folder) == first
    assert set(read.values()) == {2}
    (tmp_path / "cache").unlink()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert read_history(folder) == first
    assert not index_path(folder).exists()


@pytest.mark.slow
def test_several_processes_read_the_same(folder, monkeypatch):
    (folder / "night-0003" / "journal.jsonl").write_text("{}\n")
    alone = read_history(folder)
    index_path(folder).unlink()
    monkeypatch.setattr(history_index, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert read_history(folder) == alone


PARALLEL = """
import sys
from pathlib import Path
from opbench.compare import history_index
from opbench.compare.history import read_history
history_index.PARALLEL_FROM_BYTES = 0
history_index.os.sched_getaffinity = lambda _: {0, 1}
read_history(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_processes_that_read_end_with_the_one_that_is_killed(tmp_path):
    make_history(tmp_path, 200, 20)
    with subprocess.Popen([sys.executable, "-c", PARALLEL, tmp_path]) as process:
        found = psutil.Process(process.pid)
        while len(found.children()) < 3:  # two that read, and multiprocessing's own
            assert process.poll() is None
            time.sleep(0.01)
        children = found.children()
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
