"""Reading without torch: with the six packages of docs/reading.md, in an environment that has no others."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from opbench.cli.app import app
from opbench.cli.requirements import missing_requirement

ROOT = Path(__file__).parents[1]
RUN = ROOT / "results" / "epyc-2core"
DOCUMENT = (ROOT / "docs" / "reading.md").read_text()
HEAVY = ("torch", "triton", "timm", "matplotlib", "scipy", "psutil", "pynvml")
MEASURING = {
    "sweep": (), "check": ("conv3x3",), "ceilings": (), "noise": (), "gate": ("--base", "HEAD"), "env": (),
    "inspect": (), "profile": ("conv3x3",), "reproduce": ("--out", "reproduced"),
}  # fmt: skip
"""Commands that need more, with what they cannot be called without."""


BLOCK = """
import sys
missing = sys.argv[1].split(",")
class Missing:
    def find_spec(self, name, *_):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = ["opbench", *sys.argv[2:]]
from opbench.cli.app import main
main()
"""


def call(python, *arguments, without=(), **options):
    """Exit code, standard output and standard error of `opbench ARGUMENTS` where packages are not installed."""
    command = [python, "-c", BLOCK, ",".join(without), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    return done.returncode, done.stdout, done.stderr


def names_of_commands():
    groups = {group.name for group in app.registered_groups}
    return groups | {command.name or command.callback.__name__ for command in app.registered_commands}


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("sweep", "--dry-run"), "opbench sweep needs torch"),
        (("env",), "opbench env needs psutil"),
        (("report", RUN, "--write"), "opbench report needs matplotlib"),
    ],
)
def test_what_is_not_installed_is_one_line(arguments, needed, tmp_path):
    if "--write" in arguments:
        copied = tmp_path / "run"
        copied.mkdir()
        for name in ("run.json", "journal.jsonl"):
            (copied / name).write_bytes((RUN / name).read_bytes())
        arguments = ("report", copied, "--write")
    code, _, err = call(sys.executable, *arguments, without=HEAVY)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith(f"opbench: {needed}, which is not installed: pip install opbench")


def test_shards_are_merged_without_torch(tmp_path):
    code, text, err = call(
        sys.executable, "merge", RUN, "--out", tmp_path / "out", "--no-plots", "--quiet", without=HEAVY
    )
    assert (code, err) == (0, "")
    assert text.startswith("70 cells: 70 ok")


def test_a_site_is_made_without_torch(tmp_path):
    made = tmp_path / "site"
    code, text, err = call(sys.executable, "report", "--site", made, RUN, f"{RUN}-long", without=HEAVY)
    assert (code, text, err) == (0, f"{made / 'index.html'}\n", "")
    assert [path.name for path in (made / "compare").iterdir()] == ["epyc-2core.html"]


def test_only_what_opbench_requires_is_a_requirement():
    assert missing_requirement(ModuleNotFoundError(name="pynvml")) == "nvidia-ml-py"
    assert missing_requirement(ModuleNotFoundError(name="torch")) == "torch"
    for name in ("torch.no_such_part", "opbench.no_such_module", "pytest", None):  # of an extra, or a mistake
        assert missing_requirement(ModuleNotFoundError(name=name)) is None


@pytest.mark.slow
def test_in_a_clean_environment_with_six_packages(tmp_path):
    """As docs/reading.md says; needs a package index."""
    installed, itself = re.findall(r"^\$ pip install (.*)$", DOCUMENT, re.MULTILINE)
    assert itself == "--no-deps ."
    venv.create(tmp_path / "environment", with_pip=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    for packages in (installed.split(), ["--no-deps", str(ROOT)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=300)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = "import importlib.util as i, json, sys; print(json.dumps([n for n in sys.argv[1:] if i.find_spec(n)]))"
    done = subprocess.run([python, "-c", found, *HEAVY], capture_output=True, text=True, check=True, env=clean)
    assert json.loads(done.stdout) == []

    place = {"env": clean, "cwd": tmp_path}
    tables = call(sys.executable, "report", RUN, "--paper")
    assert call(python, "report", RUN, "--paper", **place) == tables
    assert call(python, "report", RUN, "--format", "html", "--out", "page.html", **place)[0] == 0
    assert "echarts" in (tmp_path / "page.html").read_text()
    assert call(python, "report", "--site", "site", RUN, **place)[0] == 0
    assert "epyc-2core" in (tmp_path / "site" / "index.html").read_text()
    compared = call(sys.executable, "compare", RUN, RUN)
    assert call(python, "compare", RUN, RUN, **place) == compared
    assert call(python, "export", RUN, "--to", "pytest-benchmark", "--out", "run.json", **place)[0] == 0
    assert len(json.loads((tmp_path / "run.json").read_text())["benchmarks"]) > 0
    kept = ("--dir", "kept")
    for arguments in (
        ("list", "operators"),
        ("list", "shapes"),
        ("history", ROOT / "results"),
        ("baseline", "save", RUN, *kept),
        ("baseline", "list", *kept),
    ):
        code, _, err = call(python, *arguments, **place)
        assert (code, err) == (0, "")
    frame = f"import opbench; f = opbench.load_results({str(RUN)!r}); print(len(f), f.latency_ms.notna().all())"
    assert subprocess.check_output([python, "-c", frame], text=True, **place).split()[0] == "70"

    assert {*MEASURING, "report", "compare", "merge", "export", "history", "baseline", "list"} == names_of_commands()
    for name, arguments in MEASURING.items():
        code, out, err = call(python, name, *arguments, **place)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert re.match(rf"opbench: (opbench )?{name} needs [\w-]+", err), err
