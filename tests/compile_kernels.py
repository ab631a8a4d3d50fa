"""Compiles the Triton kernels for GPUs that are not here and prints what the code looks like, as JSON lines.

Run as a program: the interpreter, which the tests run the kernels in, takes the place of the compiler for a whole
process. Each argument is kernel:dtype:architecture:height x width, such as fwd:fp16:90:8x8.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from opbench_kernels import deform_triton
from opbench_kernels.geometry import Geometry
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
OPTIONS = ("num_warps", "enable_fp_fusion")


def compile_kernel(direction, dtype, architecture, height, width):
    """Compile as the launcher would for 4 groups of 32 channels; returns registers, stack bytes and instructions."""
    kernel = {"fwd": deform_triton._deform_fwd_kernel, "bwd": deform_triton._deform_bwd_kernel}[direction]
    value = torch.empty(1, height, width, 4, 32)
    packed = torch.empty(1, height, width, 4, 27)
    offset, mask = packed[..., :18].unflatten(-1, (9, 2)), packed[..., 18:]
    scalars, launch, _ = deform_triton._launch_arguments(value, offset, mask, Geometry())
    constants = {name: constant for name, constant in launch.items() if name not in OPTIONS}

    signature, attributes = {}, {}
    values = iter(scalars)
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name == "grad_value_ptr" else f"*{dtype}"
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            scalar = next(values)
            if scalar == 1 and isinstance(scalar, int):  # the launcher makes such an argument a constant
                signature[name], constants[name] = "constexpr", 1
            else:
                signature[name] = "fp32" if isinstance(scalar, float) else "i32"
    source = ASTSource(
        kernel,
        signature,
        constexprs={(kernel.arg_names.index(name),): constant for name, constant in constants.items()},
        attrs=attributes,
    )
    options = {name: launch[name] for name in OPTIONS}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = dump("--dump-resource-usage", file.name)
        sass = dump("--dump-sass", file.name)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "loads_128_bit": len(re.findall(r"\bLDG\.E\.128", sass)),
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", sass, re.MULTILINE)),
    }


def dump(option, path):
    return subprocess.run([CUOBJDUMP, option, path], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        direction, dtype, architecture, size = argument.split(":")
        height, width = map(int, size.split("x"))
        found = compile_kernel(direction, dtype, int(architecture), height, width)
        print(json.dumps({"variant": argument, **found}), flush=True)
