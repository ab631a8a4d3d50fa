"""The reference of the columns, and the columns of a frame of samples.

`python -m opbench.results.columns >docs/columns.md` writes it.
"""

from opbench.results.row import COLUMNS, Column

__all__ = ["SAMPLE_COLUMNS", "names", "reference"]

SAMPLE_COLUMNS = (
    *(column for column in COLUMNS if column.name in (
        "run_id", "operator", "provider", "level", "direction", "shape_list", "shape", "dtype", "settings",
    )),
    Column("repetition", "which of the fresh processes of the cell (`--repeat`), from 1", kind=int),
    Column("sample", "place of the sample in its process, from 0, in the order of time", kind=int),
    Column("latency_ms", "latency of one launch: of several that shared a sample, their mean", "ms", kind=float),
)  # fmt: skip

REFERENCE = """\
# Columns

Written by `python -m opbench.results.columns` from `opbench/results/row.py`; a test holds it to that.

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
