"""What `make test-emulated` rests on: a weaker processor is really emulated, and a run says so."""

import os

import pytest
import torch

from opbench.device.environment import collect_environment

# As torch names what it was told to use.
CAPABILITIES = {"avx2": "AVX2", "default": "DEFAULT"}
ASKED = CAPABILITIES.get(os.environ.get("ATEN_CPU_CAPABILITY", ""))


@pytest.mark.skipif(ASKED is None, reason="nothing is emulated: ATEN_CPU_CAPABILITY is not set; see make test-emulated")
def test_the_emulated_processor_is_the_one_that_computes():
    assert torch.backends.cpu.get_cpu_capability() == ASKED
    environment = collect_environment("cpu")
    assert environment["cpu"]["capability"] == ASKED
    assert environment["variables"]["ATEN_CPU_CAPABILITY"] == ASKED.lower()
