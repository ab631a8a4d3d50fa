"""Operator and Provider: what an operator computes and costs, and who can compute it.

Importable without torch; the functions that an operator file supplies work on torch tensors.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from opbench.errors import UnknownNameError, UsageError
from opbench.workload.case import OPERATOR_LEVELS, Case, Direction, Level, SettingValue
from opbench.workload.file_setting import FileSetting

if TYPE_CHECKING:
    import torch

__all__ = [
    "NETWORK_INPUT",
    "TORCH_COMPILE",
    "Forward",
    "Operator",
    "Provider",
    "Setting",
    "Tensors",
    "by_direction",
    "compiled",
    "not_counted",
]

Tensors = dict[str, "torch.Tensor"]
"""Inputs and parameters by name; every provider of a case gets the same ones."""

NETWORK_INPUT = "x"
"""Among a network's tensors the one that is not trained."""

Forward = Callable[[], "torch.Tensor"]
"""One launch: computes the output from tensors it was built with."""


def _always(*_: object) -> str | None:
    """The answer of a provider or operator that has no limits: no reason against it."""
    return None


def _none(_: Case) -> int:
    """A count of what an operator does not have, or does not tell."""
    return 0


def not_counted(_case: Case, _architecture: str) -> int | None:
    """The instructions of a provider whose kernels nobody counted."""
    return None


def _nothing_implied(_: Mapping[str, SettingValue]) -> Mapping[str, SettingValue]:
    """The implied settings of an operator whose settings do not depend on each other."""
    return {}


def _unchanged(_: Case, tensors: Tensors) -> Tensors:
    """The smooth inputs of an operator that is differentiable everywhere."""
    return tensors


@dataclass(frozen=True, slots=True)
class Setting:
    """A number or one of some words that `--set operator.name=value` changes.

    Attributes:
        default: value without `--set`; its type (int, float or str) is the setting's.
        allowed: of a number the smallest, of a word all of them; `word:FILE` stands for a word with a file's path, and
            its value is a FileSetting.
        summary: what it is, with its unit.
        added_later: it came after rows of its operator had been stored. A case that has the default leaves it out, so
            that such rows are still of the same case; read it by `case.setting(name, default)`.
        levels: where it has a meaning; cases of another level leave it out. Empty for all.
    """

    default: SettingValue
    allowed: int | float | tuple[str, ...]
    summary: str
    added_later: bool = False
    levels: tuple[Level, ...] = ()

    def parse(self, name: str, text: str) -> SettingValue:
        """The value of `text`.

        Raises:
            UnknownNameError: it is none of the words.
            UsageError: it is not a finite number of the type, at least the smallest; or its file cannot be read.
        """
        if isinstance(self.allowed, tuple):
            word, _, path = text.partition(":")
            if path and f"{word}:FILE" in self.allowed:
                return FileSetting.of(name, word, path)
            if text not in self.allowed or text.endswith(":FILE"):
                raise UnknownNameError(f"value of setting {name}", text, self.allowed)
            return text
        kind = type(self.default)
        try:
            value = kind(text)
        except ValueError:
            value = None
        if isinstance(value, str) or value is None or not self.allowed <= value < float("inf"):
            word = "an integer" if kind is int else "a number"
            raise UsageError(f"setting {name} must be {word} of at least {self.allowed}, got {text!r}")
        return value


@dataclass(frozen=True, slots=True)
class Provider:
    """One implementation of an operator.

    Attributes:
        name: as in `--providers operator=name`.
        build: (case, tensors) -> the closure to time. Allocates, compiles and tunes; none of that is timed.
            The closure must be differentiable by autograd unless not_applicable refuses `bwd` and `fwd_bwd`.
        summary: one line for `opbench list providers`.
        unavailable: (device type, "cpu" or "cuda") -> why this machine cannot run it, or None.
        not_applicable: (case, device type) -> why it has no meaning for the case, or None.
        configuration: () -> what the last launch in this process had chosen, such as a tile, for the row; empty where
            there is no choice.
        warp_instructions: (case, "sm_90" or such) -> instructions that the warps of one launch issue, as counted in the
            machine code of what the last launch in this process had chosen; None where nobody counted them.
        around: () -> a context in which the provider is built, checked and timed, such as a switch of torch's that is
            put back at its end.
        own_process: its cells need a process that has run no cell of another provider, nor will.
        sources: names of further modules whose text is part of kernel_source_hash, such as one of another package; what
            `build` imports of its own package or of opbench_kernels is found.
        copied: names of the tensors that `build` copies or computes from, such as one in another layout or weights that
            it merges. The closure does not read these anew, so they keep their values in the check after the timing.
        needs: what a machine must have beside PyTorch, in words, for `opbench list providers`, which imports nothing to
            find it out; `unavailable` decides.
    """

    name: str
    build: Callable[[Case, Tensors], Forward]
    summary: str
    unavailable: Callable[[str], str | None] = _always
    not_applicable: Callable[[Case, str], str | None] = _always
    configuration: Callable[[], str] = str
    warp_instructions: Callable[[Case, str], int | None] = not_counted
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    own_process: bool = False
    sources: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    needs: str = ""

    @property
    def has_limits(self) -> bool:
        """Whether `unavailable` may refuse a machine."""
        return self.unavailable is not _always

    @property
    def build_module(self) -> str:
        """Name of the module that defines `build`."""
        function = self.build.func if isinstance(self.build, partial) else self.build
        return function.__module__


TORCH_COMPILE = "torch_compile"


def compiled(provider: Provider) -> Provider:
    """`provider` under torch.compile, as a provider called torch_compile; compiling is not timed."""
    return replace(
        provider,
        name=TORCH_COMPILE,
        build=partial(_build_compiled, provider.build),
        summary=f"{provider.name} under torch.compile",
        unavailable=partial(_compiled_unavailable, provider),
        needs="; ".join(filter(None, (provider.needs, "on the CPU a C++ compiler"))),
    )


def _build_compiled(build: Callable[[Case, Tensors], Forward], case: Case, tensors: Tensors) -> Forward:
    import torch

    # Every case compiles the same functions anew; past a limit torch.compile would refuse to.
    torch.compiler.reset()
    forward: Forward = torch.compile(build(case, tensors), fullgraph=True, dynamic=False)
    return forward


def _compiled_unavailable(provider: Provider, device_type: str) -> str | None:
    if reason := provider.unavailable(device_type):
        return reason
    if device_type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "torch.compile needs a C++ compiler on the CPU: g++, clang++ or CXX"
    return None


@dataclass(frozen=True, slots=True)
class Operator:
    """A vision operator on NHWC input, with a reference, costs and providers.

    Attributes:
        name: as in `--ops`, and in tables.
        summary: one line for `opbench list operators`.
        timed: which conversions and stages lie inside the timing.
        make_inputs: (case, generator) -> inputs and parameters as float32 tensors on the generator's device. The
            harness rounds them to the case's dtype. All of them get gradients in `bwd` and `fwd_bwd`.
        reference: (case, tensors) -> the output (batch, height, width, channels) in plain differentiable torch,
            right in any floating dtype; the harness calls it in float64.
        smooth_inputs: (case, tensors) -> the tensors moved away from points where the output has no gradient. Used to
            check gradients, where a rounding across such a point would look like an error; never for timing.
        flop_count: (case) -> floating-point operations, a multiply-add counting two.
        bytes_moved: (case) -> bytes that the stages of the operator read and write, each tensor once per stage.
        gathered_bytes: (case) -> bytes that are read from the L1 caches at least, where an element is read again for
            each sample that needs it; 0 where nothing is gathered.
        parameter_count, mac_count: (case) -> of a network or its block, the numbers that are trained, and the
            multiply-accumulates of a forward pass of one image, as papers count them; 0 for an operator.
        memory_bytes: (case) -> estimated peak bytes of a forward pass, inputs included.
        reference_elements: (case) -> estimated peak number of elements that `reference` holds.
        tolerance: (case) -> allowed error of an element of the output or a gradient, |got - expected| /
            (|expected| + root mean square of expected); opbench.workload.tolerance.rounding_budget derives one.
        providers: in order of preference.
        settings: by name.
        implied_settings: (every setting's value) -> those that follow from others, in place of what was given.
        not_applicable: (case) -> why the operator has no meaning for the case, or None.
        family: of operators that one name of `--ops` stands for, such as dcn or large-kernel; empty for none.
        by_default: whether a sweep takes it where `--ops` names none.
        levels: those that it tells apart. One that has no projections around it names one alone, under which its rows
            then stand, by default `module`. At a level that is not among them it is not applicable.
        side_multiple: height and width of its inputs are multiples of this; a smaller input for a check keeps to it.
    """

    name: str
    summary: str
    timed: str
    make_inputs: "Callable[[Case, torch.Generator], Tensors]"
    reference: "Callable[[Case, Tensors], torch.Tensor]"
    flop_count: Callable[[Case], int]
    bytes_moved: Callable[[Case], int]
    memory_bytes: Callable[[Case], int]
    reference_elements: Callable[[Case], int]
    tolerance: Callable[[Case], float]
    providers: tuple[Provider, ...]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    implied_settings: Callable[[Mapping[str, SettingValue]], Mapping[str, SettingValue]] = _nothing_implied
    not_applicable: Callable[[Case], str | None] = _always
    smooth_inputs: Callable[[Case, Tensors], Tensors] = _unchanged
    levels: tuple[Level, ...] = OPERATOR_LEVELS
    gathered_bytes: Callable[[Case], int] = _none
    parameter_count: Callable[[Case], int] = _none
    mac_count: Callable[[Case], int] = _none
    family: str = ""
    by_default: bool = True
    side_multiple: int = 1

    @property
    def is_network(self) -> bool:
        """Whether it is a whole network, which has levels of its own."""
        return Level.MODEL in self.levels

    def provider(self, name: str) -> Provider:
        """The provider of that name; torch_compile of an operator without one is its torch, else its first, compiled.

        Raises:
            UnknownNameError: there is none.
        """
        known = {provider.name: provider for provider in self.providers}
        if name in known:
            return known[name]
        if name == TORCH_COMPILE:
            return compiled(known.get("torch", self.providers[0]))
        raise UnknownNameError(f"provider of {self.name}", name, (p.name for p in self.providers))

    def resolve_settings(self, given: Mapping[str, str]) -> tuple[tuple[str, SettingValue], ...]:
        """A case's settings: each with its value, the defaults replaced by what was given.

        Raises:
            UnknownNameError: no setting of that name, or none of a setting's words.
            UsageError: a value that the setting does not allow.
        """
        for name in given:
            if name not in self.settings:
                raise UnknownNameError(f"setting of {self.name}", name, self.settings or ("(none)",))
        values = {name: setting.default for name, setting in self.settings.items()}
        values |= {name: self.settings[name].parse(f"{self.name}.{name}", text) for name, text in given.items()}
        values |= self.implied_settings(values)
        return tuple(
            (name, values[name])
            for name, setting in self.settings.items()
            if not (setting.added_later and values[name] == setting.default)
        )

    def settings_at(
        self, level: Level, settings: tuple[tuple[str, SettingValue], ...]
    ) -> tuple[tuple[str, SettingValue], ...]:
        """Those of resolved settings that have a meaning at a level."""
        return tuple(pair for pair in settings if level in (self.settings[pair[0]].levels or tuple(Level)))


def by_direction(case: Case, *, fwd: int, bwd: int) -> int:
    """The forward figure, the backward figure or their sum, by the case's direction."""
    return {Direction.FWD: fwd, Direction.BWD: bwd}.get(case.direction, fwd + bwd)
