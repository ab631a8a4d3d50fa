"""The families of kernels beside DCNv4's, by the operator of their cases."""

from opbench.inspection import dcnv2, msda, pconv
from opbench.inspection.family import Family

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Family] = {"dcnv2": dcnv2, "ms_deform_attn": msda, "pconv": pconv}
