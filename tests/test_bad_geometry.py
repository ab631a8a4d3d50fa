"""Impossible geometries of the modules in opbench_kernels: one clear error each; and small ones that are possible."""

import re

import pytest
import torch
from opbench_kernels import (
    BGU,
    DCNv2,
    DCNv3,
    DCNv4,
    MSDeformAttn,
    ParCV2,
    PartialConv3,
    RepLKBlock,
    RepLKConv,
    SLaKConv,
    depthwise_conv2d,
)


def attend(sizes, pixels, starts=(0, 4), batch=1):
    module = MSDeformAttn(d_model=8, n_levels=2, n_heads=2, n_points=1)
    levels = torch.tensor(sizes), torch.tensor(starts)
    return module(torch.zeros(batch, 3, 8), torch.zeros(batch, 3, 2, 2), torch.zeros(batch, pixels, 8), *levels)


def zeros(*shape):
    return torch.zeros(shape)


IMPOSSIBLE = [
    (lambda: RepLKConv(8, 8, 30, 1, 8, 5), "kernel_size must be a positive odd integer, got 30"),
    (lambda: RepLKConv(8, 8, 5, 1, 8, 7), "small_kernel must be at most kernel_size 5, got 7"),
    (lambda: RepLKConv(8, 8, 31, 1, 3, 5), "in_channels, out_channels and groups must be the same positive integer"),
    (lambda: RepLKBlock(8, 8, 30, 5, 0.0), "kernel_size must be a positive odd integer, got 30"),
    (lambda: SLaKConv(8, 8, 51, 1, 8, 4, Decom=True), "small_kernel must be a positive odd integer, got 4"),
    (lambda: depthwise_conv2d(zeros(1, 4, 9, 9), zeros(4, 1, 8, 8)), "padding 'same' needs odd kernels"),
    (lambda: depthwise_conv2d(zeros(1, 4, 9, 9), zeros(3, 1, 7, 7)), "weight must be a floating tensor of shape (4, 1"),
    (lambda: RepLKConv(8, 8, 31, 1, 8, 5)(zeros(1, 8, 0, 4)), "x must be (N, C, H, W) with C, H and W of at least 1"),
    (lambda: ParCV2(8, global_kernel_size=12), "must be a positive odd integer, got 12"),
    (lambda: ParCV2(8)(zeros(1, 8, 3, 3)), "x must be (N, H, W, 8), got (1, 8, 3, 3)"),
    (lambda: BGU(8)(zeros(1, 3, 3, 7)), "x must be (..., 8), got (1, 3, 3, 7)"),
    (lambda: PartialConv3(4, 8), "n_div must be at most the 4 channels, got 8"),
    (lambda: PartialConv3(8)(zeros(1, 8, 0, 1)), "x must be (N, C, H, W) with C, H and W of at least 1"),
    (lambda: DCNv2(6, 6, 3, groups=4), "groups must divide 6 in_channels and 6 out_channels: 4"),
    (lambda: DCNv2(6, 6, 3, deform_groups=4), "deform_groups must divide the 6 in_channels, got 4"),
    (lambda: DCNv2(6, 6, 7)(zeros(1, 6, 3, 3)), "input 3x3 with padding (0, 0) is smaller than the kernel's reach 7"),
    (lambda: DCNv3(6, group=4), "group must divide the 6 channels, got 4"),
    (lambda: DCNv4(6, group=4), "group must divide the 6 channels, got 4"),
    (lambda: DCNv4(8, group=2, kernel_size=7, pad=0)(zeros(1, 3, 3, 8)), "is smaller than the kernel's reach 7"),
    (lambda: MSDeformAttn(d_model=10, n_heads=4), "n_heads must divide d_model 10, got 4"),
    (lambda: attend([[2, 2], [1, 2]], 7), "spatial_shapes must be positive and have the 7 pixels of value"),
    (lambda: attend([[2, 2], [-1, -2]], 6), "spatial_shapes must be positive"),
    (lambda: attend([[2, 2], [1, 2]], 6, starts=(0, 5)), "level_start_index must leave each level in value"),
]


@pytest.mark.parametrize(("make", "message"), IMPOSSIBLE, ids=[message for _, message in IMPOSSIBLE])
def test_what_is_impossible_is_said(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


POSSIBLE = [
    (lambda: RepLKConv(8, 8, 31, 1, 8, 5)(zeros(1, 8, 2, 3)), (1, 8, 2, 3)),  # a map smaller than the kernel
    (lambda: RepLKConv(8, 8, 31, 1, 8, 5).eval()(zeros(0, 8, 4, 4)), (0, 8, 4, 4)),
    (lambda: depthwise_conv2d(zeros(0, 4, 9, 9), zeros(4, 1, 7, 7)), (0, 4, 9, 9)),
    (lambda: ParCV2(8, global_kernel_size=13)(zeros(1, 3, 3, 8)), (1, 3, 3, 8)),  # 13 is above 2 * 3 - 1
    (lambda: ParCV2(8, global_kernel_size=5)(zeros(0, 3, 3, 8)), (0, 3, 3, 8)),
    (lambda: PartialConv3(10, 4)(zeros(0, 10, 1, 1)), (0, 10, 1, 1)),  # theirs too convolves 10 // 4
    (lambda: DCNv2(6, 6, 2)(zeros(0, 6, 3, 3)), (0, 6, 2, 2)),
    (lambda: DCNv4(8, group=2)(zeros(0, 3, 3, 8)), (0, 3, 3, 8)),
    (lambda: attend([[2, 2], [1, 2]], 6, batch=0), (0, 3, 8)),
]


@pytest.mark.parametrize(("make", "shape"), POSSIBLE)
def test_what_is_small_or_empty_is_computed(make, shape):
    assert make().shape == shape
