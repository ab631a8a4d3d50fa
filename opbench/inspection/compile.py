"""Compiles a kernel launch for a GPU that need not be here, and reads what the compiler made of it."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from opbench.errors import UsageError
from opbench.inspection.sass import Instruction, parse_sass

if TYPE_CHECKING:
    from opbench_kernels.launch import Launch

__all__ = ["Binary", "compile_launch", "compiled_kernel", "cuobjdump", "machine_code", "require_compiler"]

ENCODING = re.compile(r"/\* 0x[0-9a-f]{16} \*/")
"""At the end of each line of cuobjdump's that holds part of an instruction."""

POINTER_TYPES = {
    "torch.float32": "*fp32",
    "torch.float16": "*fp16",
    "torch.bfloat16": "*bf16",
    "torch.int64": "*i64",
}


class Binary(NamedTuple):
    """What one kernel became for one architecture.

    Attributes:
        registers: per thread.
        stack_bytes: local memory per thread.
        shared_bytes: per program.
        num_warps: warps per program.
        instructions: in the order of memory.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int
    instructions: list[Instruction]


def require_compiler() -> None:
    """UsageError where Triton's interpreter has taken the compiler's place, or there is no Triton."""
    try:
        import triton
    except ImportError as error:
        raise UsageError(f"inspect needs Triton, which is available on Linux: {error}") from error
    try:
        triton.knobs.nvidia.cuobjdump  # noqa: B018 - looked for now
    except RuntimeError as error:
        raise UsageError(f"inspect needs NVIDIA's cuobjdump, which Triton has on Linux: {error}") from error
    if triton.knobs.runtime.interpret:
        raise UsageError("inspect needs Triton's compiler: unset TRITON_INTERPRET")


def compile_launch(launch: "Launch", architecture: int) -> Binary:
    """Compile as the launcher would, with pointers aligned to 16 bytes.

    Args:
        launch: its tensors may be on the meta device: only dtypes are read.
        architecture: compute capability times ten, such as 90.
    """
    compiled = compiled_kernel(launch, architecture)
    with _cubin(compiled) as path:
        usage, sass = cuobjdump("--dump-resource-usage", path), cuobjdump("--dump-sass", path)
    return Binary(
        registers=_number(r"REG:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage),
        shared_bytes=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        instructions=parse_sass(sass),
    )


def compiled_kernel(launch: "Launch", architecture: int) -> Any:  # noqa: ANN401 - Triton's
    """Triton's CompiledKernel of a launch; arguments as compile_launch's."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature: dict[str, str] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for position, (name, argument) in enumerate(zip(names, launch.arguments, strict=False)):
        signature[name] = _type_name(argument)
        if signature[name].startswith("*"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    signature |= dict.fromkeys(launch.constants, "constexpr")
    source = ASTSource(launch.kernel, {name: signature[name] for name in names}, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)


def machine_code(compiled: Any) -> str:  # noqa: ANN401 - Triton's
    """Instructions of Triton's CompiledKernel for CUDA with their encodings, one a line, after what it needs.

    Places in its source are no part of it.
    """
    with _cubin(compiled) as path:
        lines = [line.strip() for line in cuobjdump("--dump-sass", path).splitlines() if ENCODING.search(line)]
    return "\n".join((f"shared {compiled.metadata.shared}, warps {compiled.metadata.num_warps}", *lines))


@contextmanager
def _cubin(compiled: Any) -> Iterator[str]:  # noqa: ANN401 - Triton's
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        yield file.name


def _type_name(argument: object) -> str:
    if isinstance(argument, float):
        return "fp32"
    if isinstance(argument, int):
        return "i32" if -(2**31) <= argument < 2**31 else "i64"
    return POINTER_TYPES[str(argument.dtype)]  # type: ignore[attr-defined]


def cuobjdump(option: str, path: str) -> str:
    """What Triton's cuobjdump says about a binary."""
    import triton

    program = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([program, option, path], capture_output=True, text=True, encoding="utf-8", check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"cuobjdump printed no {pattern}: {text[:200]}")
    return int(found[1])
