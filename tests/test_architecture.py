"""The folders and the direction of their imports, held: what may import what, and what stays free of torch."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import opbench

ROOT = Path(__file__).parents[1]
HEAVY = {"pynvml", "psutil", "torch", "triton", "pandas", "numpy", "matplotlib", "scipy", "timm", "yaml"}
PURE = (
    "compare.baselines",
    "compare.benchmark_json",
    "compare.readings",
    "compare.runs",
    "compare.verdicts",
    "device.environment",
    "device.identity",
    "device.resolve",
    "errors",
    "compare.estimate",
    "pytest_plugin.device_benchmark",
    "results.measurement",
    "results.metrics",
    "results.run",
    "stats",
    "sweeps.plan",
    "text",
    "workload.case",
    "workload.operator",
    "workload.shapes",
    "workload.tolerance",
)


def imported_by(statement, *, without=()):
    """Top-level modules loaded by a statement in a fresh Python where the modules of `without` cannot be imported."""
    code = (
        "import json, sys\n"
        f"sys.modules.update(dict.fromkeys({list(without)!r}))\n"
        f"{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name, module in sys.modules.items() if module})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def absolute_imports(path):
    """Names imported anywhere in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


GROUND = "ground"
"""Modules directly in opbench/ that every folder may import."""
FACES = {"__init__", "__main__", "notebook", "plots"}
"""Modules directly in opbench/ that name what others hold, for users: nothing imports them."""
ORDER = (
    GROUND, "models", "host", "workload", "operators", "backbones", "registry", "timing", "device", "results",
    "compare", "report", "sweeps", "contract", "inspection", "gate", "profiling", "pytest_plugin", "cli",
)  # fmt: skip
"""Each imports only from those before it; CONTRIBUTING.md draws them."""


def room(name):
    """The folder of a module of opbench's by its dotted name."""
    parts = name.split(".")[1:]
    if not parts or parts[0] in FACES:
        return "faces"
    return parts[0] if (ROOT / "opbench" / parts[0]).is_dir() else GROUND


def modules():
    """Every module of opbench's by its dotted name, with its file."""
    files = sorted((ROOT / "opbench").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported_anywhere(file, known):
    """Modules of opbench's that a file imports: at its head, inside functions, and for annotations."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    for name in names:
        found = name
        while found and found not in known:
            found = found.rpartition(".")[0]
        if found:
            yield found


def test_every_folder_has_its_place_in_the_order():
    assert {room(name) for name in modules()} == {"faces", *ORDER}


def test_only_what_every_folder_may_need_lies_flat():
    flat = {file.stem for file in (ROOT / "opbench").glob("*.py")}
    assert flat == FACES | {"errors", "files", "stats", "text"}


def test_a_folder_imports_only_from_those_before_it():
    known = modules()
    wrong = [
        f"{name} -> {imported}"
        for name, file in known.items()
        for imported in imported_anywhere(file, known)
        if imported != "opbench"
        and room(name) != "faces"
        and room(imported) not in ORDER[: ORDER.index(room(name)) + 1]
    ]
    assert wrong == []


def test_no_two_modules_need_each_other():
    known = modules()
    graph = {name: set(imported_anywhere(file, known)) - {name, "opbench"} for name, file in known.items()}
    TopologicalSorter(graph).prepare()  # which raises CycleError with the modules of a circle


FRESH = """
import importlib, json, os, sys
import matplotlib.pyplot, pandas, rich.console, torch, triton, typer  # once: only opbench's own modules are looked at
for folder, names in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        for name in names: importlib.import_module(name)
        print(json.dumps([folder, [name for name in sys.modules if name.partition('.')[0] == 'opbench']]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, folder
"""


def test_a_fresh_process_that_imports_a_folder_loads_only_those_before_it():
    folders = {folder: [name for name in modules() if room(name) == folder] for folder in ORDER}
    done = subprocess.run([sys.executable, "-c", FRESH, json.dumps(folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = dict(map(json.loads, done.stdout.splitlines()))
    assert set(loaded) == set(ORDER)
    for place, folder in enumerate(ORDER, start=1):
        assert {room(name) for name in loaded[folder]} <= {"faces", *ORDER[:place]}, folder


def test_no_file_is_longer_than_350_lines_and_half_are_within_120():
    lengths = sorted(len(file.read_text().splitlines()) for file in modules().values() if file.stat().st_size)
    assert lengths[-1] <= 350
    assert lengths[len(lengths) // 2] <= 120


@pytest.mark.parametrize(
    "module", ["cli.app", "gate.serve", "pytest_plugin.plugin", "report", "report.comparison", *PURE]
)
def test_stays_free_of_heavy_imports(module):
    assert not imported_by(f"import opbench.{module}") & HEAVY


def command(*arguments):
    """A statement that runs the command line."""
    return (
        f"import sys; sys.argv = {['opbench', *arguments]!r}\n"
        "try:\n    from opbench.cli.app import main; main()\nexcept SystemExit as end: assert end.code in (None, 0)"
    )


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("--help",), set()),
        (("sweep", "--help"), set()),
        (("list", "operators"), set()),
        (("list", "providers"), set()),
        (("list", "shapes"), {"yaml"}),
        (("env",), {"pynvml", "psutil"}),
    ],
)
def test_what_a_command_imports_before_it_answers(arguments, needed):
    assert imported_by(command(*arguments)) & {*HEAVY, "rich", "opbench_kernels"} == needed


def test_operator_files_import_neither_torch_nor_kernels():
    assert not imported_by("from opbench.registry import registry; registry.registered()") & {*HEAVY, "opbench_kernels"}


def test_reading_results_works_without_torch():
    run = str(ROOT / "results" / "xeon-2core")  # as a real sweep wrote it
    code = f"import opbench; frame = opbench.load_results({run!r}); assert len(frame) == 84"
    assert "torch" not in imported_by(code, without=("torch", "triton", "timm"))
    loaded = imported_by(
        command("report", run), without=("torch", "triton", "timm", "pandas", "numpy", "matplotlib", "scipy")
    )
    assert not loaded & HEAVY


def test_kernels_stand_without_the_harness():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not {name for name in absolute_imports(path) if name.partition(".")[0] == "opbench"}, path
    allowed = {"torch", "triton", "opbench_kernels", *sys.stdlib_module_names}
    for path in (ROOT / "kernels").glob("*.py"):
        exporting = path.stem in {"export", "onnx_translation"}  # which no other module imports
        extra = {"numpy", "onnx_ir", "onnxruntime", "onnxscript"} if exporting else set()
        assert {name.partition(".")[0] for name in absolute_imports(path)} <= allowed | extra, path


def test_models_stand_without_the_harness():
    allowed = {"torch", "timm", "opbench_kernels", *sys.stdlib_module_names}
    for path in (ROOT / "opbench" / "models").rglob("*.py"):
        others = {name for name in absolute_imports(path) if not name.startswith("opbench.models")}
        assert {name.partition(".")[0] for name in others} <= allowed, path


def test_triton_is_imported_only_for_triton():
    assert "triton" not in imported_by("from opbench_kernels import dcnv4", without=("triton",))


def test_operators_do_not_know_the_harness():
    allowed = {"opbench.workload", "opbench.operators"}
    for path in (ROOT / "opbench" / "operators").glob("*.py"):
        own = {name for name in absolute_imports(path) if name.startswith("opbench.")}
        assert {".".join(name.split(".")[:2]) for name in own} <= allowed, path


def test_no_operator_asks_which_operator_a_case_is_of():
    """What differs between two operators is said in their files, not by comparing names in a shared one."""
    for path in (ROOT / "opbench" / "operators").glob("*.py"):
        asked = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
        assert [ast.unparse(node) for node in asked if "case.operator" in ast.unparse(node)] == [], path


def test_reports_read_results_and_measure_nothing():
    forbidden = {
        "torch",
        "triton",
        "opbench.sweeps.runner",
        "opbench.sweeps.run_cells",
        "opbench.sweeps.sweep",
        "opbench.sweeps.check",
        "opbench.sweeps.isolation.executor",
    }
    for path in (ROOT / "opbench" / "report").rglob("*.py"):
        assert not absolute_imports(path) & forbidden, path


def test_the_public_names_are_there_and_no_others():
    for name in opbench.__all__:
        assert getattr(opbench, name) is not None
    assert opbench.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'benchmark'"):
        _ = opbench.benchmark
