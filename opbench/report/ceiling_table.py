"""A device's measured ceilings as a table."""

from opbench.device.ceilings import BOUNDS, BUSY_LOAD, Ceilings, emulated_dtypes, missing_notes
from opbench.report.render import Table
from opbench.report.value_text import ABSENT, three_digits

__all__ = ["BUSY_LOAD", "busy_note", "ceiling_table"]

UNITS = {"compute": "TFLOP/s", "memory": "GB/s", "cache": "GB/s", "launch": "µs"}


def ceiling_table(ceilings: Ceilings) -> Table:
    """Every probe with its fastest sample, which is the ceiling, and its median."""
    rows = []
    for kind in BOUNDS:
        scale = 1e3 if kind == "launch" else 1.0
        rows += [
            (
                kind,
                probe.name,
                probe.size,
                three_digits(scale * probe.best),
                three_digits(scale * probe.typical),
                UNITS[kind],
                str(probe.samples),
            )
            for probe in ceilings.of(kind)
        ]
    return Table(
        name="ceilings",
        title=f"Ceilings of {ceilings.device_name}",
        columns=("Bound", "Probe", "Size", "Best", "Median", "Unit", "Samples"),
        rows=tuple(rows),
        notes=(
            f"L2 cache: {_mib(ceilings.l2_bytes)}; a warm cache keeps up to {_mib(ceilings.cache_bytes)}.",
            f"Measured {ceilings.measured_at} with "
            + ", ".join(f"{name} {value}" for name, value in ceilings.identity.items() if name != "device")
            + "; matrix products of random numbers; memory and cache count bytes read and bytes written.",
            *(f"{note[0].upper()}{note[1:]}." for note in [*emulated_dtypes(ceilings), *missing_notes(ceilings)]),
            *busy_note(ceilings),
        ),
        text_columns=3,
    )


def busy_note(ceilings: Ceilings) -> list[str]:
    """A warning where other work ran while the ceilings were measured: they may then be too low."""
    if not ceilings.busy:
        return []
    return [
        f"Ceilings may be too low: {ceilings.busy} when they were measured. The next sweep on an idle machine measures "
        "them again, or `opbench ceilings --again`."
    ]


def _mib(size_bytes: int | None) -> str:
    return ABSENT if size_bytes is None else f"{size_bytes / 2**20:.4g} MiB"
