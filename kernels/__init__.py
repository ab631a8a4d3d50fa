"""Vision operators in Triton and torch: deformable, partial and depthwise convolution; stands without the harness."""

from opbench_kernels.dat.modules import DAttention
from opbench_kernels.deform.dcnv2 import dcnv2
from opbench_kernels.deform.dcnv2_module import DCNv2
from opbench_kernels.deform.functional import dcnv3, dcnv4
from opbench_kernels.deform.modules import DCNv3, DCNv4
from opbench_kernels.depthwise.functional import depthwise_conv2d
from opbench_kernels.depthwise.modules import RepLKBlock, RepLKConv, SLaKConv
from opbench_kernels.msda.functional import ms_deform_attn
from opbench_kernels.msda.modules import MSDeformAttn
from opbench_kernels.parc.modules import BGU, ParCV2
from opbench_kernels.partial.functional import partial_conv3x3
from opbench_kernels.partial.modules import PartialConv3

__all__ = [
    "BGU",
    "DAttention",
    "DCNv2",
    "DCNv3",
    "DCNv4",
    "MSDeformAttn",
    "ParCV2",
    "PartialConv3",
    "RepLKBlock",
    "RepLKConv",
    "SLaKConv",
    "dcnv2",
    "dcnv3",
    "dcnv4",
    "depthwise_conv2d",
    "ms_deform_attn",
    "partial_conv3x3",
]
