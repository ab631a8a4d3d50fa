"""Chooses the forward kernel's configuration by timing, and remembers it on disk.

It is off unless asked for (OPBENCH_KERNELS_AUTOTUNE=1, or enable()): a detector meets many image sizes, and each new
one would wait for six timings. Counts of rows are rounded up to a power of two, so that few sizes are new.

Six configurations are enough: a second vector per lane trades warps for fewer instructions, warps per program decide
how programs are spread over the SMs, and the rest of a tile follows from 16 bytes per load. No value depends on the
choice.
"""

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import triton
from opbench_kernels import bilinear_triton, launch
from opbench_kernels.deform import launch as deform_launch
from opbench_kernels.deform import sampling_triton
from opbench_kernels.deform.launch import Config, Sampled, forward_config, forward_launch
from opbench_kernels.launch import VECTOR_BYTES, Launch

__all__ = ["CONFIGS", "cache_path", "choose", "enable", "forget_choice", "is_enabled", "last_choice"]

CONFIGS = tuple(Config(vectors, num_warps) for vectors in (1, 2) for num_warps in (1, 2, 4))

Shape = tuple[object, ...]
"""What the fastest configuration may depend on, apart from the kernels and Triton."""

_state: dict[str, bool] = {}
_known: dict[Shape, Config] = {}
_last: list[Config] = []


def enable(on: bool = True) -> None:
    """Switch tuning of new sizes on or off, in this process."""
    _state["enabled"] = on


def is_enabled() -> bool:
    """As enable said last; before its first call, whether OPBENCH_KERNELS_AUTOTUNE is 1."""
    return _state.get("enabled", os.environ.get("OPBENCH_KERNELS_AUTOTUNE") == "1")


def last_choice() -> Config | None:
    """The configuration of the last forward launch in this process since forget_choice."""
    return _last[0] if _last else None


def forget_choice() -> None:
    """Let last_choice give None until the next launch."""
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


def choose(sampled: Sampled, out: torch.Tensor) -> Config:
    """The configuration to launch with: tuned where that is enabled, else by rule."""
    config = forward_config(sampled)
    if is_enabled() and sampled.value.device.type == "cuda":
        config = _tuned(sampled, out, _median_ms)
    _last[:] = [config]
    return config


def _tuned(sampled: Sampled, out: torch.Tensor, measure: Callable[[Launch], float]) -> Config:
    """The fastest configuration: as this process knows it, else as the file does, else by new timings.

    While a CUDA graph is captured nothing can be timed: then it is the rule's, and not remembered.
    """
    shape = _shape(sampled)
    if shape not in _known:
        key = "/".join(map(str, (triton.__version__, _source(), *shape)))
        config = _read(cache_path()).get(key)
        if config not in CONFIGS:
            with torch.cuda.device_of(sampled.value):
                if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                    return forward_config(sampled)
                times = {config: measure(forward_launch(sampled, out, config)) for config in _possible(sampled)}
            config = min(times, key=times.__getitem__)
            _write(cache_path(), key, config)
        _known[shape] = config
    return _known[shape]


def _possible(sampled: Sampled) -> list[Config]:
    """Configurations whose second vector, if any, still has channels to load."""
    most = triton.next_power_of_2(sampled.value.shape[-1]) * sampled.value.element_size() // VECTOR_BYTES
    return [config for config in CONFIGS if config.vectors <= max(1, most)]


def _shape(sampled: Sampled) -> Shape:
    """The key of a launch; computed at each, so it must be cheap."""
    value, geometry = sampled.value, sampled.geometry
    rows = triton.next_power_of_2(sampled.rows)
    return _device(value.device), value.dtype, *value.shape[1:], geometry.points, *geometry.stride, rows


@cache
def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def _source() -> str:
    """Hash of the kernels' text."""
    modules = (launch, deform_launch, sampling_triton, bilinear_triton)
    return hashlib.sha256(b"".join(Path(inspect.getfile(module)).read_bytes() for module in modules)).hexdigest()[:12]


def _median_ms(launch: Launch) -> float:
    milliseconds: float = triton.testing.do_bench(launch, return_mode="median")
    return milliseconds


def _read(path: Path) -> dict[str, Config]:
    """What the file holds; nothing where it is missing or damaged, since it can be made again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {key: Config(*map(int, config)) for key, config in stored.items() if len(config) == 2}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, key: str, config: Config) -> None:
    """Add one entry; the file is replaced whole. A folder that cannot be written costs the memory, not the result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(_read(path) | {key: config}, file, indent=1)
        Path(file.name).replace(path)
    except OSError:
        return
