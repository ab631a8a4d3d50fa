"""Depthwise convolution with large kernels: one function, RepLKNet's and SLaK's modules, in Triton and torch."""
