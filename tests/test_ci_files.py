"""The workflows, the composite action and the examples of docs/ci.md: they parse, name what exists, and run as said."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer.main
import yaml

from opbench.cli.app import app
from opbench.compare.verdicts import Verdict

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "opbench-gate" / "action.yml"
GUIDE = ROOT / "docs" / "ci.md"
LOCAL = "./.github/actions/opbench-gate"
PINNED = {"actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4"}
WHAT_A_GATE_CAN_SAY = (0, 1, 2, 3, 4, 5, 74, 130)


def documents():
    """Name and content of every YAML file of CI, and of every YAML block of the guide."""
    files = [*sorted((ROOT / ".github").rglob("*.yml")), *sorted((ROOT / ".github").rglob("*.yaml"))]
    found = {path.relative_to(ROOT).as_posix(): yaml.safe_load(path.read_text()) for path in files}
    blocks = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return found | {f"docs/ci.md, block {n}": yaml.safe_load(block) for n, block in enumerate(blocks, start=1)}


DOCUMENTS = documents()


def steps_of(document):
    jobs = document["jobs"].values() if "jobs" in document else [document["runs"]]
    return [step for job in jobs for step in job["steps"]]


STEPS = [(name, step) for name, document in DOCUMENTS.items() for step in steps_of(document)]
SCRIPTS = [(name, step["run"]) for name, step in STEPS if "run" in step]


def shell_commands():
    """Every call of opbench in a script of CI, in the guide's texts and in the Makefile, as words."""
    texts = [script for _, script in SCRIPTS]
    texts += re.findall(r"`(opbench [^`]+)`", GUIDE.read_text())
    texts += (ROOT / "Makefile").read_text().splitlines()
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            call = re.search(r"(?:^|[\s/(`])opbench ((?:sweep|gate|compare|baseline|history|report|inspect)\b.*)", line)
            if call and not line.strip().startswith(("#", "echo", "*")) and "echo " not in line[: call.start()]:
                yield shlex.split(call[1].split("||")[0].split(">")[0])


def options_of(words):
    """The options that a call names, and those that its command has; the command's name."""
    command, name = typer.main.get_command(app), "opbench"
    for word in words:
        if word not in getattr(command, "commands", {}):
            break
        command, name = command.commands[word], f"{name} {word}"
    known = {option for parameter in command.params for option in parameter.opts}
    return {word.partition("=")[0] for word in words if word.startswith("-")}, known, name


def test_there_is_a_job_without_a_gpu_and_one_with():
    jobs = DOCUMENTS[".github/workflows/gate.yml"]["jobs"]
    static, speed = jobs["static"], jobs["speed"]
    assert {"make inspect", "make test"} <= {step.get("run") for step in static["steps"]}
    assert speed["runs-on"] == ["self-hosted", "linux", "x64", "gpu"]
    assert all(f"`{label}`" in GUIDE.read_text() for label in speed["runs-on"])
    assert speed["steps"][0]["with"]["fetch-depth"] == 0
    [gate] = [step for step in speed["steps"] if step.get("uses") == LOCAL]
    assert gate["with"]["base"] == "origin/main"
    assert "head.repo.full_name == github.repository" in speed["if"]


def test_the_documents_are_all_there():
    assert {".github/actions/opbench-gate/action.yml", ".github/workflows/ci.yml", ".github/workflows/gate.yml",
            "docs/ci.md, block 1", "docs/ci.md, block 2"} <= set(DOCUMENTS)  # fmt: skip
    assert len(SCRIPTS) >= 10


@pytest.mark.parametrize(("name", "step"), [(name, step) for name, step in STEPS if "uses" in step])
def test_only_known_actions_of_a_pinned_version(name, step):
    uses = step["uses"]
    if uses in (LOCAL, "OWNER/opbench/.github/actions/opbench-gate@main"):
        assert set(step["with"]) <= set(DOCUMENTS[ACTION.relative_to(ROOT).as_posix()]["inputs"])
    else:
        assert uses in PINNED


@pytest.mark.parametrize(("name", "script"), SCRIPTS)
def test_scripts_are_bash_and_no_text_from_outside_is_pasted_into_them(name, script):
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "${{" not in script


def test_every_command_and_option_exists():
    calls = list(shell_commands())
    seen = set()
    for words in calls:
        named, known, name = options_of(words)
        assert name != "opbench", words
        assert named <= known, (name, named - known)
        seen.add(name)
    assert {"opbench gate", "opbench history", "opbench sweep", "opbench baseline save", "opbench compare",
            "opbench inspect"} <= seen  # fmt: skip


def test_the_options_that_workflows_hand_to_the_gate_exist():
    texts = [step["with"]["options"] for _, step in STEPS if "options" in step.get("with", {})]
    assert len(texts) >= 2
    texts += re.findall(
        r"`(--[^`]*)`", DOCUMENTS[ACTION.relative_to(ROOT).as_posix()]["inputs"]["options"]["description"]
    )
    for text in texts:
        named, known, _ = options_of(["gate", *shlex.split(text)])
        assert named
        assert named <= known


def test_the_guide_lists_every_input_with_its_default_and_every_exit_code():
    text = GUIDE.read_text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (\S*) ?\| .* \|$", text, re.MULTILINE))
    inputs = DOCUMENTS[ACTION.relative_to(ROOT).as_posix()]["inputs"]
    assert {name: default.strip("`") for name, default in rows.items()} == {
        name: value["default"] for name, value in inputs.items()
    }
    used = set(re.findall(r"inputs\.([a-z-]+)", ACTION.read_text()))
    assert used == set(inputs)
    for code in {*(verdict.exit_code for verdict in Verdict), 2}:
        assert re.search(rf"^\| {code} \| ", text, re.MULTILINE)


def run_action(folder, status, **inputs):
    """The action's scripts as a runner runs them, with an `opbench` that exits with `status`, or none.

    Returns the exit code of the job, what was printed, and the arguments that opbench got (None if it never ran).
    """
    stub = folder / "bin" / "opbench"
    stub.parent.mkdir(exist_ok=True)
    if status is not None:
        stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" >"{folder}/arguments"\nexit {status}\n')
        stub.chmod(0o755)
    path = f"{stub.parent}:{Path(shutil.which('bash')).parent}"
    code, printed = action_scripts(folder, {"PATH": path}, inputs)
    kept = folder / "arguments"
    return code, printed, kept.read_text().split("\0")[:-1] if kept.exists() else None


def action_scripts(folder, environment, inputs):
    """The exit code of the action's scripts, run one after the other in a folder, and what they printed."""
    document = DOCUMENTS[ACTION.relative_to(ROOT).as_posix()]
    values = {name: value["default"] for name, value in document["inputs"].items()} | inputs
    output = folder.parent / f"{folder.name}-output"
    output.write_text("")
    printed = ""
    code = 0
    for step in document["runs"]["steps"]:
        if "run" not in step:
            continue
        context = {f"inputs.{name}": value for name, value in values.items()}
        context["steps.gate.outputs.exit-code"] = output.read_text().strip().partition("=")[2]
        variables = {name: context[text.strip("${ }")] for name, text in step["env"].items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]], cwd=folder, text=True,
            capture_output=True, env={**environment, "GITHUB_OUTPUT": str(output), **variables},
        )  # fmt: skip
        printed += done.stdout + done.stderr
        code = done.returncode
        if code:
            break
    return code, printed


@pytest.mark.parametrize("inconclusive", ["fail", "warn", "pass"])
@pytest.mark.parametrize("status", WHAT_A_GATE_CAN_SAY)
def test_every_exit_code_becomes_the_jobs_result(tmp_path, status, inconclusive):
    code, printed, _ = run_action(tmp_path, status, inconclusive=inconclusive)
    accepted = status == 0 or (status == 3 and inconclusive == "warn")
    assert (code == 0) == accepted
    assert (status > 5) or accepted or code == status
    assert ("::error title=opbench gate::" in printed) == (not accepted)
    assert ("::warning" in printed) == (status == 3 and inconclusive == "warn")


def test_a_gate_that_is_not_installed_does_not_pass(tmp_path):
    code, printed, arguments = run_action(tmp_path, None)
    assert (code, arguments) == (1, None)
    assert "::error title=opbench gate::it ended with '127'" in printed


def test_inputs_are_words_and_never_commands(tmp_path):
    branch = '$(touch pwned)`touch pwned`";touch pwned;#'
    code, _, arguments = run_action(
        tmp_path, 0, base=branch, head="--aa", tolerance="$(touch pwned)", budget="30", inconclusive="warn",
        options="--ops dcnv4 $(touch pwned)\n  --set dcnv4.group=* --dtypes fp16\n", out="a folder",
    )  # fmt: skip
    assert code == 0
    assert not (tmp_path / "pwned").exists()
    assert arguments == [
        "gate", f"--base={branch}", "--head=--aa", "--tolerance=$(touch pwned)", "--inconclusive=fail",
        "--nothing-to-measure=fail", "--format=github,junit,markdown", "--out=a folder", "--ops", "dcnv4", "$(touch",
        "pwned)", "--set", "dcnv4.group=*", "--dtypes", "fp16", "--budget=30",
    ]  # fmt: skip


def test_pass_is_for_the_command_to_decide_and_other_words_are_refused(tmp_path):
    _, _, arguments = run_action(tmp_path, 0, inconclusive="pass")
    assert "--inconclusive=pass" in arguments
    assert not [word for word in arguments if word.startswith("--budget")]
    (tmp_path / "arguments").unlink()
    code, printed, arguments = run_action(tmp_path, 0, inconclusive="ignore")
    assert (code, arguments) == (2, None)
    assert "::error::the input inconclusive must be fail, warn or pass" in printed


@pytest.mark.parametrize(
    ("file", "measure"), [("README.md", "no"), ("kernels/dcnv4.py", "yes"), ("opbench/operators/x.py", "yes")]
)
def test_a_change_of_no_operator_is_not_measured_and_said_so(tmp_path, file, measure):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "opbench" / "operators").mkdir(parents=True)
    for name in ("README.md", "kernels/dcnv4.py", "opbench/operators/x.py"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "base")
    git(tmp_path, "update-ref", "refs/remotes/origin/main", "HEAD")
    (tmp_path / file).write_text("2\n")
    git(tmp_path, "commit", "-qam", "head")
    [script] = [step["run"] for _, step in STEPS if step.get("id") == "changed"]
    summary, output = tmp_path / "summary", tmp_path / "output"
    summary.write_text("")
    environment = {
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(output),
    }
    subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert output.read_text() == f"measure={measure}\n"
    assert ("nothing was measured" in summary.read_text()) == (measure == "no")


README = (ROOT / "README.md").read_text()


def test_sections_that_are_named_exist():
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    named = {
        (path.name, section)
        for path in (GUIDE, ROOT / "pyproject.toml", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
        for first, second in re.findall(r"README(?:\.md)?, \"([^\"]+)\"|\"([^\"]+)\" in README", path.read_text())
        for section in (first or second,)
    }
    assert len(named) >= 2
    assert {section for _, section in named} <= set(headings)


def git(folder, *words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    """A repository as the guide has it, with the README's operator, checked out at a change of its README alone."""
    [operator] = [b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "opbench.Operator(" in b]
    [project] = [b for b in re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "[build-system]" in b]
    folder = tmp_path / "my-package"
    (folder / "my_package").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(project)
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "depthwise.py").write_text(operator.partition("if __name__")[0])
    (folder / "README.md").write_text("1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    (folder / "README.md").write_text("2\n")
    git(folder, "commit", "-qam", "a change of the README")
    return folder


PYTHON = """#!/bin/bash
# Stands in for `python -m venv`: its pip writes down what it is asked for, and its opbench is this one.
[ "$1 $2" = "-m venv" ] || exit 1
mkdir -p "$3/bin"
printf '#!/bin/bash\nprintf "%%s\\n" "$@" >>"{folder}/asked"\n' >"$3/bin/pip"
printf '#!/bin/bash\nexec {python} -m opbench "$@"\n' >"$3/bin/opbench"
chmod +x "$3/bin/pip" "$3/bin/opbench"
"""


@pytest.mark.parametrize("job", ["cpu", "gpu"])
def test_the_workflow_to_copy_passes_a_change_of_the_readme(repository, tmp_path, job):
    """Every step as a runner runs it, but for the downloads; without a GPU the last step of that job says so."""
    [workflow] = [document for name, document in DOCUMENTS.items() if document.get("name") == "speed"]
    assert set(workflow["jobs"]) == {"cpu", "gpu"}
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").write_text(PYTHON.format(folder=tmp_path, python=sys.executable))
    (tools / "python").chmod(0o755)
    path_file = tmp_path / "github-path"
    path_file.write_text("")
    environment = {
        **{name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ},
        "RUNNER_TEMP": str(tmp_path / "runner"), "GITHUB_PATH": str(path_file),
        "PATH": f"{tools}:{os.environ['PATH']}", **workflow["jobs"][job].get("env", {}),
    }  # fmt: skip
    code, printed, ran = 0, "", []
    for step in workflow["jobs"][job]["steps"]:
        if "run" in step:
            ran.append("run")
            subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=repository, env=environment, check=True)
            environment["PATH"] = ":".join([*path_file.read_text().split(), environment["PATH"]])
        elif step["uses"].endswith("opbench-gate@main"):
            ran.append("gate")
            # A pull request's head is a merge, which a runner checks out.
            code, printed = action_scripts(repository, environment, step["with"])
        else:
            assert step["uses"] in PINNED
    assert ran == ["run", "gate"]
    asked = (tmp_path / "asked").read_text().split()
    [project] = [b for b in re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "[build-system]" in b]
    assert set(tomllib.loads(project)["build-system"]["requires"]) < set(asked)
    if job == "cpu":
        assert code == 0, printed
        [notice] = [line for line in printed.splitlines() if line.startswith("::")]
        assert notice.startswith("::notice title=opbench nothing to measure::both arms ran the same source of every")
        assert "same source of every operator" in (repository / "opbench-gate" / "comparison.md").read_text()
    elif not torch.cuda.is_available():
        assert code == 2, printed
        assert "opbench: device cuda" in printed
