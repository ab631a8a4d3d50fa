"""What `opbench inspect` counts of the depthwise kernels: trips, the loop of a chunk, names."""

from dataclasses import replace

import pytest
import torch

from opbench.inspection import baseline, depthwise, depthwise_gemm
from opbench.inspection.launches import launch, uses
from opbench.inspection.sass import parse_sass
from opbench.workload.case import OPERATOR_DIRECTIONS, Case, Direction, Dtype, Level, Shape


def case_of(direction, size, shape):
    return Case("depthwise_conv", Level.CORE, direction, "test", Shape(*shape), Dtype.FP16, (("kernel_size", size),))


@pytest.mark.parametrize("size", [5, 7, 13, 31])
@pytest.mark.parametrize("shape", [(2, 56, 56, 64), (1, 14, 14, 128), (3, 7, 9, 64)])
def test_trips_are_those_that_meet_the_image(size, shape):
    """Counted tile by tile: a column of the kernel counts if it meets the image for one of its pixels, a chunk too."""
    batch, height, width, channels = shape
    case = case_of(Direction.FWD, size, shape)
    constants, pad = launch(case).constants, size // 2
    rows, columns = constants["ROWS"], constants["BLOCK_W"]
    trips = 0
    for y in range(0, height, rows):
        for x in range(0, width, columns):
            across = sum(any(0 <= x + lane + i - pad < width for lane in range(columns)) for i in range(size))
            whole = size // rows
            touched = [
                any(0 <= y - pad + chunk * rows + line < height for line in range(2 * rows - 1))
                for chunk in range(whole)
            ]
            rest = y - pad + (whole - 1) * rows < height  # the last rows follow the chunk before them
            trips += across * (sum(touched) + (size % rows / rows if rest else 0))
    blocks = -(-channels // constants["BLOCK_C"])
    assert depthwise.chunks(case, launch(case)) == pytest.approx(trips * batch * blocks)


@pytest.mark.parametrize("shape", [(2, 56, 56, 64), (1, 14, 14, 128)])
def test_trips_of_the_weight_gradient_cover_what_its_taps_read(shape):
    batch, height, width, channels = shape
    case = case_of(Direction.BWD, 13, shape)
    constants = launch(case).constants
    rows, columns = constants["ROWS"], constants["BLOCK_W"]
    trips = 0
    for j in range(0, 13, rows):
        for i in range(13):
            tiles = [
                x for x in range(0, width, columns) if any(0 <= x + lane + i - 6 < width for lane in range(columns))
            ]
            chunks = [
                y for y in range(0, height, rows) if any(0 <= y + line + j - 6 < height for line in range(2 * rows - 1))
            ]
            trips += len(tiles) * len(chunks)
    blocks = -(-channels // constants["BLOCK_C"])
    assert depthwise.chunks(case, launch(case)) == trips * batch * blocks


LISTING = "\n".join(
    f"        /*{16 * place:04x}*/  {text} ;"
    for place, text in enumerate(
        ["MOV R1, R2", "FFMA R1, R2, R3, R1", "@P0 BRA 0x10",
         "LDG.E.128 R4, [R2.64]", *["FFMA2 R4, R6, R8, R4"] * 4, "@P1 BRA 0x30", "@P2 BRA 0x10", "EXIT"]
    )
)  # fmt: skip


def test_the_chunk_is_the_innermost_loop_with_the_most_multiply_adds():
    constants = {"ROWS": 2, "BLOCK_W": 4, "BLOCK_C": 16}  # 8 multiply-adds a lane of one warp
    chunk = depthwise.chunk_of(parse_sass(LISTING), constants, 1)
    assert [instruction.name for instruction in chunk.instructions] == ["LDG", *["FFMA2"] * 4, "BRA"]
    assert (chunk.multiply_adds, chunk.trips) == (8, 1)
    assert depthwise.chunk_of(parse_sass(LISTING), constants | {"BLOCK_C": 8}, 1).trips == 2
    with pytest.raises(ValueError, match="no loop has the 32 multiply-adds"):
        depthwise.chunk_of(parse_sass(LISTING), constants | {"BLOCK_C": 64}, 1)


def gemm_case(direction, size, shape):
    case = case_of(direction, size, shape)
    return replace(case, settings=(*case.settings, ("gemm", 1)))


def test_products_cover_all_taps_of_all_outputs():
    """One image of whole tiles: 125 rows of outputs a program, 16 columns; the weight gradient's 64 and 32."""
    case = gemm_case(Direction.FWD, 31, (1, 122, 32, 2))
    launched = launch(case)
    assert launched.grid == (2, 8)  # channels filled up to a vector
    chunks, width = launched.constants["KERNELS"][0][:2]
    assert (chunks, width) == (8, 48)  # 31 rows and one of zeros; 31 + 15 columns, and 2 to a multiple of 16
    assert depthwise.multiply_adds(case, launched) == 2 * 8 * chunks * 128 * 4 * 16 * 31 / 32
    assert depthwise.cached_bytes(case, launched) == 2 * 8 * chunks * (128 * 48 + 48 * 64) * 2
    case = gemm_case(Direction.BWD, 31, (2, 32, 64, 8))
    launched = launch(case)
    assert depthwise.multiply_adds(case, launched) == 31 * 31 * 8 * 2 * 32 * 64 / 32
    assert depthwise.cached_bytes(case, launched) == 31 * 8 * 2 * (64 * 64 + 64 * 32) * 2


def test_the_loop_of_the_products_is_the_first_with_tensor_cores():
    listing = "\n".join(
        f"        /*{16 * place:04x}*/  {text} ;"
        for place, text in enumerate(
            ["FFMA R1, R2, R3, R1", "@P0 BRA 0x0", "HMMA.16816.F32 R4, R2, R3, R4", "LDSM.16.M88.4 R2, [R1]",
             "@P1 BRA 0x20", "HMMA.16816.F32 R4, R2, R3, R4", "@P1 BRA 0x50", "EXIT"]
        )
    )  # fmt: skip
    body = depthwise_gemm.loop_of(parse_sass(listing))
    assert [instruction.name for instruction in body] == ["HMMA", "LDSM", "BRA"]
    with pytest.raises(ValueError, match="no loop"):
        depthwise_gemm.loop_of(parse_sass(LISTING))


def test_published_stages_are_among_the_variants():
    found = uses([Dtype.FP16], list(OPERATOR_DIRECTIONS)[:2])
    names = [name for name in found if "depthwise" in name]
    assert names == [
        "fwd-fp16-depthwise31x31-rows8", "fwd-fp16-depthwise27x27-rows7", "fwd-fp16-depthwise51x5+5x51+5x5-rows8",
        "fwd-fp16-depthwise31x31-gemm", "fwd-fp16-depthwise27x27-gemm", "fwd-fp16-depthwise51x5+5x51+5x5-gemm",
        "bwd-fp16-depthwise31x31-rows8", "bwd-fp16-depthwise27x27-rows7", "bwd-fp16-depthwise51x5-rows8",
        "bwd-fp16-depthwise31x31-gemm", "bwd-fp16-depthwise27x27-gemm", "bwd-fp16-depthwise51x5-gemm",
    ]  # fmt: skip
    assert not any("gemm" in name for name in uses([Dtype.FP32], list(Direction)[:2]))
    [case] = found[names[2]]
    assert launch(case).arguments[0].shape[-1] == 128  # SLaK's 124 channels, filled up to whole vectors
    assert launch(case).arguments[0].device == torch.device("meta")
    assert not any("depthwise" in name for name in uses([Dtype.FP16], [Direction.FWD], core_only=True))


def test_a_variant_that_was_not_asked_for_is_not_missed():
    base = {
        "triton": "1",
        "variants": [{"name": "fwd-fp32-depthwise31x31-rows8"}, {"name": "fwd-fp16-groups4-vectors1"}],
    }
    assert baseline.worse(base, {"triton": "1", "variants": [{"name": "bwd-fp32-depthwise31x31-rows8"}]}) == []
    [line] = baseline.worse(base, {"triton": "1", "variants": [{"name": "fwd-fp32-depthwise27x27-rows7"}]})
    assert line.startswith("fwd-fp32-depthwise31x31-rows8: no longer compiled")
