"""Writes what a report is made of: the plots and the HTML page."""

from collections.abc import Sequence
from pathlib import Path

from opbench.files import write_whole
from opbench.results.run import Run

__all__ = ["write_page", "write_plots"]


def write_plots(run: Run, *others: Run) -> list[Path]:
    """Draw every plot of a run into its folder `plots`, each as PNG and SVG; returns the files written.

    `others`, of the same device, take part where a plot compares two runs: events and graphs.
    """
    from opbench.report.plots.files import write_plots as write  # matplotlib takes about a second to import

    return write(run, *others)


def write_page(runs: Sequence[Run], out: Path | None = None) -> Path:
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
