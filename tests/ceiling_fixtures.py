"""Ceilings made by hand."""

from opbench.device.ceilings import Ceilings, Probe
from opbench.device.identity import Identity

MADE_UP = {"device_name": "Example GPU 40GB"}


def probe(kind, name, best, *, size="made up"):
    """A probe whose fastest sample is `best` in its kind's unit, and whose median is a tenth slower."""
    if kind == "launch":
        return Probe(kind, name, size, 0, best * 1.1, best, 30)
    amount = 10**9
    latency_ms = amount / best / (1e9 if kind == "compute" else 1e6)
    return Probe(kind, name, size, amount, latency_ms * 1.1, latency_ms, 30)


def ceilings(*probes, cache_bytes=4_000_000, **changes):
    values = {
        "device_name": "Example GPU 40GB",
        "identity": {"device": "Example GPU 40GB", "torch": "1"},
        "measured_at": "2026-01-01T00:00:00+00:00",
        "l2_bytes": 4_000_000,
        "cache_bytes": cache_bytes,
        "probes": probes,
    }
    return Ceilings(**{**values, **changes})


def example_ceilings():
    """A device with 10 TFLOP/s in fp32, 40 in fp16, 1 TB/s to memory, 4 TB/s to cache, launches of 2 to 10 us."""
    return ceilings(
        probe("compute", "fp32", 10.0),
        probe("compute", "tf32", 20.0),
        probe("compute", "fp16", 40.0),
        probe("memory", "copy", 1000.0),
        probe("memory", "read", 900.0),
        probe("cache", "copy", 4000.0),
        probe("launch", "cuda-event/cold", 0.01),
        probe("launch", "cuda-event/warm", 0.005),
        probe("launch", "cuda-graph/warm", 0.002),
        probe("launch", "wall-clock/warm", 0.001),
    )


def made_up_ceilings(environment):
    """Far above any machine, under a device's identity: what a sweep of the tests finds in the cache."""
    timers = ("wall-clock/warm", "cuda-event/cold", "cuda-event/warm", "cuda-graph/cold", "cuda-graph/warm")
    return ceilings(
        *(probe("compute", dtype, 1e6) for dtype in ("fp32", "tf32", "fp16", "bf16")),
        *(probe("compute", f"{dtype} convolution", 1e6) for dtype in ("fp32", "fp16", "bf16")),
        *(probe(kind, name, 1e6) for kind in ("memory", "cache") for name in ("copy", "read", "write")),
        *(probe("launch", timer, 1e-7) for timer in timers),
        device_name=environment["device_name"],
        identity=Identity.of(environment).parts,
    )
