"""Measures a device's ceilings: matrix products, memory and cache traffic, and launches of next to nothing.

Bounded by time, not by size: a probe starts small and grows while its share of the budget lasts.
"""

import gc
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from opbench.device.ceilings import Missing, Probe
from opbench.device.snapshots import sm_clock_mhz
from opbench.host.system import available_memory_bytes
from opbench.stats import median
from opbench.text import one_line
from opbench.timing import CACHES, Launch, StoppingRule, Timer, collect_samples, make_timer
from opbench.timing.precision import torch_precision
from opbench.workload.case import Dtype

__all__ = ["DeviceFacts", "ProbeFamily", "ProbeSize", "device_facts", "measure_ceilings", "probe_families", "utc_now"]

SHARES = {"compute": 0.14, "memory": 0.08, "cache": 0.03, "launch": 0.02}
"""Of the whole budget, what one probe may take. Together more than all of it: few probes need their share."""

SAMPLE_S = {"compute": 0.2, "memory": 0.25, "cache": 0.1, "launch": 0.1}
"""Sampling time of each size of a probe."""

WARM_UP_S = 0.05
MIN_SAMPLES = 3
LEAST_LAUNCHES = MIN_SAMPLES + 2
"""Of a size: one to warm up, one to calibrate, and the samples."""

RISE = 1.02
"""A size that is not faster than the best so far by this factor does not count as a rise."""

LONG_LAUNCH_MS = 20.0
"""A size without a rise ends a probe where its launches take this long: other processes cannot be the reason there."""

MATRIX_SIZES = {"cpu": (128, 256, 512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}
CONVOLUTION_SIDES = (14, 28, 56, 112, 224)
CONVOLUTION_CHANNELS = 128
"""On the CPU a 3x3 convolution is a probe too: on an AMD EPYC with AVX-512, oneDNN's reached 0.22 TFLOP/s in fp32 where
MKL's matrix product reached 0.18 at any size."""
LEAST_MEMORY_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Of the buffers of a memory probe, where twice the cache would be less."""
MOST_MEMORY_BYTES = 2**31
"""And where it would be more: pages of a buffer are given out one by one when they are first written."""
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
class ProbeSize:
    """One size of a probe: `build` gives the closure to time, from tensors on a device.

    Attributes:
        text: what is launched, for a person.
        amount: FLOP or bytes of one launch; 0 for launch.
        build: allocates the tensors.
    """

    text: str
    amount: int
    build: Callable[[torch.device], Launch]


@dataclass(frozen=True, slots=True)
class ProbeFamily:
    """A probe to be, with its sizes from the smallest on; without any, the device does not tell what they follow from.

    Attributes:
        kind, name: as in Probe.
        timer, cache: how its launches are timed.
        dtype: the precision to compute in.
        sizes: to measure.
    """

    kind: str
    name: str
    timer: str
    cache: str
    dtype: Dtype
    sizes: tuple[ProbeSize, ...]


def measure_ceilings(
    device: str,
    budget_s: float,
    *,
    facts: DeviceFacts | None = None,
    skip: Collection[tuple[str, str]] = (),
    on_family: Callable[[str, str, int, int], None] = lambda kind, name, number, total: None,
    timer_of: TimerOf | None = None,
    tensors_on: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Probe | Missing]:
    """Measure a device; gives every probe as it ends, so that each is kept whatever happens to a later one.

    Args:
        device: "cpu" or "cuda:N".
        budget_s: seconds that all probes may take together.
        facts: of device_facts, where they are known already.
        skip: (kind, name) of probes that are known.
        on_family: hears kind and name of each probe before it begins, its number from 1, and how many there are.
        timer_of, tensors_on, clock: replaced in tests.
    """
    facts = facts or device_facts(device)
    timer_of = timer_of or (lambda name, cache: make_timer(name, cache, device))
    place = torch.device(tensors_on or device)
    families = [family for family in probe_families(facts) if (family.kind, family.name) not in skip]
    end = clock() + budget_s
    with torch.cuda.device(place) if place.type == "cuda" else nullcontext(), torch.no_grad():
        for number, family in enumerate(families, start=1):
            if clock() >= end:
                reason = f"the budget of {budget_s:g} s was spent before its turn"
                yield Missing(family.kind, family.name, reason, utc_now(), begun=False)
                continue
            on_family(family.kind, family.name, number, len(families))
            family_end = min(end, clock() + SHARES[family.kind] * budget_s)
            yield from _grow(family, timer_of(family.timer, family.cache), place, family_end, clock)


def probe_families(facts: DeviceFacts) -> Iterator[ProbeFamily]:
    """Every probe of a kind of device, the most needed first."""
    on_cpu = facts.device_type == "cpu"
    timer = "wall-clock" if on_cpu else "cuda-event"
    # In a graph there is no host between launches that are this short.
    cache_timer = "wall-clock" if on_cpu else "cuda-graph"
    timers = [("wall-clock", "warm")] if on_cpu else [(t, c) for t in ("cuda-event", "cuda-graph") for c in CACHES]
    wanted = min(max(2 * (facts.cache_bytes or 0), LEAST_MEMORY_BYTES[facts.device_type]), MOST_MEMORY_BYTES)

    def product(dtype: Dtype) -> ProbeFamily:
        sizes = tuple(
            ProbeSize(f"{size}x{size}x{size}", 2 * size**3, _matrix_product(size, dtype))
            for size in MATRIX_SIZES[facts.device_type]
            if 3 * FLOAT_BYTES * size**2 <= facts.free_bytes // 2
        )
        return ProbeFamily("compute", str(dtype), timer, "warm", dtype, sizes)

    def convolution(dtype: Dtype) -> ProbeFamily:
        sizes = tuple(
            ProbeSize(f"1x{side}x{side}x{CONVOLUTION_CHANNELS}", _convolution_flops(side), _convolution(side, dtype))
            for side in CONVOLUTION_SIDES
        )
        return ProbeFamily("compute", f"{dtype} convolution", timer, "warm", dtype, sizes)

    yield product(Dtype.FP32)
    if on_cpu:
        yield convolution(Dtype.FP32)
    yield from _traffic("memory", [min(wanted, facts.free_bytes // 4)], timer)
    yield from _traffic("cache", [facts.l2_bytes // part for part in (4, 2)] if facts.l2_bytes else [], cache_timer)
    for name, cache in timers:
        yield ProbeFamily("launch", f"{name}/{cache}", name, cache, Dtype.FP32, (ProbeSize("1 element", 0, _smallest),))
    for dtype in Dtype:
        if dtype is not Dtype.FP32 and not (dtype is Dtype.TF32 and on_cpu):
            yield product(dtype)
            if on_cpu:
                yield convolution(dtype)


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


def utc_now() -> str:
    """Date and time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _grow(
    family: ProbeFamily, timer: Timer, place: torch.device, end: float, clock: Callable[[], float]
) -> Iterator[Probe | Missing]:
    """A family's sizes, until the rate no longer rises or the next size would overrun; Missing where none worked."""
    best, flat, last = 0.0, False, None
    if not family.sizes:
        yield Missing(family.kind, family.name, "the system does not tell how large it is", utc_now(), begun=True)
    for size in family.sizes:
        if last is not None:
            expected_s = LEAST_LAUNCHES * last.latency_ms / 1e3 * size.amount / last.amount
            if flat or clock() + expected_s > end:
                return
        try:
            last = _run(family, size, timer, place)
        except (RuntimeError, MemoryError) as error:
            if last is None:
                reason = one_line(f"{type(error).__name__}: {error}")
                yield Missing(family.kind, family.name, reason, utc_now(), begun=True)
            return
        finally:
            gc.collect()
            if place.type == "cuda":
                torch.cuda.empty_cache()
        yield last
        flat = last.best <= RISE * best and last.latency_ms >= LONG_LAUNCH_MS
        best = max(best, last.best)


def _run(family: ProbeFamily, size: ProbeSize, timer: Timer, place: torch.device) -> Probe:
    # Never stops early: a ceiling is the fastest sample, which a narrow interval, be it of width 0, says nothing about.
    rule = StoppingRule(SAMPLE_S[family.kind], MIN_SAMPLES, relative_half_width=-1.0)
    with torch_precision(family.dtype):
        launch = size.build(place)
        timer.prepare(launch, WARM_UP_S)
        samples = collect_samples(timer, launch, rule).latencies_ms
    clock_mhz = sm_clock_mhz(str(place))
    return Probe(
        family.kind, family.name, size.text, size.amount, median(samples), min(samples), len(samples), clock_mhz
    )


def _matrix_product(size: int, dtype: Dtype) -> Callable[[torch.device], Launch]:
    def build(place: torch.device) -> Launch:
        # Random: a GPU draws less power, and so clocks higher, on zeros.
        generator = torch.Generator(place).manual_seed(0)
        options: dict[str, Any] = {"generator": generator, "device": place}
        a, b = (torch.randn(size, size, **options).to(getattr(torch, dtype.torch_name)) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return build


def _convolution_flops(side: int) -> int:
    return 18 * side**2 * CONVOLUTION_CHANNELS**2


def _convolution(side: int, dtype: Dtype) -> Callable[[torch.device], Launch]:
    def build(place: torch.device) -> Launch:
        generator = torch.Generator(place).manual_seed(0)
        image, weight = (
            torch.randn(shape, generator=generator, device=place)
            .to(getattr(torch, dtype.torch_name))
            .contiguous(memory_format=torch.channels_last)
            for shape in ((1, CONVOLUTION_CHANNELS, side, side), (CONVOLUTION_CHANNELS, CONVOLUTION_CHANNELS, 3, 3))
        )
        return lambda: torch.nn.functional.conv2d(image, weight, padding=1)

    return build


def _traffic(kind: str, sizes_bytes: list[int], timer: str) -> Iterator[ProbeFamily]:
    """Copy, read and write over buffers of each size together."""

    def copy(count: int) -> Callable[[torch.device], Launch]:
        def build(place: torch.device) -> Launch:
            source, target = torch.ones(count // 2, device=place), torch.ones(count // 2, device=place)
            return lambda: target.copy_(source)

        return build

    def read(count: int) -> Callable[[torch.device], Launch]:
        return lambda place: torch.ones(count, device=place).sum

    def write(count: int) -> Callable[[torch.device], Launch]:
        def build(place: torch.device) -> Launch:
            target = torch.ones(count, device=place)
            return lambda: target.fill_(2.0)

        return build

    for name, build_of in (("copy", copy), ("read", read), ("write", write)):
        sizes = tuple(
            ProbeSize(
                f"{size / 2**20:.4g} MiB", size // FLOAT_BYTES // 2 * 2 * FLOAT_BYTES, build_of(size // FLOAT_BYTES)
            )
            for size in sizes_bytes
        )
        yield ProbeFamily(kind, name, timer, "warm", Dtype.FP32, sizes)


def _smallest(place: torch.device) -> Launch:
    """A launch with as little in it as an operator can have: one element written in place.

    By events and graphs it gives what the device needs around any kernel, so the least that these timers can show.
    """
    element = torch.ones(1, device=place)
    return lambda: element.fill_(2.0)
