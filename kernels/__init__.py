"""Deformable convolution v3 and v4 in Triton and torch; stands without the harness."""

from opbench_kernels.deform.functional import dcnv3, dcnv4
from opbench_kernels.deform.modules import DCNv3, DCNv4

__all__ = ["DCNv3", "DCNv4", "dcnv3", "dcnv4"]
