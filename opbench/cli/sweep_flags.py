"""The flags of a sweep's options, for every command that has them; opbench/sweeps/request.py reads what they give."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import typer

from opbench.cli import completion as complete
from opbench.cli.shared import split
from opbench.text import one_of
from opbench.timing import TIMERS

__all__ = ["SWEEP_FLAGS", "Flag", "takes_sweep_flags"]

Words = Mapping[str, str]
"""The help of an option by the names of commands, with blanks between; a command that is in none lacks the option."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a sweep on the command line.

    Attributes:
        keyword: of `opbench.sweep`.
        metavar: what help shows for the value; LIST is names separated by commas, None that there is no value.
        words: its help.
        kind: of the value; list is an option that is given several times.
        names: on the command line, where they are not --keyword.
        completion: completes the value.
        defaults: by command, where the command itself has one.
    """

    keyword: str
    metavar: str | None
    words: Words
    kind: type = str
    names: tuple[str, ...] = ()
    completion: Callable[..., list[Any]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def help(self, command: str) -> str | None:
        """What the help of a command says; None where it lacks the option."""
        return next((text for commands, text in self.words.items() if command in commands.split()), None)

    def parameter(self, command: str) -> inspect.Parameter:
        """The option as typer reads it from a function's signature."""
        default = self.defaults.get(command)
        option = typer.Option(
            default, *self.names, metavar=self.metavar, help=self.help(command), autocompletion=self.completion
        )
        kind = list[str] if self.kind is list else self.kind
        return inspect.Parameter(
            self.keyword,
            inspect.Parameter.KEYWORD_ONLY,
            default=option,
            annotation=kind | None if default is None else kind,
        )

    def value(self, given: Any) -> Any:  # noqa: ANN401
        """What was given, as `opbench.sweep` takes it."""
        return split(f"--{self.keyword}", given) if self.metavar == "LIST" else given


SWEEP_FLAGS = (
    Flag("shapes", "NAME|FILE", {
        "sweep": "Shape list; repeat for several. "
        "[default: standard and high_resolution on CUDA, standard_batch1 on the CPU; of networks alone backbone]",
        "gate": "Like all that follow, as for sweep. [default: standard and high_resolution on CUDA, smoke on the CPU]",
        "check": "Shape list; repeat for several. [default: smoke, of networks backbone_smoke]",
        "profile": "Shape list; repeat for several. "
        "[default: standard and high_resolution on CUDA, standard_batch1 on the CPU]",
        "reproduce": "Shape list; repeat for several. "
        "[default: standard and high_resolution; of the part as-paper, standard_batch1 too]",
    }, kind=list, completion=complete.shapes),
    Flag("ops", "LIST", {
        "sweep": "Operators, such as dcnv3,dcnv4, families, such as dcn, or all; also FILE.py and MODULE:OPERATOR. "
        "[default: those of the DCNv4 paper and of plug-ins]",
        "gate": "Operators, families, or all. [default: as for sweep]",
        "reproduce": "Operators, or families. [default: the paper's; of the backward parts the deformable ones]",
    }, completion=complete.operators),
    Flag("providers", "LIST", {
        "sweep": "Implementations, such as dcnv4=torch; op=all for every one. [default: the first that works here]",
        "gate": "Implementations, such as dcnv4=torch. [default: the first that works]",
        "check": "Implementations, such as mine=torch. [default: every one]",
        "reproduce": "Implementations of what --ops names, such as dcnv4=torch. [default: the first that works]",
    }, completion=complete.providers),
    Flag("dtypes", "LIST", {
        "sweep": "Of fp32, tf32, fp16, bf16. [default: fp32,fp16 on CUDA; on the CPU fp32 and what is native there]",
        "gate": "Of fp32, tf32, fp16, bf16. [default: as for sweep]",
        "check": "Of fp32, tf32, fp16, bf16. [default: fp32,fp16,bf16]",
        "reproduce": "Of fp32, tf32, fp16, bf16. [default: all on CUDA, fp32 and bf16 on the CPU; as-paper: tf32,fp16]",
    }, completion=complete.dtypes),
    Flag("level", "LIST", {
        "sweep gate": "Of module, core; of networks model, block. [default: module; of networks alone model]",
        "check": "Of module, core; of networks model, block. [default: both]",
    }, completion=complete.levels),
    Flag("direction", "LIST", {
        "sweep gate": "Of fwd, bwd, fwd_bwd; of networks also train. [default: fwd]",
        "check": "Of fwd, bwd, fwd_bwd. [default: all]",
    }, completion=complete.directions),
    Flag("device", "DEVICE", {"sweep gate check profile reproduce": "auto, cpu, cuda or cuda:N. [default: auto]"},
         completion=complete.devices),
    Flag("timer", "TIMER", {
        "sweep": f"auto, {one_of(TIMERS)}. [default: auto: cuda-event on CUDA, else the wall clock]",
        "gate": "As for sweep. [default: auto]",
    }, completion=complete.timers),
    Flag("cache", "cold|warm", {
        "sweep": "Flush the L2 before each launch, or not. [default: cold with cuda-event and cuda-graph]",
        "gate": "The L2 before each launch. [default: cold with cuda-event and cuda-graph]",
    }, completion=complete.caches),
    Flag("settings", "op.param=value", {
        "sweep": "A setting, or a list of its values; repeat for several. [default: the operator's]",
        "gate": "A setting of an operator. [default: the operator's]",
        "check profile": "A setting of an operator; repeat for several. [default: its own]",
    }, kind=list, names=("--set",)),
    Flag("time_budget", "SECONDS", {
        "sweep": "Sampling time per cell. [default: 1 on CUDA, 0.5 on the CPU]",
        "gate": "Sampling time per cell, in each process.",
        "reproduce": "Sampling time per cell.",
    # reproduce has some 2400 cells on a GPU: what lies around the samples takes longer than they do.
    }, kind=float, defaults={"gate": 0.1, "reproduce": 0.05}),
    Flag("memory_limit", "GIB", {"sweep gate": "Memory that a cell may take. [default: no limit]"}, kind=float),
    Flag("seed", "N", {"sweep gate profile": "Of inputs and parameters. [default: 0]"}, kind=int),
    Flag("threads", "N", {"sweep gate profile": "Of PyTorch on the CPU. [default: PyTorch's own choice]"}, kind=int),
    Flag("repeat", "N", {
        "sweep": "Fresh processes for each cell, in turns; compare then judges between processes. [default: 1]",
    }, kind=int),
    Flag("compile", None, {
        "sweep": "Measure each cell under torch.compile, too: the provider torch_compile.",
    }, kind=bool, names=("--compile",)),
    Flag("energy", None, {
        "sweep": "Measure the energy of each cell, too, after its timing: some 5 s a cell.",
    }, kind=bool, names=("--energy",)),
    Flag("shard", "K/N", {
        "sweep": "Measure the K-th of N parts of the plan, for opbench merge. [default: the whole plan]",
    }),
    Flag("isolation", "process|none", {
        "sweep check": "A worker process for each operator and shape, or none, for debugging. [default: process]",
        "reproduce": "A worker process for each operator and shape, or none.",
    }, defaults={"reproduce": "none"}),
    Flag("cell_timeout", "SECONDS", {
        "sweep": "Stop a cell after that. [default: 120 and ten time budgets, 30 more with --energy]",
    }, kind=float),
    Flag("ceilings_budget", "SECONDS", {
        "sweep": "To measure what the device can do at most, once; 0: not at all. "
        "[default: 15 on the CPU, 30 on CUDA]",
    }, kind=float),
    Flag("fleet", "ENGINE", {
        "sweep": "Measure on every card of a Ray cluster: ray or ray:ADDRESS. [default: on this machine's device]",
    }),
    Flag("fleet_mode", "MODE", {
        "sweep": "share: each cell on one card; replicate: each on every one, to compare the cards. [default: share]",
    }),
)  # fmt: skip
"""In the order in which help shows them."""


def takes_sweep_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `options` stands, on the command line, for the flags that have help for its name.

    The command gets a dictionary of those that were given, as keyword arguments of `opbench.sweep`.
    """
    name = command.__name__
    flags = [flag for flag in SWEEP_FLAGS if flag.help(name) is not None]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "options":
            parameters += [flag.parameter(name) for flag in flags]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401
        values = {flag.keyword: flag.value(given.pop(flag.keyword)) for flag in flags}
        command(options={keyword: value for keyword, value in values.items() if value is not None}, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
