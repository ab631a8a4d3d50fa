"""The modules that tests/test_onnx.py and tests/test_export.py export, and the arguments of their calls."""

from functools import partial

import torch
from opbench_kernels import (
    BGU,
    DAttention,
    DCNv2,
    DCNv3,
    DCNv4,
    MSDeformAttn,
    ParCV2,
    PartialConv3,
    RepLKBlock,
    RepLKConv,
    SLaKConv,
)

DYNAMIC = torch.export.Dim.DYNAMIC
LAST, FIRST = (dict.fromkeys(axes, DYNAMIC) for axes in ((0, 1, 2), (0, 2, 3)))
CASES = {
    "DCNv2": (partial(DCNv2, 8, 6, 3, stride=2, padding=1, groups=2, deform_groups=2), "NCHW"),
    "DCNv3": (partial(DCNv3, 8, group=2, center_feature_scale=True), "NHWC"),
    "DCNv4": (partial(DCNv4, 8, group=2, dw_kernel_size=3, stride=2), "NHWC"),
    "DCNv4, lightweight": (partial(DCNv4, 8, group=2, without_pointwise=True, offset_scale=0.5), "NHWC"),
    "MSDeformAttn": (partial(MSDeformAttn, 8, 2, 2, 3), "levels"),
    "DAttention": (partial(DAttention, (7, 6), (7, 6), 4, 2, 2, 0.0, 0.0, 1, 0, False, False, False, False, 2), "NCHW"),
    "DAttention, bias table": (
        partial(DAttention, (7, 6), (7, 6), 4, 2, 2, 0.0, 0.0, 1, 2, True, False, False, False, 2), "batch",
    ),
    "PartialConv3": (partial(PartialConv3, 8, forward="slicing"), "NCHW"),
    "RepLKConv": (partial(RepLKConv, 8, 8, 13, 1, 8, 5), "NCHW"),
    "RepLKBlock": (partial(RepLKBlock, 8, 8, 13, 5, 0.1), "NCHW"),
    "SLaKConv": (partial(SLaKConv, 8, 8, 15, 1, 8, 5, Decom=True), "NCHW"),
    "ParCV2": (partial(ParCV2, 8), "NHWC"),
    "BGU": (partial(BGU, 8), "NHWC"),
}  # fmt: skip
SHAPES = {"NCHW": FIRST, "NHWC": LAST, "batch": {0: DYNAMIC}}


def randomize(module):
    """The module in evaluation, every parameter and statistic random: offsets of about a pixel."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                drawn = 0.4 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.5 + drawn.abs() if name.endswith("running_var") else drawn)
    return module.eval()


def inputs_of(layout, other):
    """Arguments of a call: those of the example, or of another batch and image size where the layout has any."""
    generator = torch.Generator().manual_seed(4)
    batch, height, width = (3, 9, 8) if other else (2, 7, 6)
    if layout == "levels":
        sizes = torch.tensor([[height, width], [4, 3]])
        starts, length = torch.tensor([0, height * width]), int(sizes.prod(-1).sum())
        query, pixels = (torch.randn(batch, count, 8, generator=generator) for count in (height, length))
        return query, torch.rand(batch, height, 2, 2, generator=generator), pixels, sizes, starts
    if layout == "batch":
        height, width = 7, 6
    shape = (batch, height, width, 8) if layout == "NHWC" else (batch, 8, height, width)
    return (torch.randn(shape, generator=generator),)


def dynamic_shapes(layout):
    if layout == "levels":
        return ({0: DYNAMIC, 1: DYNAMIC},) * 3 + (None, None)
    return (SHAPES[layout],)


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple | list) else outputs
