"""Shared set-up: Triton kernels run in the interpreter where there is no CUDA device."""

import gc
import os
import signal
import sys
import tempfile

import hypothesis  # before gc.freeze(): its plug-ins look for referrers, which are hidden then
import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before the kernels are imported

torch.backends.cudnn.allow_tf32 = False  # float32 is compared as float32

# For a GPU that is lent by the minute: an example that fails is reported as it was found.
hypothesis.settings.register_profile(
    "no-shrinking", phases=set(hypothesis.Phase) - {hypothesis.Phase.shrink, hypothesis.Phase.explain}
)

# `nohup make test &` ignores these; what tests start would inherit that, and not hear the signals that they are sent.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "test_wheel" not in item.nodeid)  # the longest first, while all processes have work
    if not HAS_CUDA and "OPBENCH_REQUIRE_GPU" not in os.environ:  # a run for a GPU must not pass by skipping
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none here"))


IMPORTED = []  # how many modules there were when what they hold was set aside


def set_aside_what_was_imported():
    """Each cell ends with a collection, which would walk all that torch and the tests imported for 0.1 s."""
    if not IMPORTED or len(sys.modules) > IMPORTED[-1] + 20:
        gc.collect()
        gc.freeze()
        IMPORTED.append(len(sys.modules))


def pytest_collection_finish():
    set_aside_what_was_imported()


def pytest_runtest_teardown():
    set_aside_what_was_imported()  # the first tests import the compiler


@pytest.fixture(autouse=True)
def _tuned_by_rule():
    """A benchmark turns tuning on for its process; the next test then times nothing on a GPU."""
    yield
    if tuning := sys.modules.get("opbench_kernels.tuning"):
        tuning._state.clear()


@pytest.fixture
def one_plot(monkeypatch):
    """Runs draw one kind of plot instead of ten, a third of a second each: for tests of where plots go."""
    from opbench.report.plots import files as plots

    monkeypatch.setattr(plots, "KINDS", {"throughput": plots.KINDS["throughput"]})


@pytest.fixture(scope="session", autouse=True)
def _kept_ceilings():
    """A cache of the tests' own, with made-up ceilings far above any machine: a sweep then measures none."""
    from ceiling_fixtures import made_up_ceilings

    from opbench.device.ceiling_cache import keep
    from opbench.device.environment import collect_environment

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        for device in ("cpu", "cuda:0") if HAS_CUDA else ("cpu",):
            environment = collect_environment(device)
            keep(made_up_ceilings(environment), environment)
        yield
