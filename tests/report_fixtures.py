"""Run folders made by hand for the report's tests."""

import json
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from opbench.compare.noise import Noise
from opbench.results.journal import JOURNAL
from opbench.results.measurement import Measurement, Status
from opbench.results.run import Run
from opbench.workload.case import Case, Cell, Direction, Dtype, Level, Shape

DEVICE = "Example GPU 40GB"
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'&{{7*7}}"


def measurement(
    operator: str,
    shape: Shape,
    dtype: str,
    value: float | Status,
    *,
    provider: str = "torch",
    reason: str = "",
    shape_list: str = "standard",
    level: str = "module",
    direction: str = "fwd",
    flop_count: int = 4_000_000_000,
    settings: tuple[tuple[str, Any], ...] = (),
    wide: bool = False,
) -> Measurement:
    """A cell whose median is `value` ms, or one with a status and no samples."""
    case = Case(operator, Level(level), Direction(direction), shape_list, shape, Dtype(dtype), settings)
    cell = Cell(case, provider, flop_count, 1_000_000, 1_000_000)
    if isinstance(value, Status):
        return Measurement(cell, value, reason=reason or f"made to be {value}")
    # Thirty samples put the median's interval at the 10th and 21st: the outliers leave it narrow, unless `wide`.
    arms = 10 if wide else 5
    samples = (value * 1.5,) * arms + (value,) * (30 - 2 * arms) + (value * 0.9,) * arms
    return Measurement(cell, Status.OK, latencies_ms=samples, timer="cuda-event", cache="cold", reason=reason)


def made_noise(spread: float, **changes: Any) -> Noise:
    """What `opbench noise` would keep of a device on which processes differ by so much."""
    values = {
        "device_name": DEVICE,
        "identity": {"device": DEVICE},
        "measured_at": "2026-01-02T03:04:05+00:00",
        "medians_ms": {"a cell": (1.0, 1.0 + spread, 1.0)},
        "spread": spread,
    }
    return Noise(**{**values, **changes})


def make_run(path: Path, measurements: Iterable[Measurement]) -> Run:
    """A run folder with these cells planned; those that are not_run have no line in the journal."""
    cells = list(measurements)
    run = Run.create(
        path,
        command={"timer": "auto", "cache": "cold"},
        environment={"device_name": DEVICE},
        plan=list({entry.cell.key: entry.cell for entry in cells}.values()),
    )
    # In one piece: a sweep pushes each line to the disk, which takes a test of thousands of rows long.
    lines = (entry.to_json_line() + "\n" for entry in cells if entry.status is not Status.NOT_RUN)
    (run.path / JOURNAL).write_text("".join(lines))
    return run


def hostile_run(folder):
    """A run in which every text that a person or another program could have written is an attack."""
    shape = Shape(1, 4, 4, 8)
    texts = {"provider": HOSTILE, "shape_list": HOSTILE, "settings": ((HOSTILE, HOSTILE),)}
    path = folder / "<img src=x onerror=window.hacked=1>"
    make_run(
        path,
        [
            measurement(HOSTILE, shape, "fp32", 1.0, reason=HOSTILE, **texts),
            measurement(HOSTILE, shape, "fp16", Status.ERROR, reason=HOSTILE, **texts),
            measurement("conv3x3", shape, "fp32", 2.0, shape_list=HOSTILE),
        ],
    )
    document = json.loads((path / "run.json").read_text())
    document["environment"] |= {
        "device_name": HOSTILE,
        "git_revision": HOSTILE + "+dirty",
        HOSTILE: HOSTILE,
        "lone": "\ud800",
    }
    document["command"][HOSTILE] = [HOSTILE]
    document["started_at"] = document["run_id"] = HOSTILE
    (path / "run.json").write_text(json.dumps(document))
    (path / "ceilings.json").write_text(json.dumps({"reason": HOSTILE}))
    return Run.open(path)


class Markup(HTMLParser):
    """Tags with their attributes, and the content of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data
