"""The official extensions' functions in plain torch, wrong where the official launch is: for dry runs and tests."""

import torch
from opbench_kernels import dcnv3, dcnv4


class StandIn:
    """Takes what the compiled extensions take, on any device."""

    def dcnv4_forward(self, value, offset_mask, *rest):
        """As the extension; pixels that its launch reads in the wrong image are zero."""
        *numbers, _step, _remove_center, channels, threads, softmax = rest
        assert not softmax
        assert value.is_contiguous()
        assert offset_mask.is_contiguous()
        out = dcnv4(value, offset_mask, **_geometry(numbers))
        out[misplaced(value.shape, threads // (value.shape[3] // channels))] = 0
        return out

    def dcnv4_backward(self, value, offset_mask, *rest):
        """Gradients of value and offset_mask, likewise."""
        *numbers, _step, gradient, _remove_center, channels, threads, softmax = rest
        assert not softmax
        gradient = gradient.clone()
        gradient[misplaced(value.shape, threads // (value.shape[3] // channels))] = 0
        return _gradients(lambda *leaves: dcnv4(*leaves, **_geometry(numbers)), (value, offset_mask), gradient)

    def dcnv3_forward(self, value, offset, mask, *rest):
        """As the extension."""
        *numbers, _step, _remove_center = rest
        return dcnv3(value, offset, mask, **_geometry(numbers))

    def dcnv3_backward(self, value, offset, mask, *rest):
        """Gradients of value, offset and mask."""
        *numbers, gradient, _step, _remove_center = rest
        return _gradients(lambda *leaves: dcnv3(*leaves, **_geometry(numbers)), (value, offset, mask), gradient)


def misplaced(shape, block_pixels):
    """(B, H, W), True where the kernel's row of pixels leaves its image: block_pixels does not divide H * W."""
    batch, height, width, _ = shape
    pixels, every = height * width, torch.arange(batch * height * width)
    within = every % block_pixels
    return ((every - within) % pixels + within >= pixels).view(batch, height, width)


def _geometry(numbers):
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, _, offset_scale = numbers
    return {
        "kernel_size": (kernel_h, kernel_w),
        "stride": (stride_h, stride_w),
        "padding": (pad_h, pad_w),
        "dilation": (dilation_h, dilation_w),
        "groups": groups,
        "offset_scale": offset_scale,
        "implementation": "torch",
    }


def _gradients(function, inputs, gradient):
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, gradient)
