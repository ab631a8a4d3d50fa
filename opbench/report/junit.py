"""A comparison as JUnit XML: one test case per cell of the base."""

import xml.etree.ElementTree as ET
from collections.abc import Collection

from opbench.compare.verdicts import CellComparison, Comparison, JUnit, Verdict
from opbench.text import one_line
from opbench.workload.case import Cell

__all__ = ["junit_xml"]


def junit_xml(comparison: Comparison, accepted: Collection[Verdict] = ()) -> str:
    """Slower is a failure; what could not be judged is an error, or skipped where it is accepted or was not needed.

    A comparison without cells has one test case of its own, so that no reader takes an empty suite for a passed one.
    """
    suite = ET.Element("testsuite", name="opbench")
    for cell in comparison.cells:
        _add(suite, _class_name(cell), cell.cell.key, cell.verdict, _message(cell), accepted)
    if not comparison.cells:
        _add(suite, "opbench", "comparison", comparison.verdict, comparison.reason, accepted)
    counts = {
        "tests": len(suite),
        **{f"{kind}s": len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error")},
        "skipped": len(suite.findall("testcase/skipped")),
    }
    for name, count in counts.items():
        suite.set(name, str(count))
    root = ET.Element("testsuites", {"name": "opbench", **{name: str(count) for name, count in counts.items()}})
    root.append(suite)
    ET.indent(root)
    # Not tostring's own declaration, which names the locale's encoding; files are written in UTF-8.
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _add(
    suite: ET.Element, class_name: str, name: str, verdict: Verdict, message: str, accepted: Collection[Verdict]
) -> None:
    case = ET.SubElement(suite, "testcase", classname=one_line(class_name), name=one_line(name))
    if verdict.junit is JUnit.PASSED:
        ET.SubElement(case, "system-out").text = one_line(message)
        return
    kind = str(JUnit.SKIPPED if verdict in accepted else verdict.junit)
    element = ET.SubElement(case, kind, message=one_line(message))
    if kind != JUnit.SKIPPED:
        element.set("type", str(verdict))


def _class_name(cell: CellComparison) -> str:
    return f"opbench.{cell.cell.case.operator}" if isinstance(cell.cell, Cell) else "opbench"


def _message(cell: CellComparison) -> str:
    change = (
        f", head / base {cell.change.value:.3f} ({cell.change.low:.3f} to {cell.change.high:.3f})"
        if cell.change
        else ""
    )
    told = "; ".join(filter(None, (cell.reason, cell.doubt.remedy if cell.doubt else "")))
    reason = f": {told}" if told else ""
    return f"{cell.verdict}{change}{reason}"
