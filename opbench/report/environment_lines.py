"""What `opbench env` prints: label and value of every line."""

from collections.abc import Mapping
from typing import Any

from opbench.device.identity import value_text

__all__ = ["environment_lines", "machine_lines"]

Lines = list[tuple[str, str]]

ONLY_TORCH_KNOWS = (
    "the device as PyTorch sees it and why it cannot use a GPU, cuDNN, CPU capability, torch threads, fp32 precision, "
    "clocks and other processes of the GPU: `opbench env --check`, which imports PyTorch"
)


def machine_lines(machine: Mapping[str, Any]) -> Lines:
    """Of collect_machine's record: what is known without torch. The last line says what is not."""
    return [
        _opbench_line(machine),
        ("GPUs", ", ".join(machine["gpu_names"]) or "none that NVML sees"),
        ("driver", value_text(machine["driver_version"])),
        ("CUDA", value_text(machine["cuda_version"])),
        ("CPU", machine["cpu"]["model"]),
        ("CPU cores", _cores(machine["cpu"])),
        *_lines_below(machine),
        ("not asked", ONLY_TORCH_KNOWS),
    ]


def environment_lines(environment: Mapping[str, Any]) -> Lines:
    """Of collect_environment's record."""
    cpu = environment["cpu"]
    processes = [
        f"{process['pid']} {value_text(process['name'])} ({_gib(process['used_memory_bytes'])})"
        for process in environment["other_gpu_processes"]
    ]
    return [
        _opbench_line(environment),
        ("device", f"{environment['device']}, {environment['device_name']}"),
        ("driver", value_text(environment["driver_version"])),
        ("CUDA", value_text(environment["cuda_version"])),
        ("cuDNN", value_text(environment["cudnn_version"])),
        *(_gpu_lines(environment["gpu"]) if environment["gpu"] else []),
        *([("GPU not used", reason)] if (reason := environment.get("unusable_gpu")) else []),
        ("other GPU processes", ", ".join(processes) or "none"),
        ("CPU", f"{cpu['model']}, {value_text(cpu['capability'])}"),
        ("CPU cores", f"{_cores(cpu)}, {cpu['torch_threads']} torch threads"),
        *_lines_below(environment),
    ]


def _opbench_line(record: Mapping[str, Any]) -> tuple[str, str]:
    return "opbench", f"{value_text(record['opbench_version'])}, git {value_text(record['git_revision'])}"


def _cores(cpu: Mapping[str, Any]) -> str:
    return f"{cpu['usable_cores']} of {cpu['logical_cores']} usable"


def _lines_below(record: Mapping[str, Any]) -> Lines:
    """What stands below the CPU's cores, in both records."""
    cpu = record["cpu"]
    return [
        ("CPU governor", value_text(cpu["governor"])),
        ("load average", ", ".join(f"{value:.2f}" for value in cpu["load_average"]) or "none"),
        ("memory", _gib(record["memory_bytes"])),
        ("platform", record["platform"]),
        ("python", record["python_version"]),
        *((name, value_text(version)) for name, version in record["packages"].items()),
        *((f"fp32 precision, {name}", value) for name, value in record.get("fp32_precision", {}).items()),
        *((name, value or "(empty)") for name, value in record["variables"].items()),
    ]


def _gpu_lines(gpu: Mapping[str, Any]) -> Lines:
    l2_mib = gpu["l2_cache_bytes"] / 2**20
    reasons = gpu["clock_event_reasons"]
    return [
        (
            "GPU",
            f"compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors, "
            f"L2 {l2_mib:.1f} MiB, memory {_gib(gpu['memory_bytes'])}",
        ),
        ("SM clock", f"{value_text(gpu['sm_clock_mhz'])} of {value_text(gpu['max_sm_clock_mhz'])} MHz"),
        ("memory clock", f"{value_text(gpu['memory_clock_mhz'])} of {value_text(gpu['max_memory_clock_mhz'])} MHz"),
        ("power", f"{value_text(gpu['power_w'])} of {value_text(gpu['power_limit_w'])} W"),
        ("temperature", f"{value_text(gpu['temperature_c'])} C"),
        ("clocks limited by", "unknown" if reasons is None else ", ".join(reasons) or "nothing"),
        ("persistence mode", value_text(gpu["persistence_mode"])),
        ("MIG mode", value_text(gpu["mig_mode"])),
    ]


def _gib(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"{size_bytes / 2**30:.1f} GiB"
