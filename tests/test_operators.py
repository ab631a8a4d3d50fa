"""Every operator agrees with its reference, at each level, direction and dtype, at odd sizes and settings."""

import builtins
from dataclasses import replace
from functools import partial

import pytest
import torch
from builders import NAMES
from test_fuzz import call

import opbench
from opbench.errors import RegistryError, UnknownNameError, UsageError
from opbench.gate.serve import serve
from opbench.operators import dcnv3, dcnv4
from opbench.registry import registry
from opbench.results.measurement import Status
from opbench.sweeps.check import CheckResult, check, make_tensors
from opbench.sweeps.plan import applicability
from opbench.sweeps.request import RunOptions
from opbench.sweeps.runner import CellRunner
from opbench.timing.precision import torch_precision
from opbench.workload.case import OPERATOR_DIRECTIONS, OPERATOR_LEVELS, Case, Cell, Direction, Dtype, Level, Shape

LEVELS = [(name, level) for name in NAMES for level in registry.find(name).levels]
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"


FEWER_CHANNELS = dict.fromkeys(("replk", "slak"), (2, 9, 13, 16))
"""Shapes of operators for whose largest kernels torch takes a second on a CPU in half precision."""


def case_of(name, shape=None, level=None, direction=Direction.FWD, dtype=Dtype.FP32, **given):
    """A case of the level, by default the operator's first: module, or the one that it has."""
    operator = registry.find(name)
    shape = shape or FEWER_CHANNELS.get(name, (2, 9, 13, 96))
    settings = operator.resolve_settings({key: str(value) for key, value in given.items()})
    return Case(name, level or operator.levels[0], direction, "test", Shape(*shape), dtype, settings)


def providers_here(case):
    """Its providers that can run the case on this machine: at least one, but for FlashAttention-2 in fp32 on CUDA."""
    operator = registry.find(case.operator)
    device_type = DEVICE.partition(":")[0]
    refusals = {
        provider: applicability(operator, provider, case, device_type)
        for provider in operator.providers
        if provider.name != "torch_compile"
    }
    found = [provider for provider, refusal in refusals.items() if refusal is None]
    if not (found or (case.operator == "flash_attention_2" and case.dtype is Dtype.FP32)):
        reasons = "; ".join(f"{provider.name}: {reason}" for provider, (_, reason) in refusals.items())
        pytest.fail(f"no provider of {case.operator} but torch_compile runs {case.key} on {DEVICE}: {reasons}")
    return found


SUMS_IN_HALF = {"torch", "torch_nchw", "torch_unmerged", "torch_autotuned", "torch_compile"}
"""Of a depthwise convolution in fp16 on some CPUs, whose gradient of the image PyTorch sums in fp16: docs/list.md."""


def assert_agrees(case, without=()):
    operator = registry.find(case.operator)
    for provider in providers_here(case):
        if provider.name in without:
            continue
        with torch_precision(case.dtype):
            result = check(operator, provider, case, DEVICE, seed=7)
        assert result.reason == "", f"{provider.name}: {result.reason}"
        assert result.checked_shape == str(case.shape)


def test_the_papers_operators_are_there_in_its_order_and_others_follow_by_name():
    papers = [
        "conv3x3", "attention", "flash_attention_2", "window_attention", "dcnv3", "dcnv4_lightweight", "dcnv4",
    ]  # fmt: skip
    assert list(registry.PAPER_ORDER) == NAMES[:7] == papers
    assert NAMES[7:] == sorted(NAMES[7:])


def agreements():
    """Operator, level and dtype; of those that no sweep takes by default fp16 is a long test: bf16 goes that way."""
    for name, level in LEVELS:
        for dtype in (Dtype.FP32, Dtype.FP16, Dtype.BF16):
            long = dtype is Dtype.FP16 and not registry.find(name).by_default
            yield pytest.param(name, level, dtype, marks=[pytest.mark.slow] if long else [])


@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
@pytest.mark.parametrize(("name", "level", "dtype"), list(agreements()))
def test_agrees_with_its_reference(name, level, dtype, direction):
    assert_agrees(case_of(name, level=level, direction=direction, dtype=dtype))


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16])
@pytest.mark.parametrize(
    ("name", "provider", "direction"),
    [
        ("dcnv3", "triton", Direction.FWD_BWD),
        ("dcnv4", "triton", Direction.FWD_BWD),
        ("dcnv4", "triton_fused", Direction.FWD),
        ("dcnv4_lightweight", "triton_fused", Direction.FWD),
        ("ms_deform_attn", "triton", Direction.FWD_BWD),
        ("dcnv2", "triton", Direction.FWD_BWD),
    ],
)
def test_triton_providers_agree_with_their_reference(name, provider, direction, dtype):
    # On the CPU these are unavailable to a sweep; here the interpreter runs them.
    operator = registry.find(name)
    case = case_of(name, (1, 3, 4, 64), direction=direction, dtype=dtype)
    with torch_precision(dtype):
        result = check(operator, operator.provider(provider), case, DEVICE, seed=7)
    assert result.reason == ""
    if provider == "triton" and name in ("dcnv3", "dcnv4"):
        assert operator.provider(provider).configuration().startswith("vectors=")


def test_where_fusing_has_no_meaning():
    for name, given in (("dcnv4", {}), ("dcnv4_lightweight", {})):
        provider = registry.find(name).provider("triton_fused")
        assert "core level leaves out" in provider.not_applicable(case_of(name, level=Level.CORE, **given), "cuda")
        assert "inference" in provider.not_applicable(case_of(name, direction=Direction.BWD), "cuda")
        assert "depthwise" in provider.not_applicable(case_of(name, dw_kernel_size=3), "cuda")
        assert provider.not_applicable(case_of(name), "cuda") is None


@pytest.mark.slow  # ten seconds of compiling each
@pytest.mark.parametrize("direction", [Direction.FWD, Direction.FWD_BWD])
def test_torch_compile_agrees_with_its_reference(direction):
    # One operator: each takes seconds to compile, and all are wrapped alike.
    operator = registry.find("dcnv4")
    case = case_of("dcnv4", (1, 5, 6, 64), level=Level.CORE, direction=direction)
    assert check(operator, operator.provider("torch_compile"), case, DEVICE, seed=7).reason == ""


def test_torch_compile_needs_a_compiler(monkeypatch):
    provider = registry.find("dcnv4").provider("torch_compile")
    assert provider.unavailable("cpu") is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in provider.unavailable("cpu")


@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (3, 7, 7, 64), (1, 14, 3, 128)])
@pytest.mark.parametrize("name", NAMES)
def test_any_shape(name, shape):
    assert_agrees(case_of(name, shape))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("attention", {"head_dim": 48}),
        ("flash_attention_2", {"head_dim": 16}),
        ("window_attention", {"window_size": 4, "head_dim": 24}),
        ("dcnv3", {"group_channels": 12, "kernel_size": 5, "dw_kernel_size": 5}),
        ("dcnv4", {"group_channels": 16, "offset_std_px": 4, "dw_kernel_size": 3}),
        ("dcnv4_lightweight", {"group_channels": 96, "kernel_size": 1}),
        ("dat_attention", {"head_dim": 16, "group_channels": 48, "dw_kernel_size": 3, "offset_range_factor": 1}),
        ("ms_deform_attn", {"n_levels": 2, "n_heads": 3, "n_points": 1, "offset_std_px": 4}),
        ("dcnv2", {"deform_groups": 3, "kernel_size": 5, "offset_std_px": 3}),
        ("replk", {"kernel_size": 13, "small_kernel": 7}),
        ("slak", {"kernel_size": 7, "small_kernel": 3}),
    ],
)
@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_settings_keep_agreeing(name, given, level):
    if level in registry.find(name).levels:
        assert_agrees(case_of(name, level=level, **given))


@pytest.mark.parametrize("name", NAMES)
def test_costs_grow_with_the_work(name):
    operator = registry.find(name)
    for cost in (
        operator.flop_count,
        operator.bytes_moved,
        operator.memory_bytes,
        operator.reference_elements,
    ):
        one, two = (cost(case_of(name, (batch, 14, 14, 64))) for batch in (1, 2))
        assert 0 < one < two <= 2 * one, f"{cost} of {name} for one image and for two"
    forward, backward, both = (operator.flop_count(case_of(name, direction=d)) for d in OPERATOR_DIRECTIONS)
    assert forward < backward, f"{name} counts no more FLOPs backward than forward"
    assert both == forward + backward, f"{name}: fwd_bwd is fwd and bwd together (opbench.by_direction)"
    fp32, fp16 = (operator.bytes_moved(case_of(name, dtype=dtype)) for dtype in (Dtype.FP32, Dtype.FP16))
    assert fp32 == 2 * fp16, f"{name}: bytes follow the dtype's width"


@pytest.mark.parametrize("name", [name for name in NAMES if len(registry.find(name).levels) == 2])
def test_a_module_counts_more_than_its_core_where_it_has_more_weights(name):
    """Where a bias is all that it adds, it counts the same."""
    operator = registry.find(name)
    core, module = (case_of(name, (1, 5, 6, 96), level) for level in (Level.CORE, Level.MODULE))
    has = {case.level: make_tensors(operator, case, "cpu", 5) for case in (core, module)}
    added = [key for key, tensor in has[Level.MODULE].items() if key not in has[Level.CORE] and tensor.ndim > 1]
    counts = operator.flop_count(core), operator.flop_count(module)
    where = f"{name} counts {counts} FLOPs at core and module, and module adds the inputs {added or '(biases alone)'}"
    hint = f"{where}; an operator without projections around it has one level, levels=(Level.MODULE,)"
    assert counts[0] < counts[1] if added else counts[0] == counts[1], hint


@pytest.mark.parametrize("module", [dcnv3, dcnv4])
def test_offsets_have_the_spread_that_was_asked_for(module):
    case = case_of(module.OPERATOR.name, (1, 40, 40, 64), offset_std_px=2)
    tensors = make_tensors(module.OPERATOR, case, "cpu", 5)
    if module is dcnv3:
        _, offset, mask = dcnv3.module_inputs(case, tensors)()
        assert torch.allclose(mask.unflatten(-1, (2, 9)).sum(-1), torch.ones(()))
    else:
        _, packed = dcnv4.module_inputs(tensors)()
        used = packed[..., :54].unflatten(-1, (2, 27))
        offset = used[..., :18]
        assert used[..., 18:].mean() == pytest.approx(1 / 9, rel=0.1)
        assert used[..., 18:].std() == pytest.approx(0.5 / 9, rel=0.1)  # equal masks would hide a wrong order
        assert packed[..., 54:].eq(0).all()
    assert offset.std() == pytest.approx(2, rel=0.15)
    fractions = offset - offset.floor()
    assert 0.4 < fractions.mean() < 0.6


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_masks_differ_from_point_to_point(level):
    case = case_of("dcnv4", (1, 20, 20, 64), level)
    tensors = make_tensors(dcnv4.OPERATOR, case, "cpu", 5)
    packed = tensors["offset_mask"] if level is Level.CORE else dcnv4.module_inputs(tensors)()[1]
    masks = packed[..., :54].unflatten(-1, (2, 27))[..., 18:]
    assert masks.std(-1).mean() == pytest.approx(0.5 / 9, rel=0.15)
    assert masks.mean() == pytest.approx(1 / 9, rel=0.1)


def test_a_convolution_keeps_the_spread_of_its_input():
    case = case_of("conv3x3", (2, 20, 20, 64), Level.CORE)
    operator = registry.find("conv3x3")
    inner = operator.reference(case, make_tensors(operator, case, "cpu", 5))[:, 1:-1, 1:-1]
    assert inner.std() == pytest.approx(1.0, rel=0.05)


def test_flash_attn_says_what_it_lacks(monkeypatch):
    unavailable = registry.find("flash_attention_2").provider("flash_attn").unavailable
    found = {"flash_attn": None}
    monkeypatch.setattr("importlib.util.find_spec", found.__getitem__)
    assert unavailable("cpu") == "flash_attn needs a CUDA device, this is cpu"
    assert unavailable("cuda") == "the package flash_attn is not installed (pip install 'opbench[flash-attn]')"
    found["flash_attn"] = "a spec"
    assert unavailable("cuda") is None


def test_smooth_inputs_stay_clear_of_integers():
    for level in OPERATOR_LEVELS:
        case = case_of("dcnv4", (1, 20, 20, 64), level, Direction.BWD)
        smooth = dcnv4.OPERATOR.smooth_inputs(case, make_tensors(dcnv4.OPERATOR, case, "cpu", 5))
        packed = smooth["offset_mask"] if level is Level.CORE else dcnv4.module_inputs(smooth)()[1]
        offset = packed[..., :54].unflatten(-1, (2, 27))[..., :18]
        distance = (offset - offset.round()).abs()
        assert distance.min() > 0.1


def test_channels_that_do_not_divide_are_not_applicable():
    for name in ("attention", "window_attention", "dcnv3", "dcnv4"):
        operator, case = registry.find(name), case_of(name, (1, 4, 4, 40))
        status, reason = applicability(operator, operator.providers[-1], case, "cpu")
        assert status == "not_applicable"
        assert "40 channels are not a multiple of" in reason
        assert f"--set {name}." in reason


def test_limits_of_providers():
    flash = registry.find("flash_attention_2")
    sdpa = flash.provider("sdpa_flash")
    assert applicability(flash, sdpa, case_of("flash_attention_2"), "cuda")[0] == "not_applicable"
    assert applicability(flash, sdpa, case_of("flash_attention_2", dtype=Dtype.FP16), "cuda") is None
    v4 = registry.find("dcnv4")
    assert applicability(v4, v4.provider("triton"), case_of("dcnv4"), "cpu")[0] == "unavailable"
    assert applicability(v4, v4.provider("torch"), case_of("dcnv4", dtype=Dtype.TF32), "cpu")[0] == "not_applicable"


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_what_is_timed_imports_nothing(name, level, monkeypatch):
    # An import inside a function takes 0.3 microseconds even when the module is there: it belongs into what builds.
    case, operator, imported = case_of(name, level=level), registry.find(name), []
    forwards = [p.build(case, make_tensors(operator, case, DEVICE, 5)) for p in providers_here(case)]
    real_import = builtins.__import__

    def record(module, namespace=None, *rest):
        imported.append(f"{module} in {(namespace or {}).get('__name__')}")
        return real_import(module, namespace, *rest)

    for forward in forwards:
        forward()  # what torch imports at its first use
        monkeypatch.setattr(builtins, "__import__", record)
        forward()
        monkeypatch.undo()
    assert [line for line in imported if " in opbench" in line] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offset_std_px": "wide"}, "dcnv4.offset_std_px must be a number of at least 0.0, got 'wide'"),
        ({"offset_std_px": "nan"}, "must be a number"),
        ({"offset_std_px": "inf"}, "must be a number"),
        ({"group_channels": "0"}, "dcnv4.group_channels must be an integer of at least 1, got '0'"),
        ({"group_channels": "1.5"}, "must be an integer"),
        ({"colour": "red"}, "unknown setting of dcnv4 'colour'; known: group_channels"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        registry.find("dcnv4").resolve_settings(given)


def test_the_registry_lists_what_it_knows():
    with pytest.raises(UnknownNameError, match="unknown operator 'conv5x5'; known: conv3x3, attention"):
        registry.find("conv5x5")


def test_the_registry_refuses_duplicates_and_strangers():
    operator = registry.find("dcnv4")
    with pytest.raises(RegistryError, match="dcnv4 is defined twice: here and there"):
        registry.collect([("here", operator), ("there", operator)])
    with pytest.raises(RegistryError, match=r"here must give an opbench\.Operator, got str"):
        registry.collect([("here", "dcnv4")])


def test_an_entry_point_adds_an_operator_and_a_broken_one_is_named_and_left_out(monkeypatch, tmp_path):
    class EntryPoint:
        def __init__(self, value, load):
            self.name, self.value, self.load = "mine", value, load

    dcnv4_too = replace(registry.find("dcnv4"), name="mine")
    names = [*NAMES[:7], *sorted([*NAMES[7:], "mine"])]

    def use(*entry_points):
        monkeypatch.setattr(registry, "entry_points", lambda group: entry_points)
        registry.registered.cache_clear()

    try:
        use(EntryPoint("my_package:operator", lambda: dcnv4_too))
        assert [name for name, operator in registry.registered().items() if not operator.is_network] == names
        use(EntryPoint("broken:operator", lambda: 1 / 0), EntryPoint("my_package:operator", lambda: dcnv4_too))
        assert [name for name, operator in registry.registered().items() if not operator.is_network] == names
        assert registry.left_out() == (
            "plug-in mine (broken:operator) does not load: ZeroDivisionError('division by zero')",
        )
        with pytest.raises(RegistryError, match="broken:operator"):  # a gate may be about what is left out
            serve(1, {"ops": ["mine"]}, {})
        with pytest.warns(UserWarning, match="broken:operator"):
            opbench.sweep(ops="mine", shapes="smoke", dtypes="tf32", device="cpu", out=tmp_path / "run", plots=False,
                          ceilings_budget=0, isolation="none")  # fmt: skip
        code, out, err = call("list", "operators")
        assert code == 0
        assert "\nmine\n" in out
        assert err == f"opbench: warning: {registry.left_out()[0]}; its operator is left out\n"
        code, out, err = call("sweep", "--shapes", "smoke", "--ops", "mine", "--dtypes", "tf32", "--dry-run")
        assert code == 0
        assert "3 cells, none run" in out
        assert err.startswith("opbench: warning: plug-in mine (broken:operator)")
    finally:
        monkeypatch.undo()
        registry.registered.cache_clear()


COMPILED = [name for name in NAMES if "torch_compile" in {provider.name for provider in registry.find(name).providers}]
OPTIONS = RunOptions(
    device=DEVICE, timer="wall-clock", cache="warm", time_budget_s=0.001, memory_limit_gib=None, seed=0
)


def run_directions(name, provider, level, directions=OPERATOR_DIRECTIONS, shape=(1, 5, 6, 32)):
    """As a sweep runs them, the timed launches included."""
    operator = registry.find(name)
    runner = CellRunner(OPTIONS, registry.find)
    for direction in directions:
        case = case_of(name, shape, level=level, direction=direction)
        refusal = applicability(operator, operator.provider(provider), case, DEVICE.partition(":")[0])
        measurement = runner.run(Cell(case, provider, 1, 1, 1))
        expected = (refusal[0], refusal[1]) if refusal else (Status.OK, "")
        assert (measurement.status, measurement.reason) == expected, case.key


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize(
    ("name", "provider"),
    [(name, p.name) for name in NAMES for p in registry.find(name).providers if p.name != "torch_compile"],
)
def test_every_provider_runs_in_every_direction_and_level(name, provider, level):
    run_directions(name, provider, level)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", [name for name in COMPILED if name != "dcnv4_lightweight"])  # whose core is dcnv4's
def test_a_compiled_backward_pass_is_timed_from_one_forward_pass(name, monkeypatch):
    # Without the code generator and the check, which take most of the time; the slow version has both. That no build
    # reuses the forward's buffers, which the generated code alone does, is a test of test_runner.py.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    right = CheckResult(0.0, 1.0, "1x3x3x32", "")
    monkeypatch.setattr("opbench.sweeps.runner.check", lambda *_: right)
    run_directions(name, "torch_compile", Level.CORE, [Direction.BWD], (1, 3, 3, 32))


@pytest.mark.slow  # ten seconds of compiling for each direction
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile_runs_in_every_direction_and_level(name, level):
    run_directions(name, "torch_compile", level)


@pytest.mark.slow  # a minute
def test_torch_compile_trains_a_network():
    run_directions("fasternet_t0", "torch_compile", Level.MODEL, [Direction.TRAIN], (1, 64, 64, 3))


def one_percent_too_large(provider):
    def build(case, tensors):
        forward = provider.build(case, tensors)

        def scaled():
            out = forward()
            return (out.double() * 1.01).to(out.dtype)

        return scaled

    return replace(provider, build=build)


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16, Dtype.BF16])
@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_one_percent_too_large_is_wrong(name, dtype, level):
    operator = registry.find(name)
    for direction in (Direction.FWD, Direction.BWD):
        case = case_of(name, level=level, direction=direction, dtype=dtype)
        for provider in providers_here(case):
            with torch_precision(dtype):
                result = check(operator, one_percent_too_large(provider), case, DEVICE, seed=7)
            assert "too large on average" in result.reason or "is off by" in result.reason, (direction, provider.name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.FP16, Dtype.BF16])
@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_what_is_right_passes_at_larger_shapes(name, dtype, level):
    for shape in [(1, 28, 28, 64), (1, 14, 14, 128), (2, 40, 40, 96), (4, 14, 14, 384)]:
        for direction in OPERATOR_DIRECTIONS:
            in_half = (name, dtype) == ("replk", Dtype.FP16) and direction is not Direction.FWD
            case = case_of(name, shape, level=level, direction=direction, dtype=dtype)
            assert_agrees(case, SUMS_IN_HALF if in_half and level is Level.CORE else ())
