"""What a run ran on: device, driver, clocks, versions, flags. Names no user, host or path: it goes in bug reports."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from opbench.checkout import git_revision
from opbench.device.nvml import Nvml, nvml_of
from opbench.device.snapshots import scaling_governor
from opbench.errors import UsageError
from opbench.system import total_memory_bytes
from opbench.timing.precision import float32_precision

__all__ = [
    "collect_environment",
    "collect_machine",
    "comparison_identity",
    "device_slug",
    "environment_differences",
    "measured_revision",
    "resolve_device",
    "value_text",
]

PACKAGES = (
    "torch", "triton", "timm", "flash_attn", "numpy", "pandas", "matplotlib", "scipy", "psutil", "nvidia-ml-py",
)  # fmt: skip
DEVICE_FILE = Path("/dev/nvidia0")
"""There where a driver is loaded and has a GPU, on Linux."""
VARIABLES = re.compile(
    r"CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING|MODULE_LOADING|DEVICE_MAX_CONNECTIONS)"
    r"|NVIDIA_TF32_OVERRIDE|ATEN_CPU_CAPABILITY|(OMP|MKL|KMP|ONEDNN|DNNL|OPENBLAS)_.*"
    r"|(TRITON|TORCH|TORCHINDUCTOR|PYTORCH|CUBLAS|CUBLASLT|CUDNN)_.*"
)


def collect_environment(device: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """Describe what a run on `device` depends on, as JSON values; None or [] where something does not answer.

    Args:
        device: as resolve_device takes it; None means auto.
        threads: of torch, where a run sets them; None for as many as torch uses now.

    Returns:
        Sizes in bytes, clocks in MHz, power in W, temperature in degrees Celsius.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    device = resolve_device(device or "auto")
    cpu = {
        **_cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": threads or torch.get_num_threads(),
    }
    properties = torch.cuda.get_device_properties(device) if device != "cpu" else None
    unusable_gpu = _unusable_gpu() if device == "cpu" else None
    with nvml_of(device) as nvml:
        return {
            **_software(),
            "cuda_version": torch.version.cuda,
            "cudnn_version": _cudnn_version(),
            "driver_version": nvml.ask("nvmlSystemGetDriverVersion"),
            "device": device,
            "device_name": properties.name if properties else cpu["model"],
            "gpu": _gpu(properties, nvml) if properties else None,
            "unusable_gpu": unusable_gpu,
            "other_gpu_processes": nvml.other_processes(contexts=_contexts(device)),
            "cpu": cpu,
            "memory_bytes": total_memory_bytes(),
            "fp32_precision": float32_precision(),
            "variables": _variables(),
        }


def collect_machine() -> dict[str, Any]:
    """The part of collect_environment that needs no torch, which takes seconds to import; gpu_names are NVML's."""
    import psutil

    with nvml_of("cpu") as nvml:
        return {
            **_software(),
            "cuda_version": _torch_cuda_version(),
            "driver_version": nvml.ask("nvmlSystemGetDriverVersion"),
            "gpu_names": nvml.gpu_names(),
            "cpu": _cpu(),
            "memory_bytes": psutil.virtual_memory().total,
            "variables": _variables(),
        }


def resolve_device(requested: str) -> str:
    """The torch device that a request means: `cpu` or `cuda:N`.

    Args:
        requested: auto (the first GPU, else the CPU), cpu, cuda (the current GPU) or cuda:N. Where auto is the CPU
            although a GPU is here, one line on standard error says why.

    Raises:
        UsageError: no such device; says what is available, and why CUDA is not.
    """
    import torch

    if requested == "cpu":
        return "cpu"
    count = _cuda_count()
    if requested == "auto":
        if not count and (reason := _unusable_gpu()):
            _say_unusable_gpu(reason)
        return "cuda:0" if count else "cpu"
    if not re.fullmatch(r"cuda(:[0-9]{1,4})?", requested):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {requested!r}")
    if not count:
        raise UsageError(f"device {requested} is not available: {_cuda_problem()}; available: cpu")
    index = torch.cuda.current_device() if requested == "cuda" else int(requested.removeprefix("cuda:"))
    if index >= count:
        available = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise UsageError(f"device {requested} does not exist; available: {available}")
    return f"cuda:{index}"


def device_slug(device_name: str, device_type: str) -> str:
    """A short name of the device for a folder: `cpu`, `h200`, `a100-sxm4-80gb`; only a-z, 0-9 and dashes."""
    if device_type == "cpu":
        return "cpu"
    name = re.sub(r"\((r|tm|c)\)", " ", device_name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return re.sub(r"^(nvidia|amd|intel)-", "", slug) or "gpu"


def comparison_identity(environment: Mapping[str, Any]) -> dict[str, str]:
    """What must be equal for two runs to be one, or to be compared; the driver on a GPU, the threads on the CPU."""
    packages = environment.get("packages") or {}
    identity = {
        "device": environment.get("device_name"),
        "torch": packages.get("torch"),
        "triton": packages.get("triton"),
        "cuda": environment.get("cuda_version"),
    }
    if environment.get("device") == "cpu":
        identity["torch threads"] = (environment.get("cpu") or {}).get("torch_threads")
    else:
        identity["driver"] = environment.get("driver_version")
    return {name: value_text(value) for name, value in identity.items()}


def environment_differences(there: Mapping[str, Any], here: Mapping[str, Any], *, code: bool = False) -> list[str]:
    """One line for each part of comparison_identity that differs: `torch: 2.11.0 there, 2.15.0 here`.

    Args:
        there: one environment.
        here: the other.
        code: opbench itself must be the same too, as where a run goes on.
    """
    a, b = comparison_identity(there), comparison_identity(here)
    if code:
        for identity, environment in ((a, there), (b, here)):
            identity["opbench"] = value_text(environment.get("opbench_version"))
            identity["git revision"] = value_text(environment.get("git_revision"))
        theirs = (_elsewhere(there), _elsewhere(here))
        if all("operator_revisions" in environment for environment in (there, here)) and theirs[0] != theirs[1]:
            for identity, revisions in zip((a, b), theirs, strict=True):
                identity |= {f"revision of {name}": value_text(revision) for name, revision in revisions.items()}
    return [
        f"{name}: {a.get(name, 'none')} there, {b.get(name, 'none')} here"
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]


def measured_revision(environment: Mapping[str, Any]) -> str:
    """Revision of what a run measured: of the repository that its operators come from, several with commas.

    Opbench's own counts where all operators are opbench's, and in runs from before operators had theirs; empty where
    there is no checkout.
    """
    revisions = _elsewhere(environment) or {"": environment.get("git_revision")}
    return ", ".join(dict.fromkeys(str(revision) for revision in revisions.values() if revision))


def _elsewhere(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Operators whose files are tracked by another checkout than opbench's, or by none, with their revisions."""
    revisions, own = environment.get("operator_revisions"), environment.get("git_revision")
    given = revisions if isinstance(revisions, Mapping) else {}
    return {name: revision for name, revision in given.items() if revision != own}


def value_text(value: object) -> str:
    """A value of an environment as text: `none`, `on` and `off` for None and the truth values."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _gpu(properties: Any, nvml: Nvml) -> dict[str, Any]:  # noqa: ANN401 - torch's class is private
    persistence = nvml.about_gpu("nvmlDeviceGetPersistenceMode")
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_cache_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        **nvml.conditions(),
        "max_sm_clock_mhz": nvml.about_gpu("nvmlDeviceGetMaxClockInfo", 1),
        "max_memory_clock_mhz": nvml.about_gpu("nvmlDeviceGetMaxClockInfo", 2),
        **nvml.limits(),
        "persistence_mode": None if persistence is None else bool(persistence),
    }


def _software() -> dict[str, Any]:
    return {
        "opbench_version": _package_version("opbench"),
        "git_revision": git_revision(Path(__file__)),
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _package_version(name) for name in PACKAGES},
    }


def _cpu() -> dict[str, Any]:
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return {
        "model": _cpu_model(Path("/proc/cpuinfo")),
        "logical_cores": os.cpu_count(),
        "usable_cores": len(usable) if usable else os.cpu_count(),
        "governor": scaling_governor(),
        "load_average": _load_average(),
    }


def _cpu_model(cpuinfo: Path) -> str:
    """What the processor is called; on ARM Linux the numbers of its maker and part, which have no name there."""
    with suppress(OSError):
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        name, maker, part = (
            re.search(rf"^{field}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
            for field in ("model name", "CPU implementer", "CPU part")
        )
        if name:
            return name[1].strip()
        if maker and part:
            return f"{platform.machine()} implementer {maker[1].strip()} part {part[1].strip()}"
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, timeout=10, check=True)
            if model := done.stdout.decode(errors="replace").strip():
                return model
    return platform.processor() or "cpu"


def _load_average() -> list[float]:
    with suppress(OSError, AttributeError):
        return list(os.getloadavg())
    return []


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch_cuda_version() -> str | None:
    """The CUDA that torch is built with, from its file of versions; None where it has none."""
    spec = find_spec("torch")
    with suppress(OSError):
        if spec and spec.origin:
            text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8", errors="replace")
            match = re.search(r"""^cuda\b[^=\n]*=\s*['"]([^'"]+)""", text, re.MULTILINE)
            return match[1] if match else None
    return None


def _cudnn_version() -> int | None:
    import torch

    with suppress(RuntimeError):  # the library that loads is not the one that torch was built with
        version: int | None = torch.backends.cudnn.version()
        return version
    return None


def _cuda_count() -> int:
    """How many GPUs torch can use."""
    import warnings

    import torch

    with warnings.catch_warnings(action="ignore"):  # a driver that is too old warns; _cuda_problem says so
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _unusable_gpu() -> str | None:
    """Why torch cannot use a GPU that is here; None where it can, where there is none, or where it was hidden."""
    if _cuda_count() or _hidden():
        return None
    with nvml_of("cpu") as nvml:
        here = bool(nvml.ask("nvmlDeviceGetCount")) or DEVICE_FILE.exists()
    return _cuda_problem() if here else None


@cache
def _say_unusable_gpu(reason: str) -> None:
    """Once per process: several parts of a command ask for the device."""
    print(
        f"opbench: a GPU is here, but PyTorch cannot use it ({reason}): going on with the CPU; install a PyTorch that "
        "fits the driver, or update the driver (--device cpu: the CPU is meant)",
        file=sys.stderr,
    )


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def _contexts(device: str) -> int:
    """How many processes NVML sees on the device because of this one: 1 once it has used it."""
    import torch

    if device == "cpu":
        return 0
    with suppress(AttributeError, RuntimeError):  # no public function tells
        has_context = getattr(torch._C, "_cuda_hasPrimaryContext")  # noqa: B009 - not in the stubs of every torch
        return int(has_context(torch.device(device).index))
    return 1


def _cuda_problem() -> str:
    """Why torch sees no CUDA device."""
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if _hidden():
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return re.split(r"\.\s|\n", str(error))[0]
    return "PyTorch finds no CUDA device"


def _variables() -> dict[str, str]:
    """Environment variables that change results or speed; a path is not shown, it names a person's folders."""
    return {
        name: "<path>" if "/" in value else value
        for name, value in sorted(os.environ.items())
        if VARIABLES.fullmatch(name)
    }
