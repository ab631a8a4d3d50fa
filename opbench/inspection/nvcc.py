"""Compiles CUDA C++ that includes PyTorch's headers, by nvcc, on a machine without a GPU."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from opbench.errors import UsageError

__all__ = ["FLAGS", "Nvcc"]

FLAGS = (
    "-cubin",
    "-O3",
    "-std=c++20",
    "--expt-relaxed-constexpr",
    "-DWITH_CUDA",
    "-DCUDA_HAS_FP16=1",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-w",
)
"""What the official setup.py and torch's extension builder pass, with C++20 for torch's headers, without warnings."""

SHIMS = {"THC/THCAtomics.cuh": "#include <ATen/cuda/Atomic.cuh>\n"}
"""Headers that PyTorch no longer has, by what took their place."""

SHOWN_LINES = 3


class Nvcc:
    """The CUDA compiler of this machine.

    Attributes:
        version: such as 13.0.88.

    Raises:
        UsageError: there is none.
    """

    def __init__(self) -> None:
        self._program = _find()
        found = re.search(r"\bV(\d+[.\d]*)", self._run("--version").stdout)
        self.version = found[1] if found else "of an unknown version"

    def require(self, architecture: str) -> None:
        """UsageError where the compiler does not know an architecture such as sm_90."""
        known = re.findall(r"^sm_\w+$", self._run("--list-gpu-code").stdout, re.MULTILINE)
        if architecture not in known:
            raise UsageError(f"nvcc {self.version} does not know {architecture}; it knows {', '.join(known)}")

    def cubin(self, source: str, architecture: str, include: Path, target: Path) -> None:
        """Compile a source text to a binary.

        Args:
            source: CUDA C++.
            architecture: such as sm_90.
            include: folder of the headers that `source` includes.
            target: file to write.

        Raises:
            UsageError: it does not compile; with the first errors.
        """
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**SHIMS, "kernels.cu": source}.items():
                path = Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
            places = ["-I", folder, "-I", str(include)]
            for headers in _torch_includes():
                places += ["-isystem", str(headers)]
            done = self._run(*FLAGS, f"-arch={architecture}", *places, "-o", str(target), f"{folder}/kernels.cu")
        if done.returncode:
            errors = _first_errors(done.stderr + done.stdout)
            raise UsageError(f"nvcc {self.version} cannot compile {include} for {architecture}: {'; '.join(errors)}")

    def _run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(self._program), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
            )
        except OSError as error:
            raise UsageError(f"{self._program} cannot be run: {error.strerror}") from error


def _find() -> Path:
    """nvcc on the PATH, of CUDA_HOME, or of NVIDIA's wheels."""
    import torch

    if found := shutil.which("nvcc"):
        return Path(found)
    candidates = [Path(home, "bin/nvcc") for home in (os.environ.get("CUDA_HOME"),) if home]
    candidates += [folder / "bin/nvcc" for folder in _wheels()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    version = torch.version.cuda or "13.0"
    raise UsageError(
        "no nvcc on the PATH, in CUDA_HOME or among the wheels; "
        f"to get it: {sys.executable} -m pip install 'cuda-toolkit[nvcc,cccl]=={version}.*'"
    )


def _wheels() -> list[Path]:
    """Folders of NVIDIA's wheels that have the layout of a toolkit, such as nvidia/cu13."""
    return sorted(folder for place in sys.path for folder in Path(place, "nvidia").glob("cu[0-9]*"))


def _torch_includes() -> Sequence[Path]:
    import torch

    headers = Path(torch.__file__).parent / "include"
    return [headers, headers / "torch/csrc/api/include", *(folder / "include" for folder in _wheels())]


def _first_errors(text: str) -> list[str]:
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    return ([line for line in lines if re.search(r"\berror\b|\bfatal\b", line)] or lines)[:SHOWN_LINES]
