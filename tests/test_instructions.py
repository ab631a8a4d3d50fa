"""The instructions that rows are bounded by are those of results/static."""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import make_case
from opbench_kernels import tuning
from opbench_kernels.deform.configs import FORWARD
from opbench_kernels.deform.instructions import INSTRUCTIONS_PER_POINT, warp_instructions

from opbench.registry.registry import find
from opbench.workload.case import Direction, Dtype, Level

STATIC = Path(__file__).parents[1] / "results" / "static"


def counted(architecture):
    """The least instructions per point of each pass, dtype and number of vectors in results/static."""
    found = defaultdict(list)
    for variant in json.loads((STATIC / f"{architecture}.json").read_text())["variants"]:
        kind, dtype, *rest = variant["name"].split("-")
        if kind in ("fwd", "bwd") and rest[0].startswith("groups"):
            name = f"{kind}-{Dtype(dtype).torch_name}" + (f"-{rest[-1]}" if kind == "fwd" else "")
            found[name].append(variant["instructions_per_point"])
    return {name: min(figures) for name, figures in found.items()}


def test_the_figures_are_those_of_the_committed_inspection():
    expected = {path.stem: counted(path.stem) for path in STATIC.glob("sm_*.json")}
    assert expected == INSTRUCTIONS_PER_POINT, f"kernels/deform/instructions.py should have {expected}"


@pytest.fixture
def two_vectors(monkeypatch):
    monkeypatch.setattr(tuning, "_last", {FORWARD: SimpleNamespace(vectors=2, num_warps=4)})
    monkeypatch.setitem(INSTRUCTIONS_PER_POINT, "sm_90", {"fwd-float16-vectors2": 12.5, "bwd-float16": 50.0})


def of(provider="triton", name="dcnv4", shape=(2, 5, 7, 64), **changes):
    operator = find(name)
    changes = {"dtype": Dtype.FP16, "level": Level.CORE, **changes}
    settings = operator.resolve_settings(changes.pop("settings", {}))
    case = make_case(name, shape, settings=settings, **changes)
    return operator.provider(provider).warp_instructions(case, "sm_90")


def test_a_launch_issues_what_its_points_need(two_vectors):
    points = 2 * 5 * 7 * 2 * 9
    assert of() == of(name="dcnv3") == round(12.5 * points)
    assert of(level=Level.MODULE) == of()  # the sampling alone: the others add time, never take some away
    assert of(direction=Direction.BWD) == 50 * points
    assert of(direction=Direction.FWD_BWD) == round(62.5 * points)


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": Dtype.FP32}, {"settings": {"kernel_size": "5"}}, {"settings": {"group_channels": "16"}},
        {"provider": "torch"}, {"provider": "triton_fused", "level": Level.MODULE},
    ],
)  # fmt: skip
def test_what_was_not_counted_is_not_guessed(two_vectors, other):
    assert of(**other) is None


def test_another_gpu_and_a_launch_that_never_was_are_unknown(two_vectors, monkeypatch):
    assert warp_instructions("fwd", "float16", "sm_86", 100) is None
    monkeypatch.setattr(tuning, "_last", {})
    assert warp_instructions("fwd", "float16", "sm_90", 100) is None
