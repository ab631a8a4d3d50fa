"""Shared set-up: Triton kernels run in the interpreter where there is no CUDA device."""

import os

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before the kernels are imported


def pytest_collection_modifyitems(items):
    if not HAS_CUDA and "OPBENCH_REQUIRE_GPU" not in os.environ:  # a run for a GPU must not pass by skipping
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none here"))
