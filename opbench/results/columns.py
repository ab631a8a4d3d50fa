"""The columns of a results frame and of measurements.csv, each defined once: name, unit, meaning, when it is empty.

`python -m opbench.results.columns >docs/columns.md` writes their reference.
"""

from dataclasses import dataclass

__all__ = ["COLUMNS", "SAMPLE_COLUMNS", "Column", "names", "reference"]

NEVER = "never"
NOT_OK = "the cell is not `ok`"
NO_LIMIT = "the run has no ceilings, or none for this dtype"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

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


COLUMNS = (
    Column("run_id", "identity of the run: when it started, in UTC, and six random digits"),
    Column("operator", "as in `--ops`"),
    Column("provider", "which implementation of the operator, as in `--providers`"),
    Column(
        "level",
        "`module`: with its linear projections; `core`: the operator alone. An operator with one level "
        "is timed as a whole and called `module`",
    ),
    Column("direction", "`fwd`, `bwd`, or `fwd_bwd` for both in one launch"),
    Column("shape_list", "the list of `--shapes` that the shape is from"),
    Column("shape", "of the input: batch x height x width x channels"),
    Column("batch", "of the shape", "images", kind=int),
    Column("height", "of the shape", "pixels", kind=int),
    Column("width", "of the shape", "pixels", kind=int),
    Column("channels", "of the shape", kind=int),
    Column("dtype", "`fp32` (strict), `tf32`, `fp16` or `bf16`"),
    Column("device", "name of what was measured"),
    Column("timer", "`cuda-event`, `cuda-graph` or `wall-clock`; of a cell that was not timed, what was asked for"),
    Column("cache", "`cold`: the L2 was overwritten before each launch; `warm`: it was not"),
    Column("settings", "the operator's, as `name=value;name=value`", empty="the operator has none"),
    Column(
        "status", "`ok`, `not_applicable`, `unavailable`, `out_of_memory`, `wrong`, `error`, `timeout` or `not_run`"
    ),
    Column("reason", "why the cell is not `ok`; of an `ok` cell, what to know about it", empty="nothing to say"),
    Column(
        "warnings",
        "what disturbed the samples, and what the cell left changed: `kind: detail`, joined by `; `",
        empty="nothing did",
    ),
    Column("latency_ms", "median latency of one launch", "ms", NOT_OK, float),
    Column("latency_ms_p20", "20 % of the samples are below", "ms", NOT_OK, float),
    Column("latency_ms_p80", "80 % of the samples are below", "ms", NOT_OK, float),
    Column("latency_ms_min", "fastest sample", "ms", NOT_OK, float),
    Column("ci_low_ms", "lower end of the median's distribution-free 95 % interval", "ms", NOT_OK, float),
    Column("ci_high_ms", "upper end of that interval", "ms", NOT_OK, float),
    Column("samples", "how many latencies were measured; short launches share one", "samples", NOT_OK, int),
    Column("stop_reason", "why sampling ended: `converged`, `time_budget` or `long_launch`", empty=NOT_OK),
    Column(
        "flop_count", "floating-point operations of one launch, by formula; a multiply-add counts two", "FLOP", kind=int
    ),
    Column(
        "bytes_moved",
        "bytes that one launch must move across the memory bus at least once, by formula",
        "bytes",
        kind=int,
    ),
    Column("tflops", "`flop_count` / `latency_ms`", "1e12 FLOP/s", "the cell is not `ok`, or its median is 0", float),
    Column("gbps", "`bytes_moved` / `latency_ms`", "1e9 byte/s", "the cell is not `ok`, or its median is 0", float),
    Column(
        "peak_memory_bytes",
        "most memory allocated during one launch, inputs included",
        "bytes",
        "the cell is not `ok`, or the device does not tell (the CPU)",
        int,
    ),
    Column(
        "max_rel_error",
        "largest error of an element against the fp64 reference, of output or gradients: "
        "abs(got - expected) / (abs(expected) + rms(expected))",
        "",
        "nothing was compared, or a value is not finite",
        float,
    ),
    Column(
        "tolerance",
        "the largest `max_rel_error` that is right, from the dtype's rounding and the operator's arithmetic",
        "",
        "nothing was compared",
        float,
    ),
    Column(
        "kernel_source_hash",
        "SHA-256 of the operator's file and the provider's sources, 16 digits",
        empty="the cell ended before it was known",
    ),
    Column("configuration", "what the provider tuned or chose, as it says", empty="there is nothing to choose"),
    Column(
        "limit_ms",
        "the least that one launch can take on this device, by what was measured of it",
        "ms",
        NO_LIMIT,
        float,
    ),
    Column(
        "limit_fraction",
        "`limit_ms` / `latency_ms`: 1 is as fast as this device can",
        "",
        f"the cell is not `ok`, or {NO_LIMIT}",
        float,
    ),
    Column("bound_by", "which limit that is: `compute`, `memory`, `cache` or `launch`", empty=NO_LIMIT),
    Column("suspicious", "the figures, where a cell beats its limit by more than 5 %", empty="it does not"),
    Column(
        "processes",
        "how many fresh processes measured the cell (`--repeat`); above 1 the latencies are the processes' medians",
        "processes",
        NOT_OK,
        int,
    ),
)

SAMPLE_COLUMNS = (
    *(column for column in COLUMNS if column.name in (
        "run_id", "operator", "provider", "level", "direction", "shape_list", "shape", "dtype", "settings",
    )),
    Column("sample", "place of the sample in its cell, from 0, in the order of time", kind=int),
    Column("latency_ms", "latency of one launch: of several that shared a sample, their mean", "ms", kind=float),
)  # fmt: skip

REFERENCE = """\
# Columns

Written by `python -m opbench.results.columns` from `opbench/results/columns.py`; a test holds it to that.

## Of `opbench.load_results(RUN)` and of `measurements.csv`

One row per planned cell, with the same columns whatever was measured. A value that is not there is NaN (NA in an
integer column), and an empty field in the CSV; it is never 0. `opbench.load_results([RUN, RUN2])` has the rows of
several runs; `run_id` tells them apart. The paper's figures, `load_results("published")`, lack what the paper does not
print.

{rows}

## Of `opbench.load_samples(RUN)`

One row per sample of each `ok` cell, as measured: none removed, none rounded.

{samples}
"""


def names(columns: tuple[Column, ...], kind: type | None = None) -> tuple[str, ...]:
    """Names of columns: of all, or of those of one type."""
    return tuple(column.name for column in columns if kind in (None, column.kind))


def reference() -> str:
    """The reference of all columns in Markdown: docs/columns.md."""
    return REFERENCE.format(rows="\n".join(_table(COLUMNS)), samples="\n".join(_table(SAMPLE_COLUMNS)))


def _table(columns: tuple[Column, ...]) -> list[str]:
    lines = [
        f"| `{column.name}` | {column.kind.__name__} | {column.unit} | {column.meaning} | {column.empty} |"
        for column in columns
    ]
    return ["| column | type | unit | meaning | empty when |", "|---|---|---|---|---|", *lines]


if __name__ == "__main__":
    print(reference(), end="")
