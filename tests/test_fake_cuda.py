"""The built-in operators on a CUDA device that only knows shapes, dtypes and devices: tests/fake_cuda.py."""

import pytest
import torch
from builders import NAMES, make_case
from fake_cuda import DEVICE, HostTensors, fake_cuda

from opbench.device.ceiling_probes import DeviceFacts, probe_families
from opbench.registry.registry import find
from opbench.sweeps.check import make_tensors, reference_values
from opbench.sweeps.plan import applicability
from opbench.sweeps.timed import timed_closure
from opbench.workload.case import OPERATOR_LEVELS, Direction, Dtype, Level

NOT_COVERED = ("torch_compile", "flash_attn")
"""The compiler asks the device what it is, and the package's operators have a CUDA implementation alone."""
DIRECTIONS = (Direction.FWD, Direction.BWD)
DTYPES = (Dtype.FP32, Dtype.FP16, Dtype.BF16)


def case_of(name, level, direction, dtype, **given):
    settings = find(name).resolve_settings(given)
    return make_case(name, (2, 9, 13, 64), level=level, direction=direction, dtype=dtype, settings=settings)


CASES = [
    case_of(name, level, direction, dtype)
    for name in NAMES
    for level in OPERATOR_LEVELS
    for direction in DIRECTIONS
    for dtype in (DTYPES if find(name).by_default else DTYPES[-1:])  # one dtype of half the width for the many others
]
CASES += [case_of("dcnv4", Level.MODULE, direction, Dtype.FP16, dw_kernel_size="3") for direction in DIRECTIONS]
CELLS = [
    (case, provider)
    for case in CASES
    for provider in find(case.operator).providers
    if provider.name not in NOT_COVERED and applicability(find(case.operator), provider, case, "cuda") is None
]


@pytest.fixture(autouse=True)
def launches():
    with fake_cuda() as launches:
        yield launches


def inputs_of(case):
    operator = find(case.operator)
    tensors = make_tensors(operator, case, str(DEVICE), 0)
    return tensors if case.direction is Direction.FWD else operator.smooth_inputs(case, tensors)


def expected_of(case, dtype):
    """Sizes, dtype and device of the output."""
    return (case.shape.batch, case.shape.height, case.shape.width, case.shape.channels), dtype, DEVICE


def kind(tensor):
    return tuple(tensor.shape), tensor.dtype, tensor.device


def allowed_dtypes(name, case, dtype):
    """Of a kernel's operand, in a case of this dtype."""
    if name in ("shapes_ptr", "starts_ptr"):
        return {torch.int64}
    summed = name in ("grad_image_ptr", "grad_value_ptr", "fixed_point_ptr", "partial_ptr")
    made_here = "location" in name and case.level is Level.MODULE  # from offsets of the case's dtype
    if summed or made_here:
        return {torch.float32}
    # A kernel without tensor cores takes its parameters in float32.
    return {dtype, torch.float32} if name in ("weight_ptr", "bias_ptr") else {dtype}


@pytest.mark.parametrize(("case", "provider"), CELLS, ids=lambda each: getattr(each, "key", None) or each.name)
def test_a_provider_builds_and_launches(case, provider, launches):
    """A launch, but for the first, touches nothing of the host's: it can be captured in a CUDA graph."""
    dtype = getattr(torch, case.dtype.torch_name)
    tensors = inputs_of(case)
    assert {(tensor.dtype, tensor.device) for tensor in tensors.values()} == {(dtype, DEVICE)}
    with torch.set_grad_enabled(case.direction is not Direction.FWD):
        timed = timed_closure(case, provider, tensors)
        if case.direction is Direction.FWD:
            timed.launch()  # the first makes what is kept of a shape; before a backward pass a forward pass was one
        launches.clear()
        with HostTensors() as host:
            given = timed.values().values()
    expected = [expected_of(case, dtype)] if case.direction is Direction.FWD else [*map(kind, tensors.values())]
    assert [*map(kind, given)] == expected
    assert host.operations == []
    triton = provider.name.startswith("triton")
    if case.direction is Direction.FWD:
        assert len(launches) == triton * (3 if (case.operator, provider.name) == ("parc_v2", "triton") else 1)
    else:  # the first backward launch may also time its candidates
        assert bool(launches) == triton
    for operands in launches:
        for name, tensor in operands.items():
            assert tensor.dtype in allowed_dtypes(name, case, dtype), name
            assert tensor.device == DEVICE, name


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4", "ms_deform_attn"])
def test_a_deterministic_backward_pass_adds_integers(name, launches, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    case = case_of(name, Level.CORE, Direction.BWD, Dtype.FP16)
    timed_closure(case, find(name).provider("triton"), inputs_of(case)).launch()
    dtypes = {name: tensor.dtype for name, tensor in launches[-1].items()}
    assert (dtypes["grad_value_ptr"], dtypes["fixed_point_ptr"]) == (torch.int64, torch.float32)


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize("name", NAMES)
def test_a_reference_and_its_gradients_are_in_float64(name, level):
    given = {"kernel_size": "1"} if "kernel_size" in find(name).settings else {}  # more points are more of the same
    case = case_of(name, level, Direction.BWD, Dtype.FP16, **given)
    tensors = inputs_of(case)
    expected = [expected_of(case, torch.float64)]
    expected += [(tuple(tensor.shape), torch.float64, DEVICE) for tensor in tensors.values()]
    assert [*map(kind, reference_values(find(name), case, tensors).values())] == expected


FACTS = DeviceFacts("cuda", l2_bytes=50 * 2**20, cache_bytes=50 * 2**20, free_bytes=70 * 2**30)


@pytest.mark.parametrize("family", list(probe_families(FACTS)), ids=lambda family: f"{family.kind}-{family.name}")
def test_a_ceilings_probe_launches(family):
    for size in family.sizes:
        launch = size.build(DEVICE)
        with HostTensors() as host:
            assert launch().device == DEVICE
        assert host.operations == []
