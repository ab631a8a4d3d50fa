"""Which dtypes a sweep takes where none are named."""

import pytest
import torch

from opbench.sweeps.native_dtypes import choose, default_dtypes, matmul_rates
from opbench.workload.case import Dtype


@pytest.mark.parametrize(
    ("bf16", "fp16", "dtypes"),
    [
        (2e11, 2e9, ("fp32", "bf16")),
        (5.0e10, 2e9, ("fp32", "bf16")),  # half of fp32's rate is enough
        (4.9e10, 2e9, ("fp32",)),
        (2e9, 9e10, ("fp32", "fp16")),
        (2e11, 2e11, ("fp32", "bf16")),  # one of them, so that the first sweep is short
    ],
)
def test_a_dtype_is_taken_beside_fp32_where_it_is_native(bf16, fp16, dtypes):
    chosen = choose({Dtype.FP32: 1e11, Dtype.BF16: bf16, Dtype.FP16: fp16})
    assert chosen.dtypes == dtypes
    assert bool(chosen.note) == (dtypes == ("fp32",))


def test_one_line_says_why_fp32_is_alone_and_how_to_ask_for_more():
    note = choose({Dtype.FP32: 1e11, Dtype.BF16: 1.7e9, Dtype.FP16: 2e9}).note
    assert note == (
        "fp32 only: against fp32's rate this processor multiplies matrices at 0.017 of it in bf16 and at 0.02 of it in "
        "fp16; --dtypes fp32,bf16 measures both"
    )


def test_this_cpus_rates_are_measured_on_one_thread_which_is_put_back():
    threads = torch.get_num_threads()
    rates = matmul_rates((Dtype.FP32, Dtype.BF16))
    assert set(rates) == {Dtype.FP32, Dtype.BF16}
    assert all(0 < rate < 1e15 for rate in rates.values())
    assert torch.get_num_threads() == threads
    assert Dtype.FP32 in default_dtypes("cpu").dtypes
    assert default_dtypes("cuda").dtypes == (Dtype.FP32, Dtype.FP16)


def test_the_rate_is_that_of_the_fastest_launch():
    """A clock that is read before and after each launch; other processes make some launches longer."""
    steps = iter([0.0, 0.0, 1.0, 1.0, 1.25, 1.25, 3.25, 3.25])
    [rate] = matmul_rates((Dtype.FP32,), clock=lambda: next(steps)).values()
    assert rate == pytest.approx(2 * 256**3 / 0.25)
