"""The environment record: complete without a GPU, right with a (fake) one, and free of names and paths."""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from builders import doubling

from opbench.device import environment, resolve
from opbench.device.environment import collect_environment, collect_machine
from opbench.device.identity import Identity, device_slug, measured_revision
from opbench.device.nvml import CLOCK_EVENT_REASONS
from opbench.device.resolve import resolve_device
from opbench.device.snapshots import gpu_conditions, sm_clock_mhz
from opbench.errors import UsageError
from opbench.host.checkout import REVISION_FILE, git_revision
from opbench.registry import registry
from opbench.report.environment_lines import environment_lines, machine_lines
from opbench.report.page.warnings import _environment_warnings

UUID = "5c1f8b1e-0000-1111-2222-333344445555"
GPU = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=60 * 2**20,
    total_memory=140 * 2**30, uuid=UUID, pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0,
)  # fmt: skip
HANDLE = "handle of the right GPU"


class FakeNvml(ModuleType):
    """NVML with one GPU; `answers` are by function, or by function and argument; a missing one is not supported."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        super().__init__("pynvml")
        self.open = 0
        self.answers = {
            ("nvmlDeviceGetHandleByUUID", f"GPU-{UUID}"): HANDLE,
            ("nvmlDeviceGetHandleByPciBusId", "00000000:1b:00.0"): HANDLE,
            ("nvmlDeviceGetClockInfo", HANDLE, 1): 1755,
            ("nvmlDeviceGetClockInfo", HANDLE, 2): 3201,
            ("nvmlDeviceGetMaxClockInfo", HANDLE, 1): 1980,
            ("nvmlDeviceGetMaxClockInfo", HANDLE, 2): 3202,
            ("nvmlDeviceGetPowerUsage", HANDLE): 123456,
            ("nvmlDeviceGetEnforcedPowerLimit", HANDLE): 700000,
            ("nvmlDeviceGetPowerManagementDefaultLimit", HANDLE): 700000,
            ("nvmlDeviceGetTemperature", HANDLE, 0): 41,
            ("nvmlDeviceGetCurrentClocksEventReasons", HANDLE): 0x4 | 0x40 | 0x1000,
            ("nvmlDeviceGetPersistenceMode", HANDLE): 1,
            ("nvmlDeviceGetMigMode", HANDLE): [0, 1],
            ("nvmlDeviceGetUUID", HANDLE): f"GPU-{UUID}",
            ("nvmlSystemGetDriverVersion",): "575.57.08",
            ("nvmlDeviceGetComputeRunningProcesses", HANDLE): [
                SimpleNamespace(pid=os.getpid(), usedGpuMemory=5),
                SimpleNamespace(pid=2**22 + 7, usedGpuMemory=2**30),
                SimpleNamespace(pid=2**22 + 5, usedGpuMemory=None),
            ],
            ("nvmlDeviceGetGraphicsRunningProcesses", HANDLE): [SimpleNamespace(pid=2**22 + 7, usedGpuMemory=2**30)],
            ("nvmlSystemGetProcessName", 2**22 + 7): "/home/alice/env/bin/python3 /home/alice/train.py",
        }

    def nvmlInit(self):  # noqa: N802
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def function(*arguments):
            assert self.open == 1, f"{name} outside nvmlInit and nvmlShutdown"
            if (name, *arguments) not in self.answers:
                raise self.NVMLError(name)
            answer = self.answers[name, *arguments]
            return answer() if callable(answer) else answer

        return function

    def forget(self, *functions):
        assert set(functions) <= {key[0] for key in self.answers}
        self.answers = {key: value for key, value in self.answers.items() if key[0] not in functions}


def set_cuda(monkeypatch, *, count, current=0):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)


@pytest.fixture
def nvml(monkeypatch):
    """A machine with two GPUs, of which torch's cuda:0 is NVML's only one."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    set_cuda(monkeypatch, count=2)
    yield fake
    assert fake.open == 0


def test_the_clock_of_a_gpu_is_told_at_any_moment(nvml):
    assert sm_clock_mhz("cuda:0") == 1755
    assert sm_clock_mhz("cpu") is None
    nvml.forget("nvmlDeviceGetClockInfo")
    assert sm_clock_mhz("cuda:0") is None


@pytest.fixture
def bare(monkeypatch):
    """A machine with no GPU, no driver, no NVML and no git."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(resolve, "DEVICE_FILE", Path("/dev/no-gpu"))
    monkeypatch.setenv("PATH", "")
    set_cuda(monkeypatch, count=0)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("Tesla V100-SXM2-16GB", "tesla-v100-sxm2-16gb"),
        ("NVIDIA H100 NVL MIG 1g.12gb", "h100-nvl-mig-1g-12gb"),
        ("AMD Instinct MI300X", "instinct-mi300x"),
        ("Intel(R) Data Center GPU Max 1550", "data-center-gpu-max-1550"),
        ("../../étc/ passwd", "tc-passwd"),
        ("NVIDIA", "nvidia"),
        ("", "gpu"),
    ],
)
def test_device_slug(name, slug):
    assert device_slug(name, "cuda") == slug


def test_device_slug_of_a_cpu():
    assert device_slug("Intel(R) Xeon(R) Processor", "cpu") == "cpu"


@pytest.mark.parametrize(
    ("requested", "device"),
    [("auto", "cuda:0"), ("cpu", "cpu"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cuda:01", "cuda:1")],
)
def test_resolve_device_with_gpus(monkeypatch, requested, device):
    set_cuda(monkeypatch, count=2, current=1)
    assert resolve_device(requested) == device


@pytest.mark.parametrize("requested", ["auto", "cpu"])
def test_resolve_device_without_gpu(bare, requested):
    assert resolve_device(requested) == "cpu"


@pytest.mark.parametrize(
    "requested", ["gpu0", "", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "cuda:99999", "mps"]
)
def test_resolve_device_refuses_other_words(monkeypatch, requested):
    set_cuda(monkeypatch, count=2)
    with pytest.raises(UsageError) as raised:
        resolve_device(requested)
    assert str(raised.value) == f"device must be auto, cpu, cuda or cuda:N, got {requested!r}"


def test_resolve_device_beyond_the_last_gpu(monkeypatch):
    set_cuda(monkeypatch, count=2)
    with pytest.raises(UsageError) as raised:
        resolve_device("cuda:2")
    assert str(raised.value) == "device cuda:2 does not exist; available: cpu, cuda:0, cuda:1"


@pytest.mark.parametrize(
    ("cuda", "visible", "error", "reason"),
    [
        (None, None, None, "this PyTorch is built without CUDA"),
        ("13.2", "", None, "CUDA_VISIBLE_DEVICES hides every GPU"),
        ("13.2", "-1", None, "CUDA_VISIBLE_DEVICES hides every GPU"),
        ("13.2", None, "Found no NVIDIA driver on your system. Please check", "Found no NVIDIA driver on your system"),
        ("13.2", "0", "CUDA error 802\nsecond line", "CUDA error 802"),
        ("13.2", None, None, "PyTorch finds no CUDA device"),
    ],
)
def test_resolve_device_says_why_cuda_is_missing(monkeypatch, cuda, visible, error, reason):
    def init():
        if error:
            raise RuntimeError(error)

    set_cuda(monkeypatch, count=0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for requested in ("cuda", "cuda:0"):
        with pytest.raises(UsageError) as raised:
            resolve_device(requested)
        assert str(raised.value) == f"device {requested} is not available: {reason}; available: cpu"


def test_collect_refuses_a_missing_device(bare):
    with pytest.raises(UsageError, match=r"^device cuda:0 is not available: "):
        collect_environment("cuda:0")


@pytest.mark.parametrize("device", [None, "auto", "cpu"])
def test_bare_machine_answers(bare, device):
    found = collect_environment(device)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["device"] == "cpu"
    assert found["device_name"] == found["cpu"]["model"] != ""
    assert (found["gpu"], found["other_gpu_processes"]) == (None, [])
    assert (found["driver_version"], found["git_revision"]) == (None, None)
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "triton" in found["packages"]
    assert found["cpu"]["torch_threads"] == torch.get_num_threads()
    assert found["cpu"]["logical_cores"] >= found["cpu"]["usable_cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert found["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert gpu_conditions("cpu") == {}


def test_nvml_that_does_not_start(nvml):
    def refuse():
        raise nvml.NVMLError("driver not loaded")

    nvml.nvmlInit = refuse
    assert gpu_conditions("cuda:0") == {}
    assert collect_environment("cpu")["driver_version"] is None


def test_cpu_run_on_a_gpu_machine_asks_about_no_gpu(nvml):
    found = collect_environment("cpu")
    assert (found["device"], found["gpu"], found["other_gpu_processes"]) == ("cpu", None, [])
    assert found["driver_version"] == "575.57.08"
    assert gpu_conditions("cpu") == {}


def test_gpu_record(nvml):
    found = collect_environment("cuda:0")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["device"], found["device_name"], found["driver_version"]) == ("cuda:0", "NVIDIA H200", "575.57.08")
    assert found["gpu"] == {
        "uuid": f"GPU-{UUID}",
        "compute_capability": "9.0",
        "multiprocessors": 132,
        "l2_cache_bytes": 62914560,
        "memory_bytes": 140 * 2**30,
        "sm_clock_mhz": 1755,
        "memory_clock_mhz": 3201,
        "power_w": 123.456,
        "temperature_c": 41,
        "clock_event_reasons": ["sw_power_cap", "hw_thermal_slowdown", "unknown_0x1000"],
        "max_sm_clock_mhz": 1980,
        "max_memory_clock_mhz": 3202,
        "power_limit_w": 700.0,
        "default_power_limit_w": 700.0,
        "persistence_mode": True,
        "mig_mode": False,
    }
    assert found["other_gpu_processes"] == [
        {"pid": 2**22 + 5, "name": None, "used_memory_bytes": None},
        {"pid": 2**22 + 7, "name": "python3", "used_memory_bytes": 2**30},
    ]


def test_gpu_that_reports_nothing(nvml):
    nvml.answers.clear()
    found = collect_environment("cuda:0")
    assert found["gpu"]["multiprocessors"] == 132
    assert all(found["gpu"][name] is None for name in ("sm_clock_mhz", "clock_event_reasons", "mig_mode"))
    assert (found["driver_version"], found["other_gpu_processes"]) == (None, [])
    assert ("clocks limited by", "unknown") in environment_lines(found)
    assert gpu_conditions("cuda:0") == {}


def test_gpu_conditions(nvml):
    assert gpu_conditions("cuda:0") == {
        "sm_clock_mhz": 1755,
        "memory_clock_mhz": 3201,
        "power_w": 123.456,
        "temperature_c": 41,
        "clock_event_reasons": ["sw_power_cap", "hw_thermal_slowdown", "unknown_0x1000"],
        "power_limit_w": 700.0,
        "default_power_limit_w": 700.0,
        "mig_mode": False,
        "other_gpu_processes": [
            {"pid": 2**22 + 5, "name": None, "used_memory_bytes": None},
            {"pid": 2**22 + 7, "name": "python3", "used_memory_bytes": 2**30},
        ],
    }
    nvml.forget("nvmlDeviceGetPowerUsage")
    assert gpu_conditions("cuda:0")["power_w"] is None


def test_older_driver_has_throttle_reasons(nvml):
    nvml.forget("nvmlDeviceGetCurrentClocksEventReasons")
    assert gpu_conditions("cuda:0")["clock_event_reasons"] is None
    nvml.answers["nvmlDeviceGetCurrentClocksThrottleReasons", HANDLE] = 0
    assert gpu_conditions("cuda:0")["clock_event_reasons"] == []


@pytest.mark.parametrize(
    "key", [("nvmlDeviceGetHandleByUUID", f"MIG-{UUID}"), ("nvmlDeviceGetHandleByPciBusId", "00000000:1b:00.0")]
)
def test_gpu_is_found_by_other_names(nvml, key):
    nvml.forget("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId")
    assert gpu_conditions("cuda:0") == {}
    nvml.answers[key] = HANDLE
    assert gpu_conditions("cuda:0")["sm_clock_mhz"] == 1755


@pytest.mark.parametrize("known", [("uuid",), ("pci_domain_id", "pci_bus_id", "pci_device_id")])
def test_a_torch_that_knows_less_of_the_gpu(nvml, monkeypatch, known):
    """A build without PCI addresses, or without UUIDs."""
    properties = SimpleNamespace(**{name: getattr(GPU, name) for name in known})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert gpu_conditions("cuda:0")["sm_clock_mhz"] == 1755


def test_a_torch_that_knows_nothing_of_the_gpu(nvml, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    assert gpu_conditions("cuda:0") == {}


@pytest.mark.parametrize(("context", "others"), [(True, 0), (False, 1)])
def test_in_a_container_a_process_is_this_one_only_where_this_one_uses_the_gpu(nvml, monkeypatch, context, others):
    nvml.forget("nvmlDeviceGetGraphicsRunningProcesses")
    nvml.answers["nvmlDeviceGetComputeRunningProcesses", HANDLE] = [SimpleNamespace(pid=4242424, usedGpuMemory=1)]
    monkeypatch.setattr("opbench.device.nvml.os.readlink", lambda path: "pid:[4026532999]")
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: context, raising=False)
    assert len(collect_environment("cuda:0")["other_gpu_processes"]) == others


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"


@pytest.fixture(params=["nvml", "device file"])
def old_driver(request, monkeypatch, tmp_path):
    """A machine with a GPU, of which NVML or only its file tells, and a driver that torch refuses."""
    fake = FakeNvml()
    if request.param == "nvml":
        fake.answers["nvmlDeviceGetCount",] = 1
    else:
        fake.answers.clear()
        (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(resolve, "DEVICE_FILE", tmp_path / "nvidia0")
    monkeypatch.setitem(sys.modules, "pynvml", fake)

    def init():
        raise RuntimeError(OLD_DRIVER)

    set_cuda(monkeypatch, count=0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    resolve._say_unusable.cache_clear()


def test_auto_says_once_that_a_gpu_is_not_used(old_driver, capsys):
    assert resolve_device("auto") == "cpu"
    said = capsys.readouterr()
    reason = OLD_DRIVER.partition(". ")[0]
    assert said.err.startswith(f"opbench: a GPU is here, but PyTorch cannot use it ({reason}): going on with the CPU; ")
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert collect_environment()["device"] == "cpu"
    assert capsys.readouterr().err == ""
    found = collect_environment("cpu")
    assert found["unusable_gpu"] == reason
    assert dict(environment_lines(found))["GPU not used"] == reason
    assert f"A GPU was there and was not used: {reason}." in _environment_warnings(found)


@pytest.mark.parametrize("requested", ["auto", "cpu"])
def test_nothing_is_said_of_a_gpu_that_is_hidden_or_not_wanted(old_driver, monkeypatch, capsys, requested):
    if requested == "auto":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device(requested) == "cpu"
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_there_is_no_gpu_or_it_is_used(bare, capsys, monkeypatch):
    assert resolve_device("auto") == "cpu"
    assert collect_environment()["unusable_gpu"] is None
    set_cuda(monkeypatch, count=1)
    assert resolve_device("auto") == "cuda:0"
    assert capsys.readouterr().err == ""


def test_fake_and_constants_agree_with_the_real_nvml():
    pynvml = pytest.importorskip("pynvml")
    for function, *_ in FakeNvml().answers:
        assert callable(getattr(pynvml, function))
    assert callable(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    for bit, name in CLOCK_EVENT_REASONS.items():
        words = "".join(word.capitalize() for word in name.split("_"))
        constants = [value for key, value in vars(pynvml).items() if re.fullmatch(f"nvmlClocks.*Reason{words}", key)]
        assert constants
        assert set(constants) == {bit}


def test_fp32_precision_is_reported_and_reading_it_changes_nothing(bare):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:  # not with monkeypatch, which would delete the attribute on a class that cannot
        matmul.fp32_precision = "tf32"
        found = collect_environment()["fp32_precision"]
        after = matmul.fp32_precision
    finally:
        matmul.fp32_precision = before
    assert (found["cuda.matmul"], after) == ("tf32", "tf32")
    assert {"cudnn.conv", "mkldnn.matmul"} <= set(found)


def test_only_variables_that_matter_and_no_paths(bare, monkeypatch):
    for name in os.environ:
        if environment.VARIABLES.fullmatch(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/home/alice/.triton")
    monkeypatch.setenv("CUDA_HOME", "/home/alice/cuda")
    monkeypatch.setenv("MY_TORCH_TOKEN", "secret")
    assert collect_environment()["variables"] == {
        "NVIDIA_TF32_OVERRIDE": "0",
        "OMP_NUM_THREADS": "2",
        "TRITON_CACHE_DIR": "<path>",
    }


def test_record_names_no_host_user_or_home(nvml, monkeypatch):
    for name in ("TRITON_CACHE_DIR", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, f"{Path.home()}/alice")
    found = collect_environment("cuda:0")
    text = json.dumps(found) + json.dumps(environment_lines(found))
    assert "alice" not in text
    assert str(Path.home()) not in text
    assert str(Path(environment.__file__).parent) not in text
    assert socket.gethostname() not in re.split(r"[^\w.-]+", text)
    assert UUID not in json.dumps(environment_lines(found))


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor\t: 0\nmodel\t\t: 167\nmodel name\t: Intel(R) Xeon(R)  \nmodel name\t: other\n", "Intel(R) Xeon(R)"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", "aarch64"),
        ("model name\t:\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_cpu_model(tmp_path, monkeypatch, cpuinfo, model):
    monkeypatch.setattr(environment.platform, "processor", lambda: "aarch64")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert environment._cpu_model(tmp_path / "cpuinfo") == model
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    assert environment._cpu_model(tmp_path / "missing") == "cpu"


@pytest.fixture
def git(tmp_path):
    """Runs git in a fresh checkout that tracks module.py."""

    def run(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "--quiet")
    (tmp_path / "module.py").write_text("first\n")
    run("add", "module.py")
    run("commit", "--quiet", "-m", "first")
    return run


def test_git_revision(git, tmp_path):
    head = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert git_revision(tmp_path / "module.py") == head
    (tmp_path / "notes.txt").write_text("untracked files do not count\n")
    assert git_revision(tmp_path / "module.py") == head
    (tmp_path / "module.py").write_text("second\n")
    assert git_revision(tmp_path / "module.py") == f"{head}+dirty"


def test_a_copy_without_git_has_the_revision_of_its_file(tmp_path):
    module = tmp_path / "copy" / "opbench" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    noted = tmp_path / "copy" / REVISION_FILE
    noted.write_text("0123456789" * 4 + "+dirty\n")
    assert git_revision(module) == "0123456789" * 4 + "+dirty"
    installed = tmp_path / "copy" / "lib" / "site-packages" / "other.py"
    assert git_revision(installed) is None
    noted.write_text("main\n")
    assert git_revision(module) is None


def test_git_knows_better_than_the_file(git, tmp_path):
    (tmp_path / REVISION_FILE).write_text("0123456789" * 4)
    assert git_revision(tmp_path / "module.py") == git("rev-parse", "HEAD")
    assert git_revision(tmp_path / "untracked.py") is None


def test_an_operators_revision_is_that_of_its_own_repository(git, tmp_path, monkeypatch):
    (tmp_path / "my_operators.py").write_text(
        "def make_inputs(case, generator):\n    return {}\n\ndef other_inputs(case, generator):\n    return {}\n"
    )
    git("add", ".")
    git("commit", "--quiet", "-m", "operators")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_operators")
    monkeypatch.delitem(sys.modules, "my_operators")
    head = git("rev-parse", "HEAD")
    mine = doubling(name="mine", make_inputs=module.make_inputs)
    assert registry.revisions([mine], "opbench's") == {"mine": None}  # no file is known
    monkeypatch.setitem(sys.modules, "my_operators", module)
    yours = doubling(name="yours", make_inputs=module.other_inputs)
    found = registry.revisions([mine, yours, registry.find("conv3x3")], "opbench's")
    assert found == {"mine": head, "yours": head, "conv3x3": "opbench's"}


def test_the_revision_of_what_was_measured():
    own = {"git_revision": "own"}
    assert measured_revision(own) == "own"
    assert measured_revision({}) == ""
    assert measured_revision(own | {"operator_revisions": {"conv3x3": "own"}}) == "own"
    assert measured_revision(own | {"operator_revisions": {"conv3x3": "own", "a": "x", "b": "x", "c": "y"}}) == "x, y"
    assert measured_revision(own | {"operator_revisions": {"a": None}}) == ""  # not opbench's
    assert measured_revision(own | {"operator_revisions": "damaged"}) == "own"


def differences(there, here, *, code=False):
    """The lines of what differs between two environments."""
    return list(Identity.of(there, code=code).differences(Identity.of(here, code=code)).values())


def test_a_run_does_not_go_on_with_another_revision_of_its_operators():
    own = {"git_revision": "own", "device": "cpu"}
    there, here = (own | {"operator_revisions": {"mine": revision}} for revision in ("x", "y"))
    assert differences(there, here, code=True) == ["operators' revisions: mine x there, mine y here"]
    assert differences(there, here) == []
    assert differences(there, there, code=True) == []
    assert differences(own, here, code=True) == []  # from before it was kept


def test_git_revision_in_a_hook_of_another_repository(git, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    revision = git_revision(tmp_path / "module.py")
    monkeypatch.delenv("GIT_DIR")
    assert revision == git("rev-parse", "HEAD")


def test_no_git_revision_where_the_checkout_is_someone_elses(git, tmp_path):
    installed = tmp_path / "venv" / "opbench.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert git_revision(installed) is None


def test_no_git_revision_without_commit_checkout_or_answer(tmp_path, monkeypatch):
    file = tmp_path / "module.py"
    file.write_text("")
    assert git_revision(file) is None
    subprocess.run(["git", "-C", str(tmp_path), "init", "--quiet"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "module.py"], check=True)
    assert git_revision(file) is None

    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_revision(file) is None


def test_identity_on_a_gpu(nvml):
    found = collect_environment("cuda:0")
    assert found["gpu"]["uuid"] == f"GPU-{UUID}"
    assert Identity.of(found).parts == {
        "device": "NVIDIA H200",
        "torch": found["packages"]["torch"],
        "triton": found["packages"]["triton"] or "none",
        "cuda": found["cuda_version"] or "none",
        "driver": "575.57.08",
        "gpu uuid": f"GPU-{UUID}",
    }


@pytest.mark.parametrize("told", [b"GPU-of an older nvidia-ml-py", None])
def test_the_uuid_as_nvml_gives_it(nvml, told):
    nvml.answers["nvmlDeviceGetUUID", HANDLE] = told
    assert collect_environment("cuda:0")["gpu"]["uuid"] == (told or b"").decode()


def test_two_cards_of_one_model_differ_and_an_unknown_one_does_not(nvml):
    one = collect_environment("cuda:0")
    nvml.answers["nvmlDeviceGetUUID", HANDLE] = "GPU-2"
    other = collect_environment("cuda:0")
    nvml.forget("nvmlDeviceGetUUID")
    silent = collect_environment("cuda:0")
    assert silent["gpu"]["uuid"] == ""
    before = json.loads(json.dumps(silent))
    del before["gpu"]["uuid"]
    assert differences(one, other) == [f"gpu uuid: GPU-{UUID} there, GPU-2 here"]
    for unknown in (silent, before):
        assert "gpu uuid" not in Identity.of(unknown).parts
        assert differences(unknown, one) == differences(other, unknown) == differences(silent, unknown) == []
    assert Identity.of(one).differences(Identity.of(other), allowed=["GPU_uuid"]) == {}


def test_differences(bare):
    here = collect_environment()
    assert differences(here, collect_environment()) == []
    there = json.loads(json.dumps(here))
    there["packages"].update(torch="2.11.0", triton=None, numpy="0.1")
    there["cpu"].update(torch_threads=64, load_average=[9.0, 9.0, 9.0])
    there["driver_version"] = "550.1"  # drives no CPU
    here["packages"].update(torch="2.15.0", triton="3.9.0")
    assert differences(there, here) == [
        "torch: 2.11.0 there, 2.15.0 here",
        "triton: none there, 3.9.0 here",
        f"torch threads: 64 there, {torch.get_num_threads()} here",
    ]


def test_differences_between_cpu_and_gpu_or_a_record_without_the_keys(nvml):
    gpu = collect_environment("cuda:0")
    cpu = collect_environment("cpu")
    assert differences(cpu, gpu) == [
        f"device: {cpu['device_name']} there, NVIDIA H200 here",
        f"torch threads: {torch.get_num_threads()} there, none here",
        "driver: none there, 575.57.08 here",
    ]
    assert "device: none there, NVIDIA H200 here" in differences({}, gpu)


def test_lines_on_a_gpu(nvml):
    found = collect_environment("cuda:0") | {"git_revision": None, "variables": {"OMP_NUM_THREADS": "2"}}
    found["cpu"].update(load_average=[0.5, 1.25, 2.0], usable_cores=2, logical_cores=4, torch_threads=2, governor=None)
    lines = environment_lines(found)
    assert len({label for label, _ in lines}) == len(lines)
    assert dict(lines) | {
        "device": "cuda:0, NVIDIA H200",
        "driver": "575.57.08",
        "GPU": "compute capability 9.0, 132 multiprocessors, L2 60.0 MiB, memory 140.0 GiB",
        "SM clock": "1755 of 1980 MHz",
        "memory clock": "3201 of 3202 MHz",
        "power": "123.456 of 700.0 W",
        "temperature": "41 C",
        "clocks limited by": "sw_power_cap, hw_thermal_slowdown, unknown_0x1000",
        "persistence mode": "on",
        "MIG mode": "off",
        "other GPU processes": f"{2**22 + 5} none (unknown), {2**22 + 7} python3 (1.0 GiB)",
        "CPU cores": "2 of 4 usable, 2 torch threads",
        "CPU governor": "none",
        "load average": "0.50, 1.25, 2.00",
        "OMP_NUM_THREADS": "2",
    } == dict(lines)


def test_lines_on_a_bare_machine(bare):
    lines = dict(environment_lines(collect_environment()))
    assert lines["driver"] == "none"
    assert lines["other GPU processes"] == "none"
    assert "SM clock" not in lines
    assert all(isinstance(value, str) and value for value in lines.values())


def test_what_is_known_without_torch_is_the_same(nvml):
    nvml.answers |= {
        ("nvmlDeviceGetCount",): 2,
        ("nvmlDeviceGetHandleByIndex", 0): HANDLE,
        ("nvmlDeviceGetHandleByIndex", 1): "another",
        ("nvmlDeviceGetName", HANDLE): "NVIDIA H200",
    }
    machine, everything = collect_machine(), collect_environment("cuda:0")
    assert machine.pop("gpu_names") == ["NVIDIA H200", "unknown"]
    machine["cpu"].pop("load_average")
    cpu = machine.pop("cpu")
    assert cpu.items() <= everything["cpu"].items()
    assert machine.items() <= everything.items()


def test_the_cuda_version_of_torch_is_read_from_its_file(tmp_path, monkeypatch):
    assert environment._torch_cuda_version() == torch.version.cuda
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(environment, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert environment._torch_cuda_version() is None
    for text, version in (("cuda: str | None = None\n", None), ("x = 1\ncuda = '12.8'\nhip = '6'\n", "12.8")):
        (tmp_path / "version.py").write_text(text)
        assert environment._torch_cuda_version() == version
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    assert environment._torch_cuda_version() is None


def test_lines_without_torch(bare):
    lines = machine_lines(collect_machine())
    assert dict(lines)["GPUs"] == "none that NVML sees"
    assert torch.__version__.startswith(dict(lines)["torch"])
    assert lines[-1][0] == "not asked"
    assert "`opbench env --check`" in lines[-1][1]
