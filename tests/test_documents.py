"""README and docs: Python and commands run, links lead somewhere, tables are those of stored runs."""

import inspect
import re
import shlex
import shutil
import tomllib
from contextlib import suppress
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import typer.main
from builders import NAMES
from test_architecture import ORDER, imported_anywhere, modules, room
from test_fuzz import call

import opbench
from opbench.cli import app as cli
from opbench.errors import ShapeFileError
from opbench.pytest_plugin.device_benchmark import DeviceBenchmark
from opbench.registry.registry import registered
from opbench.report import render, run_tables
from opbench.workload.case import Dtype
from opbench.workload.cell_warning import Effect, WarningKind
from opbench.workload.shapes import load_shape_list

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("kernels/README.md"), *PAGES]
ELSEWHERE = {"operator = opbench.Operator(": "tests/test_run.py sweeps it"}


def blocks(*languages):
    """Each block in one of these languages, with the file and line where it begins."""
    for path in DOCUMENTS:
        text = path.read_text()
        for found in re.finditer(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if not any(mark in found[1] for mark in ELSEWHERE):
                yield pytest.param(found[1], id=f"{path.name}:{text[: found.start()].count(chr(10)) + 1}")


def python_blocks():
    """Each block of Python."""
    return list(blocks("python", "py", "pycon"))


def commands_of(block):
    """The commands of a console block as words, without prompt and comment."""
    lines = re.findall(r"^\$ (.*)$", block.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


CONSOLE = [block for block in blocks("console") if commands_of(block.values[0])]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the checkout and may be written to."""
    for name in ("shapes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "results").mkdir()
    for path in (ROOT / "results").iterdir():
        (tmp_path / "results" / path.name).symlink_to(path)
    before = {*(ROOT / "results").iterdir()}
    monkeypatch.chdir(tmp_path)
    with mpl.rc_context():
        yield
    assert {*(ROOT / "results").iterdir()} == before, "a document's sweep left a run in results/"


class Benchmark:
    """Stands in for the fixture opbench_benchmark: its calls must be possible, and a GPU need not be there."""

    def __call__(self, *arguments, **options):
        inspect.signature(DeviceBenchmark.__call__).bind(self, *arguments, **options)
        return arguments[0]()

    def cell(self, *arguments, **options):
        bound = inspect.signature(DeviceBenchmark.cell).bind(self, *arguments, **options).arguments
        registered()[bound["operator"]].provider(bound["provider"])
        assert bound["dtype"] in list(Dtype)


@pytest.mark.parametrize("code", python_blocks())
def test_a_block_of_python_runs(code, checkout, request):
    scope = {"__name__": "block", "layer": torch.nn.Identity(), "x": torch.ones(2), "Shape": opbench.Shape}
    exec(compile(code, request.node.name, "exec"), scope)  # noqa: S102 - our own documents
    for name, function in scope.items():
        if name.startswith("test_"):
            function(Benchmark())


def test_the_blocks_are_found():
    assert len(python_blocks()) == 12
    assert len(CONSOLE) >= 20


def test_the_kernels_readme_lists_every_file():
    folder = ROOT / "kernels"
    linked = set(re.findall(r"\]\(([^)#]+)\)", (folder / "README.md").read_text()))
    assert all((folder / link).exists() for link in linked)
    assert {file.name for file in folder.glob("*.py")} - linked == {"__init__.py"}


def test_a_shape_file_with_a_character_dropped_loads_or_gives_one_line(tmp_path):
    [example] = re.findall(r"^```yaml\n(description.*?)^```", README, re.MULTILINE | re.DOTALL)
    path = tmp_path / "mine.yaml"
    said = []
    for place in range(len(example)):
        path.write_text(example[:place] + example[place + 1 :])
        try:
            load_shape_list(str(path))
        except ShapeFileError as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "\n" in text or not text.startswith(str(path))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the documents' commands name: runs, baselines, a shape list, an operator. All of it may be written to."""
    compared = ROOT / "results" / "compare"
    for name in ("RUN", "BASE", "main", "results/nightly/1"):
        shutil.copytree(compared / "main", tmp_path / name)
    for name in ("RUN2", "HEAD", "branch", "results/nightly/2"):
        shutil.copytree(compared / "branch", tmp_path / name)
    whole = ROOT / "results" / "xeon-2core"
    shutil.copytree(whole, tmp_path / "results" / whole.name, ignore=shutil.ignore_patterns("plots", "pictures"))
    [shapes] = re.findall(r"^```yaml\n(description.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_shapes.yaml").write_text(shapes)
    [operator] = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "opbench.Operator(" in code]
    (tmp_path / "my_package").mkdir()
    for name in ("depthwise.py", "my_operator.py", "my_package/depthwise.py"):
        (tmp_path / name).write_text(operator)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert call("baseline", "save", "RUN2", "--dir", "baselines")[0] == 0


READING = {"report", "compare", "export", "history", "list", "baseline", "env"}
"""Commands that are run as they stand."""
PLANNED = {"sweep", "reproduce"}
"""Commands that are run with --dry-run. The others measure: here their options are parsed."""


@pytest.mark.parametrize("block", CONSOLE)
def test_the_commands_of_a_block_run(block, folder):
    for program, *words in commands_of(block):
        if program == "make":
            variables = [word for word in words if "=" in word]
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(words) - set(variables) <= set(targets)
        elif program == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"opbench\[(.*?)\]", " ".join(words))) <= set(extras)
        elif program.endswith("python"):
            assert words[0] == "-m" or (ROOT / words[0]).is_file()
        else:
            assert program == "opbench"
            run_or_parse(words)


def run_or_parse(words):
    """Run a command that only reads, plan one that sweeps, and parse the options of any other."""
    if words[0] in PLANNED:
        code, _, err = call(*words, "--device", "cpu", "--dry-run")
        assert code == 0 or (code == 2 and {"cuda-graph", "--as-paper"} & set(words)), err
    elif words[0] in READING:
        code, _, err = call(*words)
        assert code in ((0, 1, 3, 4, 5) if words[0] == "compare" else (0,)), err
    else:
        command = typer.main.get_command(cli.app).commands[words[0]]
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_inside_sentences_have_the_options_that_they_name(path):
    for text in re.findall(r"`opbench ([a-z][^`\n]*)`", path.read_text()):
        words = shlex.split(text)
        command = typer.main.get_command(cli.app).commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, text


def test_a_command_with_a_character_dropped_parses_or_says_what_is_wrong():
    command = typer.main.get_command(cli.app)
    shown = "\n".join(path.read_text().replace("\\\n", " ") for path in DOCUMENTS)
    lines = {line.partition("  #")[0] for line in re.findall(r"^\$ opbench (.*)$", shown, re.MULTILINE)}
    assert len(lines) >= 40
    for line in sorted(lines):
        for place in range(len(line)):
            words = shlex.split(line[:place] + line[place + 1 :])
            name = words[0] if words else ""
            chosen = command.commands.get(name, command)
            with suppress(typer.Exit, typer.BadParameter.__bases__[0]):  # help; a usage error
                chosen.make_context(name, words[1:] if chosen is not command else words)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_every_page_is_linked_from_the_readme():
    assert {path.name for path in PAGES} <= set(re.findall(r"\(docs/([\w-]+\.md)[)#]", README))


def test_every_command_has_a_page_in_the_readmes_index():
    index = README.partition("## Documentation")[2]
    named = re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\| (.*?) \|", index, re.MULTILINE)))
    assert set(named) == set(typer.main.get_command(cli.app).commands)


def test_operators_and_providers_are_those_of_the_registry():
    page = (ROOT / "docs" / "list.md").read_text()
    rows = [
        [re.findall(r"`(\w+)`", cell) for cell in row.split(" | ")] for row in re.findall(r"^\| (`.*) \|$", page, re.M)
    ]
    known = {
        name: [provider.name for provider in operator.providers]
        for name, operator in registered().items()
        if name in NAMES
    }
    assert {name for names, what in rows if not what for name in names} == set(known), (
        "docs/list.md, Operators: a row each"
    )
    listed = {name: providers for names, providers in rows if providers for name in names}
    assert listed == known, "docs/list.md, Providers: the operator's row, in the order of its file"


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_has_a_row_of_costs(name):
    table = (ROOT / "docs" / "costs.md").read_text().partition("## Per operator")[2]
    first_cells = re.findall(r"^\| (\w[^|]*) \|", table, re.M)
    named = {operator for cell in first_cells for operator in cell.split(", ")}
    assert name in named, f"docs/costs.md, Per operator, has no row of {name}"


def anchors(text):
    """The names by which the headings of a page are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize(
    ("page", "run", "name"),
    [
        ("README.md", "epyc-2core", "standard_batch1-module-fwd"),
        ("docs/paper-comparison.md", "epyc-2core-long", "high_resolution-module-fwd"),
    ],
)
def test_tables_of_latencies_are_those_of_committed_runs(page, run, name):
    tables = {table.name: table for table in run_tables(opbench.Run.open(ROOT / "results" / run))}
    lines = [line for line in render(tables[name], "markdown").splitlines() if line.startswith("|")]
    assert "\n".join(lines) in (ROOT / page).read_text()


def test_the_warnings_that_disturb_a_comparison_are_those_of_the_page():
    page = (ROOT / "docs" / "compare.md").read_text()
    disturbing, _, rest = page.partition("A governor or a power cap")
    named = set(re.findall(r"`((?:CPU|GPU|resumed) [\w ]+)`", disturbing))
    assert named == {kind for kind in WarningKind if kind.effect is Effect.DISTURBED}
    assert {kind for kind in WarningKind if f"`{kind}`" in rest} == {
        kind for kind in WarningKind if kind.effect is Effect.DISTURBED_UNLESS_EQUAL
    }


@pytest.mark.parametrize(("page", "least"), [("reliability.md", 60), ("gpu.md", 8)])
def test_the_tests_that_hold_promises_exist(page, least):
    named = re.findall(r"`(tests/\w+\.py)?(?:::(\w+))?`", (ROOT / "docs" / page).read_text())
    assert len(named) >= least
    file = ""
    for path, name in named:
        file = path or file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_says_what_each_folder_builds_on():
    """Every folder that it imports from, but for those that these import from."""
    known, imports = modules(), {folder: set() for folder in ORDER}
    for name, file in known.items():
        if room(name) in ORDER:
            imports[room(name)] |= {room(found) for found in imported_anywhere(file, known)} & set(ORDER) - {room(name)}
    below = {}
    for folder in ORDER:
        below[folder] = imports[folder].union(*(below[found] for found in imports[folder]))
    table = CONTRIBUTING.partition("| folder of")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `?([a-z_]+)`? \| ((?:`?[a-z_]+`?(?:, )?)*) ?\| ", table, re.MULTILINE)
    told = {folder: set(re.findall(r"[a-z_]+", text)) for folder, text in rows}
    assert tuple(told) == ORDER
    assert told == {
        folder: found - set().union(*(below[other] for other in found)) for folder, found in imports.items()
    }


def test_what_contributing_names_exists():
    for name in re.findall(r"`((?:opbench|tests|tools|docs|kernels|shapes|examples|results)/[\w./-]*)`", CONTRIBUTING):
        assert (ROOT / name).exists() or name == "docs/kernels.md", name
    for name, file in re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", CONTRIBUTING):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), (name, file)
