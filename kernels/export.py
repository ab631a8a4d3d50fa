"""Modules as files for other programs: ONNX, and packages that AOTInductor compiles."""

import copy
import math
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from opbench_kernels.implementation import onnx_opset
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["OPSETS", "ExportError", "to_onnx", "to_package"]

OPSETS = (18, 19, 20)
"""Of ONNX; DeformConv came with 19."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class ExportError(RuntimeError):
    """A module that cannot be exported as it was asked, or whose file does not do what it does; one line."""


def to_onnx(
    module: nn.Module,
    example: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    opset: int = 20,
    dynamic_shapes: Any = None,  # noqa: ANN401 - torch.export's own
    check: bool = True,
) -> None:
    """Write a module, or a model with such modules, as an ONNX file; in evaluation, whatever its mode and device.

    From opset 19 on dcnv2, dcnv3 and dcnv4 become DeformConv. With opset 18 they are, as ms_deform_attn always is, rows
    that Gather copies and a product with their weights; the copies take 4 times the samples' memory.

    Args:
        module: is not changed.
        example: the arguments of a call.
        path: of the file. Weights of more than 2 GB stand in a second one, path + ".data".
        opset: 18, 19 or 20.
        dynamic_shapes: as torch.export.export takes it, for instance ({0: torch.export.Dim.DYNAMIC},) for any batch.
        check: whether onnxruntime runs the file on the CPU, on the example, and its outputs have to be the module's: to
            the square root of the dtype's rounding, relative to the largest;
            integers exactly. Nothing is written otherwise.

    Raises:
        ValueError: another opset, or an example that the module does not take.
        ExportError: a package is missing (those of the extra onnx); an operator has no translation; onnxruntime does
            not run the file; other values.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset must be one of {', '.join(map(str, OPSETS))}, got {opset!r}")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"to_onnx needs {' and '.join(missing)}: pip install 'opbench[onnx]'")
    from opbench_kernels.onnx_translation import TRANSLATIONS

    module = _on_the_cpu(module)
    arguments: tuple[Any, ...] = pytree.tree_map_only(torch.Tensor, lambda each: each.detach().cpu(), tuple(example))
    token = onnx_opset.set(opset)
    try:
        with torch.no_grad():
            traced = torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes)
    finally:
        onnx_opset.reset(token)
    try:
        program = torch.onnx.export(
            traced, dynamo=True, opset_version=opset, custom_translation_table=TRANSLATIONS, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ExportError(f"PyTorch {torch.__version__} does not translate it: {reason}") from error
    assert program is not None  # noqa: S101 - None only without dynamo
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        program.save(Path(folder) / path.name)
        if check:
            with torch.no_grad():
                expected = module(*arguments)
            _check_values(Path(folder) / path.name, arguments, expected)
        for file in Path(folder).iterdir():
            file.replace(path.parent / file.name)


def _on_the_cpu(module: nn.Module) -> nn.Module:
    """A copy in evaluation, of which no part insists on Triton."""
    module = copy.deepcopy(module).cpu().eval()
    for part in module.modules():
        if getattr(part, "implementation", None) == "triton":
            setattr(part, "implementation", "auto")  # noqa: B010 - to mypy a module has tensors alone
    return module


def _check_values(file: Path, example: tuple[Any, ...], expected: Any) -> None:  # noqa: ANN401 - a module's output
    """ExportError unless onnxruntime computes the expected outputs."""
    import onnxruntime

    tensors, wanted_tensors = (
        [leaf for leaf in pytree.tree_leaves(each) if isinstance(leaf, torch.Tensor)] for each in (example, expected)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
    except Exception as error:
        reason = " ".join(str(error).replace(str(file), file.name).split())
        advice = "; opset=18 does without" if "implementation for DeformConv" in reason else ""
        raise ExportError(f"onnxruntime {onnxruntime.__version__} does not run it: {reason}{advice}") from error
    for number, (got, wanted) in enumerate(zip(outputs, wanted_tensors, strict=True)):
        difference = (torch.from_numpy(got).double() - wanted.double()).abs().max().item()
        share = math.sqrt(torch.finfo(wanted.dtype).eps) if wanted.is_floating_point() else 0.0
        bound = share * wanted.double().abs().max().item()
        if not difference <= bound:
            raise ExportError(f"output {number} of onnxruntime differs by {difference:.3g}, more than {bound:.3g}")


def to_package(
    module: nn.Module,
    example: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    dynamic_shapes: Any = None,  # noqa: ANN401 - torch.export's own
) -> None:
    """Compile a module by AOTInductor for its device; torch._inductor.aoti_load_package(path) gives the function.

    On the CPU the package needs nothing but torch. On a CUDA device the operators of Triton kernels stay operators: the
    process that loads the package imports opbench_kernels first, so a program without Python cannot.

    Args:
        module: in the mode that the package is to have, mostly evaluation.
        example: the arguments of a call, on the module's device.
        path: of the file, ending in ".pt2".
        dynamic_shapes: as torch.export.export takes it.

    Raises:
        ValueError: another ending, or an example that the module does not take.
        ExportError: there is no C++ compiler.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"path must end in .pt2, got {str(path)!r}")
    import torch._inductor
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ExportError("to_package needs a C++ compiler, and found none: install g++, or name one in CXX") from error
    with torch.no_grad():
        traced = torch.export.export(module, tuple(example), dynamic_shapes=dynamic_shapes)
        torch._inductor.aoti_compile_and_package(traced, package_path=str(path))
