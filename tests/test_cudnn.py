"""The switch of cuDNN that a provider alone turns on, and what a process may run of it."""

from dataclasses import replace

import pytest
import torch
from builders import doubling, make_case, make_cell
from fake_timer import FakeTimer

from opbench.operators._cudnn import autotuned, benchmark_mode
from opbench.registry.registry import find
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.sweeps.conduct import make_conduct
from opbench.sweeps.progress import NullProgress
from opbench.sweeps.request import RunOptions, make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.runner import CellRunner
from opbench.sweeps.start import start_run
from opbench.workload.case import Level
from opbench.workload.cell_warning import WarningKind
from opbench.workload.operator import Provider

OPTIONS = RunOptions("cpu", "wall-clock", "warm", 0.01, None, 0)


@pytest.mark.parametrize("before", [False, True])
def test_the_switch_is_put_back_also_after_an_error(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with benchmark_mode():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark is before
    with pytest.raises(KeyError), benchmark_mode():
        raise KeyError
    assert torch.backends.cudnn.benchmark is before


def test_cudnn_tries_all_of_its_algorithms_where_torch_has_that_limit(monkeypatch):
    limits = {"benchmark": False, "benchmark_limit": 10}

    class Backend:
        def __getattr__(self, name):
            return limits[name]

        def __setattr__(self, name, value):
            limits[name] = value

    monkeypatch.setattr(torch.backends, "cudnn", Backend())
    with benchmark_mode():
        assert limits == {"benchmark": True, "benchmark_limit": 0}
    assert limits == {"benchmark": False, "benchmark_limit": 10}


def on_any_device(provider):
    """As if this machine had cuDNN."""
    return replace(provider, unavailable=lambda device_type: None)


def test_the_switch_is_on_while_the_cell_is_built_checked_and_timed_and_off_for_the_others():
    seen = {"plain": [], "torch_autotuned": []}

    def provider(name):
        def build(_case, tensors):
            seen[name].append(torch.backends.cudnn.benchmark)

            def launch():
                seen[name].append(torch.backends.cudnn.benchmark)
                return tensors["x"] * 2

            return launch

        return Provider(name, build, name)

    tuned = on_any_device(autotuned(provider("torch_autotuned")))
    operator = doubling(providers=(provider("plain"), tuned))
    runner = CellRunner(OPTIONS, lambda name: operator, FakeTimer([1.0]))
    for name in ("plain", "torch_autotuned", "plain"):
        measured = runner.run(make_cell(provider=name))
        assert measured.status is Status.OK
        assert WarningKind.GLOBAL_STATE not in {warning.kind for warning in measured.warnings}
    assert set(seen["plain"]) == {False}
    assert set(seen["torch_autotuned"]) == {True}


def test_an_error_of_the_cell_leaves_the_switch_as_it_was():
    def build(_case, _tensors):
        raise RuntimeError("no plan")

    operator = doubling(providers=(on_any_device(autotuned(Provider("plain", build, "fails"))),))
    runner = CellRunner(OPTIONS, lambda name: operator, FakeTimer([1.0]))
    measured = runner.run(make_cell(provider="torch_autotuned"))
    assert measured.status is Status.ERROR
    assert WarningKind.GLOBAL_STATE not in {warning.kind for warning in measured.warnings}
    assert not torch.backends.cudnn.benchmark


def test_in_a_process_that_runs_other_cells_it_is_not_measured(tmp_path):
    """PyTorch would give it the plan of whoever came first."""

    def build(_case, tensors):
        return lambda: tensors["x"] * 2

    plain = Provider("plain", build, "plain")
    operators = {"double": doubling(providers=(plain, on_any_device(autotuned(plain))))}
    wanted = {"device": "cpu", "dtypes": ["fp32"], "shapes": ["smoke"], "providers": ["double=all"],
              "level": ["module"], "time_budget": 1e-3}  # fmt: skip
    conduct = make_conduct({"isolation": "none", "ceilings_budget": 0})
    run = start_run(make_request(wanted, operators), operators, tmp_path / "run", conduct)
    run_cells(run, operators, NullProgress(), conduct)
    rows = {(row.provider, row.status): row.reason for row in Run.open(run.path).rows()}
    assert rows == {
        ("plain", "ok"): "",
        ("torch_autotuned", "unavailable"): "its cells need a process of their own: --isolation process",
    }


def test_a_cpu_has_no_cudnn_to_ask():
    for operator, name in (("conv3x3", "torch_autotuned"), ("dcnv3", "triton_autotuned"), ("pconv", "torch_autotuned")):
        provider = find(operator).provider(name)
        assert provider.own_process
        assert provider.unavailable("cuda") is None
        assert provider.unavailable("cpu")
    assert find("conv3x3").provider("torch_autotuned").unavailable("cpu") == (
        "cuDNN chooses algorithms on a CUDA device, this is cpu"
    )


def test_dcnv3s_core_has_no_convolution():
    provider = find("dcnv3").provider("triton_autotuned")
    settings = find("dcnv3").resolve_settings({})
    assert provider.not_applicable(make_case("dcnv3", level=Level.CORE, settings=settings), "cuda")
    assert provider.not_applicable(make_case("dcnv3", level=Level.MODULE, settings=settings), "cuda") is None
