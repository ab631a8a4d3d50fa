"""What a person reads of a run: tables in the paper's layout, the comparison with the paper, plots.

Needs neither torch nor a GPU; matplotlib is imported when plots are written, not before.
"""

from pathlib import Path

from opbench.report.ceiling_table import ceiling_table
from opbench.report.paper import paper_tables
from opbench.report.render import FORMATS, Table, print_tables, render
from opbench.report.tables import run_tables, speedup_tables, write_tables
from opbench.results import RunFolder

__all__ = [
    "FORMATS",
    "Table",
    "ceiling_table",
    "paper_tables",
    "print_tables",
    "render",
    "run_tables",
    "speedup_tables",
    "write_plots",
    "write_tables",
]


def write_plots(run: RunFolder) -> list[Path]:
    """Draw every plot of a run into its folder `plots`, each as PNG and SVG; returns the files written."""
    from opbench.report.plots import write_plots as write  # matplotlib takes about a second to import

    return write(run)
