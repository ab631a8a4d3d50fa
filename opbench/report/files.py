"""Writes what a report is made of: the plots, the HTML page, and the site of many runs."""

from collections.abc import Sequence
from pathlib import Path

from opbench.files import write_whole
from opbench.results.run import Run

__all__ = ["write_page", "write_plots", "write_site"]


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


def write_site(runs: Sequence[Path], folder: Path) -> tuple[Path, list[str]]:
    """Write static pages of many runs: index, a page a run, history, comparisons.

    The same runs give the same bytes, as far as the noise of their devices is known alike (opbench.compare.noise).

    Args:
        runs: their folders, folders that hold some at any depth, and `published` for the paper's figures.
        folder: new, empty but for hidden files, or with a site made before, which is replaced.

    Returns:
        The index, and a line for each run that could not be read; the index names them, too.

    Raises:
        ResultsError: there is no run in one of them, or none at all that can be read.
        UsageError: the folder holds something that is no site.
        StorageError: a file cannot be written.
    """
    from opbench.report.site.site import write_site as write

    return write(runs, folder)
