"""Times opbench's Triton kernels beside the official CUDA ones, values checked first.

usage: python tools/gpu/official.py --out DIR [--sources third_party] [--ops dcnv4,dcnv3] [--timer cuda-graph]
                                    [--cache warm]
           [--direction fwd] [--accept-difference driver]
       python tools/gpu/official.py --out DIR --build-only | --dry-run

The sources are checkouts of OpenGVLab/DCNv4 and OpenGVLab/InternImage in the folders `DCNv4` and `InternImage` of
--sources, which git ignores. Every cell is checked against the float64 reference before it is timed; one that cannot be
timed is a row with its reason. Ours and theirs take turns cell by cell, and each goes first in every other round.
DCNv4's block is the fastest of those that divide Ho * Wo, chosen as our kernels choose theirs (docs/timing.md, item
11); official.json keeps the times of all. `official_default` has the block of the official function, by its table
(DCNv4_op/DCNv4/functions/table.py, where the checkout has it) or its rule; where that does not divide Ho * Wo it is
silently wrong, and not timed. Run again with the same --out, it goes on.

--dry-run plans the whole comparison and carries out a small one on the CPU, with torch in place of both. It measures
nothing that means anything and writes no table.

Exit codes: 0 every cell measured, 1 some cell is not (the table says why), 2 usage, 77 no CUDA device here.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Never

import torch
from official_launch import TABLES, DefaultLaunch, FastestLaunch, Launch, read_tables
from official_ops import (
    DEFAULT_PROVIDER,
    FOLDERS,
    PROVIDER,
    build_extension,
    default_provider,
    official_provider,
    source_digest,
    with_official,
)
from official_table import comparison_markdown, has_failures
from stand_in import StandIn

from opbench.errors import OpbenchError
from opbench.results.run import Run
from opbench.sweeps.conduct import make_conduct
from opbench.sweeps.console_progress import ConsoleProgress
from opbench.sweeps.request import make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import continue_run, plan, start_run
from opbench.timing import CACHES
from opbench.workload.operator import Operator, Provider

NEEDS_GPU = 77
OURS = "triton"
ROUNDS = 2
TIME_BUDGET_S = 0.1
FULL = {
    "shapes": ["standard", "high_resolution"], "dtypes": ["fp16", "fp32"], "level": ["core", "module"],
    "direction": ["fwd", "bwd"],
}  # fmt: skip
DRY_SHAPES = Path(__file__).with_name("rehearsal_shape.yaml")


def options(
    scope: dict[str, list[str]], ops: Sequence[str], ours: str, turn: int, **others: object
) -> dict[str, object]:
    """A sweep's options; in every second round ours comes after theirs."""
    providers = []
    for operator in ops:
        order = [ours, PROVIDER, *([DEFAULT_PROVIDER] if operator == "dcnv4" else [])]
        providers += [f"{operator}={provider}" for provider in (order[::-1] if turn % 2 else order)]
    return {**scope, "ops": list(ops), "providers": providers, "time_budget": TIME_BUDGET_S, **others}


def sweep_round(
    path: Path, wanted: dict[str, object], operators: dict[str, Operator], accepted: Sequence[str] = ()
) -> Run:
    """One round, or the rest of one that was stopped, where nothing differs but what is accepted by name."""
    conduct = make_conduct({"isolation": "none"})
    if (path / "run.json").exists():
        run = continue_run(path, wanted, operators, accept_differences=accepted)
    else:
        run = start_run(make_request(wanted, operators), operators, path, conduct)
    with ConsoleProgress(quiet=False, no_color=True) as progress:
        run_cells(run, operators, progress, conduct)
    run.write_measurements_csv()
    return run


def providers_of(
    operator: str, extension: Any, fastest: FastestLaunch, tables: Mapping[str, Mapping[str, Launch]]
) -> list[Provider]:
    """The official provider, and for DCNv4 the one with the official choice of a launch."""
    official = official_provider(operator, extension, fastest)
    if operator != "dcnv4":
        return [official]
    return [official, default_provider(official, extension, DefaultLaunch(tables))]


def compiled_providers(operator: str, sources: Path, build: Path, fastest: FastestLaunch) -> list[Provider]:
    """The official providers; one that cannot be built says so in every row."""
    try:
        return providers_of(operator, build_extension(operator, sources, build), fastest, read_tables(sources))
    except (OSError, ImportError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"{operator}: {error}", file=sys.stderr)
        lines = str(error).strip().splitlines()
        reason = f"the official extension did not build: {lines[0] if lines else type(error).__name__}"
        names = (PROVIDER, DEFAULT_PROVIDER) if operator == "dcnv4" else (PROVIDER,)
        return [Provider(name, _never, "not built", unavailable=lambda _device_type: reason) for name in names]


def _never(_case: object, _tensors: object) -> Never:
    raise AssertionError("an unavailable provider is not built")


def build_only(ops: Sequence[str], sources: Path, build: Path) -> int:
    """Compile, so that measuring later starts at once; 1 if something does not."""
    providers = [compiled_providers(name, sources, build, FastestLaunch())[0] for name in ops]
    reasons = [reason for provider in providers if (reason := provider.unavailable("cuda"))]
    print("\n".join(reasons) or "built")
    return int(bool(reasons))


def dry_run(out: Path, ops: Sequence[str], directions: Sequence[str]) -> int:
    """The plan of the real comparison, then the stand-in through all of its code."""
    operators = with_official({name: providers_of(name, StandIn(), FastestLaunch(), {}) for name in ops})
    full = {**FULL, "direction": list(directions)}
    request = make_request(options(full, ops, OURS, 0, device="cpu"), operators)
    print(f"planned: {len(plan(request, operators))} cells a round, {ROUNDS} rounds")
    scope = {**full, "shapes": [str(DRY_SHAPES)], "dtypes": ["fp32"]}
    wanted = options(scope, ops, "torch", 0, device="cpu", time_budget=1e-3)
    run = sweep_round(out / "dry-run", wanted, operators)
    failed = has_failures([run], "torch")
    wrong = "SOME CELLS FAILED" if failed else "all values are right"
    print(f"dry run: {len(run.rows())} cells with a stand-in, {wrong}; no time of it means anything")
    return int(failed)


def measure(ops: Sequence[str], directions: Sequence[str], given: argparse.Namespace) -> int:
    """Build, sweep, and write the table."""
    out, sources = given.out, given.sources
    fastest = FastestLaunch()
    operators = with_official({name: compiled_providers(name, sources, given.build, fastest) for name in ops})
    scope = {**FULL, "direction": list(directions)}
    runs = [
        sweep_round(
            out / f"round-{turn + 1}", options(scope, ops, OURS, turn, timer=given.timer, cache=given.cache),
            operators,
            given.accept_difference,
        )
        for turn in range(given.rounds)
    ]  # fmt: skip
    origin = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": {name: source_digest(sources / FOLDERS[name]) for name in ops},
        "cuda": torch.version.cuda,
        "official_table": (sources / TABLES).is_file(),
        "choices": fastest.to_json(),
    }
    (out / "official.json").write_text(json.dumps(origin, indent=1) + "\n")
    text = comparison_markdown(runs, OURS, origin["sources"])
    (out / "official.md").write_text(text)
    print(text)
    return int(has_failures(runs, OURS))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", type=Path, default=Path("third_party"))
    parser.add_argument("--build", type=Path, default=Path("build/official"), help="where the extensions are kept")
    parser.add_argument("--ops", default="dcnv4,dcnv3")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--timer", choices=("cuda-event", "cuda-graph", "launch-sync"), default="cuda-event")
    parser.add_argument("--cache", choices=CACHES, help="by default cold where the timer can flush")
    parser.add_argument("--direction", default=",".join(FULL["direction"]), help="of fwd and bwd; both by default")
    parser.add_argument(
        "--accept-difference", action="append", default=[], metavar="NAME", help="go on although this differs"
    )
    parser.add_argument("--build-only", action="store_true", help="compile the extensions and measure nothing")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    ops = given.ops.split(",")
    if unknown := set(ops) - set(FOLDERS):
        parser.error(f"--ops must be of {', '.join(FOLDERS)}, got {', '.join(sorted(unknown))}")
    directions = given.direction.split(",")
    if unknown := set(directions) - set(FULL["direction"]):
        parser.error(f"--direction must be of {', '.join(FULL['direction'])}, got {', '.join(sorted(unknown))}")
    if given.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {given.rounds}")
    try:
        if given.dry_run:
            return dry_run(given.out, ops, directions)
        if not torch.cuda.is_available():
            print("needs a CUDA device, none here: nothing was measured (--dry-run tries the code)", file=sys.stderr)
            return NEEDS_GPU
        if given.build_only:
            return build_only(ops, given.sources, given.build)
        return measure(ops, directions, given)
    except OpbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
