"""Parameters and multiply-accumulates of a model."""

from collections.abc import Callable
from typing import Any

import torch
from opbench_kernels import DAttention, DCNv3, DCNv4
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["mac_count", "parameter_count"]

MACS_PER_SAMPLE = 5
"""Of a channel at a point of DCNv3 or DCNv4: four for the bilinear sample, one for the mask; as the authors count."""


def parameter_count(model: nn.Module) -> int:
    """Numbers that are trained; buffers, such as the means of a batch normalisation, are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def mac_count(model: nn.Module, *, height: int, width: int, in_chans: int = 3) -> int:
    """Multiply-accumulates of a forward pass of one image; papers call them FLOPs.

    Convolutions, matrix products and attention are counted by torch.utils.flop_counter; what it does not know, the
    sampling of deformable operators, by formula. Not counted: normalisation, activations, softmax, pooling, additions
    of biases and residuals. Computed on the meta device, so nothing is calculated, whatever the model lies on.

    Args:
        model: takes one tensor (1, in_chans, height, width); counted as in evaluation.
        height, width: of the image, pixels.
        in_chans: its channels.
    """
    sampled: list[int] = []

    def add(module: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401 - a hook's arguments
        sampled.append(SAMPLING_MACS[type(module)](module, output))

    hooks = [module.register_forward_hook(add) for module in model.modules() if type(module) in SAMPLING_MACS]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    first = next(model.parameters())
    image = torch.empty(1, in_chans, height, width, device="meta", dtype=first.dtype)
    was_training = model.training
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            functional_call(model.eval(), on_meta, (image,))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return int(counter.get_total_flops()) // 2 + sum(sampled)


def _deformable_macs(module: DCNv3 | DCNv4, output: torch.Tensor) -> int:
    return MACS_PER_SAMPLE * module.geometry.points * output.numel()


def _attention_macs(module: DAttention, output: tuple[torch.Tensor, ...]) -> int:
    """Four a bilinear sample, of the input and of the table of biases by distance."""
    out, places, _ = output
    batch, channels, height, width = out.shape
    samples = places.shape[2] * places.shape[3]
    biases = height * width * module.n_heads if module.by_distance else 0
    return 4 * batch * samples * (channels + biases)


SAMPLING_MACS: dict[type[nn.Module], Callable[[Any, Any], int]] = {
    DCNv3: _deformable_macs,
    DCNv4: _deformable_macs,
    DAttention: _attention_macs,
}
"""By class of module: the multiply-accumulates of its samples, from the module and its output."""
