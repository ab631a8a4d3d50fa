"""The choice of a configuration: remembered in memory and on disk, and never a matter of values."""

import json
import tempfile

import pytest
import torch
from opbench_kernels import dcnv4, tuning
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.deform.launch import Config, sampled_dcnv4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("OPBENCH_KERNELS_CACHE", str(tmp_path / "folder" / "tuning.json"))
    monkeypatch.setattr(tuning, "_known", {})
    return tmp_path / "folder" / "tuning.json"


def sampled(batch=2, channels=64):
    value = torch.zeros(batch, 5, 4, channels, device=DEVICE)
    return sampled_dcnv4(value, torch.zeros(batch, 5, 4, 56, device=DEVICE), 2, Geometry()), value


class FakeTimer:
    """Says that one configuration is the fastest, and counts how often it is asked."""

    def __init__(self, fastest):
        self.fastest, self.asked = fastest, []

    def __call__(self, launch):
        config = Config(launch.constants["VECTORS"], launch.options["num_warps"])
        self.asked.append(config)
        return 1.0 if config == self.fastest else 2.0


def test_the_fastest_is_chosen_once_and_remembered_on_disk(memory, monkeypatch):
    timer = FakeTimer(Config(2, 4))
    assert tuning._tuned(*sampled(), timer) == Config(2, 4)
    assert sorted(timer.asked) == sorted(tuning.CONFIGS)
    assert tuning._tuned(*sampled(), timer) == Config(2, 4)
    assert len(timer.asked) == len(tuning.CONFIGS)  # from memory
    monkeypatch.setattr(tuning, "_known", {})
    assert tuning._tuned(*sampled(), FakeTimer(Config(1, 1))) == Config(2, 4)  # from the file
    [key] = json.loads(memory.read_text())
    assert "/torch.float32/2/32/9/" in key


def test_sizes_share_a_power_of_two_and_other_sizes_do_not(memory):
    timer = FakeTimer(Config(1, 4))
    tuning._tuned(*sampled(batch=3), timer)
    tuning._tuned(*sampled(batch=2), timer)  # 120 and 80 rows
    assert len(timer.asked) == len(tuning.CONFIGS)
    tuning._tuned(*sampled(batch=7), timer)
    assert len(timer.asked) == 2 * len(tuning.CONFIGS)
    assert len(json.loads(memory.read_text())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": 1}', "null"])
def test_a_damaged_file_is_made_again(memory, text):
    memory.parent.mkdir()
    memory.write_text(text)
    assert tuning._tuned(*sampled(), FakeTimer(Config(1, 1))) == Config(1, 1)
    assert len(json.loads(memory.read_text())) == 1


def test_a_folder_that_cannot_be_written_costs_nothing_but_memory(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPBENCH_KERNELS_CACHE", str(tmp_path / "file" / "tuning.json"))
    monkeypatch.setattr(tuning, "_known", {})
    assert tuning._tuned(*sampled(), FakeTimer(Config(1, 2))) == Config(1, 2)


def test_a_user_without_a_home_has_a_place(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("OPBENCH_KERNELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tuning.Path, "home", homeless)
    assert tuning.cache_path().is_relative_to(tempfile.gettempdir())


def test_a_launch_that_is_known_reads_no_file(memory, monkeypatch):
    tuning._tuned(*sampled(), FakeTimer(Config(1, 4)))
    for name in ("_source", "_read", "cache_path"):
        monkeypatch.setattr(tuning, name, None)
    assert tuning._tuned(*sampled(), None) == Config(1, 4)


def test_nothing_is_timed_while_a_graph_is_captured(memory, monkeypatch):
    monkeypatch.setattr(tuning.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: True)
    asked = sampled()
    assert tuning._tuned(*asked, None) == tuning.forward_config(asked[0])
    assert not tuning._known
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning._tuned(*asked, FakeTimer(Config(1, 1))) == Config(1, 1)


def test_narrow_groups_have_no_second_vector():
    narrow, _ = sampled(channels=4)
    assert {config.vectors for config in tuning._possible(narrow)} == {1}


@pytest.mark.parametrize("config", tuning.CONFIGS)
@pytest.mark.parametrize("channels", [64, 80])
def test_every_configuration_gives_the_same_values(monkeypatch, config, channels):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 5, 4, channels, generator=generator)
    packed = torch.randn(2, 5, 4, 56, generator=generator)
    monkeypatch.setattr(tuning, "forward_config", lambda _: config)
    got = dcnv4(value.to(DEVICE), packed.to(DEVICE), groups=2, implementation="triton").cpu()
    assert tuning.last_choice() == config
    torch.testing.assert_close(got, dcnv4(value, packed, groups=2, implementation="torch"))


def test_tuning_is_asked_for(monkeypatch):
    monkeypatch.setattr(tuning, "_state", {})
    monkeypatch.delenv("OPBENCH_KERNELS_AUTOTUNE", raising=False)
    assert not tuning.is_enabled()
    monkeypatch.setenv("OPBENCH_KERNELS_AUTOTUNE", "1")
    assert tuning.is_enabled()
    tuning.enable(False)
    assert not tuning.is_enabled()
