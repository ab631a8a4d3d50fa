"""A run in a notebook: its tables as plain HTML, whatever stands in it escaped, and its figures.

Importing this module gives Run the method that notebooks look for, and `plot`.
"""

from typing import TYPE_CHECKING, Any

from opbench.errors import UnknownNameError, UsageError
from opbench.report.render import Table
from opbench.report.summary import summary_line
from opbench.report.tables import run_tables
from opbench.results.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "plot", "run_html"]


def run_html(run: Run) -> str:
    """Device, summary and the latency tables of a run, without scripts or styles of their own."""
    from markupsafe import escape

    head = f"<p><b>{escape(run.device_name)}</b>, {escape(run.path)}: {escape(summary_line(run))}</p>"
    return head + "".join(_table(table) for table in run_tables(run))


def _table(table: Table) -> str:
    from markupsafe import escape

    def line(tag: str, values: tuple[str, ...]) -> str:
        cells = (
            f'<{tag} style="text-align: {"left" if number < table.text_columns else "right"}">'
            f"{str(escape(value)).replace(chr(10), '<br>')}</{tag}>"
            for number, value in enumerate(values)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line("td", row) for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<table><caption>{escape(table.title)}</caption><thead>{line('th', table.columns)}</thead>"
        f"<tbody>{body}</tbody></table><ul>{notes}</ul>"
    )


def plot(run: Run, kind: str = "throughput", table: str | None = None, **options: Any) -> "Figure":  # noqa: ANN401
    """One figure of a run, as opbench.plots draws it: `Run.plot`.

    Args:
        run: what to draw.
        kind: a function of opbench.plots, such as roofline or heatmap.
        table: its table, `<shape list>-<level>-<direction>`; the first that there is unless given.
        options: as that function takes them.

    Raises:
        UnknownNameError: no such kind or table.
        UsageError: the run has nothing that this kind shows.
    """
    from opbench import plots
    from opbench.results.frames import load_results

    if kind not in plots.__all__:
        raise UnknownNameError("kind of figure", kind, plots.__all__)
    figures: plots.Figures = getattr(plots, kind)(load_results(run.path), **options)
    if not figures:
        raise UsageError(f"{run.path} has nothing to draw as {kind}")
    if table is not None and table not in figures:
        raise UnknownNameError("table", table, figures)
    return figures[table or next(iter(figures))]


Run._repr_html_ = run_html  # type: ignore[attr-defined]  # results know no reports
Run.plot = plot  # type: ignore[attr-defined]
