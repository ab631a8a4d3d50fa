"""Measures a device's ceilings: matrix products, memory and cache traffic, and launches of next to nothing."""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from opbench.case import Dtype
from opbench.ceilings import Ceilings, Probe
from opbench.conditions import conditions as device_conditions
from opbench.environment import collect_environment, comparison_identity
from opbench.precision import torch_precision
from opbench.stats import median
from opbench.system import available_memory_bytes
from opbench.timing import CACHES, Launch, StoppingRule, Timer, collect_samples, make_timer

__all__ = ["DeviceFacts", "ProbeSpec", "device_facts", "measure_ceilings", "probe_specs"]

RULE = StoppingRule(time_budget_s=0.5, min_samples=5, relative_half_width=0.0)
"""Never stops early: a ceiling is the fastest sample, which a narrow interval says nothing about."""

WARM_UP_S = 0.05
MATRIX_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
LEAST_MEMORY_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Of the buffers of a memory probe, where twice the cache would be less."""
FLOAT_BYTES = 4

TimerOf = Callable[[str, str], Timer]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the probes' sizes follow from.

    Attributes:
        device_type: "cpu" or "cuda".
        l2_bytes, cache_bytes: as in Ceilings.
        free_bytes: memory that may be used.
    """

    device_type: str
    l2_bytes: int | None
    cache_bytes: int | None
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """A probe to be: `build` gives the closure to time, from tensors on a device."""

    kind: str
    name: str
    size: str
    amount: int
    timer: str
    cache: str
    dtype: Dtype
    build: Callable[[torch.device], Launch]


def measure_ceilings(
    device: str,
    *,
    facts: DeviceFacts | None = None,
    timer_of: TimerOf | None = None,
    tensors_on: str | None = None,
    on_probe: Callable[[str, int, int], None] = lambda name, number, total: None,
) -> Ceilings:
    """Measure a device; takes a few seconds.

    Args:
        device: "cpu" or "cuda:N".
        facts, timer_of, tensors_on: replaced in tests.
        on_probe: hears the name of each probe before it runs, its number from 1, and how many there are.
    """
    facts = facts or device_facts(device)
    timer_of = timer_of or (lambda name, cache: make_timer(name, cache, device))
    place = torch.device(tensors_on or device)
    environment = collect_environment(place.type if tensors_on else device)
    conditions = device_conditions(device)
    probes = []
    with torch.cuda.device(place) if place.type == "cuda" else nullcontext(), torch.no_grad():
        specs = list(probe_specs(facts))
        for number, spec in enumerate(specs, start=1):
            on_probe(f"{spec.kind} {spec.name} {spec.size}", number, len(specs))
            probes.append(_run(spec, timer_of(spec.timer, spec.cache), place))
            gc.collect()
            if place.type == "cuda":
                torch.cuda.empty_cache()
    return Ceilings(
        device_name=environment["device_name"],
        identity=comparison_identity(environment),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        l2_bytes=facts.l2_bytes,
        cache_bytes=facts.cache_bytes,
        probes=tuple(probes),
        conditions=conditions,
    )


def probe_specs(facts: DeviceFacts) -> Iterator[ProbeSpec]:
    """Every probe of a kind of device."""
    on_cpu = facts.device_type == "cpu"
    timer = "wall-clock" if on_cpu else "cuda-event"
    for dtype in Dtype:
        if dtype is Dtype.TF32 and on_cpu:
            continue
        for size in MATRIX_SIZES[facts.device_type]:
            text = f"{size}x{size}x{size}"
            yield ProbeSpec("compute", dtype, text, 2 * size**3, timer, "warm", dtype, _matrix_product(size, dtype))
    wanted = max(2 * (facts.cache_bytes or 0), LEAST_MEMORY_BYTES[facts.device_type])
    yield from _traffic("memory", min(wanted, facts.free_bytes // 4), timer)
    if facts.l2_bytes:
        # In a graph there is no host between launches that are this short.
        cache_timer = "wall-clock" if on_cpu else "cuda-graph"
        for part in (4, 2):
            yield from _traffic("cache", facts.l2_bytes // part, cache_timer)
    timers = [("wall-clock", "warm")] if on_cpu else [(t, c) for t in ("cuda-event", "cuda-graph") for c in CACHES]
    for timer, cache in timers:
        yield ProbeSpec("launch", f"{timer}/{cache}", "1 element", 0, timer, cache, Dtype.FP32, _smallest)


def device_facts(device: str) -> DeviceFacts:
    """Cache sizes and free memory of a device."""
    if device == "cpu":
        caches = cpu_caches(Path("/sys/devices/system/cpu/cpu0/cache"))
        l2_bytes = caches[2] * torch.get_num_threads() if 2 in caches else None
        last = caches[max(caches)] if caches else None
        return DeviceFacts("cpu", l2_bytes, max(last or 0, l2_bytes or 0) or None, available_memory_bytes() or 2**30)
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return DeviceFacts("cuda", l2_bytes, l2_bytes, torch.cuda.mem_get_info(device)[0])


def cpu_caches(folder: Path) -> dict[int, int]:
    """Bytes of each level of data cache that Linux reports for a core; {} where it reports none."""
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index[0-9]*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KM])", size)
        if kind != "Instruction" and match and level.isdecimal():
            sizes[int(level)] = int(match[1]) * {"K": 2**10, "M": 2**20}[match[2]]
    return sizes


def _run(spec: ProbeSpec, timer: Timer, place: torch.device) -> Probe:
    with torch_precision(spec.dtype):
        launch = spec.build(place)
        timer.prepare(launch, WARM_UP_S)
        samples = collect_samples(timer, launch, RULE).latencies_ms
    return Probe(spec.kind, str(spec.name), spec.size, spec.amount, median(samples), min(samples), samples=len(samples))


def _matrix_product(size: int, dtype: Dtype) -> Callable[[torch.device], Launch]:
    def build(place: torch.device) -> Launch:
        # Random: a GPU draws less power, and so clocks higher, on zeros.
        generator = torch.Generator(place).manual_seed(0)
        options: dict[str, Any] = {"generator": generator, "device": place}
        a, b = (torch.randn(size, size, **options).to(getattr(torch, dtype.torch_name)) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return build


def _traffic(kind: str, size_bytes: int, timer: str) -> Iterator[ProbeSpec]:
    """Copy, read and write over buffers of `size_bytes` together."""
    count = size_bytes // FLOAT_BYTES

    def copy(place: torch.device) -> Launch:
        source, target = torch.ones(count // 2, device=place), torch.ones(count // 2, device=place)
        return lambda: target.copy_(source)

    def read(place: torch.device) -> Launch:
        source = torch.ones(count, device=place)
        return source.sum

    def write(place: torch.device) -> Launch:
        target = torch.ones(count, device=place)
        return lambda: target.fill_(2.0)

    for name, build, amount in (("copy", copy, count // 2 * 2), ("read", read, count), ("write", write, count)):
        size = f"{size_bytes / 2**20:.4g} MiB"
        yield ProbeSpec(kind, name, size, amount * FLOAT_BYTES, timer, "warm", Dtype.FP32, build)


def _smallest(place: torch.device) -> Launch:
    """A launch with as little in it as an operator can have: one element written in place.

    By events and graphs it gives what the device needs around any kernel, so the least that these timers can show.
    """
    element = torch.ones(1, device=place)
    return lambda: element.fill_(2.0)
