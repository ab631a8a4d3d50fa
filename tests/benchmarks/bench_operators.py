"""The seven operators at small shapes, each checked against the fp64 reference before it is timed: `make bench`.

`make bench` compares with nothing. To gate on a stored state: --benchmark-save=NAME, then --benchmark-compare=NAME
--benchmark-compare-fail=median:20%; or give the two files to `opbench compare`.
"""

import pytest

from opbench.workload.case import Shape

pytestmark = pytest.mark.benchmark(min_rounds=30)

SHAPES = [Shape(1, 14, 14, 64), Shape(2, 9, 13, 96)]
OPERATORS = (
    "conv3x3", "attention", "flash_attention_2", "window_attention", "dcnv3", "dcnv4_lightweight", "dcnv4",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator(opbench_benchmark, operator, shape, dtype):
    opbench_benchmark.benchmark.group = f"{operator} module fwd {dtype}"
    opbench_benchmark.cell(operator, shape, dtype=dtype)
