"""A run as a notebook shows it: its tables as plain HTML, whatever stands in it escaped.

Importing this module gives Run the method that notebooks look for.
"""

from opbench.report.render import Table
from opbench.report.summary import summary_line
from opbench.report.tables import run_tables
from opbench.results.run import Run

__all__ = ["Run", "run_html"]


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


Run._repr_html_ = run_html  # type: ignore[attr-defined]  # results know no reports
