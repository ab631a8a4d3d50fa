"""`opbench sweep --as-paper`: the flags that it stands for, that one given explicitly wins, and a CPU's refusal."""

import json
import re

import pytest
from builders import doubling
from test_fuzz import call

import opbench
from opbench.errors import UsageError
from opbench.sweeps.as_paper import AS_PAPER, as_flags, as_paper_options
from opbench.sweeps.request import make_request

FLAGS = (
    "--timer launch-sync --cache warm --dtypes tf32,fp16 --shapes standard --shapes high_resolution "
    "--shapes standard_batch1 --level module"
)
EXPLICIT = {"timer": "cuda-event", "cache": "cold", "dtypes": "bf16", "shapes": ["smoke"], "level": "core"}
KNOWN = {"double": doubling()}


@pytest.fixture
def cuda(monkeypatch):
    """A machine that seems to have a GPU, for what only plans."""
    for module in ("as_paper", "request"):
        monkeypatch.setattr(f"opbench.sweeps.{module}.resolve_device", lambda device: "cuda:0")


def request(**options):
    return make_request({**options, **as_paper_options(options)}, KNOWN)


@pytest.mark.usefixtures("cuda")
def test_the_request_is_that_of_the_flags():
    assert as_flags(AS_PAPER) == FLAGS
    given = {}
    for keyword, text in re.findall(r"--(\S+) (\S+)", FLAGS):
        given.setdefault(keyword, []).extend(text.split(","))
    typed = {
        keyword: texts if keyword in ("shapes", "dtypes", "level") else texts[0] for keyword, texts in given.items()
    }
    assert request() == make_request(typed, KNOWN)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("keyword", EXPLICIT)
def test_an_explicit_option_wins_and_the_others_stay(keyword):
    other = {"timer": "cuda-event"} if keyword == "cache" else {}  # launch-sync has no cold cache
    given = {keyword: EXPLICIT[keyword], **other}
    assert request(**given) == make_request({**AS_PAPER, **given}, KNOWN)
    assert given.keys().isdisjoint(as_paper_options(given))


@pytest.mark.usefixtures("cuda")
def test_a_cold_cache_alone_is_refused():
    with pytest.raises(UsageError, match="--cache cold needs cuda-event or cuda-graph"):
        request(cache="cold")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("given", "added"),
    [
        ((), FLAGS),
        (("--dtypes", "bf16", "--shapes", "smoke"), "--timer launch-sync --cache warm --level module"),
        ([text for name, value in EXPLICIT.items() for text in (f"--{name}", "".join(value))], "nothing"),
    ],
)
def test_a_dry_run_prints_the_flags_and_the_plan(given, added):
    code, out, err = call("sweep", "--as-paper", "--dry-run", "--ops", "conv3x3", *given)
    first, rest = out.split("\n", 1)
    assert (code, first, err) == (0, f"--as-paper adds {added}", "")
    assert "largest estimated memory" in rest


def test_a_cpu_is_refused_with_the_flags_in_one_line(tmp_path):
    said = f"--as-paper needs a CUDA device, this is cpu; it stands for {FLAGS}"
    arguments = ("--as-paper", "--device", "cpu", "--out", str(tmp_path / "run"))
    assert call("sweep", *arguments) == (2, "", f"opbench: {said}\n")
    with pytest.raises(UsageError, match=said):
        opbench.sweep(as_paper=True, device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_with_a_timer_of_its_own_a_cpu_measures_and_the_run_resumes(tmp_path):
    given = {"timer": "wall-clock", "shapes": "smoke", "dtypes": "fp32", "ops": "conv3x3", "time_budget": 0.001}
    more = {"device": "cpu", "isolation": "none", "ceilings_budget": 0, "out": tmp_path, "plots": False}
    run = opbench.sweep(as_paper=True, **given, **more)
    command = json.loads((tmp_path / "run.json").read_text())["command"]
    assert (command["timer"], command["cache"], command["levels"]) == ("wall-clock", "warm", ["module"])
    assert "as_paper" not in command
    again = opbench.sweep(as_paper=True, resume=True, **given, **more)
    assert [row.status for row in again.rows()] == [row.status for row in run.rows()] == ["ok"] * 3
