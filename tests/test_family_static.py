"""What `opbench inspect` counts of DCNv2, attention and partial convolution: their cases, and ways through loops."""

from collections import Counter

import pytest
import torch

from opbench.inspection.families import FAMILIES
from opbench.inspection.launches import launch, uses
from opbench.inspection.loop_nest import compiled_path
from opbench.inspection.sass import parse_sass
from opbench.workload.case import Direction, Dtype

DIRECTIONS = [Direction.FWD, Direction.BWD]


def listing(*lines):
    return parse_sass("".join(f"        /*{16 * place:04x}*/  {line} ;\n" for place, line in enumerate(lines)))


def places(path):
    return Counter(instruction.address // 16 for instruction in path)


def test_published_shapes_are_among_the_variants():
    found = {name: cases for name, cases in uses([Dtype.FP16], DIRECTIONS).items() if cases[0].operator in FAMILIES}
    assert set(found) == {
        "fwd-fp16-msda-vectors1", "fwd-fp16-msda-vectors2", "bwd-fp16-msda-vectors2", "fwd-fp16-dcnv2-channels224",
        "bwd-fp16-dcnv2-channels224", "weight-fp16-dcnv2-channels224", "fwd-fp16-pconv-channels40",
        "fwd-fp16-pconv-channels128", "fwd-fp16-pconv-channels192",
    }  # fmt: skip
    assert [str(case.shape) for case in found["fwd-fp16-msda-vectors1"]] == ["1x100x167x256"]
    for cases in found.values():
        for case in cases:
            launched = launch(case)
            assert launched.arguments[0].device == torch.device("meta")
            costs = FAMILIES[case.operator].costs(case, launched)
            elements = case.dtype.element_bytes * case.shape.elements
            assert costs.moved > 2 * elements
            assert costs.cached >= (elements if case.operator == "pconv" else 36 * elements)
    assert not any("dcnv2" in name for name in uses([Dtype.FP16], DIRECTIONS, core_only=True))
    both = {case.dtype for case in FAMILIES["dcnv2"].cases(Direction.FWD, Dtype.FP32)}
    assert both == {Dtype.FP32, Dtype.TF32}


def test_dcnv2s_tiles_cover_every_channel_and_pixel():
    """Counted by hand: 224 channels are 7 blocks of 32, or 14 of 16, and two blocks of 128 outputs, or 14 of 16."""
    from opbench.inspection.dcnv2 import _tiles

    tiles = {}
    for direction in DIRECTIONS:
        for case in FAMILIES["dcnv2"].cases(direction, Dtype.FP16)[::2]:
            tiles[FAMILIES["dcnv2"].name(case).partition("-")[0]] = _tiles(case, launch(case))
    assert tiles == {"fwd": (9, 7), "bwd": (9, 7, 2), "weight": (61,)}  # 784 blocks of 64 pixels in 13 slices
    [plain, *_] = FAMILIES["dcnv2"].cases(Direction.BWD, Dtype.FP32)
    assert _tiles(plain, launch(plain)) == (9, 14, 14)


def test_the_way_that_enters_no_loop_is_taken_where_there_is_one():
    # Where a sum must be made again: two ways to a loop, of which one is shorter than what is executed.
    lines = ["S2R R0", "@P0 BRA 0x60", "FFMA R4", "FFMA R4", "FFMA R4", "@P1 BRA 0x80",
             "FFMA R4", "@P2 BRA 0x60", "STG [R2]", "EXIT"]  # fmt: skip
    assert places(compiled_path(listing(*lines))) == dict.fromkeys((0, 1, 2, 3, 4, 5, 8, 9), 1)


def test_a_loop_that_every_way_enters_counts_as_often_as_it_runs():
    lines = ["S2R R0", "LDG.E R4", "FFMA R4", "@P0 BRA 0x20", "@P1 BRA 0x10", "STG [R2]", "EXIT"]
    assert places(compiled_path(listing(*lines), (3, 5))) == {0: 1, 1: 3, 2: 15, 3: 15, 4: 3, 5: 1, 6: 1}
    with pytest.raises(ValueError, match="expected 1 loops inside each other, found 2"):
        compiled_path(listing(*lines), (3,))


def test_a_warp_that_waits_asks_once():
    """The compiler of Blackwell puts the second question after the end, from where it jumps back."""
    lines = ["S2R R0", "UTCATOMSWS.FIND_AND_SET", "@!P0 BRA 0x10", "SYNCS.PHASECHK P0", "@!P0 BRA 0xf0",
             *["FFMA R4"] * 8, "@P1 BRA 0x30", "EXIT", "SYNCS.PHASECHK P0", "@!P0 BRA 0xf0", "BRA 0x50"]  # fmt: skip
    executed = {place: 4 if 3 <= place <= 13 else 1 for place in range(15)}
    assert places(compiled_path(listing(*lines), (4,))) == executed
