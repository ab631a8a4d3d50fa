"""A row of a run: what is known of one planned cell. Its fields are the columns of measurements.csv, defined only here.

`python -m opbench.results.columns >docs/columns.md` writes their reference.
"""

from dataclasses import MISSING, Field, dataclass, field, fields
from operator import attrgetter
from types import NoneType
from typing import Any, TypeGuard, get_args

from opbench.device.limits import LIMITS
from opbench.results.measurement import Status
from opbench.text import one_of
from opbench.timing import TIMERS
from opbench.timing.stopping import StopReason

__all__ = ["COLUMNS", "COLUMN_NAMES", "NEVER", "NOT_OK", "NO_RATE", "Column", "MeasuredRow", "Row", "is_ok"]

NEVER = "never"
NOT_OK = "the cell is not `ok`"
NO_RATE = f"{NOT_OK}, or its median is 0"
NO_NETWORK = "it is an operator"
NO_CALL = "the cell did not get so far, or was measured by an opbench that did not keep it"
NO_ENERGY = "it was not asked for (`--energy`), or could not be measured: `reason` says why"
NO_LIMIT = "the run has no ceilings, or none for this dtype"
NO_CLOCK = "the device does not tell its clock (a CPU)"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table of rows or samples.

    Attributes:
        name: as in the frame and in the CSV.
        meaning: one line of Markdown.
        unit: empty for texts and plain numbers.
        empty: when it has no value: NaN or NA in a frame, nothing in the CSV.
        kind: its type in a frame: str, int (pandas' Int64) or float.
    """

    name: str
    meaning: str
    unit: str = ""
    empty: str = NEVER
    kind: type[str] | type[int] | type[float] = str


def _column(meaning: str, *, unit: str = "", empty: str = NEVER, default: object = MISSING) -> Any:  # noqa: ANN401
    """A field of Row, described as in Column. Where it is empty its value is None, unless another is given."""
    if default is MISSING and empty != NEVER:
        default = None
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "empty": empty})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One planned cell of a run. A value that is not there is None, of a text that may be empty ""; it is never 0.

    The published figures are rows, too: of them only the latency and what names the cell is known.
    """

    run_id: str = _column("identity of the run: when it started, in UTC, and six random digits")
    operator: str = _column("as in `--ops`")
    provider: str = _column("which implementation of the operator, as in `--providers`")
    level: str = _column(
        "`module`: with its linear projections; `core`: the operator alone. An operator with one level is "
        "timed as a whole and called `module`. Of a network `block`: one residual block; `model`: all of it"
    )
    direction: str = _column(
        "`fwd`, `bwd`, or `fwd_bwd` for both in one launch; `train`: these of a network in training, and a step of SGD"
    )
    shape_list: str = _column("the list of `--shapes` that the shape is from")
    shape: str = _column("of the input: batch x height x width x channels; of a network's block, of its images")
    batch: int = _column("of the shape", unit="images")
    height: int = _column("of the shape", unit="pixels")
    width: int = _column("of the shape", unit="pixels")
    channels: int = _column("of the shape")
    dtype: str = _column("`fp32` (strict), `tf32`, `fp16` or `bf16`")
    device: str = _column("name of what was measured")
    timer: str = _column(f"{one_of(f'`{name}`' for name in TIMERS)}; of a cell that was not timed, what was asked for")
    cache: str = _column("`cold`: the L2 was overwritten before each launch; `warm`: it was not")
    settings: str = _column(
        "the operator's, as `name=value;name=value`; a file as `word:name@hash`; `offset_distribution` only where it "
        "is not `normal`",
        empty="the operator has none",
        default="",
    )
    status: str = _column(one_of(f"`{status}`" for status in Status))
    reason: str = _column(
        "why the cell is not `ok`; of an `ok` cell, what to know about it", empty="nothing to say", default=""
    )
    warnings: str = _column(
        "what disturbed the samples, and what the cell left changed: `kind: detail`, joined by `; `",
        empty="nothing did",
        default="",
    )
    latency_ms: float | None = _column("median latency of one launch", unit="ms", empty=NOT_OK)
    latency_ms_p20: float | None = _column("20 % of the samples are below", unit="ms", empty=NOT_OK)
    latency_ms_p80: float | None = _column("80 % of the samples are below", unit="ms", empty=NOT_OK)
    latency_ms_min: float | None = _column("fastest sample", unit="ms", empty=NOT_OK)
    ci_low_ms: float | None = _column(
        "lower end of the median's distribution-free 95 % interval", unit="ms", empty=NOT_OK
    )
    ci_high_ms: float | None = _column("upper end of that interval", unit="ms", empty=NOT_OK)
    samples: int | None = _column(
        "how many latencies were measured; short launches share one", unit="samples", empty=NOT_OK
    )
    stop_reason: str | None = _column(
        f"why sampling ended: {one_of(f'`{reason}`' for reason in StopReason)}", empty=NOT_OK
    )
    flop_count: int | None = _column(
        "floating-point operations of one launch, by formula; a multiply-add counts two", unit="FLOP", default=None
    )
    bytes_moved: int | None = _column(
        "bytes that one launch must move across the memory bus at least once, by formula", unit="bytes", default=None
    )
    gathered_bytes: int | None = _column(
        "bytes that one launch reads from the L1 caches at least, sample by sample, by formula",
        unit="bytes",
        empty="the operator gathers nothing",
    )
    warp_instructions: int | None = _column(
        "instructions that the warps of one launch issue, as counted in the kernel's machine code (`opbench inspect`)",
        unit="instructions",
        empty="nobody counted them: of other kernels than ours, other settings, another GPU or a CPU",
    )
    tflops: float | None = _column("`flop_count` / `latency_ms`", unit="1e12 FLOP/s", empty=NO_RATE)
    gbps: float | None = _column("`bytes_moved` / `latency_ms`", unit="1e9 byte/s", empty=NO_RATE)
    images_per_second: float | None = _column(
        "`batch` / `latency_ms` of a whole network", unit="images/s", empty=f"the level is not `model`, {NO_RATE}"
    )
    parameter_count: int | None = _column("numbers of the network, or its block, that are trained", empty=NO_NETWORK)
    mac_count: int | None = _column(
        "multiply-accumulates of its forward pass of one image, as papers count them: without normalisations and "
        "activations, and five for a sample and its weight",
        unit="MAC",
        empty=NO_NETWORK,
    )
    peak_memory_bytes: int | None = _column(
        "most memory allocated during one launch, inputs included",
        unit="bytes",
        empty="the cell is not `ok`, or the device does not tell (the CPU)",
    )
    max_rel_error: float | None = _column(
        "largest error of an element against the fp64 reference, of output or gradients: abs(got - expected) "
        "/ (abs(expected) + rms(expected))",
        empty="nothing was compared, or a value is not finite",
    )
    tolerance: float | None = _column(
        "the largest `max_rel_error` that is right, from the dtype's rounding and the operator's arithmetic",
        empty="nothing was compared",
    )
    kernel_source_hash: str | None = _column(
        "SHA-256 of the operator's file and the provider's sources, 16 digits",
        empty="the cell ended before it was known",
    )
    configuration: str | None = _column(
        "what the provider tuned or chose, as it says", empty="there is nothing to choose"
    )
    limit_ms: float | None = _column(
        "the least that one launch can take on this device, by what was measured of it", unit="ms", empty=NO_LIMIT
    )
    limit_fraction: float | None = _column(
        "`limit_ms` / `latency_ms`: 1 is as fast as this device can", empty=f"{NOT_OK}, or {NO_LIMIT}"
    )
    bound_by: str | None = _column(f"which limit that is: {one_of(f'`{name}`' for name in LIMITS)}", empty=NO_LIMIT)
    limit_at_clock_ms: float | None = _column(
        "`limit_ms` at the SM clock of the cell, the higher of start and end, where `compute`, `l1` and `issue` count",
        unit="ms",
        empty=f"{NO_LIMIT}, or {NO_CLOCK}",
    )
    sm_clock_start_mhz: float | None = _column(
        "SM clock right before the samples", unit="MHz", empty=f"{NOT_OK}, or {NO_CLOCK}"
    )
    sm_clock_end_mhz: float | None = _column(
        "SM clock right after the samples", unit="MHz", empty=f"{NOT_OK}, or {NO_CLOCK}"
    )
    suspicious: str | None = _column("the figures, where a cell beats its limit by more than 5 %", empty="it does not")
    processes: int | None = _column(
        "how many fresh processes measured the cell (`--repeat`); above 1 the latencies are the processes' medians",
        unit="processes",
        empty=NOT_OK,
    )
    host: str = _column(
        "tells the machine from others: `OPBENCH_HOST`, or eight digits of a hash of its name",
        empty="the cell was not measured, or by an opbench that did not keep it",
        default="",
    )
    gpu_uuid: str = _column(
        "of the card, as NVML gives it",
        empty="the cell was not measured or on a CPU, or NVML is silent",
        default="",
    )
    origin: str = _column(
        "in a merged run (`opbench merge`), the `run_id` of the run that the row is from; in a fleet one a card",
        empty="the run is not merged, or measured the cell itself",
        default="",
    )
    actor: str = _column(
        "in a sweep over many cards (`--fleet`), the card, such as `card-3`", empty="it was none", default=""
    )
    first_call_ms: float | None = _column(
        "from the build of the closure to the first result, at `checked_shape`, for gradients forward and backward; "
        "what an earlier cell of the process compiled is not compiled again",
        unit="ms",
        empty=NO_CALL,
        default=None,
    )
    cached_call_ms: float | None = _column(
        "the same once more, at `shape`, before the timing: with what caches leave to do",
        unit="ms",
        empty=NO_CALL,
        default=None,
    )
    kernels_compiled: int | None = _column(
        "in both calls: by Triton, or generated by torch.compile", empty=NO_CALL, default=None
    )
    energy_mj: float | None = _column(
        "of one launch, with a warm cache whatever `cache` says: all that the device used in a window of launches back "
        "to back, what it uses without work included, / `energy_launches`",
        unit="mJ",
        empty=NO_ENERGY,
    )
    energy_idle_subtracted_mj: float | None = _column(
        "of one launch, without what the device would have used idle: (`average_power_w` - `idle_power_w`) x "
        "`energy_window_s` / `energy_launches`; below 0 where that is less than the noise",
        unit="mJ",
        empty=NO_ENERGY,
    )
    energy_window_s: float | None = _column(
        "length of that window, from a change of the counter to another", unit="s", empty=NO_ENERGY
    )
    energy_launches: int | None = _column("launches in that window", unit="launches", empty=NO_ENERGY)
    energy_counter_updates: int | None = _column(
        "how often the counter was seen to change in that window, its end included", empty=NO_ENERGY
    )
    energy_source: str | None = _column(
        "the counter: `nvml`, of the whole card; `rapl: package-0 + dram`, the domains of the CPU that are added",
        empty=NO_ENERGY,
    )
    average_power_w: float | None = _column("in that window", unit="W", empty=NO_ENERGY)
    idle_power_w: float | None = _column(
        "before that window, of the device without work, a second after the launches before",
        unit="W",
        empty=NO_ENERGY,
    )
    gflop_per_joule: float | None = _column("`flop_count` / `energy_mj`", unit="1e9 FLOP/J", empty=NO_ENERGY)

    def values(self) -> tuple[Any, ...]:
        """The values in the order of COLUMNS."""
        values: tuple[Any, ...] = _VALUES(self)
        return values

    def to_dict(self) -> dict[str, Any]:
        """The values by the name of their column."""
        return dict(zip(COLUMN_NAMES, _VALUES(self), strict=True))


class MeasuredRow(Row):
    """A row with a latency: for the type checker alone; at run time it is a Row of which `is_ok` holds."""

    latency_ms: float


def is_ok(row: Row | None) -> TypeGuard[MeasuredRow]:
    """Whether there is a row, and its cell was measured."""
    return row is not None and row.status == Status.OK


def _column_of(described: Field[Any]) -> Column:
    kind = next(kind for kind in (*get_args(described.type), described.type) if kind is not NoneType)
    return Column(described.name, **described.metadata, kind=kind)


COLUMNS = tuple(map(_column_of, fields(Row)))
"""Of measurements.csv and of a results frame, in their order."""
COLUMN_NAMES = tuple(column.name for column in COLUMNS)
_VALUES = attrgetter(*COLUMN_NAMES)
