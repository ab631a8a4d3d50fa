"""What is measured on a GPU, as a table: every step of the three commands, with its rank, its estimate and its limit.

The estimates are arithmetic from counts of cells, variants and processes; none was measured yet. The least certain have
the last ranks of their part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

__all__ = ["PARTS", "STEPS", "Step", "chosen"]

PARTS = {
    "A": "values on real hardware: environment, builds, tests, one gate",
    "B": "the paper's tables: as published, by events, tuned, beside the official operator",
    "C": "backward passes, the timers from outside, memory checks, the gate's power",
}
ROOT = Path(__file__).parents[2]
TEST_PROCESSES = 12
SPARE = 900
"""From this rank on a step is for what time is left: a part's estimates need not have room for it."""
CELL_STALL_S = 90
"""Most that a cell may take: compiling, tuning and checking it included."""


@dataclass(frozen=True, slots=True)
class Step:
    """One program to run.

    Attributes:
        name: of the step, its folder and its log.
        parts: the commands that it belongs to, letters of PARTS.
        rank: the order in which steps are carried out; what has the lowest is worth the most.
        estimate_s: what it is expected to take; it is not started where less is left.
        limit_s: after so long it is stopped.
        command: arguments of Python. {out} is the step's folder, {local} one that stays on the machine.
        variables: of its environment, in addition.
        resumes: run again, it goes on after what it has measured, and after a cell that ended its process.
        needs: a step without which it is not worth its time.
        local: what it makes stays on the machine, so that it is done again on another one.
    """

    name: str
    parts: str
    rank: int
    estimate_s: int
    limit_s: int
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    resumes: bool = False
    needs: str = ""
    local: bool = False


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For each of many processes."""
ACCEPTED = ("--accept-difference", "driver", "--accept-difference", "gpu-uuid")
"""Machines of one kind differ in these; a run goes on all the same, and its rows say so."""
NOT_LIGHTWEIGHT = "conv3x3,attention,flash_attention_2,window_attention,dcnv3,dcnv4"
"""At core level the lightweight operator launches the kernel of dcnv4."""
GATHERING = "dcnv3,dcnv4"
"""Their cores have no matrix product, so that tf32 is fp32 there."""
MULTIPLYING = "conv3x3,attention,window_attention"


def _opbench(*arguments: str) -> tuple[str, ...]:
    return ("-m", "opbench", *arguments)


def _reproduce(parts: str, *options: str) -> tuple[str, ...]:
    return _opbench("reproduce", "--out", "{out}", "--parts", parts, *options, *ACCEPTED)


def _tests(*arguments: str) -> tuple[str, ...]:
    """pytest by many processes where pytest-xdist is there, without hypothesis' search for smaller examples."""
    processes = ("--numprocesses", str(TEST_PROCESSES)) if find_spec("xdist") else ()
    return (
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "no-shrinking", *processes,
        "--junit-xml", "{out}/tests.xml", *arguments,
    )  # fmt: skip


def _kernel_tests() -> list[str]:
    """The files of tests that run kernels on a CUDA device where there is one, else in Triton's interpreter."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_*.py"))}
    found = [path for path, text in texts.items() if "opbench_kernels" in text and '"cuda" if torch.cuda.is' in text]
    return [str(path.relative_to(ROOT)) for path in found]


def _official(*arguments: str) -> tuple[str, ...]:
    return (
        "tools/gpu/official.py", "--build", "{local}/official", "--out", "{out}", "--ops", "dcnv4",
        *ACCEPTED, *arguments,
    )  # fmt: skip


STEPS = (
    Step("environment", "A", 10, 10, 60, _opbench("env", "--check")),
    # 380 launches, and some 540 variants of about 4 s by 16 processes, the candidates of each choice among them.
    Step("compile", "ABC", 30, 135, 300, ("tools/gpu/compile_kernels.py",), variables=ONE_THREAD, local=True),
    Step("ceilings", "A", 40, 35, 90, _opbench("ceilings", "--device", "cuda")),
    Step(
        "timers", "A", 50, 20, 200,
        _tests("tests/test_cuda_timers.py", "tests/test_timing.py", "tests/test_pytest_plugin.py", "-m", "gpu"),
        variables=ONE_THREAD,
    ),
    Step("kernels", "A", 60, 77, 400, _tests(*_kernel_tests(), "-m", "not slow"), variables=ONE_THREAD),
    Step("operators", "A", 70, 50, 300, _tests("tests/test_operators.py", "-m", "not slow"), variables=ONE_THREAD),
    # 6 processes of each arm, about 6 s each to start, and one cell.
    Step(
        "gate-aa", "A", 80, 80, 200,
        _opbench(
            "gate", "--base", ".", "--head", ".", "--aa", "--ops", "dcnv4", "--dtypes", "fp16", "--rounds", "3+3",
            "--shapes", "tools/gpu/gate_shape.yaml", "--inconclusive", "pass", "--out", "{out}/gate",
        ),
    ),
    # Last in A; before what needs it where B or C begins on another machine.
    Step("official-build", "ABC", 125, 130, 400, _official("--build-only"), local=True),
    # Is the official operator wrong where its own launch does not divide an image? 23 launches of each.
    Step(
        "official-pixels", "A", 126, 8, 60,
        ("tools/gpu/wrong_pixels.py", "--build", "{local}/official", "--out", "{out}"), needs="official-build",
    ),
    # 210 cells of half a second: 100 launches, and 200 more. Kernels are tuned as cells meet them: half a second each.
    Step("as-paper", "B", 100, 135, 300, _reproduce("as-paper"), resumes=True),
    # From here on 0.2 s a cell: 0.05 s of samples, and what lies around them.
    Step(
        "module-events", "B", 110, 80, 200,
        _reproduce("module-event-warm,module-event-cold", "--dtypes", "tf32,fp16"), resumes=True,
    ),
    Step(
        "official-forward", "B", 130, 100, 250,
        _official("--direction", "fwd"), resumes=True, needs="official-build",
    ),
    Step(
        "fused", "B", 135, 15, 100,
        _reproduce(
            "module-event-warm,module-event-cold", "--ops", "dcnv4,dcnv4_lightweight", "--dtypes", "fp16",
            "--providers", "dcnv4=triton_fused,dcnv4_lightweight=triton_fused",
        ),
        resumes=True,
    ),
    Step(
        "core-events", "B", 140, 50, 200,
        _reproduce("core-event-warm,core-event-cold", "--ops", NOT_LIGHTWEIGHT, "--dtypes", "fp16"), resumes=True,
    ),
    Step(
        "core-fp32", "B", 150, 30, 100,
        _reproduce("core-event-warm,core-event-cold", "--ops", GATHERING, "--dtypes", "fp32"), resumes=True,
    ),
    Step(
        "core-tf32", "B", 160, 15, 100,
        _reproduce("core-event-warm,core-event-cold", "--ops", MULTIPLYING, "--dtypes", "tf32"), resumes=True,
    ),
    Step(
        "module-fp32-bf16", "B", 170, 95, 250,
        _reproduce("module-event-warm,module-event-cold", "--dtypes", "fp32,bf16"), resumes=True,
    ),
    Step(
        "graph-batch1", "B", 180, 25, 100,
        _reproduce("module-graph", "--shapes", "standard_batch1", "--dtypes", "tf32,fp16"), resumes=True,
    ),
    Step(
        "backward", "C", 200, 80, 250,
        _reproduce("backward-event-warm,backward-event-cold", "--dtypes", "fp16,fp32"), resumes=True,
    ),
    Step(
        "official-backward", "C", 210, 100, 250,
        _official("--direction", "bwd"), resumes=True, needs="official-build",
    ),
    Step("timing-check", "C", 220, 60, 200, ("tools/gpu/timing_check.py", "--out", "{out}")),
    Step("memcheck", "C", 230, 110, 300, ("tools/gpu/sanitize.py", "--tools", "memcheck", "--out", "{out}")),
    # One cell; a session without and one with a slow-down, each of 6 processes of each arm.
    Step(
        "gate-slowdown", "C", 240, 165, 350,
        _opbench(
            "gate", "--selftest", "--ops", "dcnv4", "--dtypes", "fp16", "--shapes", "tools/gpu/gate_shape.yaml",
            "--rounds", "3+3", "--sessions", "1", "--inject", "5%", "--out", "{out}/gate",
        ),
    ),
    # What the published figures may depend on, at five shapes: 45 cells of half a second.
    Step(
        "as-paper-settings", "C", 250, 30, 100,
        _reproduce(
            "as-paper-offset-0,as-paper-offset-4,as-paper-groups-16", "--shapes", "standard", "--dtypes", "fp16"
        ),
        resumes=True,
    ),
    # A process for each operator and shape, so that cuDNN's search for an algorithm is no other cell's.
    Step(
        "as-paper-convolutions", "BC", SPARE, 90, 300,
        _reproduce("as-paper-convolutions", "--shapes", "standard", "--dtypes", "fp16"), resumes=True,
    ),
    Step("additions-probe", "BC", SPARE + 5, 50, 150, ("tools/gpu/additions_probe.py", "--out", "{out}")),
    # Beside as-paper: 120 cells of half a second.
    Step(
        "official-as-paper", "BC", SPARE + 10, 80, 250,
        _official("--direction", "fwd", "--timer", "launch-sync", "--rounds", "1"),
        resumes=True, needs="official-build",
    ),
    # 4 cells in a process each: 5 s of energy, and what lies around it.
    Step(
        "energy", "BC", SPARE + 15, 50, 150,
        _opbench(
            "sweep", "--energy", "--ops", "conv3x3,window_attention,dcnv3,dcnv4", "--dtypes", "fp16",
            "--shapes", "tools/gpu/gate_shape.yaml", "--timer", "cuda-graph", "--ceilings-budget", "0", "--no-plots",
            "--out", "{out}/run",
        ),
    ),
)  # fmt: skip


def chosen(parts: Sequence[str], names: Iterable[str]) -> list[Step]:
    """The steps of some parts, or of these names, in the order of their ranks.

    Raises:
        ValueError: a part or a step that does not exist.
    """
    wanted = list(names)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"no part is called {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if unknown := sorted(set(wanted) - {step.name for step in STEPS}):
        raise ValueError(f"no step is called {', '.join(unknown)}; known: {', '.join(step.name for step in STEPS)}")
    steps = [step for step in STEPS if (step.name in wanted if wanted else set(step.parts) & set(parts))]
    return sorted(steps, key=lambda step: step.rank)
