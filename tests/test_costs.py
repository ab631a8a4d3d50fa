"""What a cell is said to cost: every operator, level and direction worked out by hand, and counted by other means.

The sizes are different primes or products of two, so that no constant or exponent passes for another. docs/costs.md
defines what is counted.
"""

from math import prod

import pytest
from builders import NAMES as BUILT_IN

from opbench.registry import registry
from opbench.workload.case import OPERATOR_DIRECTIONS, OPERATOR_LEVELS, Case, Direction, Dtype, Level, Shape

B, H, W, C = 3, 11, 29, 7 * 17
N, P = 11 * 29, 3 * 11 * 29
PC = P * C
HEADS, HEAD_DIM = 7, 17
SCORES = HEADS * B * N * N

WINDOW = 5
PADDED = 3 * 15 * 30  # P', both sides rounded up to whole windows
PADDED_SCORES = HEADS * PADDED * 25

G, GROUP_CHANNELS = 17, 7
K = 25  # points of a 5x5 kernel
OFFSETS_MASKS = 3 * K * G  # 1275
M = 1280  # the same, rounded up to a multiple of 8
DEPTHWISE = 13**2
CORNERS = 4 * (
    4 * PC + 48 * K * G * P
)  # bytes: the torch provider's indices and weights of four corners are 4 bytes each

D = 7 * 17 // 5  # the channels that a partial convolution takes at n_div 5: 23
OVERSIZED = 2 * 19 + 49  # taps of an oversized convolution of 19, in both directions, and of the 7x7 one
BAND = 7 * 17 * 29**2  # a row of a depthwise kernel as a matrix of each channel
HALF = 7 * 17 * 6 // 2  # hidden channels of BGU at mlp_ratio 6, halved by its gate

ATTENTION = {"head_dim": HEAD_DIM}
DEFORMABLE = {"group_channels": GROUP_CHANNELS, "kernel_size": 5, "dw_kernel_size": 13}
SETTINGS = {
    "conv3x3": {},
    "attention": ATTENTION,
    "flash_attention_2": ATTENTION,
    "window_attention": {**ATTENTION, "window_size": WINDOW},
    "dat_attention": {**ATTENTION, "group_channels": 17, "dw_kernel_size": 13},
    "ms_deform_attn": {"n_levels": 3, "n_heads": 7, "n_points": 5},
    "dcnv2": {"kernel_size": 5, "deform_groups": G},
    "dcnv3": DEFORMABLE,
    "dcnv4_lightweight": DEFORMABLE,
    "dcnv4": DEFORMABLE,
    "pconv": {"n_div": 5},
    "bgu": {"mlp_ratio": 6},
    "parc_v2": {"global_kernel_size": 19},
    "depthwise_conv": {"kernel_size": 13},
    "grouped_conv3x3": {"groups": 17},
    "replk": {"kernel_size": 13, "small_kernel": 3},
    "slak": {"kernel_size": 13, "small_kernel": 3},
}
NAMES = list(SETTINGS)

# Multi-scale deformable attention: pyramids of 11 x 29, 6 x 15 and 3 x 8, 15 points of each query and head
SC = 3 * (319 + 90 + 24) * C
TAPS = 7 * 15
MSDA = (8 * 15 * PC + 30 * TAPS * P, 16 * 15 * PC + 30 * TAPS * P)
MSDA_ADDED = 2 * SC * C + 2 * PC * C + 6 * TAPS * PC + 5 * TAPS * P

GATHERED = {"ms_deform_attn": 4 * 15 * PC, "dat_attention": 4 * (PC + SCORES)}

SAMPLING = (8 * K * PC + 30 * K * P * G, 16 * K * PC + 30 * K * P * G)

FLOPS = {  # forward, backward
    ("conv3x3", "core"): (18 * P * C**2, 36 * P * C**2),
    ("conv3x3", "module"): (18 * P * C**2, 36 * P * C**2),
    ("attention", "core"): (4 * B * N**2 * C + 5 * SCORES, 8 * B * N**2 * C + 10 * SCORES),
    ("attention", "module"): (
        4 * B * N**2 * C + 5 * SCORES + 8 * P * C**2,
        8 * B * N**2 * C + 10 * SCORES + 16 * P * C**2,
    ),
    ("flash_attention_2", "core"): (4 * B * N**2 * C + 5 * SCORES, 8 * B * N**2 * C + 10 * SCORES),
    ("flash_attention_2", "module"): (
        4 * B * N**2 * C + 5 * SCORES + 8 * P * C**2,
        8 * B * N**2 * C + 10 * SCORES + 16 * P * C**2,
    ),
    ("window_attention", "core"): (
        100 * PADDED * C + 5 * PADDED_SCORES,  # 4 * 25 tokens
        200 * PADDED * C + 10 * PADDED_SCORES,
    ),
    ("window_attention", "module"): (
        100 * PADDED * C + 5 * PADDED_SCORES + 8 * PADDED * C**2,
        200 * PADDED * C + 10 * PADDED_SCORES + 16 * PADDED * C**2,
    ),
    ("dat_attention", "module"): tuple(  # a group is a head; N samples of the image, and S of the table
        times * (8 * P * C**2 + 4 * P * N * C + 5 * SCORES + 2 * DEPTHWISE * PC + 4 * PC + 8 * (PC + SCORES))
        + 30 * P * HEADS * (1 + N)
        for times in (1, 2)
    ),
    ("ms_deform_attn", "core"): MSDA,
    ("ms_deform_attn", "module"): (MSDA[0] + MSDA_ADDED, MSDA[1] + 2 * MSDA_ADDED),
    ("dcnv2", "core"): (SAMPLING[0] + 2 * K * P * C**2, SAMPLING[1] + 4 * K * P * C**2),
    ("dcnv2", "module"): (  # and the convolution to OFFSETS_MASKS channels
        SAMPLING[0] + 2 * K * P * C**2 + 2 * K * PC * OFFSETS_MASKS,
        SAMPLING[1] + 4 * K * P * C**2 + 4 * K * PC * OFFSETS_MASKS,
    ),
    ("dcnv3", "core"): SAMPLING,
    ("dcnv3", "module"): (  # input_proj and output_proj; offset and mask Linears; depthwise; softmax
        SAMPLING[0] + 4 * P * C**2 + 6 * K * G * PC + 2 * DEPTHWISE * PC + 5 * K * G * P,
        SAMPLING[1] + 8 * P * C**2 + 12 * K * G * PC + 4 * DEPTHWISE * PC + 10 * K * G * P,
    ),
    ("dcnv4_lightweight", "core"): SAMPLING,
    ("dcnv4_lightweight", "module"): (
        SAMPLING[0] + 2 * PC * M + 2 * DEPTHWISE * PC,
        SAMPLING[1] + 4 * PC * M + 4 * DEPTHWISE * PC,
    ),
    ("dcnv4", "core"): SAMPLING,
    ("dcnv4", "module"): (
        SAMPLING[0] + 4 * P * C**2 + 2 * PC * M + 2 * DEPTHWISE * PC,
        SAMPLING[1] + 8 * P * C**2 + 4 * PC * M + 4 * DEPTHWISE * PC,
    ),
    ("pconv", "core"): (18 * P * D**2, 36 * P * D**2),
    ("pconv", "module"): (18 * P * D**2 + 8 * P * C**2, 36 * P * D**2 + 16 * P * C**2),
    ("bgu", "module"): (6 * PC * HALF, 12 * PC * HALF),  # C to 2 * HALF, HALF to C
    ("parc_v2", "core"): (2 * PC * OVERSIZED, 4 * PC * OVERSIZED),
    ("parc_v2", "module"): (2 * PC * OVERSIZED + 6 * P * C**2, 4 * PC * OVERSIZED + 12 * P * C**2),
    ("depthwise_conv", "core"): (338 * PC, 676 * PC),  # 13 * 13 taps
    ("grouped_conv3x3", "core"): (18 * PC * 7, 36 * PC * 7),  # 7 channels a group
    ("replk", "core"): (338 * PC, 676 * PC),  # the small kernel is added to the large one
    ("replk", "module"): (338 * PC + 4 * P * C**2, 676 * PC + 8 * P * C**2),
    ("slak", "core"): (2 * 87 * PC, 4 * 87 * PC),  # 39 + 39 + 9 taps
    ("slak", "module"): (2 * 87 * PC + 16 * P * C**2, 4 * 87 * PC + 32 * P * C**2),
}

ELEMENTS = {  # that cross the memory bus; forward, backward
    ("conv3x3", "core"): (2 * PC + 9 * C**2, 3 * PC + 18 * C**2),
    ("conv3x3", "module"): (2 * PC + 9 * C**2, 3 * PC + 18 * C**2),
    ("attention", "core"): (4 * PC + 4 * SCORES, 8 * PC + 8 * SCORES),
    ("attention", "module"): (10 * PC + 4 * SCORES + 4 * C**2, 20 * PC + 8 * SCORES + 8 * C**2),
    ("flash_attention_2", "core"): (4 * PC, 8 * PC),
    ("flash_attention_2", "module"): (10 * PC + 4 * C**2, 20 * PC + 8 * C**2),
    ("window_attention", "core"): (4 * PADDED * C + 4 * PADDED_SCORES, 8 * PADDED * C + 8 * PADDED_SCORES),
    ("window_attention", "module"): (
        10 * PADDED * C + 4 * PADDED_SCORES + 4 * C**2,
        20 * PADDED * C + 8 * PADDED_SCORES + 8 * C**2,
    ),
    ("dat_attention", "module"): tuple(
        times * (19 * PC + 6 * P * HEADS + 2 * SCORES + 4 * C**2 + DEPTHWISE * 17 + 2 * 17 + HEADS * 21 * 57)
        for times in (1, 2)
    ),
    ("ms_deform_attn", "core"): (SC + 3 * TAPS * P + PC, 2 * SC + 6 * TAPS * P + PC),
    ("ms_deform_attn", "module"): (  # value_proj 2 SC; Linears of offsets and weights; softmax; output_proj 2 PC
        3 * SC + 8 * TAPS * P + 5 * PC + 2 * C**2 + 3 * TAPS * C,
        6 * SC + 16 * TAPS * P + 9 * PC + 4 * C**2 + 6 * TAPS * C,
    ),
    ("dcnv2", "core"): (2 * PC + P * OFFSETS_MASKS + K * C**2, 3 * PC + 2 * P * OFFSETS_MASKS + 2 * K * C**2),
    ("dcnv2", "module"): (  # its convolution reads PC and writes OFFSETS_MASKS
        3 * PC + 2 * P * OFFSETS_MASKS + K * C**2 + K * C * OFFSETS_MASKS,
        5 * PC + 4 * P * OFFSETS_MASKS + 2 * K * C**2 + 2 * K * C * OFFSETS_MASKS,
    ),
    ("dcnv3", "core"): (2 * PC + P * OFFSETS_MASKS, 3 * PC + 2 * P * OFFSETS_MASKS),
    # input_proj, depthwise, LayerNorm with GELU and output_proj 2 PC each; the Linears of offsets and of masks read
    # PC each and write 3 K G; the softmax reads and writes K G.
    ("dcnv3", "module"): (
        12 * PC + 8 * P * K * G + 2 * C**2 + C * OFFSETS_MASKS + DEPTHWISE * C,
        23 * PC + 16 * P * K * G + 4 * C**2 + 2 * C * OFFSETS_MASKS + 2 * DEPTHWISE * C,
    ),
    ("dcnv4_lightweight", "core"): (2 * PC + P * M, 3 * PC + 2 * P * M),
    ("dcnv4_lightweight", "module"): (  # beside the core: offset_mask reads PC and writes M, the depthwise 2 PC
        5 * PC + 2 * P * M + C * M + DEPTHWISE * C,
        9 * PC + 4 * P * M + 2 * C * M + 2 * DEPTHWISE * C,
    ),
    ("dcnv4", "core"): (2 * PC + P * M, 3 * PC + 2 * P * M),
    ("dcnv4", "module"): (  # and value_proj and output_proj 2 PC each
        9 * PC + 2 * P * M + 2 * C**2 + C * M + DEPTHWISE * C,
        17 * PC + 4 * P * M + 4 * C**2 + 2 * C * M + 2 * DEPTHWISE * C,
    ),
    ("pconv", "core"): (2 * PC + 9 * D**2, 2 * PC + P * D + 18 * D**2),
    # 1x1 to 2C and back 3 PC each, GELU 4 PC, the addition 3 PC
    ("pconv", "module"): (15 * PC + 9 * D**2 + 4 * C**2, 28 * PC + P * D + 18 * D**2 + 8 * C**2),
    ("bgu", "module"): (2 * PC + 6 * P * HALF + 3 * C * HALF, 4 * PC + 12 * P * HALF + 6 * C * HALF),
    ("parc_v2", "core"): (9 * PC + C * OVERSIZED, 18 * PC + 2 * C * OVERSIZED),
    # C to 2C 3 PC, GELU 2 PC, the gate 3 PC, C to C 2 PC
    ("parc_v2", "module"): (19 * PC + C * OVERSIZED + 3 * C**2, 38 * PC + 2 * C * OVERSIZED + 6 * C**2),
    ("depthwise_conv", "core"): (2 * PC + 169 * C, 3 * PC + 338 * C),
    ("grouped_conv3x3", "core"): (2 * PC + 63 * C, 3 * PC + 126 * C),
    ("replk", "core"): (2 * PC + 178 * C, 3 * PC + 356 * C),
    # two 1x1 and two ReLUs 2 PC each, the addition 3 PC
    ("replk", "module"): (13 * PC + 178 * C + 2 * C**2, 25 * PC + 356 * C + 4 * C**2),
    ("slak", "core"): (2 * PC + 87 * C, 3 * PC + 174 * C),
    # LayerNorm 2 PC, Linears to 4C and back 5 PC each, GELU 8 PC, the addition 3 PC
    ("slak", "module"): (25 * PC + 87 * C + 8 * C**2, 49 * PC + 174 * C + 16 * C**2),
}

MEMORY_FP16 = {  # estimated peak bytes of a forward pass
    ("conv3x3", "core"): 2 * 2 * (2 * PC + 9 * C**2),
    ("conv3x3", "module"): 2 * 2 * (2 * PC + 9 * C**2),
    ("attention", "core"): 2 * (8 * PC + 2 * SCORES),
    ("attention", "module"): 2 * (8 * PC + 2 * SCORES),
    ("flash_attention_2", "core"): 2 * 8 * PC,
    ("flash_attention_2", "module"): 2 * 8 * PC,
    ("window_attention", "core"): 2 * (9 * PADDED * C + 3 * PADDED_SCORES),
    ("window_attention", "module"): 2 * (9 * PADDED * C + 3 * PADDED_SCORES),
    ("dat_attention", "module"): 2 * (10 * PC + 4 * C**2 + 3 * SCORES) + 4 * (2 * SCORES + 4 * P * N * HEADS),
    **{
        ("ms_deform_attn", level): 2 * (2 * SC + 3 * PC + 3 * TAPS * P) + 4 * 48 * TAPS * P for level in OPERATOR_LEVELS
    },
    **{("dcnv2", level): 2 * ((K + 3) * PC + K * C**2) + 4 * 48 * K * G * P for level in OPERATOR_LEVELS},
    ("dcnv3", "core"): CORNERS,
    ("dcnv3", "module"): CORNERS + 2 * 5 * PC,
    ("dcnv4_lightweight", "core"): CORNERS + 2 * P * M,
    ("dcnv4_lightweight", "module"): CORNERS + 2 * 2 * P * M,
    ("dcnv4", "core"): CORNERS + 2 * P * M,
    ("dcnv4", "module"): CORNERS + 2 * (2 * PC + 2 * P * M),
    ("pconv", "core"): 2 * (4 * PC + 9 * D**2),
    ("pconv", "module"): 2 * (16 * PC + 9 * D**2 + 4 * C**2),
    ("bgu", "module"): 2 * (2 * PC + 4 * P * HALF + 3 * C * HALF),
    ("parc_v2", "core"): 2 * (6 * PC + C * OVERSIZED + 3 * C**2),
    ("parc_v2", "module"): 2 * (10 * PC + C * OVERSIZED + 3 * C**2),
    ("depthwise_conv", "core"): 2 * 2 * (2 * PC + 169 * C),
    ("grouped_conv3x3", "core"): 2 * 2 * (2 * PC + 63 * C),
    ("replk", "core"): 2 * 2 * (2 * PC + 178 * C),
    ("replk", "module"): 2 * (7 * PC + 2 * 178 * C + 2 * C**2),
    ("slak", "core"): 2 * 2 * (2 * PC + 87 * C),
    ("slak", "module"): 2 * (15 * PC + 2 * 87 * C + 8 * C**2),
}

REFERENCE = {  # estimated elements that the reference holds; forward, and where gradients keep what they need
    "conv3x3": (5 * PC + 9 * C**2, 5 * PC + 9 * C**2),
    "attention": (9 * PC + 3 * SCORES * 256 // 319, 9 * PC + 3 * SCORES),  # 256 of 319 queries at a time
    "flash_attention_2": (9 * PC + 3 * SCORES * 256 // 319, 9 * PC + 3 * SCORES),
    "window_attention": (11 * PADDED * C + 4 * PADDED_SCORES, 11 * PADDED * C + 4 * PADDED_SCORES),
    "dat_attention": 2 * (24 * PC + 16 * SCORES + 16 * P * N * HEADS + 4 * C**2,),
    "ms_deform_attn": tuple(3 * SC + (12 * kept + 3) * PC + 8 * TAPS * P for kept in (1, 15)),
    "dcnv2": tuple((12 * kept + 4) * PC + K * C**2 + K * C * OFFSETS_MASKS + 12 * K * G * P for kept in (1, K)),
    "dcnv3": (16 * PC + 6 * K * G * P, 8 * PC + 8 * K * PC + 6 * K * G * P),
    "dcnv4_lightweight": (12 * PC + 6 * K * G * P, 4 * PC + 8 * K * PC + 6 * K * G * P),
    "dcnv4": (12 * PC + 6 * K * G * P, 4 * PC + 8 * K * PC + 6 * K * G * P),
    ("pconv", "core"): (6 * PC + 9 * D**2, 6 * PC + 9 * D**2),
    ("pconv", "module"): (12 * PC + 9 * D**2, 12 * PC + 9 * D**2),
    "bgu": (2 * PC + 8 * P * HALF, 2 * PC + 8 * P * HALF),
    "parc_v2": (14 * PC, (14 + OVERSIZED) * PC),
    "depthwise_conv": (6 * PC + 3 * BAND, 6 * PC + 27 * BAND),
    "grouped_conv3x3": (7 * PC + 63 * C, 7 * PC + 63 * C),
    "replk": (12 * PC + 6 * BAND, 12 * PC + 54 * BAND),
    "slak": (18 * PC + 9 * BAND, 18 * PC + 81 * BAND),
}


def case_of(name, level, direction=Direction.FWD, dtype=Dtype.FP32, shape=(B, H, W, C), **changes):
    given = {setting: str(value) for setting, value in {**SETTINGS[name], **changes}.items()}
    settings = registry.find(name).resolve_settings(given)
    return Case(name, Level(level), direction, "test", Shape(*shape), dtype, settings)


@pytest.mark.parametrize(("name", "level"), FLOPS)
def test_flops_by_hand(name, level):
    forward, backward = FLOPS[name, level]
    counted = [registry.find(name).flop_count(case_of(name, level, direction)) for direction in OPERATOR_DIRECTIONS]
    assert counted == [forward, backward, forward + backward]


@pytest.mark.parametrize(("name", "level"), ELEMENTS)
@pytest.mark.parametrize(("dtype", "element_bytes"), [("fp32", 4), ("tf32", 4), ("fp16", 2), ("bf16", 2)])
def test_bytes_by_hand(name, level, dtype, element_bytes):
    forward, backward = (element_bytes * elements for elements in ELEMENTS[name, level])
    moved = [
        registry.find(name).bytes_moved(case_of(name, level, direction, Dtype(dtype)))
        for direction in OPERATOR_DIRECTIONS
    ]
    assert moved == [forward, backward, forward + backward]


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_operator_is_in_each_table(name):
    tables = {"SETTINGS": SETTINGS, "REFERENCE": [key if isinstance(key, str) else key[0] for key in REFERENCE]}
    by_level = {"FLOPS": FLOPS, "ELEMENTS": ELEMENTS, "MEMORY_FP16": MEMORY_FP16}
    missing = [title for title, table in tables.items() if name not in table]
    missing += [
        f"{title} at {level}"
        for title, table in by_level.items()
        for level in registry.find(name).levels
        if (name, level) not in table
    ]
    assert not missing, f"{name} is not in these tables of tests/test_costs.py: {', '.join(missing)}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_gathered_bytes_by_hand(name, level):
    """Four corners of each point and channel; a backward pass reads them once more."""
    gathered = 4 * K * PC if name.startswith("dcn") else GATHERED.get(name, 0)
    for direction, passes in (("fwd", 1), ("bwd", 1), ("fwd_bwd", 2)):
        for dtype, element_bytes in (("fp32", 4), ("bf16", 2)):
            case = case_of(name, level, direction=Direction(direction), dtype=Dtype(dtype))
            assert registry.find(name).gathered_bytes(case) == passes * gathered * element_bytes


@pytest.mark.parametrize("name", ["dcnv4", "dcnv4_lightweight"])
def test_without_a_depthwise_convolution_it_costs_nothing(name):
    operator = registry.find(name)
    for direction, times in ((Direction.FWD, 1), (Direction.BWD, 2)):
        with_it, without = (case_of(name, "module", direction, dw_kernel_size=size) for size in (13, 0))
        assert operator.flop_count(with_it) - operator.flop_count(without) == times * 2 * DEPTHWISE * PC
        elements = times * (2 * PC + DEPTHWISE * C)
        assert operator.bytes_moved(with_it) - operator.bytes_moved(without) == 4 * elements


def test_windows_that_fit_are_not_padded():
    operator = registry.find("window_attention")
    assert operator.bytes_moved(case_of("window_attention", "core", shape=(2, 15, 10, C))) == 4 * (
        4 * 300 * C + 4 * 7 * 300 * 25
    )


@pytest.mark.parametrize(("name", "level"), MEMORY_FP16)
def test_estimates_of_memory_by_hand(name, level):
    operator = registry.find(name)
    for direction in OPERATOR_DIRECTIONS:
        assert operator.memory_bytes(case_of(name, level, direction, Dtype.FP16)) == MEMORY_FP16[name, level]
    if not name.startswith(("dcn", "ms_deform", "dat")):  # there most is 4 bytes wide in any dtype
        assert operator.memory_bytes(case_of(name, level)) == 2 * MEMORY_FP16[name, level]


@pytest.mark.parametrize(("name", "level"), FLOPS)
def test_estimates_of_the_references_memory_by_hand(name, level):
    forward, backward = REFERENCE.get((name, level)) or REFERENCE[name]
    found = [
        registry.find(name).reference_elements(case_of(name, level, direction)) for direction in OPERATOR_DIRECTIONS
    ]
    assert found == [forward, backward, backward]


def test_a_reference_of_few_queries_holds_all_scores():
    case = case_of("attention", "core", shape=(B, 3, 5, C))
    assert registry.find("attention").reference_elements(case) == 9 * 45 * C + 3 * HEADS * B * 15**2


def test_a_cell_holds_its_operators_figures():
    from builders import doubling

    from opbench.sweeps.request import make_request
    from opbench.sweeps.start import plan

    costs = {name: lambda case, figure=figure: figure for name, figure in
             {"flop_count": 3, "bytes_moved": 5, "memory_bytes": 7, "gathered_bytes": 11}.items()}  # fmt: skip
    known = {"double": doubling(**costs)}
    request = make_request({"device": "cpu", "dtypes": ["fp32"], "direction": list(OPERATOR_DIRECTIONS)}, known)
    figures = {
        cell.case.direction: (cell.flop_count, cell.bytes_moved, cell.memory_bytes, cell.gathered_bytes)
        for cell in plan(request, known)
    }
    # Autograd keeps the forward's activations beside the gradients.
    assert figures == {"fwd": (3, 5, 7, 11), "bwd": (3, 5, 14, 11), "fwd_bwd": (3, 5, 14, 11)}


def test_a_stored_run_keeps_the_counts_it_was_planned_with(tmp_path):
    from report_fixtures import make_run, measurement

    row, *_ = make_run(
        tmp_path / "run", [measurement("attention", Shape(B, H, W, C), "fp16", 2.0, flop_count=10**9)]
    ).rows()
    assert (row.flop_count, row.bytes_moved) == (10**9, 10**6)
    assert row.gbps == pytest.approx(0.5)


# ---- counted by other means, with tensors at hand


def tensors_of(name, level, direction=Direction.FWD):
    from opbench.sweeps.check import make_tensors

    return make_tensors(registry.find(name), case_of(name, level, direction), "cpu", 3)


def output_of(name, level, tensors):
    """The output, from a provider that every machine has."""
    operator = registry.find(name)
    on_cpu = [p for p in operator.providers if p.name != "torch_compile" and p.unavailable("cpu") is None]
    assert on_cpu, f"{name} has no provider but torch_compile on the CPU"
    return on_cpu[0].build(case_of(name, level), tensors)()


STORING = ("attention", "window_attention", "bgu", "parc_v2", "dat_attention")
"""Operators without a level that stores nothing between its stages."""

SAMPLING_ALONE = ("dcnv3", "dcnv4", "dcnv4_lightweight", "ms_deform_attn")
COUNTED_BY_TORCH = [  # not FlashAttention-2's own, nor the sampling of a deformable core
    (name, level)
    for name, level in FLOPS
    if name != "flash_attention_2" and not (name in SAMPLING_ALONE and level == "core")
]


def count_convolution_backward(grad_out, x, weight, bias, stride, padding, dilation, transposed, *rest, **_):
    """As much as forward for the input's gradient and for the weight's; torch counts groups as one in the latter."""
    _, _, (for_input, for_weight, _) = rest
    return (for_input + for_weight) * 2 * prod(grad_out) * prod(weight[1:])


@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
@pytest.mark.parametrize(("name", "level"), COUNTED_BY_TORCH)
def test_matrix_products_and_convolutions_are_what_torch_counts(name, level, direction):
    """What else is counted: a softmax at 5 FLOP a score, and the sampling of a deformable core."""
    import torch
    from torch.autograd import grad
    from torch.utils.flop_counter import FlopCounterMode

    times = 1 if direction is Direction.FWD else 2
    scores = {
        "attention": SCORES,
        "window_attention": PADDED_SCORES,
        "dcnv3": K * G * P,
        "ms_deform_attn": TAPS * P,
        "dat_attention": SCORES,
    }
    others = times * 5 * scores.get(name, 0)
    if name == "dat_attention":
        others += times * 8 * (PC + SCORES) + 30 * P * HEADS * (1 + N)
    if name == "ms_deform_attn":
        others += MSDA[times - 1]
    if name.startswith("dcn"):
        others += SAMPLING[times - 1]
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: count_convolution_backward}
    )
    tensors = {key: tensor.requires_grad_() for key, tensor in tensors_of(name, level).items()}
    if direction is Direction.FWD:
        with counter:
            output_of(name, level, tensors)
    else:
        out = output_of(name, level, tensors)
        with counter:
            grad(out.sum(), list(tensors.values()))
    counted = registry.find(name).flop_count(case_of(name, level, direction))
    assert counter.get_total_flops() == counted - others, (
        f"{name} counts {counted} FLOPs; of what torch does not count, softmax and sampling, this test knows {others}; "
        f"torch counts {dict(counter.get_flop_counts()['Global'])}"
    )


@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in STORING])
def test_a_core_moves_each_of_its_tensors_once(name, direction):
    """Forward: inputs and output. Backward: these, but for an output that is not needed, and all gradients.

    An operator of one level is its own core. One that stores something between its stages has a test of its own, below.
    """
    level = registry.find(name).levels[-1]
    inputs = sum(tensor.numel() for tensor in tensors_of(name, level).values())
    elements = inputs + PC
    if direction is Direction.BWD:
        elements = 2 * inputs + PC
        if name == "flash_attention_2":
            elements += PC  # its backward pass needs the output
        if name == "pconv":
            elements -= P * (C - D)  # nor the channels that are not convolved
    moved = registry.find(name).bytes_moved(case_of(name, level, direction))
    assert moved == 4 * elements, f"{name} at {level} counts {moved} bytes; its tensors have {elements} elements"


def moved_by_stages(run):
    """Elements that products, convolutions, softmaxes and LayerNorm with GELU read and write, each on its own."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Traffic(TorchFunctionMode):
        elements = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            kind = function.__name__.strip("_")
            # Biases and the parameters of a normalisation are vectors: not counted.
            inputs = sum(a.numel() for a in args if isinstance(a, torch.Tensor) and a.dim() > 1)
            if kind in ("linear", "conv2d", "matmul", "softmax"):
                self.elements += inputs + out.numel()
            elif kind == "layer_norm":
                self.elements += inputs
            elif kind == "gelu":
                self.elements += out.numel()
            return out

    with Traffic() as traffic:
        run()
    return traffic.elements


@pytest.mark.parametrize("name", ["attention", "window_attention"])
@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_materialised_attention_moves_what_its_stages_do(name, level):
    tensors = tensors_of(name, level)
    moved = moved_by_stages(lambda: output_of(name, level, tensors))
    assert registry.find(name).bytes_moved(case_of(name, level)) == 4 * moved


@pytest.mark.parametrize("name", ["flash_attention_2", "dcnv3", "dcnv4_lightweight", "dcnv4", "ms_deform_attn"])
def test_a_module_moves_what_the_stages_around_its_core_do(name):
    operator, tensors = registry.find(name), tensors_of(name, "module")
    moved = moved_by_stages(lambda: output_of(name, "module", tensors))
    core, module = (operator.bytes_moved(case_of(name, level)) for level in ("core", "module"))
    assert module - core == 4 * moved


def test_a_block_with_a_partial_convolution_moves_what_its_stages_do():
    from opbench.operators import pconv

    tensors = tensors_of("pconv", "module")
    moved = moved_by_stages(lambda: pconv.mlp(tensors)(tensors["x"]))
    moved += 2 * PC + 3 * PC  # what GELU reads, and the addition: neither is counted there
    core, module = (pconv.bytes_moved(case_of("pconv", level)) for level in ("core", "module"))
    assert module - core == 4 * moved


def test_a_gated_unit_moves_what_its_stages_do():
    tensors = tensors_of("bgu", "module")
    moved = moved_by_stages(lambda: output_of("bgu", "module", tensors))
    moved += 2 * P * HALF  # the gate reads both halves and writes one, which is counted as GELU's
    assert registry.find("bgu").bytes_moved(case_of("bgu", "module")) == 4 * moved


@pytest.mark.parametrize("level", list(OPERATOR_LEVELS))
def test_an_oversized_convolution_moves_what_its_stages_do(level):
    tensors = tensors_of("parc_v2", level)
    moved = moved_by_stages(lambda: output_of("parc_v2", level, tensors))
    moved += 3 * PC  # the sum of both convolutions
    if level is Level.MODULE:
        moved += PC + 3 * PC  # what GELU reads, and the gate
    assert registry.find("parc_v2").bytes_moved(case_of("parc_v2", level)) == 4 * moved


def test_a_block_with_a_large_kernel_moves_what_its_stages_do():
    tensors = tensors_of("replk", "module")
    moved = moved_by_stages(lambda: output_of("replk", "module", tensors))
    moved += 4 * PC + 3 * PC  # ReLUs and the addition
    moved += 9 * C  # the small kernel, which is merged before
    assert registry.find("replk").bytes_moved(case_of("replk", "module")) == 4 * moved


def test_a_block_with_three_kernels_moves_what_its_stages_do():
    from opbench.operators import slak

    tensors = tensors_of("slak", "module")
    moved = moved_by_stages(lambda: slak.mlp(tensors)(tensors["x"]))
    moved += PC + 4 * PC + 3 * PC  # what LayerNorm writes and GELU reads, and the addition: none is counted there
    core, module = (slak.OPERATOR.bytes_moved(case_of("slak", level)) for level in ("core", "module"))
    assert module - core == 4 * moved
