"""The choice of a configuration: remembered in memory and on disk, and never a matter of values."""

import json
import tempfile
from typing import NamedTuple

import pytest
import torch
from opbench_kernels import dcnv4, tuning
from opbench_kernels.bilinear_launch import (
    BACKWARD_CONFIGS,
    FORWARD_CONFIGS,
    Config,
    _candidates,
)
from opbench_kernels.deform import configs
from opbench_kernels.deform.geometry import Geometry
from opbench_kernels.deform.launch import backward_config, forward_config, sampled_dcnv4
from opbench_kernels.launch import place_in_vector
from triton.runtime.errors import OutOfResources

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("OPBENCH_KERNELS_CACHE", str(tmp_path / "folder" / "tuning.json"))
    forget(monkeypatch)
    return tmp_path / "folder" / "tuning.json"


def forget(monkeypatch):
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_state", {})


class Tile(NamedTuple):
    """The configuration of another family of kernels."""

    width: int
    num_warps: int


TILES = [Tile(1, 4), Tile(2, 4), Tile(4, 8)]
KEY = tuning.Key("other forward", torch.device("cpu"), ("fp16", 64), ("opbench_kernels.launch",))


class Kernels:
    """Launches of each tile, which say that one is the fastest, count how often they ran, and may be refused."""

    def __init__(self, fastest, cache="cold", refused=()):
        self.fastest, self.refused, self.launched, self.timed = fastest, refused, [], []
        tuning.enable(timing=tuning.Timing(self.measure, cache))

    def launch_of(self, tile):
        def launch():
            if tile in self.refused:
                raise OutOfResources(300_000, 232_448, "shared memory")
            self.launched.append(tile)

        launch.tile = tile
        return launch

    def measure(self, launches):
        self.timed.append([launch.tile for launch in launches])
        return [[9.0, 1.0, 1.0] if launch.tile == self.fastest else [2.0, 0.5, 3.0] for launch in launches]

    def choose(self, key=KEY, candidates=TILES):
        return tuning._tuned(key, candidates, self.launch_of)


def test_the_fastest_by_its_median_is_chosen_once_and_remembered_on_disk(memory, monkeypatch):
    kernels = Kernels(Tile(2, 4))
    assert kernels.choose() == Tile(2, 4)
    assert kernels.launched == TILES  # compiled before anything is timed
    assert kernels.timed == [TILES]
    assert kernels.choose() == Tile(2, 4)
    assert len(kernels.timed) == 1  # from memory
    forget(monkeypatch)
    again = Kernels(Tile(1, 4))
    found = again.choose()
    assert (found, type(found), again.timed) == (Tile(2, 4), Tile, [])  # from the file


def test_the_file_keeps_what_lost_and_what_the_device_cannot_run(memory):
    assert Kernels(Tile(1, 4), refused=[Tile(4, 8)]).choose() == Tile(1, 4)
    [(text, entry)] = json.loads(memory.read_text()).items()
    assert text.split("/")[2:] == ["other forward", "cold", "cpu", "fp16", "64"]
    assert entry == {
        "chosen": [1, 4],
        "times": [
            {"config": [1, 4], "median_ms": 1.0, "samples": 3},
            {"config": [2, 4], "median_ms": 2.0, "samples": 3},
            {"config": [4, 8], "median_ms": None, "samples": 0},
        ],
    }


def test_where_the_device_can_run_none_its_reason_is_raised(memory):
    with pytest.raises(OutOfResources, match="shared memory"):
        Kernels(Tile(1, 4), refused=TILES).choose()
    assert not memory.exists()


def test_cold_and_warm_are_choices_of_their_own(memory):
    assert Kernels(Tile(1, 4), "cold").choose() == Tile(1, 4)
    warm = Kernels(Tile(2, 4), "warm")
    assert warm.choose() == Tile(2, 4)
    assert Kernels(Tile(4, 8), "cold").choose() == Tile(1, 4)
    assert len(json.loads(memory.read_text())) == 2


def test_a_choice_that_is_no_longer_a_candidate_is_made_again(memory, monkeypatch):
    assert Kernels(Tile(4, 8)).choose() == Tile(4, 8)
    forget(monkeypatch)  # another version of the package, which keeps the text of the kernel
    assert Kernels(Tile(2, 4)).choose(candidates=TILES[:2]) == Tile(2, 4)
    forget(monkeypatch)
    assert Kernels(Tile(1, 4)).choose() == Tile(2, 4)


@pytest.mark.parametrize("change", [{"kernel": "other backward"}, {"facts": ("fp16", 32)}, {"sources": ("json",)}])
def test_another_key_is_another_choice(memory, change):
    kernels = Kernels(Tile(1, 4))
    kernels.choose()
    kernels.choose(KEY._replace(**change))
    assert len(kernels.timed) == len(json.loads(memory.read_text())) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"key": 1}', "null", '{"TEXT": {"chosen": ["a"]}}', '{"TEXT": [1, 4]}']
)
def test_a_damaged_file_is_made_again(memory, text):
    memory.parent.mkdir()
    memory.write_text(text.replace("TEXT", tuning._text(KEY, "cold")))
    assert Kernels(Tile(2, 4)).choose() == Tile(2, 4)
    assert json.loads(memory.read_text())[tuning._text(KEY, "cold")]["chosen"] == [2, 4]


def test_a_folder_that_cannot_be_written_costs_nothing_but_memory(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPBENCH_KERNELS_CACHE", str(tmp_path / "file" / "tuning.json"))
    forget(monkeypatch)
    assert Kernels(Tile(4, 8)).choose() == Tile(4, 8)


def test_a_user_without_a_home_has_a_place(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("OPBENCH_KERNELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tuning.Path, "home", homeless)
    assert tuning.cache_path().is_relative_to(tempfile.gettempdir())


def test_a_launch_that_is_known_reads_no_file(memory, monkeypatch):
    kernels = Kernels(Tile(2, 4))
    kernels.choose()
    for name in ("_digest", "_read", "cache_path", "_samples"):
        monkeypatch.setattr(tuning, name, None)
    assert kernels.choose() == Tile(2, 4)


def test_nothing_is_timed_while_a_graph_is_captured(memory, monkeypatch):
    monkeypatch.setattr(tuning.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: True)
    kernels = Kernels(Tile(4, 8))
    assert kernels.choose() == TILES[0]
    assert not tuning._known
    assert not kernels.launched
    monkeypatch.setattr(tuning.torch.cuda, "is_current_stream_capturing", lambda: False)
    assert kernels.choose() == Tile(4, 8)


def test_by_itself_the_package_times_the_launches_in_turns(monkeypatch):
    asked = []
    monkeypatch.setattr(tuning.triton.testing, "do_bench", lambda launch, **_: asked.append(launch) or float(launch))
    assert tuning._in_rounds([1, 2, 3]) == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert asked == [1, 2, 3, 2, 3, 1, 3, 1, 2]


def test_a_choice_is_the_rules_where_nothing_is_tuned_and_is_told_by_kernel(memory):
    tuning.forget_choices()
    kernels = Kernels(Tile(4, 8))
    assert tuning.choose(KEY, TILES, kernels.launch_of) == TILES[0]  # the key's device is a CPU
    tuning.enable(False)
    on_gpu = KEY._replace(kernel="other backward", device=torch.device("cuda:0"))
    assert tuning.choose(on_gpu, TILES[1:], kernels.launch_of) == TILES[1]
    assert tuning.last_choices() == {"other forward": TILES[0], "other backward": TILES[1]}
    assert not kernels.timed
    tuning.forget_choices()
    assert not tuning.last_choices()


def sampled(batch=2, channels=64, extra=0, packed=56):
    value = torch.zeros(batch, 5, 4, channels + extra, device=DEVICE)[..., extra:]
    offset_mask = torch.zeros(batch, 5, 4, packed, device=DEVICE)
    return sampled_dcnv4(value, offset_mask, 2, Geometry()), torch.empty(batch, 5, 4, channels, device=DEVICE)


def test_sizes_share_a_power_of_two_and_other_sizes_do_not():
    rows = (80, 120, 280)
    few, more, many = (configs._key(configs.FORWARD, *sampled(batch=count // 40)) for count in rows)
    assert few == more != many


def test_strides_and_alignment_are_part_of_the_key():
    """Of the value as a part of a larger tensor, and of offsets and masks packed with other padding."""
    keys = [
        configs._key(configs.FORWARD, *sampled(**change))
        for change in ({}, {"extra": 4}, {"extra": 8}, {"extra": 2}, {"packed": 64})
    ]
    assert len({*keys}) == len(keys)
    starts = [place_in_vector(torch.zeros(64, dtype=torch.float16)[start:]) for start in (0, 8, 4, 1, 12)]
    assert starts == [0, 0, 8, 2, 8]


def test_the_rules_configuration_is_the_first_candidate(monkeypatch):
    seen = []
    monkeypatch.setattr(tuning, "_state", {"enabled": True})
    monkeypatch.setattr(tuning, "choose", lambda key, candidates, launch_of: seen.append(candidates) or candidates[0])
    asked = sampled()
    assert configs.choose_forward(*asked) == forward_config(asked[0])
    assert sorted(seen[0]) == sorted(FORWARD_CONFIGS)


def test_narrow_groups_have_no_second_vector():
    for vectors, expected in ((0, {1}), (1, {1}), (2, {1, 2})):
        assert {config.vectors for config in _candidates(Config(1, 2), FORWARD_CONFIGS, vectors)} == expected
    assert {config.vectors for config in _candidates(Config(2, 1), BACKWARD_CONFIGS, 8)} == {1, 2, 4}


@pytest.mark.parametrize("deterministic", [False, True])
def test_trials_of_the_backward_kernel_add_to_no_gradient(monkeypatch, deterministic):
    """And every candidate gives what the rule's gives."""
    asked, _ = sampled(batch=1)
    generator = torch.Generator().manual_seed(0)
    for tensor in asked[:3]:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    grad_out = torch.randn(1, 5, 4, 64, generator=generator).to(DEVICE)
    sums = torch.zeros(1, 5, 4, 64, device=DEVICE, dtype=torch.int64 if deterministic else torch.float32)
    others = torch.zeros_like(asked.offset), torch.zeros_like(asked.mask)
    units = torch.tensor([2.0**10, 2.0**10], device=DEVICE) if deterministic else None
    tried = []

    def choose(key, candidates, launch_of):
        assert (key.kernel, key.facts[-1]) == (configs.BACKWARD, deterministic)
        for candidate in candidates:
            launch_of(candidate)()
            tried.append((candidate, *(gradient.clone() for gradient in others)))
        return candidates[-1]

    monkeypatch.setattr(tuning, "_state", {"enabled": True})
    monkeypatch.setattr(tuning, "choose", choose)
    configs.choose_backward(asked, grad_out, sums, *others, units)
    assert not sums.any()
    assert tried[0][0] == backward_config(asked)
    assert {candidate for candidate, *_ in tried} == {*BACKWARD_CONFIGS}
    for _, offset, mask in tried:
        torch.testing.assert_close(offset, tried[0][1])
        torch.testing.assert_close(mask, tried[0][2])


def test_without_tuning_a_launch_makes_no_key(monkeypatch):
    """It is taken at every launch of a model."""
    monkeypatch.setattr(tuning, "_state", {"enabled": False})
    monkeypatch.setattr(configs, "_key", None)
    asked = sampled()
    assert configs.choose_forward(*asked) == tuning.last_choices()[configs.FORWARD] == forward_config(asked[0])


@pytest.mark.parametrize("config", FORWARD_CONFIGS)
@pytest.mark.parametrize("channels", [64, 80])
def test_every_configuration_gives_the_same_values(monkeypatch, config, channels):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 5, 4, channels, generator=generator)
    packed = torch.randn(2, 5, 4, 56, generator=generator)
    monkeypatch.setattr(configs, "forward_config", lambda _: config)
    monkeypatch.setattr(tuning, "_state", {"enabled": False})
    got = dcnv4(value.to(DEVICE), packed.to(DEVICE), groups=2, implementation="triton").cpu()
    assert tuning.last_choices()[configs.FORWARD] == config
    assert isinstance(config, Config)
    torch.testing.assert_close(got, dcnv4(value, packed, groups=2, implementation="torch"))


def test_tuning_is_asked_for(monkeypatch):
    monkeypatch.setattr(tuning, "_state", {})
    monkeypatch.delenv("OPBENCH_KERNELS_AUTOTUNE", raising=False)
    assert not tuning.is_enabled()
    monkeypatch.setenv("OPBENCH_KERNELS_AUTOTUNE", "1")
    assert tuning.is_enabled()
    tuning.enable(False)
    assert not tuning.is_enabled()
