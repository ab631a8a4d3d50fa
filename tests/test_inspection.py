"""Reading SASS, comparing static figures, and the command on real kernels."""

import copy
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from opbench.errors import UsageError
from opbench.inspection import baseline
from opbench.inspection.sass import classify, hot_path, memory_accesses, parse_sass

STATIC = Path(__file__).parents[1] / "results" / "static"

# Address, instruction; a branch skips the loop at 0x50.
LISTING = """
        /*0000*/                   S2R R0, SR_TID.X ;                       /* 0x0000000000007919 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;         /* 0x0000000402047981 */
        /*0020*/                   LDG.E.U16 R8, desc[UR4][R2.64+0x2] ;     /* 0x0000000402087981 */
        /*0030*/                   HADD2.F32 R9, -RZ, R8.H0_H0 ;            /* 0x20000008ff097230 */
        /*0040*/              @!P0 BRA `(.L_x_1) ;                          /* 0x0000000000208947 */
        /*0050*/                   FFMA R4, R4, R9, R4 ;                    /* 0x0000000904047223 */
        /*0060*/               @P1 BRA 0x50 ;                               /* 0xfffffffc00f41947 */
        /*0070*/              @!P0 BRA 0x80 ;                               /* 0x0000000000208947 */
        /*0080*/                   STG.E.128 desc[UR4][R2.64], R4 ;         /* 0x0000000402007986 */
        /*0090*/                   EXIT ;                                   /* 0x000000000000794d */
        /*00a0*/                   BRA 0xa0;                                /* 0xfffffffc00fc7947 */
        /*00b0*/                   NOP;                                     /* 0x0000000000007918 */
""".replace("`(.L_x_1)", "0x80")


def test_a_listing_is_read():
    instructions = parse_sass(LISTING)
    assert [instruction.name for instruction in instructions][:3] == ["S2R", "LDG", "LDG"]
    assert instructions[-1].name == "BRA"  # the padding is gone
    assert instructions[4].conditional
    assert not instructions[5].conditional
    assert memory_accesses(instructions, "load") == {16: 1, 128: 1}
    assert memory_accesses(instructions, "store") == {128: 1}
    assert classify(instructions)["convert"] == 1
    assert sum(classify(instructions).values()) == len(instructions)


def test_the_hot_path_skips_a_loop_and_keeps_straight_code():
    path = hot_path(parse_sass(LISTING))
    assert [instruction.address for instruction in path] == [0x00, 0x10, 0x20, 0x30, 0x40, 0x80, 0x90]
    straight = parse_sass(LISTING.replace("@P1 BRA 0x50", "@P1 BRA 0x70"))
    assert [instruction.address for instruction in hot_path(straight)] == list(range(0, 0xA0, 0x10))


def test_a_loop_on_the_hot_path_counts_as_often_as_it_runs():
    # An outer loop with an inner one, left by a call that never returns; the loop after them is skipped.
    lines = ["S2R R0", "MOV R1, R2", "FFMA R4, R4, R9, R4", "@P0 BRA 0x20", "@P1 CALL.REL.NOINC 0x60", "BRA 0x10",
             "@P2 BRA 0x90", "MOV R1, R2", "@P3 BRA 0x70", "EXIT"]  # fmt: skip
    instructions = parse_sass("".join(f"        /*{16 * i:04x}*/  {line} ;\n" for i, line in enumerate(lines)))
    counts = Counter(instruction.address // 16 for instruction in hot_path(instructions, (3, 5)))
    assert counts == {0: 1, 1: 3, 2: 15, 3: 15, 4: 3, 6: 1, 9: 1}
    with pytest.raises(ValueError, match="nested loops"):
        hot_path(instructions, (3,))


@pytest.fixture(scope="module")
def inspected():
    """What the command finds for one architecture and dtype, against the committed file."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "opbench", "inspect", "--arch", "sm_90", "--dtypes", "fp16", "--direction", "fwd"]
    return subprocess.run(
        [*command, "--json", "--check", STATIC], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow  # half a minute of compiling, for these three together
def test_the_kernels_are_no_worse_than_the_committed_figures(inspected):
    assert inspected.returncode == 0, inspected.stderr
    [document] = json.loads(inspected.stdout)
    assert document["architecture"] == "sm_90"
    assert {estimate["shape"] for estimate in document["estimates"]} >= {"64x56x56x128", "1x200x320x128"}
    for variant in document["variants"]:
        assert variant["stack_bytes"] == 0
        assert variant["local_accesses"] == 0
        if "-groups" in variant["name"] and "-vectors" in variant["name"]:
            assert variant["loads"]["128"] == 36 * int(variant["name"][-1])
    families = {variant["name"].split("-")[2] for variant in document["variants"]}
    assert families > {"dcnv2", "msda", "pconv"}
    assert {variant["name"].partition("-")[0] for variant in document["variants"]} == {"fwd", "strided", "fused"}


@pytest.mark.slow
def test_what_got_worse_is_named(inspected):
    [document] = json.loads(inspected.stdout)
    assert baseline.worse(document, document) == []
    changes = {
        "stack_bytes": (16, "stack_bytes 0 -> 16"),
        "local_accesses": (2, "local_accesses 0 -> 2"),
        "instructions_per_point": (99.0, "instructions per point .* -> 99.0"),
        "occupancy": (0.1, "occupancy .* -> 10%"),
        "loads": ({"16": 27, "64": 72}, "128-bit share of loads .* -> 0%"),
    }
    for key, (value, message) in changes.items():
        now = copy.deepcopy(document)
        now["variants"][0][key] = value
        [line] = baseline.worse(document, now)
        assert line.startswith(document["variants"][0]["name"])
        assert re.search(message, line)
    missing = copy.deepcopy(document)
    del missing["variants"][0]
    assert "no longer compiled" in baseline.worse(document, missing)[0]


@pytest.mark.slow
def test_another_compiler_gets_a_wider_net_that_is_said(inspected):
    [document] = json.loads(inspected.stdout)
    now = copy.deepcopy(document)
    now["triton"] = "9.9.9"
    now["variants"][0]["instructions_per_point"] *= 1.1
    assert baseline.worse(document, now) == []
    now["variants"][0]["instructions_per_point"] *= 1.1
    assert "9.9.9 now" in baseline.worse(document, now)[0]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [{}, {"triton": "9.9.9"}])
def test_stack_and_shared_memory_may_not_grow_by_a_byte_whatever_the_compiler(inspected, compiler):
    [document] = json.loads(inspected.stdout)
    for key in ("stack_bytes", "shared_bytes"):
        now = copy.deepcopy(document) | compiler
        now["variants"][0][key] += 1
        [line] = baseline.worse(document, now)
        assert f": {key} " in line


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 99}', '{"schema_version": 1, "variants": [{}]}'])
def test_a_bad_baseline_is_one_clear_error(tmp_path, text):
    path = tmp_path / "sm_90.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"sm_90\.json"):
        baseline.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sm_12"], "sm_12"),
        (["--dtypes", "fp64"], "fp64"),
        (["--direction", "fwd_bwd"], "fwd_bwd"),
        (["--check", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_are_usage_errors(arguments, message):
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "opbench", "inspect", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_interpreter_is_no_compiler():
    done = subprocess.run(
        [sys.executable, "-m", "opbench", "inspect"],
        capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr


@pytest.mark.slow
def test_compilers_end_with_the_command_that_is_killed(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "opbench", "inspect", "--arch", "sm_90", "--dtypes", "fp32"]
    process = psutil.Popen(
        command, cwd=tmp_path, env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process, process.stderr:
        process.stderr.readline()  # the first kernel is compiled
        compilers = process.children()
        assert compilers
        process.kill()
    _, alive = psutil.wait_procs(compilers, timeout=30)
    for each in alive:
        each.kill()
    assert not alive
