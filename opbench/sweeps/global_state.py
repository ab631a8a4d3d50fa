"""What a cell may leave changed for the cells after it: torch's switches, the environment, the working folder."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from opbench.device.environment import VARIABLES

__all__ = ["Changes", "restored_state", "seeded"]

_backends: Any = torch.backends  # its modules have no types

SET_BY_COMPILERS = frozenset(
    {
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_WARM_POOL",
        "TRITON_CACHE_DIR",
        "TRITON_LIBDEVICE_PATH",
        "TRITON_PTXAS_PATH",
    }
)
"""TorchInductor sets them where they are missing. Taken away again, for another assembler makes other code, but not
named: it says nothing about the cell."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGCHLD", "SIGALRM") if hasattr(signal, name))


@dataclass(slots=True)
class Changes:
    """What a cell changed and did not put back; known after the block of restored_state."""

    names: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Switch:
    """A piece of state of the process."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _variables() -> dict[str, str]:
    """Environment variables that change results; libraries set others as they load."""
    return {name: value for name, value in os.environ.items() if VARIABLES.fullmatch(name)}


def _set_variables(values: Mapping[str, str]) -> None:
    for name in _variables().keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _set_signals(handlers: tuple[Any, ...]) -> None:
    for number, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None:  # None: set by code that is not Python's, and cannot be set from it
            signal.signal(number, handler)


def _set_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _set_cudnn(flags: tuple[bool, bool, bool]) -> None:
    _backends.cudnn.enabled, _backends.cudnn.benchmark, _backends.cudnn.deterministic = flags


SWITCHES = (
    _Switch("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    _Switch("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Switch("torch.set_default_device", torch.get_default_device, torch.set_default_device),
    _Switch("torch.set_grad_enabled", torch.is_grad_enabled, torch._C._set_grad_enabled),
    _Switch(
        "torch.use_deterministic_algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        # The public function imports torch's compiler, which takes seconds.
        lambda mode: torch._C._set_deterministic_algorithms(mode[0], warn_only=mode[1]),
    ),
    _Switch("torch.set_anomaly_enabled", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Switch(
        "torch.backends.cudnn",
        lambda: (_backends.cudnn.enabled, _backends.cudnn.benchmark, _backends.cudnn.deterministic),
        _set_cudnn,
    ),
    _Switch("torch.backends.mkldnn.enabled", torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    _Switch(
        "torch.backends.cuda.enable_flash_sdp",
        _backends.cuda.flash_sdp_enabled,
        _backends.cuda.enable_flash_sdp,
    ),
    _Switch(
        "torch.backends.cuda.enable_mem_efficient_sdp",
        _backends.cuda.mem_efficient_sdp_enabled,
        _backends.cuda.enable_mem_efficient_sdp,
    ),
    _Switch("torch.backends.cuda.enable_math_sdp", _backends.cuda.math_sdp_enabled, _backends.cuda.enable_math_sdp),
    _Switch("os.environ", _variables, _set_variables),
    _Switch("the working folder", _working_folder, _enter),
    _Switch("signal handlers", lambda: tuple(map(signal.getsignal, SIGNALS)), _set_signals),
    _Switch("sys.stdout and sys.stderr", lambda: (sys.stdout, sys.stderr), _set_streams),
)


@contextmanager
def restored_state() -> Iterator[Changes]:
    """Put back what the block changed. Uses no device, so that it also works with one that no longer answers."""
    before = [switch.read() for switch in SWITCHES]
    missing = SET_BY_COMPILERS - os.environ.keys()
    changes = Changes()
    with warnings.catch_warnings():
        try:
            yield changes
        finally:
            for name in missing:
                os.environ.pop(name, None)
            for switch, value in zip(SWITCHES, before, strict=True):
                if switch.read() != value:
                    changes.names.append(switch.name)
                    with suppress(Exception):  # what cannot be put back is named all the same
                        switch.write(value)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`, and afterwards put back what they were.

    It makes what draws from a global generator the same whatever ran before; every cell gets its inputs from
    a generator of its own anyway.

    Raises:
        RuntimeError: the device does not answer.
    """
    generators = [torch.default_generator]
    if device != "cpu":
        torch.cuda.init()
        # By index: torch.cuda.manual_seed takes the current device, and would start CUDA on one that is not asked for.
        generators.append(torch.cuda.default_generators[torch.device(device).index])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            with suppress(RuntimeError):  # the block's own error says more, and whoever comes next meets the device
                generator.set_state(state)
