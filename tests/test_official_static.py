"""The official kernels, counted: loops and widths in synthetic listings, the compiler's errors, and the stored figures.

The official sources are not part of this project; the test that compiles them runs where a checkout and nvcc are.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from opbench.errors import UsageError
from opbench.inspection import comparison, official
from opbench.inspection.loop_nest import inside_path
from opbench.inspection.nvcc import Nvcc
from opbench.inspection.sass import memory_accesses, parse_sass
from opbench.inspection.static import Variant
from opbench.workload.case import Direction, Dtype
from opbench.workload.shapes import load_shape_list

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "results" / "static"
CHECKOUT = ROOT / "third_party" / "DCNv4"
DTYPES = (Dtype.FP32, Dtype.FP16, Dtype.BF16)
DIRECTIONS = (Direction.FWD, Direction.BWD)


def listing(*lines):
    """Text as cuobjdump prints it; `>7` in a line is the address of line 7."""
    text = "".join(f"        /*{16 * place:04x}*/  {line} ;\n" for place, line in enumerate(lines))
    for place in reversed(range(len(lines))):
        text = text.replace(f">{place}", f"{16 * place:#x}")
    return text


def times(text, trips):
    """How often each line is executed, by its place."""
    return Counter(instruction.address // 16 for instruction in inside_path(parse_sass(text), trips))


# Columns of two loops, with a guarded corner, a reduction, and a way for a warp that has diverged. Before them a loop
# that does not run, and an exit.
KERNEL = listing(
    "S2R R0, SR_TID.X",
    "@!P0 BRA >4",
    "STS [R4], R5",  # 2: the loop beside the nest
    "@P1 BRA >2",
    "@!P2 EXIT",
    "MOV R1, RZ",  # 5: outer
    "LDG.E.U16 R2, desc[UR4][R2.64]",  # 6: inner
    "@P3 BRA >10",
    "LDG.E.128 R4, desc[UR4][R6.64]",  # a corner
    "REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R8.64], R9",
    "@!P0 BRA.DIV UR7, >17",  # 10: the reduction
    "SHFL.DOWN PT, R3, R0, R2, 0x1f",
    "@P0 BRA >10",
    "@!P1 BRA >6",
    "@!P4 BRA >5",
    "STG.E.64 desc[UR4][R2.64], R8",
    "EXIT",
    "WARPSYNC.COLLECTIVE R9, 0x10",
    "BRA >11",
    "BRA >19",
)


def test_the_path_of_a_point_inside_repeats_the_loops_and_takes_each_guarded_part():
    assert times(KERNEL, (3, 4, 5)) == {
        0: 1, 1: 1, 4: 1, 5: 3, 6: 12, 7: 12, 8: 12, 9: 12, 10: 60, 11: 60, 12: 60, 13: 12, 14: 3, 15: 1, 16: 1
    }  # fmt: skip


def test_of_a_loop_made_twice_the_copy_without_the_test_for_the_centre_counts():
    text = listing(
        "MOV R1, RZ",  # 0: outer
        "BRA.U UP0, >7",
        "ISETP.NE.AND P0, PT, R1, UR6, PT",  # 2: where the centre is removed
        "@P0 BRA P1, >5",
        "FFMA R4, R4, R9, R4",
        "@P2 BRA >2",
        "BRA >9",
        "FFMA R4, R4, R9, R4",  # 7
        "@P2 BRA >7",
        "@P3 BRA >0",
        "EXIT",
    )
    assert times(text, (3, 3)) == {0: 3, 1: 3, 7: 9, 8: 9, 9: 3, 10: 1}


def test_an_exit_inside_the_outer_loop_ends_the_path():
    text = listing("MOV R1, RZ", "FFMA R4, R4, R9, R4", "@P0 BRA >1", "@P1 EXIT", "BRA >0", "BRA >5")
    assert times(text, (2, 3)) == {0: 2, 1: 6, 2: 6, 3: 2, 4: 2}


@pytest.mark.parametrize("trips", [(3,), (3, 3), (3, 3, 3, 3)])
def test_other_loops_than_expected_are_no_count(trips):
    with pytest.raises(ValueError, match=f"expected {len(trips)} loops inside each other, found 3"):
        inside_path(parse_sass(KERNEL), trips)


@pytest.mark.parametrize(
    ("line", "kind", "bits"),
    [
        ("REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR6][R84.64], R32", "atomic", 128),
        ("REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR6][R84.64], R32", "atomic", 32),
        ("REDG.E.ADD.F16x2.RN.STRONG.GPU desc[UR6][R84.64], R32", "atomic", 32),
        ("REDG.E.ADD.64.STRONG.GPU desc[UR6][R84.64], R32", "atomic", 64),
        ("LDG.E.ENL2.256 R4, R8, desc[UR4][R6.64]", "load", 256),
        ("LDG.E.LTC128B.U16 R4, desc[UR4][R6.64+0x64]", "load", 16),
        ("STG.E desc[UR4][R6.64], R4", "store", 32),
    ],
)
def test_the_width_of_an_access_is_that_of_all_its_elements(line, kind, bits):
    assert memory_accesses(parse_sass(listing(line)), kind) == {bits: 1}


BACKWARD = official.Kernel("dcnv4", Direction.BWD, Dtype.FP16, 1)
SYMBOL = "_Z34backward_kernel_dcn_warp_primitiveIN3c104HalfELi1ES1_Li1ELi9ELb0EEvPKT_"
USAGE = f"""
Resource usage:
 Common:
  GLOBAL:28
 Function _Z5otherv:
  REG:255 STACK:8 SHARED:0
 Function {SYMBOL}:
  REG:48 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:644
"""
SASS = f'\t\tFunction : _Z5otherv\n{listing("EXIT")}\t\tFunction : {SYMBOL}\n\t.headerflags\t@"EF"\n{KERNEL}\t\t....\n'


def test_a_kernel_is_found_by_name_and_counted():
    variant = official.read(BACKWARD, USAGE, SASS)
    assert (variant.registers, variant.stack_bytes, variant.rows, variant.is_published) == (48, 16, 1, True)
    assert variant.loads == {16: 9, 128: 9}
    assert variant.atomics == {32: 9}
    assert variant.stores == {64: 1}
    assert variant.instructions == sum(times(KERNEL, (3, 3, 5)).values()) == sum(variant.classes.values())


def test_sources_with_other_kernels_are_one_clear_error():
    forward = official.Kernel("dcnv4", Direction.FWD, Dtype.FP16, 8)
    with pytest.raises(UsageError, match=r"dcnv4-fwd-fp16-stride8: 0 functions match .*other sources than expected"):
        official.read(forward, USAGE, SASS)
    with pytest.raises(UsageError, match="dcnv4-bwd-fp16-stride1: its instructions cannot be counted: expected 3"):
        official.read(BACKWARD, USAGE, SASS.replace("BRA 0xa0", "BRA 0xd0"))


def test_the_instantiations_are_those_of_the_launch_rule():
    names = {kernel.name: kernel.instantiation for kernel in official.kernels("dcnv4", DTYPES, DIRECTIONS)}
    assert names["dcnv4-fwd-fp16-stride8"] == "forward_kernel_dcn_reg<at::Half, 8, uint4, 1, 9, false>"
    assert names["dcnv4-fwd-fp32-stride8"] == "forward_kernel_dcn_reg<float, 8, ulonglong4, 1, 9, false>"
    assert names["dcnv4-bwd-fp16-stride1"] == ("backward_kernel_dcn_warp_primitive<at::Half, 1, at::Half, 1, 9, false>")
    assert names["dcnv4-bwd-fp32-stride1"] == "backward_kernel_dcn_warp_primitive<float, 1, uint, 1, 9, false>"
    assert not any("bwd-bf16" in name for name in names)
    published = [kernel for kernel in official.kernels("dcnv4", DTYPES, DIRECTIONS) if kernel.is_published]
    assert [(kernel.direction, kernel.dtype) for kernel in published] == [
        *((Direction.FWD, dtype) for dtype in DTYPES), (Direction.BWD, Dtype.FP32), (Direction.BWD, Dtype.FP16)
    ]  # fmt: skip


def make_checkout(folder):
    """Folders and files as the official repository has them, with nothing of it inside."""
    for source, headers in official.HEADERS.values():
        for header in headers:
            path = folder / source / header
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("// nothing\n")
    return folder


def test_a_folder_without_the_sources_says_what_is_expected_where(tmp_path):
    with pytest.raises(UsageError, match=r"no DCNv4_op/src/cuda/dcnv4_im2col_cuda\.cuh there.*OpenGVLab/DCNv4"):
        official.find_sources(tmp_path)
    checkout = make_checkout(tmp_path)
    both = official.find_sources(checkout)
    assert [source.operator for source in both] == ["dcnv4", "dcnv3"]
    shutil.rmtree(checkout / "classification")
    assert official.find_sources(checkout) == both[:1]
    (checkout / "DCNv4_op/src/cuda/common.h").write_text("// more\n")
    assert official.find_sources(checkout)[0].digest != both[0].digest


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """A program named nvcc, first on the PATH, that knows sm_90 and cannot compile; returns its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvcc"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '--version) echo "Cuda compilation tools, release 13.0, V13.0.88";;\n'
        "--list-gpu-code) echo sm_80; echo sm_90;;\n"
        '*) echo "In file included from x"; for n in 1 1 2 3 4; do echo "a.cuh($n): error: no $n"; done >&2; exit 2;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_an_architecture_that_nvcc_does_not_know_is_named_with_those_it_knows(fake_nvcc):
    nvcc = Nvcc()
    nvcc.require("sm_90")
    with pytest.raises(UsageError, match=r"^nvcc 13\.0\.88 does not know sm_100; it knows sm_80, sm_90$"):
        nvcc.require("sm_100")


def test_what_does_not_compile_shows_its_first_errors(fake_nvcc, tmp_path):
    [source, _] = official.find_sources(make_checkout(tmp_path / "DCNv4"))
    compiled = official.inspect_official(Nvcc(), [source], ["sm_90"], DTYPES, DIRECTIONS)
    with pytest.raises(
        UsageError, match=r"cannot compile .*DCNv4_op/src for sm_90: a\.cuh\(1\): error: no 1; "
    ) as info:
        list(compiled)
    assert str(info.value).count("no 1") == 1
    assert "no 3" in str(info.value)
    assert "no 4" not in str(info.value)
    assert "\n" not in str(info.value)


def test_without_nvcc_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr("opbench.inspection.nvcc._wheels", list)
    with pytest.raises(UsageError, match=r"no nvcc .* -m pip install 'cuda-toolkit\[nvcc,cccl\]==\d+\.\d+\.\*'"):
        Nvcc()


@pytest.mark.parametrize("place", ["CUDA_HOME", "wheel"])
def test_nvcc_is_also_found_beside_the_path(place, fake_nvcc, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    toolkit = fake_nvcc.parent
    monkeypatch.setattr("opbench.inspection.nvcc.shutil.which", lambda _: None)
    monkeypatch.setattr("opbench.inspection.nvcc._wheels", lambda: [toolkit] if place == "wheel" else [])
    monkeypatch.setenv("CUDA_HOME", str(toolkit if place == "CUDA_HOME" else toolkit / "nowhere"))
    assert Nvcc().version == "13.0.88"


def run(*arguments, **environment):
    """The command in a process of its own, with Triton's compiler."""
    names = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "opbench", "inspect", *map(str, arguments)],
        capture_output=True, text=True, env={**names, **environment}, check=False,
    )  # fmt: skip


def test_the_command_without_sources_is_a_usage_error(tmp_path):
    done = run("--official", tmp_path)
    assert done.returncode == 2
    assert "OpenGVLab/DCNv4" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_two_comparisons_exclude_each_other(tmp_path):
    done = run("--official", tmp_path, "--check", STATIC)
    assert done.returncode == 2
    assert "give one" in done.stderr


def ours(name, instructions, **changes):
    """A variant with made-up figures."""
    figures = {
        "name": name, "registers": 60, "stack_bytes": 0, "local_accesses": 0, "shared_bytes": 0, "num_warps": 2,
        "block_rows": 32, "lanes_per_row": 2, "occupancy": 0.5, "instructions": instructions,
        "instructions_per_point": instructions / 144, "classes": {"load": 72}, "expected_wide_loads": 72,
        "loads": {128: 72, 16: 36}, "stores": {}, "atomics": {},
    }  # fmt: skip
    return Variant(**{**figures, **changes})


def test_the_table_has_both_per_point_and_variants_of_one_cost_on_one_line():
    theirs = official.OfficialVariant(
        name="dcnv4-fwd-fp16-stride8", is_published=True, registers=40, stack_bytes=40, rows=8, instructions=1800,
        classes={"load": 36, "integer": 720}, loads={128: 36}, stores={128: 1}, atomics={},
    )  # fmt: skip
    variants = [
        ours("fwd-fp16-groups4-vectors2", 1728),
        ours("bwd-fp16-groups4-vectors1", 7200, atomics={128: 144}),
        ours("fwd-fp16-groups8-vectors2", 1728),
        ours("fwd-fp16-groups8-vectors1", 1728),
        ours("strided-fp16-groups4-vectors2", 1728),
    ]
    made = comparison.Made("13.0", "2.14", {"dcnv4": "abc"})
    costs, classes = comparison.comparison_tables("sm_90", made, "3.9", [theirs], variants)
    assert costs.rows == (
        ("fwd", "fp16", "official DCNv4, d_stride 8", "40", "40", "25.0", "0.50 x 128", "0.01 x 128", "-"),
        ("fwd", "fp16", "ours, vectors2, groups 4 8", "60", "0", "12.0", "0.25 x 16 + 0.50 x 128", "-", "-"),
        ("fwd", "fp16", "ours, vectors1, groups 8", "60", "0", "12.0", "0.25 x 16 + 0.50 x 128", "-", "-"),
        ("bwd", "fp16", "ours, vectors1, groups 4", "60", "0", "50.0", "0.25 x 16 + 0.50 x 128", "-", "1.00 x 128"),
    )
    assert classes.columns[3:] == ("integer", "load")
    assert classes.rows[0][3:] == ("10.0", "0.5")
    assert any("nvcc 13.0, headers of torch 2.14, sources dcnv4 abc; ours: Triton 3.9" in note for note in costs.notes)


def test_the_page_has_the_tables_of_the_stored_figures():
    text = (ROOT / "docs" / "kernels.md").read_text()
    assert comparison.page(text, STATIC) == text, "python -m opbench.inspection.comparison writes the tables again"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_stored_figures_are_of_every_kernel(architecture):
    stored = json.loads((STATIC / f"official-{architecture}.json").read_text())
    wanted = [kernel.name for name in ("dcnv4", "dcnv3") for kernel in official.kernels(name, DTYPES, DIRECTIONS)]
    assert sorted(variant["name"] for variant in stored["variants"]) == sorted(wanted)


def published_shapes():
    """Keys of the official tables: batch, height, width, groups, channels of a group."""
    return [
        f"{shape.batch}x{shape.height}x{shape.width}x{shape.channels // 32}x32"
        for name in ("standard", "high_resolution")
        for shape in load_shape_list(name).shapes
    ]


@pytest.mark.slow
@pytest.mark.skipif(not (CHECKOUT / "DCNv4_op").is_dir(), reason="no official sources in third_party/DCNv4")
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")
def test_the_official_kernels_have_the_stored_figures(tmp_path):
    done = run("--official", CHECKOUT, "--arch", "sm_90", "--dtypes", "fp16", "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    [document] = json.loads(done.stdout)
    assert {variant["name"].partition("-")[0] for variant in document["ours"]} == {"fwd", "bwd"}
    made = json.loads((tmp_path / "official-sm_90.json").read_text())
    assert made == document["official"]
    stored = json.loads((STATIC / "official-sm_90.json").read_text())
    if made["digests"] != stored["digests"]:
        pytest.skip("other official sources than those of the stored figures")
    same = made["nvcc"] == stored["nvcc"]
    before = {variant["name"]: variant for variant in stored["variants"]}
    for variant in made["variants"]:
        then, now = before[variant["name"]], variant
        assert now["atomics"] == then["atomics"]
        assert now["instructions"] == pytest.approx(then["instructions"], rel=0 if same else 0.15)


@pytest.mark.skipif(not (CHECKOUT / "DCNv4_op").is_dir(), reason="no official sources in third_party/DCNv4")
def test_the_published_shapes_take_the_strides_that_are_said():
    text = (CHECKOUT / "DCNv4_op/DCNv4/functions/table.py").read_text()
    tables = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
    }
    for name, direction, default in (("TABLE", Direction.FWD, 8), ("BWDTABLE", Direction.BWD, 1)):
        taken = {tables[name].get(shape, (default,))[0] for shape in published_shapes()}
        assert taken == {official.PUBLISHED[direction]}
