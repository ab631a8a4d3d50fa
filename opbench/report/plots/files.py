"""The plots of a run as files."""

from pathlib import Path

from opbench.files import make_folder
from opbench.report.layout import group_rows
from opbench.report.plots.kinds import KINDS
from opbench.report.plots.source import source_of_run
from opbench.report.plots.style import plot_style, save
from opbench.results.run import Run

__all__ = ["write_plots"]


def write_plots(run: Run, *others: Run) -> list[Path]:
    """Draw every plot of a run into its folder `plots`, each as PNG and SVG.

    A plot without a single value is not drawn; cells without a value are counted in the figure.

    Args:
        run: whose plots.
        others: runs of the same device, for plots that compare two: events and graphs.

    Returns:
        The files written.
    """
    folder = run.path / "plots"
    make_folder(folder)
    written = []
    for joined, source in ((False, source_of_run(run)), (True, source_of_run(run, *others))):
        for group in group_rows(source.rows):
            for name, kind in KINDS.items():
                if kind.joins_runs is not joined:
                    continue
                with plot_style():
                    figure = kind.draw(source, group)
                    if figure is not None:
                        written += save(figure, folder / f"{name}-{group.stem}")
    return written
