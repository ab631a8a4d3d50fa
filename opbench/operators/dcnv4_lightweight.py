"""Lightweight DCNv4: the module without value_proj and output_proj; its core is DCNv4's."""

from dataclasses import replace

from opbench.operators import dcnv4

OPERATOR = replace(
    dcnv4.OPERATOR,
    name="dcnv4_lightweight",
    summary="deformable convolution v4 without the pointwise projections; module adds offset_mask only",
    timed="no layout conversion; module: the offset_mask Linear (and the depthwise convolution, if any)",
)
