"""The same cells by opbench's timers, Triton's do_bench and the profiler's kernel times: do they agree?

usage: python tools/gpu/timing_check.py --out DIR [--dry-run]

Writes timing_check.json and timing_check.md. Values are checked before anything is timed. The profiler's figures are
what ran on the GPU, without the flush and without gaps. Of the shapes the first is larger than an H200's L2, the
others are smaller.

--dry-run times small cells on the CPU by the wall clock; the other columns then say that they need a GPU.

Exit codes: 0 every cell by every method, 1 some figure is missing (its place says why), 2 usage, 77 no CUDA device
here.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from opbench.device.environment import collect_environment
from opbench.device.resolve import resolve_device
from opbench.registry.registry import find
from opbench.stats import median
from opbench.sweeps.check import check, make_tensors
from opbench.sweeps.plan import applicability
from opbench.text import one_line
from opbench.timing import StoppingRule, collect_samples, make_timer
from opbench.timing.precision import torch_precision
from opbench.workload.case import Case, Direction, Dtype, Level, Shape

NEEDS_GPU = 77
BUDGET_S = 0.3
LAUNCHES = 50
"""In each of the profiler's recordings."""
OPERATORS = (("conv3x3", Level.MODULE), ("flash_attention_2", Level.CORE), ("dcnv3", Level.CORE), ("dcnv4", Level.CORE))
SHAPES = (Shape(64, 56, 56, 128), Shape(1, 64, 64, 768), Shape(64, 7, 7, 1024))
DRY_SHAPES = (Shape(1, 8, 8, 64),)

Launch = Callable[[], object]
Times = Mapping[str, float]
"""Microseconds of GPU time by the name of what ran."""


def plan(shapes: Iterable[Shape], dtype: Dtype) -> list[Case]:
    """The cells: forward, the operators at every shape."""
    return [
        Case(name, level, Direction.FWD, "timing", shape, dtype, find(name).resolve_settings({}))
        for shape in shapes
        for name, level in OPERATORS
    ]


def by_timer(timer: str, cache: str) -> Callable[[Launch, str], float]:
    """A method: milliseconds per launch by one of opbench's timers."""

    def measure(launch: Launch, device: str) -> float:
        chosen = make_timer(timer, cache, device)
        rule = StoppingRule(BUDGET_S)
        chosen.prepare(launch, 0.2 * BUDGET_S)
        return median(collect_samples(chosen, launch, rule).latencies_ms)

    return measure


def by_do_bench(launch: Launch, _device: str) -> float:
    """Triton's own benchmark; it flushes the L2 before each launch."""
    from triton.testing import do_bench

    return float(do_bench(launch, rep=1e3 * BUDGET_S, return_mode="median"))


def by_profiler(cache: str) -> Callable[[Launch, str], float]:
    """Milliseconds of kernels and copies per launch, as CUPTI records them."""

    def measure(launch: Launch, device: str) -> float:
        warm = gpu_times(launch, None)
        if cache == "warm":
            return sum(warm.values()) / LAUNCHES / 1e3
        flush = torch.empty(
            2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device
        ).zero_
        return without_flush(gpu_times(launch, flush), gpu_times(None, flush), warm) / LAUNCHES / 1e3

    return measure


def gpu_times(launch: Launch | None, flush: Launch | None) -> Counter[str]:
    """Microseconds on the GPU by name, over LAUNCHES rounds of the flush and the launch."""
    from torch.profiler import ProfilerActivity, profile

    for work in (flush, launch):
        if work:
            work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recording:
        for _ in range(LAUNCHES):
            for work in (flush, launch):
                if work:
                    work()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in recording.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] += event.time_range.elapsed_us()
    if not times:
        raise RuntimeError("the profiler recorded nothing on the GPU")
    return times


def without_flush(both: Times, flush: Times, launch: Times) -> float:
    """What the launch took of a recording of both.

    By name; a name that both use (a fill) counts by the difference.
    """
    return sum(
        total - (flush.get(name, 0.0) if name in launch else total if name in flush else 0.0)
        for name, total in both.items()
    )


METHODS: dict[str, Callable[[Launch, str], float]] = {
    "event cold": by_timer("cuda-event", "cold"),
    "do_bench": by_do_bench,
    "graph cold": by_timer("cuda-graph", "cold"),
    "profiler cold": by_profiler("cold"),
    "event warm": by_timer("cuda-event", "warm"),
    "graph warm": by_timer("cuda-graph", "warm"),
    "profiler warm": by_profiler("warm"),
    "wall warm": by_timer("wall-clock", "warm"),
}
WITHOUT_GPU = ("wall warm",)
AGAINST = {
    name: f"profiler {'warm' if 'warm' in name else 'cold'}" for name in METHODS if not name.startswith("profiler")
}
"""Which of the profiler's figures a method's is compared with: the one with the same cache."""


def measure_case(case: Case, device: str) -> dict[str, object]:
    """Every method's milliseconds; a text where there is no figure."""
    operator, device_type = find(case.operator), device.partition(":")[0]
    row: dict[str, object] = {"case": case.key, "bytes": operator.bytes_moved(case)}
    runnable = [p for p in operator.providers if not applicability(operator, p, case, device_type)]
    if not runnable:
        return {**row, "reason": "no provider runs it here"}
    provider = runnable[0]
    row["provider"] = provider.name
    with torch_precision(case.dtype), torch.no_grad():
        try:
            if reason := check(operator, provider, case, device, 0).reason:
                return {**row, "reason": f"wrong: {reason}"}
            launch = provider.build(case, make_tensors(operator, case, device, 0))
        except Exception as error:
            return {**row, "reason": one_line(repr(error))}
        return {**row, "ms": {name: _figure(method, name, launch, device) for name, method in METHODS.items()}}


def _figure(method: Callable[[Launch, str], float], name: str, launch: Launch, device: str) -> float | str:
    if device == "cpu" and name not in WITHOUT_GPU:
        return "needs a GPU"
    try:
        return method(launch, device)
    except Exception as error:
        return one_line(repr(error))


def markdown(rows: Sequence[Mapping[str, object]], device: str, l2_bytes: int) -> str:
    """The table: milliseconds, each with its difference from the profiler's figure for the same cache state."""
    lines = [
        "# Timers compared",
        "",
        f"{device}, L2 {l2_bytes / 2**20:.0f} MiB. Milliseconds per launch, medians (the profiler's are means of "
        f"{LAUNCHES} launches); in brackets the difference from the profiler's kernel time in the same cache state. "
        "Working set: inputs and output once.",
        "",
        f"| cell | working set / L2 | {' | '.join(METHODS)} | event cold / warm |",
        f"|---|---|{'---|' * len(METHODS)}---|",
    ]
    for row in rows:
        fits = f"{row['bytes'] / l2_bytes:.2f}" if l2_bytes else "unknown"
        name = f"{row['case']} ({row.get('provider', 'none')})"
        if "ms" not in row:
            lines.append(f"| {name} | {fits} | {row['reason']}{' |' * (len(METHODS) + 1)}")
            continue
        times = row["ms"]
        cold, warm = times["event cold"], times["event warm"]
        quotient = f"{cold / warm:.2f}" if isinstance(cold, float) and isinstance(warm, float) else "none"
        lines.append(f"| {name} | {fits} | {' | '.join(_cell(method, times) for method in METHODS)} | {quotient} |")
    return "\n".join(lines) + "\n"


def _cell(method: str, times: Mapping[str, float | str]) -> str:
    figure, base = times[method], times.get(AGAINST.get(method, ""))
    if isinstance(figure, str):
        return figure.replace("|", "/")
    difference = f" ({figure / base - 1:+.1%})" if isinstance(base, float) and base > 0 else ""
    return f"{figure:.4g}{difference}"


def complete(rows: Iterable[Mapping[str, object]]) -> bool:
    """Whether every cell has a figure by every method."""
    return all("ms" in row and not any(isinstance(figure, str) for figure in row["ms"].values()) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    if not given.dry_run and not torch.cuda.is_available():
        print("needs a CUDA device, none here: nothing was measured (--dry-run tries the code)", file=sys.stderr)
        return NEEDS_GPU
    device = "cpu" if given.dry_run else resolve_device("cuda")
    environment = collect_environment(device)
    rows = []
    for case in plan(DRY_SHAPES if given.dry_run else SHAPES, Dtype.FP32 if given.dry_run else Dtype.FP16):
        rows.append(measure_case(case, device))
        print(rows[-1], flush=True)
    l2_bytes = 0 if given.dry_run else torch.cuda.get_device_properties(device).L2_cache_size
    given.out.mkdir(parents=True, exist_ok=True)
    stem = "timing_check-dry-run" if given.dry_run else "timing_check"
    (given.out / f"{stem}.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    text = markdown(rows, environment["device_name"], l2_bytes)
    (given.out / f"{stem}.md").write_text(text)
    print(text)
    if given.dry_run:
        print("dry run on the CPU: nothing here is a GPU's time")
        return int(any("ms" not in row or not isinstance(row["ms"]["wall warm"], float) for row in rows))
    return int(not complete(rows))


if __name__ == "__main__":
    sys.exit(main())
