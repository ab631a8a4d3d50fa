"""Backbones of the operators in opbench_kernels, with the authors' constructor arguments and parameter names.

They need torch, timm and opbench_kernels, nothing else of opbench. Importing this package also makes them known to
timm, as `timm.create_model("internimage_b.opbench")`.
"""

from opbench.models import timm_models as _timm_models  # noqa: F401 - registers the models
from opbench.models.backbone import Backbone
from opbench.models.catalogue import create, names
from opbench.models.checkpoints import load_checkpoint
from opbench.models.counts import mac_count, parameter_count
from opbench.models.dat import DAT
from opbench.models.intern_image import FlashInternImage, InternImage
from opbench.models.parcnet_v2 import ParCNetV2
from opbench.models.replknet import RepLKNet
from opbench.models.slak import SLaK
from opbench.models.transplants import transplant

__all__ = [
    "DAT",
    "Backbone",
    "FlashInternImage",
    "InternImage",
    "ParCNetV2",
    "RepLKNet",
    "SLaK",
    "create",
    "load_checkpoint",
    "mac_count",
    "names",
    "parameter_count",
    "transplant",
]
