"""What a run ran on: device, driver, clocks, versions, flags. It goes in bug reports: it names no user and no path, and
the host only as OPBENCH_HOST does."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from opbench.device.nvml import Nvml, nvml_of
from opbench.device.resolve import resolve_device, unusable_gpu
from opbench.device.snapshots import scaling_governor
from opbench.host.checkout import git_revision
from opbench.host.label import host_label
from opbench.host.system import total_memory_bytes
from opbench.timing.precision import float32_precision

__all__ = ["collect_environment", "collect_machine"]

PACKAGES = (
    "torch", "triton", "timm", "flash_attn", "numpy", "pandas", "matplotlib", "scipy", "psutil", "nvidia-ml-py",
)  # fmt: skip
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
        Sizes in bytes, clocks in MHz, power in W, temperature in degrees Celsius; `gpu.uuid` as NVML gives it, empty
        where it is silent.

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
    unusable = unusable_gpu() if device == "cpu" else None
    with nvml_of(device) as nvml:
        return {
            **_software(),
            "cuda_version": torch.version.cuda,
            "cudnn_version": _cudnn_version(),
            "driver_version": nvml.ask("nvmlSystemGetDriverVersion"),
            "device": device,
            "device_name": properties.name if properties else cpu["model"],
            "gpu": _gpu(properties, nvml) if properties else None,
            "unusable_gpu": unusable,
            "other_gpu_processes": nvml.other_processes(contexts=_contexts(device)),
            "cpu": cpu,
            "host": host_label(),
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


def _gpu(properties: Any, nvml: Nvml) -> dict[str, Any]:  # noqa: ANN401 - torch's class is private
    persistence = nvml.about_gpu("nvmlDeviceGetPersistenceMode")
    return {
        "uuid": nvml.uuid(),
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


def _contexts(device: str) -> int:
    """How many processes NVML sees on the device because of this one: 1 once it has used it."""
    import torch

    if device == "cpu":
        return 0
    with suppress(AttributeError, RuntimeError):  # no public function tells
        has_context = getattr(torch._C, "_cuda_hasPrimaryContext")  # noqa: B009 - not in the stubs of every torch
        return int(has_context(torch.device(device).index))
    return 1


def _variables() -> dict[str, str]:
    """Environment variables that change results or speed; a path is not shown, it names a person's folders."""
    return {
        name: "<path>" if "/" in value else value
        for name, value in sorted(os.environ.items())
        if VARIABLES.fullmatch(name)
    }
