"""The list of cells: its order, who runs a case and why not, and what differs between two plans."""

from dataclasses import replace

import pytest
from builders import doubling, make_case, make_cell

from opbench.errors import OperatorError, UnknownNameError, UsageError
from opbench.results.measurement import Status
from opbench.sweeps.plan import applicability, cost, plan_cells, plan_differences
from opbench.sweeps.request import DEFAULT_TIME_BUDGET_S, SweepRequest, make_request
from opbench.workload.case import MAX_COUNT, OPERATOR_DIRECTIONS, Direction, Dtype, Level, Shape
from opbench.workload.operator import Provider, Setting, compiled
from opbench.workload.shapes import ShapeList

LISTS = [
    ShapeList("wide", "", (Shape(1, 2, 8, 4), Shape(1, 2, 9, 4)), "here"),
    ShapeList("high", "", (Shape(1, 8, 2, 4),), "here"),
]


def request_of(**changes):
    values = {
        "shapes": ("wide", "high"),
        "ops": ("one", "two"),
        "dtypes": (Dtype.FP32, Dtype.FP16),
        "levels": tuple(Level),
        "directions": (Direction.FWD, Direction.BWD),
        "device": "cuda:3",
        "timer": "wall-clock",
        "cache": "warm",
        "time_budget_s": 1.0,
    }
    return SweepRequest(**{**values, **changes})


def refusing(name, *, here=True, applies=True):
    return Provider(
        name,
        None,
        "",
        unavailable=lambda device: None if here else f"{name} is not for {device}",
        not_applicable=lambda case, device: None if applies else f"{name} has no {case.dtype} on {device}",
    )


def providers_of(*providers, **changes):
    known = {"one": doubling(name="one", providers=providers, **changes)}
    request = request_of(ops=("one",), dtypes=(Dtype.FP32,), levels=(Level.CORE,), directions=(Direction.FWD,))
    return [cell.provider for cell in plan_cells(request, LISTS[1:], known)]


def test_every_cell_under_torch_compile_too():
    def planned(*providers, named=()):
        known = {"one": doubling(name="one", providers=providers)}
        request = request_of(
            ops=("one",), dtypes=(Dtype.FP32,), levels=(Level.CORE,), directions=(Direction.FWD,), compile=True,
            providers=named,
        )  # fmt: skip
        assert request.to_json()["compile"]
        return [cell.provider for cell in plan_cells(request, LISTS[1:], known)]

    mine, torch = refusing("mine"), refusing("torch")
    assert planned(mine, torch) == ["mine", "torch_compile"]
    assert planned(mine, torch, compiled(torch)) == ["mine", "torch_compile"]
    assert planned(mine, torch, named=(("one", "torch_compile"),)) == ["torch_compile"]  # once, and without a flag
    assert planned(mine, torch, named=(("one", "all"),)) == ["mine", "torch", "torch_compile"]


def test_what_torch_compile_compiles():
    mine, torch = (Provider(name, lambda case, tensors: None, name) for name in ("mine", "torch"))
    wrapped = [doubling(providers=providers).provider("torch_compile") for providers in ((mine, torch), (mine,))]
    assert [provider.summary for provider in wrapped] == ["torch under torch.compile", "mine under torch.compile"]
    own = replace(compiled(mine), summary="its own")
    assert doubling(providers=(torch, own)).provider("torch_compile") is own
    assert "compile" not in request_of().to_json()  # as runs were stored before there was such a flag
    with pytest.raises(UsageError, match="--compile must be True or False, got 1"):
        make_request({"device": "cpu", "compile": 1}, {"one": doubling()})


def test_what_is_not_asked_for_is_one_process_of_one_second():
    assert request_of().to_json() == request_of(
        providers=(), settings=(), time_budget_s=1.0, memory_limit_gib=None, seed=0, threads=None, repeat=1, sources=()
    ).to_json()  # fmt: skip
    assert (request_of().device_type, request_of(device="cpu").device_type) == ("cuda", "cpu")
    assert "sources" not in request_of().to_json()  # as runs were stored before there were any
    assert request_of(sources=("mine.py",)).to_json()["sources"] == ("mine.py",)
    assert make_request({"device": "cpu"}, {"one": doubling()}).time_budget_s == 0.5
    assert DEFAULT_TIME_BUDGET_S["cuda"] == request_of().time_budget_s


def test_operators_are_outermost_and_dtypes_innermost():
    cells = plan_cells(request_of(), LISTS, {name: doubling(name=name) for name in ("two", "one")})
    keys = [
        (c.case.operator, c.case.level, c.case.direction, c.case.shape_list, c.case.shape.width, c.case.dtype)
        for c in cells
    ]
    assert keys == [
        (operator, level, direction, name, width, dtype)
        for operator in ("one", "two")
        for level in Level
        for direction in (Direction.FWD, Direction.BWD)
        for name, width in (("wide", 8), ("wide", 9), ("high", 2))
        for dtype in (Dtype.FP32, Dtype.FP16)
    ]
    assert {cell.case.settings for cell in cells} == {(("factor", 2),)}


def test_settings_and_providers_belong_to_the_operator_that_they_name():
    known = {
        name: doubling(name=name, providers=(refusing("a"), refusing("b")), settings={"factor": Setting(2, 1, "")})
        for name in ("one", "two")
    }
    request = request_of(
        settings=(("two", "factor", "5"),), providers=(("two", "b"), ("two", "all"), ("two", "b")),
        dtypes=(Dtype.FP32,), levels=(Level.CORE,), directions=(Direction.FWD,),
    )  # fmt: skip
    cells = [
        (c.case.operator, c.provider, dict(c.case.settings)["factor"]) for c in plan_cells(request, LISTS[1:], known)
    ]
    assert cells == [("one", "a", 2), ("two", "b", 5), ("two", "a", 5)]
    for option, given in (
        ("--set", {"settings": (("two", "factor", "5"),)}),
        ("--providers", {"providers": (("two", "b"),)}),
    ):
        with pytest.raises(UsageError, match=f"{option} names two, which is not swept: add it to --ops"):
            plan_cells(request_of(ops=("one",), **given), LISTS, known)
    with pytest.raises(UnknownNameError, match="unknown operator 'three'"):
        plan_cells(request_of(ops=("three",)), LISTS, known)


STYLES = {"factor": Setting(2, 1, ""), "style": Setting("plain", ("plain", "fancy"), "", added_later=True)}


def test_several_values_of_settings_multiply():
    def choices(*texts, settings=STYLES):
        known = {"one": doubling(name="one", settings=settings)}
        asked = request_of(ops=("one",), settings=tuple(("one", *text.split("=")) for text in texts))
        found = plan_cells(asked, LISTS[1:], known)
        assert len({cell.key for cell in found}) == len(found)
        return list(dict.fromkeys(cell.case.settings_text for cell in found))

    assert choices("factor=3,4") == ["factor=3", "factor=4"]
    assert choices("factor=3, 3", "factor=4") == ["factor=3", "factor=4"]
    # As a case that was stored before the setting was there, a case with its default does not name it.
    assert choices("style=plain,fancy", "factor=3,4") == [
        "factor=3", "factor=4", "factor=3;style=fancy", "factor=4;style=fancy",
    ]  # fmt: skip
    everywhere = {**STYLES, "style": replace(STYLES["style"], added_later=False)}
    assert choices("style=fancy,plain", settings=everywhere) == ["factor=2;style=fancy", "factor=2;style=plain"]


@pytest.mark.parametrize("text", ["fanci", "FANCY", "", "fancy,2"])
def test_a_word_that_a_setting_does_not_have_is_named_with_those_it_has(text):
    known = {"one": doubling(name="one", settings=STYLES)}
    message = r"unknown value of setting one\.style '.*'; known: plain, fancy"
    with pytest.raises(UnknownNameError, match=message) as error:
        plan_cells(request_of(ops=("one",), settings=(("one", "style", text),)), LISTS, known)
    assert ("did you mean 'fancy'?" in str(error.value)) == (text == "fanci")


def test_a_cell_is_the_first_providers_that_runs_it():
    away, idle, ready = refusing("away", here=False), refusing("idle", applies=False), refusing("ready")
    assert providers_of(away, idle, ready, refusing("later")) == ["ready"]
    # None runs it: the one that is here says most, then one to whose code the case has no meaning.
    assert providers_of(away, idle) == ["idle"]
    assert providers_of(away, replace(idle, name="first"), idle) == ["first"]
    assert providers_of(away, refusing("far", here=False)) == ["away"]
    assert providers_of(away, ready, not_applicable=lambda case: "never") == ["ready"]


def test_why_a_provider_does_not_run_a_case():
    def why(operator, provider, device_type="cpu", **case):
        return applicability(operator, provider, make_case(**case), device_type)

    one, ready = doubling(name="one"), refusing("ready")
    assert why(one, ready) is None
    gone = Status.UNAVAILABLE, "far is not for cuda"
    assert why(one, refusing("far", here=False, applies=False), "cuda") == gone
    assert why(one, refusing("idle", applies=False)) == (Status.NOT_APPLICABLE, "idle has no fp32 on cpu")
    tf32 = Status.NOT_APPLICABLE, "tf32 is a mode of CUDA devices, this is cpu"
    assert why(one, ready, dtype=Dtype.TF32) == tf32
    assert why(one, ready, "cuda", dtype=Dtype.TF32) is None
    never = doubling(name="one", not_applicable=lambda case: "never")
    assert why(never, refusing("far", here=False)) == (Status.NOT_APPLICABLE, "never")
    reason = "one has no such level: all of it is timed as module"
    assert why(doubling(name="one", levels=(Level.MODULE,)), ready) == (Status.NOT_APPLICABLE, reason)


@pytest.mark.parametrize("direction", list(OPERATOR_DIRECTIONS))
def test_the_largest_count_is_kept_and_one_more_is_not(direction):
    def why(name, count):
        operator = doubling(**{name: lambda case: count})
        found = applicability(operator, operator.provider("right"), make_case(direction=direction), "cpu")
        return found and found[0]

    assert why("flop_count", MAX_COUNT - 1) is why("bytes_moved", MAX_COUNT - 1) is None
    assert why("flop_count", MAX_COUNT) is why("bytes_moved", MAX_COUNT) is Status.NOT_APPLICABLE
    half = None if direction is Direction.FWD else Status.NOT_APPLICABLE  # gradients double the memory
    assert why("memory_bytes", MAX_COUNT // 2) is half
    assert why("memory_bytes", MAX_COUNT // 2 - 1) is None


def test_a_cost_is_a_whole_number_of_at_least_zero():
    assert cost(doubling(flop_count=lambda case: 0), "flop_count", make_case()) == 0
    for value in (-1, 0.5, True, "7"):
        with pytest.raises(OperatorError, match="must be a whole number of at least 0"):
            cost(doubling(flop_count=lambda case, value=value: value), "flop_count", make_case())
    long = doubling(flop_count=lambda case: "x" * 100)
    with pytest.raises(OperatorError, match=r"got 'x{58}…$"):
        cost(long, "flop_count", make_case())


def test_an_operator_without_costs_has_no_plan_unless_the_case_has_no_meaning():
    broken = {"flop_count": lambda case: 1 / 0}
    request = request_of(ops=("one",))
    with pytest.raises(OperatorError, match=r"flop_count of one/.* raises ZeroDivisionError"):
        plan_cells(request, LISTS, {"one": doubling(name="one", **broken)})
    cells = plan_cells(request, LISTS, {"one": doubling(name="one", not_applicable=lambda case: "never", **broken)})
    assert {(cell.flop_count, cell.bytes_moved, cell.memory_bytes) for cell in cells} == {(0, 0, 0)}


def test_differences_of_plans_are_counted_by_kind():
    cells = [make_cell(make_case(shape=(1, side, 4, 8))) for side in (4, 5, 6, 7)]
    assert plan_differences(cells, cells) == []
    costlier = replace(cells[2], flop_count=cells[2].flop_count + 1)
    assert plan_differences(cells[:3], [cells[1], costlier, cells[3]]) == [
        f"plan: 1 cells no longer planned, first {cells[0].key}",
        f"plan: 1 cells not in the run's plan, first {cells[3].key}",
        f"plan: 1 cells with other costs, first {cells[2].key}",
    ]
    assert plan_differences(cells, cells[3:]) == [f"plan: 3 cells no longer planned, first {cells[0].key}"]
