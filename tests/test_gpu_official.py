"""The comparison with the official kernels, with a stand-in for them: what is launched, checked and printed."""

import json

import official
import pytest
import torch
from official import main
from official_launch import TABLES, DefaultLaunch, FastestLaunch, launches, read_tables
from official_ops import FOLDERS, copy_sources, default_provider, official_provider, with_official
from official_table import comparison_markdown, has_failures, pairs_by_case, ratio
from report_fixtures import make_run, measurement
from stand_in import StandIn

from opbench.errors import ResultsError
from opbench.results.measurement import Status
from opbench.results.run import Run
from opbench.sweeps.conduct import make_conduct
from opbench.sweeps.progress import NullProgress
from opbench.sweeps.request import make_request
from opbench.sweeps.run_cells import run_cells
from opbench.sweeps.start import start_run
from opbench.workload.case import Shape
from opbench.workload.trials import Trials, trials_of_cell

SHAPE = Shape(64, 7, 7, 1024)
ISSUE_SHAPE = "8x7x7x64"


class OfficialRule(DefaultLaunch):
    """The block of the official default, also where it does not divide the image."""

    def __call__(self, direction, value, groups, run):
        return self.launch(direction, tuple(value.shape), groups)


def sweep(tmp_path, provider, direction="fwd", operator="dcnv4"):
    """A sweep of the stand-in at 8x7x7x64, where the official rule is known to go wrong (issues of OpenGVLab/DCNv4)."""
    tmp_path.mkdir(exist_ok=True)
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("description: one\nshapes:\n  - {batch: 8, height: 7, width: 7, channels: 64}\n")
    operators = with_official({operator: [provider]})
    wanted = {
        "ops": [operator], "providers": [f"{operator}={provider.name}"], "shapes": [str(shapes)], "dtypes": ["fp32"],
        "level": ["core"], "direction": [direction], "device": "cpu", "time_budget": 1e-4,
        "settings": [f"{operator}.group_channels=16"],
    }  # fmt: skip
    conduct = make_conduct({"isolation": "none"})
    run = start_run(make_request(wanted, operators), operators, tmp_path / "run", conduct)
    run_cells(run, operators, NullProgress(), conduct)
    [row] = run.rows()
    return row


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_launch_that_divides_the_image_is_right_and_said(tmp_path, direction):
    row = sweep(tmp_path, official_provider("dcnv4", StandIn()), direction)
    assert (row.shape, row.status, row.reason) == (ISSUE_SHAPE, "ok", "")
    assert "forward_d_stride=" in row.configuration
    assert ("backward_d_stride=" in row.configuration) == (direction == "bwd")


def test_the_official_rule_is_found_wrong_before_it_is_timed(tmp_path):
    row = sweep(tmp_path, official_provider("dcnv4", StandIn(), OfficialRule({})))
    assert row.status == "wrong"
    assert "output is off by" in row.reason
    assert row.latency_ms is None


@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_launch_divides_the_image_and_fits_a_block(direction, element_bytes):
    for side, channels in ((56, 128), (28, 256), (14, 512), (7, 1024), (14, 768)):
        found = list(launches(direction, side * side, channels // 32, 32, element_bytes))
        assert found
        for per_thread, threads in found:
            pixels, rest = divmod(threads * per_thread, channels)
            assert rest == 0
            assert (side * side) % pixels == 0
            assert threads <= 1024
            assert per_thread * element_bytes <= 32  # one load


def test_the_fastest_launch_is_taken_and_one_that_is_refused_is_not():
    """By the trials of the cell, cold and warm apart: the wider a block, the faster, but the widest is refused."""
    value = torch.zeros(2, 7, 7, 64)
    [*_, widest] = sorted(launches("forward", 49, 2, 32, 4), key=lambda launch: launch[1])
    seen, measured = set(), []

    def run(launch):
        seen.add(launch)
        if launch == widest:
            raise RuntimeError("kernel launch error")

    def measure(works):
        measured.append([work.args[0] for work in works])
        return [[9.0, 1.0 / threads, 1.0 / threads] for _, threads in measured[-1]]

    choose = FastestLaunch()
    with trials_of_cell(Trials("cold", measure)):
        found = choose("forward", value, 2, run)
        assert found[1] == max(threads for _, threads in seen - {widest})
        assert choose.configuration() == f"forward_d_stride={found[0]};forward_block_thread={found[1]}"
        seen.clear()
        assert choose("forward", value, 2, run) == found
        assert not seen  # chosen once
    with trials_of_cell(Trials("warm", measure)):
        choose("forward", value, 2, run)
    assert measured[0] == measured[1]
    assert widest not in measured[0]
    cold, warm = choose.times_ms.values()
    assert cold == warm == {launch: 1.0 / launch[1] for launch in measured[0]}  # what lost is kept
    assert [(entry["asked"][-1], entry["times_ms"]["8,8"]) for entry in choose.to_json()] == [
        ("cold", 0.125),
        ("warm", 0.125),
    ]
    choose.forget()
    assert choose.configuration() == ""


def test_where_every_launch_is_refused_the_refusal_is_raised():
    def run(launch):
        raise RuntimeError("kernel launch error")

    with pytest.raises(RuntimeError, match="kernel launch error"):
        FastestLaunch()("forward", torch.zeros(2, 7, 7, 64), 2, run)


@pytest.mark.parametrize(
    ("direction", "shape", "groups", "launch"),
    [
        ("forward", (64, 7, 7, 1024), 32, (8, 512)),  # 4 pixels of 128 threads, though 49 has no divisor 4
        ("forward", (64, 56, 56, 128), 4, (8, 512)),  # 32 of 16
        ("forward", (1, 7, 7, 64), 2, (8, 392)),  # 49 of 8
        ("backward", (64, 56, 56, 128), 4, (1, 256)),  # 2 of 128
        ("backward", (64, 56, 56, 128), 2, (2, 256)),  # 4 of 64: groups of 64 channels
        ("backward", (64, 7, 7, 1024), 32, (1, 1024)),  # one pixel, whatever it takes
    ],
)
def test_the_official_rule_by_hand(direction, shape, groups, launch):
    assert DefaultLaunch({}).launch(direction, shape, groups) == launch


def test_the_official_table_goes_before_the_rule(tmp_path):
    assert read_tables(tmp_path) == {}
    path = tmp_path / TABLES
    path.parent.mkdir(parents=True)
    path.write_text('TABLE = {"8x7x7x4x16": [8, 56, 7]}\nBWDTABLE = {"8x7x7x4x16": [4, 784, 49]}\n')
    default = DefaultLaunch(read_tables(tmp_path))
    assert default.launch("forward", (8, 7, 7, 64), 4) == (8, 56)
    assert default.launch("backward", (8, 7, 7, 64), 4) == (4, 784)
    assert default.launch("forward", (4, 7, 7, 64), 4) == (8, 392)  # not in it


def default_of(tables):
    official = official_provider("dcnv4", StandIn())
    return default_provider(official, StandIn(), DefaultLaunch(tables))


def test_a_default_that_does_not_divide_the_image_is_not_timed(tmp_path):
    row = sweep(tmp_path, default_of({}))
    assert row.status == "not_applicable"
    assert row.reason == "its forward block of 56 pixels does not divide 7x7: silently wrong"
    backward = sweep(tmp_path / "backward", default_of({"forward": {"8x7x7x4x16": (8, 56)}}), "bwd")
    assert backward.reason == "its backward block of 4 pixels does not divide 7x7: silently wrong"
    wide = sweep(tmp_path / "wide", default_of({"forward": {"8x7x7x4x16": (16, 28)}}))
    assert wide.reason == "its forward launch has 16 channels per thread, more than fp32 allows"


def test_a_default_that_divides_the_image_is_timed(tmp_path):
    tables = {"forward": {"8x7x7x4x16": (8, 56)}, "backward": {"8x7x7x4x16": (4, 784)}}
    row = sweep(tmp_path, default_of(tables), "bwd")
    assert (row.status, row.reason) == ("ok", "")
    assert row.configuration == (
        "forward_d_stride=8;forward_block_thread=56;backward_d_stride=4;backward_block_thread=784"
    )


def test_a_check_at_a_smaller_image_has_a_right_block():
    default = DefaultLaunch({})
    assert default("forward", torch.zeros(8, 7, 7, 64), 4, None) == (8, 49 * 8)
    assert default("forward", torch.zeros(2, 5, 7, 64), 4, None) == (8, 35 * 8)


@pytest.mark.slow
def test_all_of_it_runs_dry(tmp_path, capsys):
    assert main(["--dry-run", "--out", str(tmp_path), "--ops", "dcnv4,dcnv3"]) == 0
    text = capsys.readouterr().out
    assert "planned: 400 cells a round, 2 rounds" in text  # 5 operators and providers, 10 shapes, 2 dtypes, 4 passes
    assert "dry run: 20 cells with a stand-in, all values are right" in text
    assert not list(tmp_path.glob("*.md"))


def test_one_direction_alone_runs_dry(tmp_path, capsys):
    assert main(["--dry-run", "--out", str(tmp_path), "--ops", "dcnv3", "--direction", "bwd"]) == 0
    run = Run.open(tmp_path / "dry-run")
    assert {cell.case.direction for cell in run.plan()} == {"bwd"}
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--direction", "sideways"])
    assert "--direction must be of fwd, bwd, got sideways" in capsys.readouterr().err


def test_a_round_goes_on_where_only_what_is_accepted_differs(tmp_path):
    operators = with_official({"dcnv3": [official_provider("dcnv3", StandIn())]})
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("description: one\nshapes:\n  - {batch: 1, height: 4, width: 4, channels: 32}\n")
    scope = {"shapes": [str(shapes)], "dtypes": ["fp32"], "level": ["core"], "direction": ["fwd"]}
    wanted = official.options(scope, ["dcnv3"], "torch", 0, device="cpu")
    path = official.sweep_round(tmp_path / "round", wanted, operators).path
    stored = json.loads((path / "run.json").read_text())
    stored["environment"]["packages"]["triton"] = "0.1"
    (path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(ResultsError, match=r"triton: 0\.1 there"):
        official.sweep_round(path, wanted, operators)
    assert len(official.sweep_round(path, wanted, operators, ["triton"]).measurements()) == 2


def test_what_does_not_build_is_said_and_is_a_row(tmp_path, capsys):
    """Without sources: the build ends at once, and a sweep would have the reason in every row."""
    assert official.build_only(["dcnv3"], tmp_path / "none", tmp_path / "build") == 1
    assert "the official extension did not build: no sources at" in capsys.readouterr().out
    [provider] = official.compiled_providers("dcnv3", tmp_path / "none", tmp_path / "build", FastestLaunch())
    assert sweep(tmp_path, provider, operator="dcnv3").status == "unavailable"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out")]) == 77
    assert "needs a CUDA device, none here: nothing was measured" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--ops", "conv3x3"])
    assert "--ops must be of dcnv4, dcnv3, got conv3x3" in capsys.readouterr().err


def two_rounds(tmp_path, official):
    """Ours takes 1 ms, in the second round 1.1; the official one `official` in both."""
    return [
        make_run(
            tmp_path / str(turn),
            [
                measurement("dcnv4", SHAPE, "fp16", ms, provider="triton"),
                measurement("dcnv4", SHAPE, "fp16", official, provider="official"),
                measurement("dcnv4", SHAPE, "fp32", 3.0 * ms, provider="triton"),
                measurement("dcnv4", SHAPE, "fp32", 1.0, provider="official"),
            ],
        )
        for turn, ms in ((1, 1.0), (2, 1.1))
    ]


def test_ratios_and_means_by_hand(tmp_path):
    runs = two_rounds(tmp_path, 2.0)
    half, full = (ratio(pairs) for pairs in pairs_by_case(runs, "triton").values())
    assert half.value == pytest.approx((0.5 * 0.55) ** 0.5)
    assert half.low <= 0.5
    assert half.high >= 0.55  # the rounds lie within
    assert full.value == pytest.approx((3.0 * 3.3) ** 0.5)
    text = comparison_markdown(runs, "triton", {"dcnv4": "0123456789abcdef"})
    assert "| dcnv4 | module | fwd | fp16 | 1 of 1 | 0.524 [" in text
    assert "| dcnv4 | module | fwd | fp16 | 64x7x7x1024 | 1, 1.1 | 2, 2 | 0.524 [" in text
    assert "dcnv4 0123456789abcdef" in text
    assert not has_failures(runs, "triton")


def test_the_official_default_has_tables_of_its_own(tmp_path):
    runs = [
        make_run(
            tmp_path,
            [
                measurement("dcnv4", shape, "fp16", time, provider=provider)
                for shape, times in ((SHAPE, (1.0, 2.0, 4.0)), (Shape(8, 7, 7, 64), (1.0, 2.0, Status.NOT_APPLICABLE)))
                for provider, time in zip(("triton", "official", "official_default"), times, strict=True)
            ],
        )
    ]
    best, default = comparison_markdown(runs, "triton", {}).split("\n## ")[1:]
    assert "| dcnv4 | module | fwd | fp16 | 2 of 2 | 0.5" in best
    assert "| dcnv4 | module | fwd | fp16 | 1 of 2 | 0.25" in default
    assert "Without a ratio:" in default
    assert "Without a ratio:" not in best
    assert not has_failures(runs, "triton")  # where it is silently wrong, there is nothing to measure


@pytest.mark.parametrize("status", [Status.WRONG, Status.UNAVAILABLE, Status.OUT_OF_MEMORY, Status.NOT_RUN])
def test_a_cell_that_failed_has_no_ratio_and_its_reason(tmp_path, status):
    runs = two_rounds(tmp_path, status)
    text = comparison_markdown(runs, "triton", {})
    assert "| dcnv4 | module | fwd | fp16 | 0 of 1 | none |" in text
    assert f"| 1, 1.1 | {status}, {status} | none |" in text
    assert f"@official: {status}, " in text
    assert has_failures(runs, "triton")


def test_sources_are_copied_with_the_update(tmp_path):
    source = tmp_path / FOLDERS["dcnv3"]
    source.mkdir(parents=True)
    (source / "a.cu").write_text('DISPATCH(input.type(), "name", input.data<scalar_t>(), input.type().is_cuda());\n')
    [copy] = copy_sources(source, tmp_path / "build")
    assert copy.read_text() == (
        'DISPATCH(input.scalar_type(), "name", input.data<scalar_t>(), input.type().is_cuda());\n'
    )
    before = copy.stat().st_mtime_ns
    copy_sources(source, tmp_path / "build")
    assert copy.stat().st_mtime_ns == before
    with pytest.raises(FileNotFoundError, match="put a checkout of the official repository there"):
        copy_sources(tmp_path / "none", tmp_path / "build")
