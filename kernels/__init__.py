"""Deformable convolution v3 and v4 in Triton and torch; stands without the harness."""

from opbench_kernels.functional import dcnv3, dcnv4

__all__ = ["dcnv3", "dcnv4"]
