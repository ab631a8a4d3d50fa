"""The built wheel works in a clean environment that has no checkout on its path."""

import csv
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_from_the_sdist_sweeps_outside_the_checkout(tmp_path):
    source = tmp_path / "source"
    run("git", "clone", "--quiet", ROOT, source) if (ROOT / ".git").exists() else None
    for name in run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").split("\n"):
        if name and (ROOT / name).is_file():  # the working tree, so that a test sees what is about to be committed
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    sdist = run(sys.executable, "-c", build, "build_sdist", tmp_path, cwd=source).split()[-1]
    run(sys.executable, "-m", "tarfile", "-e", tmp_path / sdist, tmp_path / "unpacked")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    wheel = tmp_path / run(sys.executable, "-c", build, "build_wheel", tmp_path, cwd=unpacked).split()[-1]

    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(source).as_posix() for path in (source / "opbench").rglob("*.py")}
    kernels = source / "kernels"
    wanted |= {f"opbench_kernels/{path.relative_to(kernels).as_posix()}" for path in kernels.rglob("*.py")}
    wanted |= {
        "opbench/py.typed", "opbench_kernels/py.typed", "opbench_shapes/smoke.yaml",
        "opbench_published/dcnv4_module_level.csv", "opbench/report/page/page.html.j2",
        "opbench/report/page/echarts/echarts.min.js", "opbench/report/page/echarts/LICENSE",
        "opbench/report/site/index.html.j2", "opbench/report/site/search.js", "opbench/report/site/site.css",
    }  # fmt: skip
    assert wanted - names == set()
    assert not any(name.startswith(("tests", "tools", "kernels/", "shapes/", "results/")) for name in names)

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)  # unpacking a pip of its own takes longer than all else here
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # Dependencies come from the environment that runs the tests, through a path file. Such a folder's own path files
    # are not read, so the editable install of the checkout stays out of it.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    dependencies = Path(torch.__file__).parents[1]
    (Path(site) / "dependencies.pth").write_text(f"{dependencies}\n")

    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    outside = tmp_path / "outside"
    outside.mkdir()
    place = run(python, "-c", "import opbench, opbench_kernels; print(opbench.__file__)", cwd=outside, env=clean)
    assert place.startswith(str(environment))
    opbench = environment / "bin" / "opbench"
    assert "dcnv4_lightweight" in run(opbench, "list", "operators", cwd=outside, env=clean)
    (outside / "one.yaml").write_text("shapes:\n  - {batch: 1, height: 5, width: 4, channels: 32}\n")
    run(
        opbench, "sweep", "--shapes", "one.yaml", "--ops", "dcnv4", "--dtypes", "fp32", "--device", "cpu",
        "--time-budget", "0.02", "--no-plots", "--out", "run", cwd=outside, env=clean,
    )  # fmt: skip
    with (outside / "run" / "measurements.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["status"] == "ok"
    assert float(row["latency_ms"]) > 0
