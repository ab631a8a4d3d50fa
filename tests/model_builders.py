"""Small models of every family, weights from a formula, and what the authors' own modules made of them.

`authors_models.json` holds two things, made once by running the authors' public sources on a CPU (docs/models.md says
which revisions): the digest of names and shapes of every checkpoint, and for the small models here the logits and a
projection of the gradients, in float64.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import torch

from opbench.models import create

AUTHORS = json.loads((Path(__file__).parent / "authors_models.json").read_text())

SMALL_INTERN_IMAGE = {
    "channels": 16, "depths": (1, 2, 3, 1), "groups": (1, 2, 4, 8), "num_classes": 10, "mlp_ratio": 2.0,
}  # fmt: skip
SMALL_REPLKNET = {
    "large_kernel_sizes": (13, 9, 7, 5), "layers": (1, 1, 2, 1), "channels": (6, 10, 14, 18), "num_classes": 10,
}  # fmt: skip
SMALL_SLAK = {
    "kernel_size": (13, 11, 9, 7, 5), "depths": (1, 1, 2, 1), "dims": (6, 10, 14, 18), "num_classes": 10,
}  # fmt: skip
SMALL_PARCNET_V2 = {
    "global_kernel_sizes": (31, 15, 7, 3), "depths": (1, 1, 2, 1), "dims": (6, 10, 14, 18), "num_classes": 10,
}  # fmt: skip
SMALL_DAT = {
    "img_size": 96, "window_sizes": (3, 3, 3, 3), "depths": (2, 2, 2, 2), "dim_stem": 8, "dims": (8, 16, 32, 64),
    "stage_spec": (("L", "S"), ("S", "L"), ("L", "D"), ("D", "D")), "heads": (1, 2, 4, 8), "groups": (-1, -1, 2, 4),
    "num_classes": 10, "expansion": 2,
}  # fmt: skip
SMALL = {
    "internimage_t": ("internimage_t", SMALL_INTERN_IMAGE),
    "internimage_l": ("internimage_l", SMALL_INTERN_IMAGE),
    "internimage_h": ("internimage_h", {**SMALL_INTERN_IMAGE, "level2_post_norm_block_ids": (0, 2)}),
    "internimage with batch norm": ("internimage_t", {**SMALL_INTERN_IMAGE, "norm_layer": "BN", "act_layer": "SiLU"}),
    "flash_internimage_t": ("flash_internimage_t", SMALL_INTERN_IMAGE),
    "flash_internimage_b": ("flash_internimage_b", SMALL_INTERN_IMAGE),
    "flash_internimage_l": ("flash_internimage_l", SMALL_INTERN_IMAGE),
    "replknet_31b": ("replknet_31b", SMALL_REPLKNET),
    "replknet_xl": ("replknet_xl", SMALL_REPLKNET),
    "slak_tiny": ("slak_tiny", SMALL_SLAK),
    "slak without strips": ("slak_tiny", {**SMALL_SLAK, "Decom": False, "layer_scale_init_value": 0.0}),
    "parcnetv2_tiny": ("parcnetv2_tiny", SMALL_PARCNET_V2),
    "dat_tiny": ("dat_tiny", SMALL_DAT),
    "dat with convolutions": (
        "dat_tiny",
        {
            **SMALL_DAT,
            "use_conv_patches": True,
            "use_dwc_mlps": (True, False, True, False),
            "dim_stem": 6,
            "use_pes": (False, False, True, True),
            "dwc_pes": (False, False, False, True),
            "strides": (-1, -1, 2, 1),
            "offset_range_factor": (-1, -1, 0, -1),
        },
    ),
    "parcnetv2 with scales": ("parcnetv2_tiny", {**SMALL_PARCNET_V2, "layer_scale_init_values": 1.0}),
}
"""A name of the catalogue, and arguments of the constructor that make it small."""
SIZE = 64
"""Side of the image, pixels, unless the model fixes another."""


def small(case, **changes):
    """A small model by its name in SMALL, in float64, with weights from a formula, in evaluation."""
    name, arguments = SMALL[case]
    return filled(create(name, **{**arguments, **changes}).double()).eval()


def wave(name, shape):
    """A float64 tensor of about unit size that depends on a name, the same on every machine to the last digits."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(numbers * math.sqrt(2) + zlib.crc32(name.encode()) % 1000).reshape(shape)


def filled(model):
    """The model with parameters and batch statistics from `wave`: all of them matter for the output."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = wave(name, parameter.shape)
            if parameter.dim() > 1:
                parameter.copy_(values * 1.4 * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.2 * values + name.endswith("weight"))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.3 * wave(name, buffer.shape) + name.endswith("running_var"))
    return model


def image(size=SIZE, batch=1):
    """(batch, 3, size, size), float64, made so that it asks for a gradient."""
    return wave("image", (batch, 3, size, size)).requires_grad_()


def values(model, size=SIZE):
    """Logits of one image as a list, and the gradients of a sum of them projected on a wave each, with their scale."""
    x = image(size)
    logits = model(x)
    logits = logits[0] if isinstance(logits, tuple) else logits  # the authors' DAT gives positions too
    (logits * wave("weights of the sum", logits.shape)).sum().backward()
    gradients = {"image": x.grad, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}
    products = [gradient * wave(name, gradient.shape) for name, gradient in gradients.items()]
    return {
        "logits": logits.flatten().tolist(),
        "gradient": sum(product.sum().item() for product in products),
        "gradient_scale": sum(product.abs().sum().item() for product in products),
    }


def digest(model):
    """Number of tensors of a checkpoint, and a hash of their names and shapes."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return {"tensors": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
