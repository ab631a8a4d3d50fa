"""The examples of docs/shards.md: their shell runs, and calls opbench with options that it has."""

import os
import re
import subprocess
from pathlib import Path

import typer.main
import yaml

from opbench.cli.app import app
from opbench.results.shards import shard_text

PAGE = (Path(__file__).parents[1] / "docs" / "shards.md").read_text()
SBATCH, SUBMIT = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[WORKFLOW] = (yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))

STUB = """#!/bin/bash
printf '%s\\x1f' "$(basename "$0")" "$@" >>"$LOG"; printf '\\n' >>"$LOG"
[ "$(basename "$0")" != sbatch ] || echo 4711
exit "${STUB_EXIT:-0}"
"""


def run(script, folder, **variables):
    """The calls of opbench and sbatch that a script makes, and its exit code; both are stand-ins."""
    stubs, log = folder / "stubs", folder / "log"
    stubs.mkdir(exist_ok=True)
    for name in ("opbench", "sbatch", "make", "pip"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    log.write_text("")
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "LOG": str(log), **variables}
    code = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, timeout=30).returncode
    return [line.split("\x1f")[:-1] for line in log.read_text().splitlines()], code


def parse(words):
    """What opbench understands; an option that it has not is an error."""
    assert words[0] == "opbench"
    command = typer.main.get_command(app).commands[words[1]]
    return command.make_context(words[1], words[2:]).params


def test_each_task_of_the_array_sweeps_its_shard_and_a_second_start_goes_on(tmp_path):
    count = int(re.search(r"--array=1-(\d+)", SBATCH)[1])
    seen = []
    for task in range(1, count + 1):
        slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count), "RUNS": str(tmp_path)}
        [call], code = run(SBATCH, tmp_path, **slurm)
        options = parse(call)
        seen.append(shard_text("--shard", options["shard"]))
        assert (options["out"], options["resume"], code) == (tmp_path / f"shard-{task}", False, 0)
        assert run(SBATCH, tmp_path, STUB_EXIT="1", **slurm)[1] == 1
    assert seen == [f"{task}/{count}" for task in range(1, count + 1)]
    (tmp_path / "shard-3").mkdir()
    (tmp_path / "shard-3" / "run.json").touch()
    slurm["SLURM_ARRAY_TASK_ID"] = "3"
    [call], _ = run(SBATCH, tmp_path, **slurm)
    options = parse(call)
    assert (options["out"], options["resume"], options["shard"]) == (tmp_path / "shard-3", True, None)


def test_the_merge_waits_for_the_array_and_takes_every_shard(tmp_path):
    (array, merge), code = run(SUBMIT.replace("/scratch/opbench/tonight", str(tmp_path)), tmp_path)
    assert (array, code) == (["sbatch", "--parsable", "shards.sbatch"], 0)
    assert merge[:3] == ["sbatch", "--dependency=afterany:4711", "--wrap"]
    for shard in range(1, 4):
        (tmp_path / f"shard-{shard}").mkdir()
    [call], _ = run(merge[3], tmp_path, RUNS=str(tmp_path))
    options = parse(call)
    assert options["runs"] == [tmp_path / f"shard-{shard}" for shard in range(1, 4)]
    assert options["out"] == tmp_path / "merged"


def test_the_jobs_of_the_matrix_sweep_all_shards_and_the_last_one_merges_them(tmp_path):
    jobs = WORKFLOW["jobs"]
    numbers = jobs["shard"]["strategy"]["matrix"]["shard"]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert jobs["merge"]["needs"] == "shard"
    [sweep] = [step for step in jobs["shard"]["steps"] if step.get("name") == "Sweep"]
    for number in numbers:
        given = {"matrix.shard": str(number), "strategy.job-total": str(len(numbers))}
        shard = re.sub(r"\$\{\{ (.*?) \}\}", lambda found, given=given: given[found[1]], sweep["env"]["SHARD"])
        [call], _ = run(sweep["run"], tmp_path, SHARD=shard)
        assert parse(call)["shard"] == f"{number}/{len(numbers)}"
        (tmp_path / "shards" / f"shard-{number}").mkdir(parents=True)
    [upload] = [step for step in jobs["shard"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert upload["with"] == {"name": "shard-${{ matrix.shard }}", "path": str(parse(call)["out"])}
    [merge] = [step for step in jobs["merge"]["steps"] if step.get("name") == "Merge"]
    [call], _ = run(merge["run"], tmp_path)
    assert parse(call)["runs"] == [Path(f"shards/shard-{number}") for number in numbers]
