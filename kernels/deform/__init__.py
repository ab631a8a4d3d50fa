"""Deformable sampling: DCNv3 and DCNv4 as functions and modules, in Triton and torch."""
