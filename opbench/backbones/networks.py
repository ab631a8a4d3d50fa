"""What a case measures of a network: the whole of it or one residual block, as a function of an NHWC tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import timm
import torch
from opbench_kernels.implementation import Implementation
from torch import nn

import opbench.models
from opbench.models import Backbone, create, transplant
from opbench.models.layers import to_nchw, to_nhwc
from opbench.models.transplants import TRANSPLANTS
from opbench.workload.case import Case, Direction, Level
from opbench.workload.operator import NETWORK_INPUT, Tensors

__all__ = ["Part", "part_of", "ready_part", "use_implementation"]


@dataclass(frozen=True)
class Part:
    """A network, or one block of it; its parameters have no memory until ready_part gives it some.

    Attributes:
        module: what has the parameters.
        run: from the input, (batch, height, width, channels), to logits (batch, classes), or of a block to an output of
            the input's shape.
        input_shape: of the input.
    """

    module: nn.Module
    run: Callable[[torch.Tensor], torch.Tensor]
    input_shape: tuple[int, ...]


def part_of(case: Case, device: torch.device | str) -> Part:
    """What the case measures, in evaluation, on a device; of our networks only the buffers lie there.

    Raises:
        ValueError: the network has no such stage or block, or takes no image of this size.
    """
    shape = case.shape
    with torch.device(device):
        model = _create(case).eval()
    if case.level is Level.MODEL:
        images = (shape.batch, shape.height, shape.width, shape.channels)
        return Part(model, lambda images: model(to_nchw(images)), images)
    stage, block = case.int_setting("stage"), case.int_setting("block")
    module, input_shape, layout = _block(model, stage, block, (shape.batch, shape.height, shape.width))
    if layout == "NCHW":
        return Part(module, lambda x: to_nhwc(module(to_nchw(x))), input_shape)
    if layout == "NLC":
        return Part(module, lambda x: module(x.flatten(1, 2)).view(input_shape), input_shape)
    return Part(module, module, input_shape)


def ready_part(case: Case, tensors: Tensors) -> Part:
    """What the case measures, with these parameters, in their dtype; in training for a step of it.

    Args:
        case: of the network.
        tensors: x, and the parameters by name: the very tensors, so that gradients reach them.
    """
    x = tensors["x"]
    part = part_of(case, x.device)
    part.module.to(x.dtype)
    part.module.train(case.direction is Direction.TRAIN)
    for name, tensor in tensors.items():
        if name != NETWORK_INPUT:
            owner, _, leaf = name.rpartition(".")
            part.module.get_submodule(owner)._parameters[leaf] = tensor  # type: ignore[assignment]
    return part


def use_implementation(module: nn.Module, implementation: Implementation) -> None:
    """Let every layer of opbench_kernels compute so."""
    for owner in module.modules():
        if hasattr(owner, "implementation"):
            setattr(owner, "implementation", implementation)  # noqa: B010 - which modules have it is not in their types


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside have no memory and no initial values, which take seconds for a large network.

    Networks of timm may compute buffers where their parameters lie.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta")))

    with patch.object(nn.Module, "register_parameter", register_on_meta):
        yield


def _create(case: Case) -> nn.Module:
    """The network for images of the case's size."""
    size = case.shape.height, case.shape.width
    arguments: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(case.operator)
    if config and config.fixed_input_size:
        arguments["img_size"] = size
    operator = str(dict(case.settings).get("operator", ""))
    if case.operator in opbench.models.names():
        if operator:
            arguments["operator"] = operator
        with _parameters_on_meta():
            return create(case.operator, **arguments)
    if case.operator.startswith("vit") and operator != TRANSPLANTS["vit"][0]:
        arguments |= {"class_token": False, "global_pool": "avg"}
    model: nn.Module = timm.create_model(case.operator, **arguments)
    if operator:
        with _parameters_on_meta():
            transplant(model, operator)
    return model


def _block(
    model: nn.Module, stage: int, block: int, images: tuple[int, int, int]
) -> tuple[nn.Module, tuple[int, ...], str]:
    """A residual block, the shape of its input as NHWC for (batch, height, width) of the images, and its layout.

    Raises:
        ValueError: there is no such stage or block.
    """
    batch, height, width = images
    stages, layout = _stages(model)
    if stage >= len(stages):
        raise ValueError(f"stage must be 0 to {len(stages) - 1}, got {stage}")
    if block >= len(stages[stage]):
        raise ValueError(f"block must be 0 to {len(stages[stage]) - 1} in stage {stage}, got {block}")
    feature: dict[str, Any] = model.feature_info[stage]  # type: ignore[index, assignment]
    pixels = height // feature["reduction"], width // feature["reduction"]
    return stages[stage][block], (batch, *pixels, feature["num_chs"]), layout


def _stages(model: nn.Module) -> tuple[list[list[nn.Module]], str]:
    """The blocks of each stage, and the layout that they work on: ours, and timm's ConvNeXt, FasterNet, Swin, ViT."""
    if isinstance(model, Backbone):
        blocks = [stage.residual_blocks() for stage in model.stage_modules()]
        return blocks, "NHWC" if model.channels_last else "NCHW"
    if hasattr(model, "stages"):
        return [list(stage.blocks) for stage in model.stages], "NCHW"  # type: ignore[union-attr]
    if hasattr(model, "layers"):
        return [list(stage.blocks) for stage in model.layers], "NHWC"  # type: ignore[union-attr]
    return [list(model.blocks)], "NLC"  # type: ignore[arg-type]
