"""What a person reads of a run: tables in the paper's layout, the comparison with the paper, plots.

Needs neither torch nor a GPU; matplotlib is imported when plots are written, not before.
"""

from collections.abc import Sequence
from pathlib import Path

from opbench.files import write_whole
from opbench.report.ceiling_table import ceiling_table
from opbench.report.paper import paper_tables
from opbench.report.render import FORMATS, Table, print_tables, render
from opbench.report.summary import summary_line
from opbench.report.tables import run_tables, sample_table, speedup_tables, write_tables
from opbench.results.run import RunFolder

__all__ = [
    "FORMATS",
    "Table",
    "ceiling_table",
    "paper_tables",
    "print_tables",
    "render",
    "run_tables",
    "sample_table",
    "speedup_tables",
    "summary_line",
    "write_page",
    "write_plots",
    "write_tables",
]


def write_plots(run: RunFolder, *others: RunFolder) -> list[Path]:
    """Draw every plot of a run into its folder `plots`, each as PNG and SVG; returns the files written.

    `others`, of the same device, take part where a plot compares two runs: events and graphs.
    """
    from opbench.report.plots.files import write_plots as write  # matplotlib takes about a second to import

    return write(run, *others)


def write_page(runs: Sequence[RunFolder], out: Path | None = None) -> Path:
    """Write the HTML page of runs side by side.

    Args:
        runs: the first is the one that the others are compared with.
        out: the file; by default report.html in the folder of the first run, or here for the published figures.

    Raises:
        StorageError: the file cannot be written.
    """
    from opbench.report.page.html import page

    path = out or (runs[0].path if runs[0].path.is_dir() else Path()) / "report.html"
    write_whole(path, page(runs))
    return path
