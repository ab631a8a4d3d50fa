"""A run's environment and command in words and units, for the page; run.json has them as they were recorded."""

from collections.abc import Iterable, Mapping
from typing import Any

from opbench.device.identity import value_text

__all__ = ["in_words"]

WORDS = {
    "opbench_version": "opbench",
    "git_revision": "Revision",
    "python_version": "Python",
    "cuda_version": "CUDA",
    "cudnn_version": "cuDNN",
    "driver_version": "GPU driver",
    "device_name": "Device",
    "device": "Device in torch",
    "gpu": "GPU",
    "unusable_gpu": "GPU that was not used",
    "other_gpu_processes": "Other processes on the GPU",
    "cpu": "CPU",
    "cpu.model": "CPU",
    "cpu.capability": "CPU instructions",
    "cpu.load_average": "Load (1, 5, 15 minutes)",
    "host": "Host",
    "memory_bytes": "Memory",
    "fp32_precision": "fp32 precision",
    "variables": "Environment variables",
    "ops": "Operators",
}
ABBREVIATIONS = {"gpu": "GPU", "cpu": "CPU", "sm": "SM", "ecc": "ECC", "l2": "L2", "cuda": "CUDA", "pci": "PCI"}
UNITS = {"_bytes": "B", "_gib": "GiB", "_mhz": "MHz", "_ms": "ms", "_s": "s", "_w": "W", "_mw": "mW", "_c": "°C"}
LISTED = ("packages", "fp32_precision", "variables")
"""Mappings that stand in one line: `torch 2.15.0, triton 3.9.0`."""


def in_words(values: Mapping[str, Any]) -> dict[str, str]:
    """Every value of an environment or a command as text under a name in words."""
    texts: dict[str, str] = {}
    for path, value in _leaves(values):
        name, text = _name_and_text(path, value)
        texts[name if name not in texts else path] = text
    return texts


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in LISTED:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name_and_text(path: str, value: object) -> tuple[str, str]:
    """`cpu.torch_threads` is `CPU torch threads`; a unit at the end of the name goes to the value."""
    counted = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    unit = next((unit for unit in UNITS if counted and path.endswith(unit)), "")
    bare = path.removesuffix(unit)
    words = [ABBREVIATIONS.get(word, word) for word in bare.replace("_", " ").replace(".", " ").split()]
    name = WORDS.get(path) or " ".join(words) or path
    name = name[:1].upper() + name[1:] if path not in WORDS else name
    if unit and isinstance(value, int | float):
        return name, _quantity(value, UNITS[unit])
    if path == "cudnn_version" and isinstance(value, int):
        return name, _cudnn(value)
    return name, _text(value)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value) or "none"
    return f"{value:.2f}" if isinstance(value, float) else value_text(value)


def _quantity(value: float, unit: str) -> str:
    if unit == "B":
        for factor, larger in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if value >= factor:
                return f"{value / factor:.1f} {larger}"
    return f"{value:g} {unit}"


def _cudnn(number: int) -> str:
    """92600 is 9.26.0; before cuDNN 9 the major version counted thousands: 8902 is 8.9.2."""
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"
