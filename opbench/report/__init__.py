"""What a person reads of a run: tables in the paper's layout, the comparison with the paper, plots.

Needs neither torch nor a GPU; matplotlib is imported when plots are written, not before.
"""

from opbench.report.ceiling_table import ceiling_table
from opbench.report.files import write_page, write_plots, write_site
from opbench.report.networks import published_network_tables
from opbench.report.paper import paper_tables
from opbench.report.render import FORMATS, Table, print_tables, render
from opbench.report.summary import summary_line
from opbench.report.tables import result_tables, run_tables, sample_table, speedup_tables, write_tables

__all__ = [
    "FORMATS",
    "Table",
    "ceiling_table",
    "paper_tables",
    "print_tables",
    "published_network_tables",
    "render",
    "result_tables",
    "run_tables",
    "sample_table",
    "speedup_tables",
    "summary_line",
    "write_page",
    "write_plots",
    "write_site",
    "write_tables",
]
