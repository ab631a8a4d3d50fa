"""`make mutants`: does a test fail for each small change of a module whose figures a reader trusts?

Cosmic Ray makes the changes, one at a time, in copies of the working tree. For each, a process is forked from one that
has imported torch already, and runs the tests that belong to the module. docs/mutants.md has the last run's figures.

    python tests/mutants.py [--jobs N] [--out FOLDER] [--only REGEX] [--tests NAME] [--again] [MODULE ...]
"""

import argparse
import ast
import compileall
import importlib
import io
import multiprocessing
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import cosmic_ray.plugins
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code, use_mutation
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
from mutants_equivalent import EQUIVALENT

ROOT = Path(__file__).parents[1]

OPERATORS = ("costs", "operator_formulas", "operators")
MODULES = {  # module: the files of tests/ that belong to it, the quickest first
    "operators/_attention": OPERATORS,
    "operators/_dcn": OPERATORS,
    "operators/_dcnv4": OPERATORS,
    "operators/attention": OPERATORS,
    "operators/conv3x3": OPERATORS,
    "operators/dcnv3": OPERATORS,
    "operators/dcnv4": OPERATORS,
    "operators/dcnv4_lightweight": OPERATORS,
    "operators/flash_attention_2": OPERATORS,
    "operators/window_attention": OPERATORS,
    "compare/verdicts": ("verdicts",),
    "compare/estimate": ("estimate",),
    "workload/cell_warning": ("cell_warning",),
    "compare/runs": ("compare", "noise", "compare_command", "baselines", "benchmark_json"),
    "compare/rules": ("gate_rules", "gate_session"),
    "gate/outcome": ("gate_session", "gate_command"),
    "stats": ("stats",),
    "results/metrics": ("metrics",),
    "results/run": ("results",),
    "results/run_json": ("results",),
    "results/rows": ("results",),
    "results/journal": ("results",),
    "results/measurement": ("measurement",),
    "results/repetitions": ("repetitions",),
    "timing/stopping": ("timing",),
    "timing/wall_clock": ("timing",),
    "timing/cuda": ("cuda_timers",),
    "timing/launch_sync": ("cuda_timers",),
    "sweeps/check": ("check", "runner"),
    "sweeps/deviation": ("deviation", "check"),
    "sweeps/plan": ("plan", "cost_mistakes", "costs", "run"),
    "workload/tolerance": ("deviation", "check"),
    "device/ceilings": ("ceilings",),
    "device/interference": ("interference",),
    "compare/change_points": ("change_points",),
    "compare/segmentation": ("segmentation",),
    "compare/history": ("history",),
    "report/analysis": ("analysis",),
}

CHANGES = re.compile(
    r"core/(ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitAnd_BitOr|BitOr_BitAnd)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_Invert)"
    r"|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|AddNot|NumberReplacer"
    r"|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ZeroIterationForLoop)"
)
"""Of Cosmic Ray's changes: one or two for each operator. All of them would be ten times as many, and find the same."""

PRELOADED = (
    *("torch", "torch.utils.flop_counter", "numpy", "scipy.stats", "pandas", "rich.console", "typer", "psutil"),
    *("pytest", "pytest_benchmark.plugin", "hypothesis", "ruptures.detection", "timm.models.swin_transformer"),
)
Tests = dict[str, tuple[str, ...]]
Line = tuple[int, str, str]
"""Number, text and changed text."""
TIMEOUT_S = 20.0
"""Beyond five times what the tests take without a change."""


def is_left_out(tree: ast.Module, spec: MutationSpec) -> bool:
    """Whether a change is in an annotation, a decorator, `if TYPE_CHECKING:`, the `strict=` of a zip, or a star.

    A star that unpacks, or that ends the positional arguments, is an operator to Cosmic Ray.
    """
    places: list[ast.AST] = []
    operations: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            places += [*node.decorator_list, *filter(None, [node.returns])]
        elif isinstance(node, ast.ClassDef):
            places += node.decorator_list
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            places.append(node.annotation)
        elif (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") or (
            isinstance(node, ast.keyword) and node.arg == "strict"
        ):
            places.append(node)
        elif isinstance(node, ast.BinOp):
            operations.append(node)

    def covers(nodes: list[ast.AST]) -> bool:
        return any((n.lineno, n.col_offset) <= spec.start_pos < (n.end_lineno, n.end_col_offset) for n in nodes)

    return covers(places) or ("BinaryOperator" in spec.operator_name and not covers(operations))


def begin(module: str, file: Path, only: str) -> None:
    """A session of Cosmic Ray's with the changes of a module, or of its functions and lines that match `only`."""
    path = Path("opbench") / f"{module}.py"
    source = (ROOT / path).read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()

    def is_wanted(spec: MutationSpec) -> bool:
        texts = (spec.definition_name or "", lines[spec.start_pos[0] - 1])
        return (
            bool(CHANGES.fullmatch(spec.operator_name))
            and any(re.search(only, text) for text in texts)
            and not is_left_out(tree, spec)
        )

    file.unlink(missing_ok=True)
    file.with_suffix(".py").write_text(source, encoding="utf-8")
    with use_db(str(file)) as db:
        init((path,), db, {})
        skipped = [item.job_id for item in db.work_items if not is_wanted(item.mutations[0])]
        db.set_multiple_results(skipped, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def is_current(module: str, file: Path) -> bool:
    """Whether there is a session of the module as it is now."""
    kept, path = file.with_suffix(".py"), ROOT / "opbench" / f"{module}.py"
    return file.exists() and kept.exists() and kept.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def changes_of(file: Path) -> tuple[list[WorkItem], int]:
    """The changes of a session that no test has noticed yet, tried or not, and how many died."""
    with use_db(str(file)) as db:
        tried = [(item, result.test_outcome) for item, result in db.completed_work_items if result.test_outcome]
        survived = [item for item, outcome in tried if outcome is TestOutcome.SURVIVED]
        return [*db.pending_work_items, *survived], len(tried) - len(survived)


def changed_line(item: WorkItem) -> Line:
    """Number, text and changed text of a change's line, in the working directory."""
    [spec] = item.mutations
    source = spec.module_path.read_text(encoding="utf-8")
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(spec.operator_name)(), spec.occurrence)
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)  # a change may join lines
    return next((n, a.strip(), " ".join(b.split())) for n, (a, b) in enumerate(pairs, 1) if a != b)


def tests_pass(names: tuple[str, ...], timeout_s: float) -> bool:
    """Run these tests in a process forked from this one; False where one fails, or they take too long."""
    pid = os.fork()
    if not pid:
        os.setsid()
        import pytest

        files = [f"tests/test_{name}.py" for name in names]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            # Imported before pytest could rewrite their assertions, which are not ours.
            quick = ("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")
            code = pytest.main(["-x", "-q", *quick, *files])
        os._exit(int(code))
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def work(folder: Path, tests: Tests, todo: multiprocessing.Queue, done: multiprocessing.Queue) -> None:
    """A worker: takes changes until there are no more, applies each in its copy of the tree and runs the tests."""
    os.chdir(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "tests")]
    os.environ |= {
        "PYTHONPATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    compileall.compile_dir("opbench", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    for name in PRELOADED:
        with suppress(ImportError):  # ruptures, on a Python that it knows nothing of
            importlib.import_module(name)
    timeouts: dict[tuple[str, ...], float] = {}
    for module, item in iter(todo.get, None):
        names = tests[module]
        if names not in timeouts:
            started = time.monotonic()
            sys.dont_write_bytecode = False
            if not tests_pass(names, 600):
                done.put((module, None, None))
                return
            sys.dont_write_bytecode = True  # from here on: what was compiled for this run stays, and no change is kept
            timeouts[names] = TIMEOUT_S + 5 * (time.monotonic() - started)
        [spec] = item.mutations
        operator = cosmic_ray.plugins.get_operator(spec.operator_name)()
        with use_mutation(spec.module_path, operator, spec.occurrence):
            survived = tests_pass(names, timeouts[names])
        done.put((module, item, changed_line(item) if survived else None))
    done.put(None)


def copies(count: int, folder: Path) -> Iterator[Path]:
    """Copies of the working tree, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for number in range(count):
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                place = folder / str(number) / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place)
        yield folder / str(number)


def table_row(name: str, changes: int, killed: int, equivalent: int) -> str:
    """A row of docs/mutants.md; the score leaves the equivalent ones out."""
    others = changes - equivalent
    score = f"{killed / others:.1%}" if others else "-"
    return f"| {name} | {changes} | {killed} | {equivalent} | {others - killed} | {score} |"


def show(module: str, found: list[Line | None]) -> tuple[int, int, int]:
    """Print a module's row and its survivors; gives how many changes there were, died, and are equivalent."""
    survived = sorted(line for line in found if line)
    left = [line for line in survived if line[2] not in EQUIVALENT.get(module, {})]
    counts = (len(found), len(found) - len(survived), len(survived) - len(left))
    print(table_row(module, *counts), flush=True)
    for number, before, after in left:
        print(f"  opbench/{module}.py:{number}: {before}  ->  {after}", flush=True)
    return counts


def main() -> int:
    """Exit code 1 where a change survives that is not known to be equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", choices=[[], *MODULES], default=list(MODULES), metavar="MODULE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants", help="for Cosmic Ray's sessions")
    parser.add_argument("--only", default="", metavar="REGEX", help="changes in functions and lines that match")
    parser.add_argument("--tests", action="append", metavar="NAME", help="only tests/test_NAME.py; may be repeated")
    parser.add_argument(
        "--again",
        action="store_true",
        help="only what survived in the last session, of modules that are as they were then",
    )
    given = parser.parse_args()
    tests = {module: tuple(given.tests or files) for module, files in MODULES.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    totals = []
    with TemporaryDirectory() as temporary:
        context = multiprocessing.get_context("spawn")
        todo, done = context.Queue(), context.SimpleQueue()
        sessions = {}
        for module in given.modules:
            file = given.out / f"{module.replace('/', '-')}.sqlite"
            if not (given.again and is_current(module, file)):
                begin(module, file, given.only)
            items, died = changes_of(file)
            sessions[module] = (file, died + len(items), [None] * died)
            for item in items:
                todo.put((module, item))
            if not items:
                totals.append(show(module, [None] * died))
        workers = [
            context.Process(target=work, args=(folder, tests, todo, done))
            for folder in copies(given.jobs, Path(temporary))
        ]
        for worker in workers:
            todo.put(None)
            worker.start()
        running = len(workers)
        while running:
            answer = done.get()
            if answer is None:
                running -= 1
                continue
            module, item, line = answer
            if item is None:
                print(f"the tests of {module} fail without a change", file=sys.stderr)
                for worker in workers:
                    worker.terminate()
                return 2
            file, count, found = sessions[module]
            outcome = TestOutcome.SURVIVED if line else TestOutcome.KILLED
            with use_db(str(file)) as db:
                db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, test_outcome=outcome))
            found.append(line)
            if len(found) == count:
                totals.append(show(module, found))
    changes, killed, equivalent = map(sum, zip(*totals, strict=True))
    print(table_row("all", changes, killed, equivalent))
    return int(killed + equivalent < changes)


if __name__ == "__main__":
    sys.exit(main())
