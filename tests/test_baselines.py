"""Baselines: kept by hardware and software, never overwritten, damage seen, the right one found."""

import json

import pytest
from report_fixtures import make_run
from test_compare_command import LARGE, conv
from test_fuzz import call

from opbench.results.measurement import Status

KEY = "a-cpu-torch-2.15-"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "run", [conv(1.0), conv(1.0, LARGE)])
    return tmp_path


def made(place, name, cells, torch="2.15", uuid=None):
    """A run with a device and a version of torch."""
    run = make_run(place / name, cells)
    about = json.loads((run.path / "run.json").read_text())
    about["environment"] = {"device_name": "A CPU", "device": "cuda:0", "packages": {"torch": torch}}
    if uuid is not None:
        about["environment"]["gpu"] = {"uuid": uuid}
    (run.path / "run.json").write_text(json.dumps(about))
    return run


def save(run, *arguments):
    code, out, err = call("baseline", "save", run, "--dir", "kept", *arguments)
    assert code == 0, err
    return out.strip()


def test_save_list_show_rm(place):
    path = save("run", "--name", "v1")
    assert path.startswith(f"kept/{KEY}")
    assert path.endswith("/v1")
    _, out, _ = call("baseline", "list", "--dir", "kept")
    assert [line.split()[:2] for line in out.splitlines()[3:]] == [[path.split("/")[1], "v1"]]
    _, out, _ = call("baseline", "show", "v1", "--dir", "kept")
    assert {"device: A CPU", "torch: 2.15", "cells: 2 ok"} <= set(out.splitlines())
    assert call("baseline", "rm", "v1", "--dir", "kept")[:2] == (0, f"removed {path}\n")
    assert list((place / "kept").iterdir()) == []
    code, _, err = call("baseline", "show", "v1", "--dir", "kept")
    assert (code, err) == (2, "opbench: kept: no baseline 'v1'; there are: none\n")


def test_a_name_that_is_taken_is_refused_and_nothing_changes(place):
    path = place / save("run", "--name", "v1")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    made(place, "other", [conv(9.0)])
    code, _, err = call("baseline", "save", "other", "--dir", "kept", "--name", "v1")
    assert (code, err.count("\n")) == (2, 1)
    assert "already holds a baseline; choose another --name" in err
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in path.parent.iterdir()] == ["v1"]


@pytest.mark.parametrize("name", ["../evil", "", "a/b", ".hidden", "x" * 101, "a\nb"])
def test_a_name_that_is_no_name_is_refused(place, name):
    code, _, err = call("baseline", "save", "run", "--dir", "kept", "--name", name)
    assert (code, err.count("\n")) == (2, 1)
    assert "--name must be letters" in err
    assert not (place / "kept").exists()


def test_a_run_without_a_measured_cell_is_no_baseline(place):
    made(place, "failed", [conv(Status.ERROR)])
    code, _, err = call("baseline", "save", "failed", "--dir", "kept")
    assert (code, err) == (2, "opbench: failed: no cell was measured; nothing could be compared with it\n")


OLD_KEY = "a-cpu-torch-2.15-00c79b27"
"""Of `run`, as opbench made it before it recorded the GPU's UUID."""


def test_the_baseline_of_a_card_is_taken_and_those_from_before_cards_were_told_apart(place):
    before = save("run", "--name", "before")
    assert before == f"kept/{OLD_KEY}/before"
    made(place, "first", [conv(2.0), conv(2.0, LARGE)], uuid="GPU-1")
    made(place, "second", [conv(4.0), conv(4.0, LARGE)], uuid="GPU-2")
    assert call("compare", "kept", "first")[1].splitlines()[0].startswith(f"first against {before}")
    cards = [save(name, "--name", "now") for name in ("first", "second")]
    assert len({path.split("/")[1] for path in (before, *cards)}) == 3
    for name, path in zip(("first", "second"), cards, strict=True):
        code, out, _ = call("compare", "kept", name)
        assert (code, out.splitlines()[0].partition(",")[0]) == (0, f"{name} against {path}")
    _, out, _ = call("compare", "kept", "first", "--allow", "gpu-uuid")
    assert out.startswith(f"first against {cards[1]}")  # the newest of any card
    _, out, _ = call("compare", "kept", "run")
    assert out.startswith(f"run against {cards[1]}")


def test_the_newest_of_the_heads_key_is_taken(place):
    save("run", "--name", "old")
    made(place, "slow", [conv(2.0), conv(2.0, LARGE)])
    newest = save("slow", "--name", "new")
    made(place, "elsewhere", [conv(5.0)], torch="2.16")
    save("elsewhere", "--name", "other")
    code, out, _ = call("compare", "kept", "run")
    assert code == 0
    assert f"run against {newest}" in out
    assert out.splitlines()[-1].startswith("faster: 2 of 2 cells")


def test_no_baseline_of_the_heads_key_is_not_comparable_and_lists_the_keys(place):
    path = save("run")
    made(place, "head", [conv(1.0), conv(1.0, LARGE)], torch="2.16")
    code, out, _ = call("compare", "kept", "head")
    assert code == 4
    last = out.splitlines()[-1]
    assert last.startswith("not comparable: no baseline of device A CPU, torch 2.16,")
    assert f"there are: {path.split('/')[1]}" in last
    assert call("compare", "kept", "head", "--allow", "torch")[0] == 0
    _, junit, _ = call("compare", "kept", "head", "--format", "junit")
    assert 'errors="1"' in junit


def test_one_name_under_two_keys_needs_the_key(place):
    first = save("run", "--name", "v1")
    made(place, "elsewhere", [conv(5.0)], torch="2.16")
    save("elsewhere", "--name", "v1")
    code, _, err = call("baseline", "rm", "v1", "--dir", "kept")
    assert (code, err.count("\n")) == (2, 1)
    assert "several baselines are called v1: " in err
    assert call("baseline", "rm", first.removeprefix("kept/"), "--dir", "kept")[0] == 0


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def edit(path):
    path.write_text(path.read_text().replace("1.0", "2.0"))


def future(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("journal.jsonl", truncate, "journal.jsonl: damaged: not what was saved (its checksum differs)"),
        ("journal.jsonl", edit, "journal.jsonl: damaged: not what was saved"),
        ("run.json", truncate, "run.json: damaged: not what was saved"),
        ("baseline.json", truncate, "baseline.json: damaged: "),
        (
            "baseline.json",
            future,
            "baseline.json: schema_version must be 1, got 2; another version of opbench wrote it",
        ),
        ("journal.jsonl", lambda path: path.unlink(), "journal.jsonl: cannot be read: No such file or directory"),
    ],
)
def test_a_damaged_baseline_is_one_line_and_2(place, file, how, message):
    path = place / save("run", "--name", "v1")
    how(path / file)
    for arguments in (("compare", "kept", "run"), ("baseline", "show", "v1", "--dir", "kept"),
                      ("baseline", "list", "--dir", "kept")):  # fmt: skip
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert call("baseline", "rm", "v1", "--dir", "kept")[0] == 0  # the way out


def test_a_folder_that_is_not_there(place):
    for command in (("list",), ("show", "v1"), ("rm", "v1")):
        code, _, err = call("baseline", *command, "--dir", "gone")
        assert (code, err) == (2, "opbench: gone: no folder of baselines there\n")


def test_3_when_it_cannot_be_written(place):
    (place / "kept").write_text("mine")
    code, _, err = call("baseline", "save", "run", "--dir", "kept")
    assert (code, err.count("\n")) == (3, 1)
    assert (place / "kept").read_text() == "mine"


def test_rm_leaves_what_is_not_its_own(place):
    path = place / save("run", "--name", "v1")
    (path / "notes.txt").write_text("mine")
    assert call("baseline", "rm", "v1", "--dir", "kept")[0] == 3
    assert (path / "notes.txt").read_text() == "mine"


def test_a_baseline_is_a_run_too(place):
    path = save("run", "--name", "v1")
    assert call("compare", path, "run")[0] == 0
