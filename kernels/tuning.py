"""Chooses a kernel's configuration by timing, and remembers it on disk: for every family of kernels.

It is off unless asked for (OPBENCH_KERNELS_AUTOTUNE=1, or enable()): a detector meets many image sizes, and each new
one would wait for the timings. A family says what a choice depends on, what there is to choose, and how each is
launched (deform/configs.py); no value may depend on it.
"""

import hashlib
import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from triton.runtime.errors import OutOfResources

__all__ = [
    "Config",
    "Key",
    "Timing",
    "cache_path",
    "choose",
    "enable",
    "forget_choices",
    "is_enabled",
    "last_choices",
    "taken",
]

Config = tuple[int, ...]
"""A NamedTuple of what may be chosen."""
C = TypeVar("C", bound=Config)
Trial = Callable[[], object]
"""One launch of a candidate."""


class Key(NamedTuple):
    """What the fastest configuration may depend on. It is made at every launch, so that it must be cheap.

    Attributes:
        kernel: a name that no other kernel has, such as "deform forward".
        device: where it is launched.
        facts: dtype, sizes, strides, alignment: all that the time may depend on apart from the kernel's text.
        sources: names of the modules that hold the kernel and its launch; other text is another kernel.
    """

    kernel: str
    device: torch.device
    facts: tuple[object, ...]
    sources: tuple[str, ...]


class Timing(NamedTuple):
    """How candidates are timed.

    Attributes:
        measure: from launches to milliseconds, a list of samples for each; they should take turns.
        cache: "cold" or "warm", the state of the cache that it makes. Each has choices of its own.
    """

    measure: Callable[[Sequence[Trial]], list[list[float]]]
    cache: str


ROUNDS = 3


def _in_rounds(launches: Sequence[Trial]) -> list[list[float]]:
    """Medians of short blocks with a cold cache; each round begins with another launch."""
    times: list[list[float]] = [[] for _ in launches]
    for turn in range(ROUNDS):
        for step in range(len(launches)):
            place = (turn + step) % len(launches)
            times[place].append(triton.testing.do_bench(launches[place], warmup=5, rep=20, return_mode="median"))
    return times


_DEFAULT_TIMING = Timing(_in_rounds, "cold")
_state: dict[str, Any] = {}
_known: dict[tuple[Key, str], Any] = {}
"""By key and state of the cache."""
_last: dict[str, Config] = {}


def enable(on: bool = True, timing: Timing = _DEFAULT_TIMING) -> None:
    """Switch tuning of new sizes on or off, in this process, and say how candidates are timed."""
    _state.update(enabled=on, timing=timing)


def is_enabled() -> bool:
    """As enable said last; before its first call, whether OPBENCH_KERNELS_AUTOTUNE is 1."""
    enabled: bool = _state.get("enabled", os.environ.get("OPBENCH_KERNELS_AUTOTUNE") == "1")
    return enabled


def last_choices() -> Mapping[str, Any]:
    """The configuration, a NamedTuple, of each kernel's last launch since forget_choices, by the kernel's name."""
    return _last


def forget_choices() -> None:
    """Let last_choices be empty until the next launch."""
    _last.clear()


def cache_path() -> Path:
    """The file with the choices: OPBENCH_KERNELS_CACHE, or opbench_kernels/tuning.json in the user's cache folder."""
    if given := os.environ.get("OPBENCH_KERNELS_CACHE"):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "opbench_kernels" / "tuning.json"
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        home = Path(tempfile.gettempdir())
    return home / ".cache" / "opbench_kernels" / "tuning.json"


def choose(key: Key, candidates: Sequence[C], launch_of: Callable[[C], Trial]) -> C:
    """The configuration to launch with: tuned on a CUDA device where that is enabled, else the first candidate.

    Args:
        key: what the choice depends on.
        candidates: the rule's first; the same ones for the same key.
        launch_of: gives a launch that may be repeated. Where that changes a result, it should write somewhere else.
    """
    tuned = is_enabled() and key.device.type == "cuda"
    return taken(key.kernel, _tuned(key, candidates, launch_of) if tuned else candidates[0])


def taken(kernel: str, config: C) -> C:
    """`config`, which a launch of `kernel` takes: for last_choices, where nothing is tuned and no key is needed."""
    _last[kernel] = config
    return config


def _tuned(key: Key, candidates: Sequence[C], launch_of: Callable[[C], Trial]) -> C:
    """The fastest candidate: as this process knows it, else as the file does, else by new timings.

    While a CUDA graph is captured nothing can be timed: then it is the rule's, and not remembered.
    """
    timing: Timing = _state.get("timing", _DEFAULT_TIMING)
    known: C | None = _known.get((key, timing.cache))
    if known is not None:
        return known
    text = _text(key, timing.cache)
    chosen = next((config for config in candidates if config == _stored_choice(text)), None)
    if chosen is None:
        with torch.cuda.device(key.device) if key.device.type == "cuda" else nullcontext():
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                return candidates[0]
            samples = _samples(candidates, launch_of, timing)
        chosen = min(samples, key=lambda config: _median(samples[config]))
        _write(cache_path(), text, _entry(chosen, candidates, samples))
    _known[key, timing.cache] = chosen
    return chosen


def _text(key: Key, cache: str) -> str:
    """The name of a choice in the file."""
    parts = (triton.__version__, _digest(key.sources), key.kernel, cache, _device(key.device), *key.facts)
    return "/".join(map(str, parts))


def _samples(candidates: Sequence[C], launch_of: Callable[[C], Trial], timing: Timing) -> dict[C, list[float]]:
    """Samples of the candidates that the device can run, milliseconds."""
    launches: dict[C, Trial] = {}
    refusal: OutOfResources | None = None
    for config in candidates:
        launch = launch_of(config)
        try:
            launch()  # compiles it
        except OutOfResources as error:
            refusal = error
        else:
            launches[config] = launch
    if refusal and not launches:
        raise refusal
    return dict(zip(launches, timing.measure(list(launches.values())), strict=True))


def _median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def _entry(chosen: Config, candidates: Sequence[Config], samples: Mapping[Any, Sequence[float]]) -> dict[str, Any]:
    """What the file keeps of a choice: also what lost, by how much, and what the device could not run."""
    times = [
        {"config": [*config], "median_ms": _median(samples[config]) if config in samples else None,
         "samples": len(samples.get(config, ()))}
        for config in candidates
    ]  # fmt: skip
    return {"chosen": [*chosen], "times": times}


@cache
def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def _digest(modules: tuple[str, ...]) -> str:
    """Hash of the modules' text."""
    files = (Path(inspect.getfile(importlib.import_module(name))) for name in modules)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _stored_choice(text: str) -> Config | None:
    """What the file holds for a key's text; None where it holds nothing that choose wrote."""
    try:
        return tuple(map(int, _read(cache_path())[text]["chosen"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or damaged, since it can be made again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _write(path: Path, text: str, entry: Mapping[str, Any]) -> None:
    """Add one entry; the file is replaced whole. A folder that cannot be written costs the memory, not the result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(_read(path) | {text: entry}, file, indent=1)
        Path(file.name).replace(path)
    except OSError:
        return
