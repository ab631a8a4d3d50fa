"""`--ops`: names, families, `all`, and what a sweep takes where nothing is named."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from opbench.cli.app import app
from opbench.cli.completion import operators as completed
from opbench.errors import UnknownNameError, UsageError
from opbench.registry import registry
from opbench.registry.families import chosen_operators, default_names, settings_by_operator
from opbench.registry.registry import registered
from opbench.sweeps.plan import plan_cells
from opbench.sweeps.request import make_request

CPU = {"device": "cpu", "dtypes": ["fp32"], "shapes": ["smoke"]}


@pytest.fixture
def operators():
    """Two of a family, one of another, one of none, and one that is taken only when it is named."""
    conv = registry.find("conv3x3")
    kinds = {"a": "dcn", "b": "large-kernel", "c": "dcn", "d": ""}
    known = {name: replace(conv, name=name, family=family) for name, family in kinds.items()}
    return known | {"e": replace(conv, name="e", family="large-kernel", by_default=False)}


@pytest.mark.parametrize(
    ("ops", "expected"),
    [
        (["dcn"], "ac"),
        (["large-kernel", "a"], "bea"),
        (["c", "dcn"], "ca"),
        (["all"], "abcde"),
        (["e", "all"], "eabcd"),
        (["d"], "d"),
        (None, "abcd"),
    ],
)
def test_a_name_stands_for_its_operators_each_once_where_it_is_first_named(operators, ops, expected):
    assert list(make_request({**CPU, "ops": ops}, operators).ops) == list(expected)


def test_an_operator_hides_a_family_of_its_name(operators):
    operators["dcn"] = replace(operators["d"], name="dcn")
    assert list(chosen_operators(["dcn"], operators)) == ["dcn"]


@pytest.mark.parametrize("name", ["dcm", ""])
def test_an_unknown_name_is_told_what_there_is(operators, name):
    with pytest.raises(UnknownNameError, match="dcn") as raised:
        chosen_operators([name], operators)
    assert "large-kernel, all" in str(raised.value)


def test_a_sweep_takes_the_papers_operators_where_none_is_named():
    built_in = [
        name
        for name in default_names(registry.registered())
        if registry.operator_module(registry.find(name)).startswith("opbench.operators.")
    ]
    assert built_in == list(registry.PAPER_ORDER)


def test_every_built_in_operator_has_a_family():
    for name, operator in registry.registered().items():
        if registry.operator_module(operator).startswith("opbench.operators."):
            assert operator.family, name


def test_the_command_line_knows_families():
    result = CliRunner().invoke(
        app, ["sweep", "--ops", "dcn", "--shapes", "smoke", "--dtypes", "fp32", "--device", "cpu", "--dry-run"]
    )
    assert result.exit_code == 0
    named = {line.split("/")[0] for line in result.stdout.splitlines() if "/module/" in line and "largest" not in line}
    assert named >= {"dcnv3", "dcnv4", "dcnv4_lightweight"}
    assert not named & {"conv3x3", "attention"}
    assert {"dcn", "attention", "convolution", "all"} <= {*completed("")}


SWEPT = ("dcnv4", "dcnv4_lightweight", "internimage_t", "convnext_tiny", "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize(
    ("owner", "setting", "expected"),
    [
        ("dcnv4", "dw_kernel_size", ["dcnv4"]),
        ("dcn", "dw_kernel_size", ["dcnv4", "dcnv4_lightweight"]),
        ("all", "group_channels", ["dcnv4", "dcnv4_lightweight"]),
        ("model", "operator", ["internimage_t", "convnext_tiny"]),  # a Swin has no such setting
        ("backbone", "operator", ["internimage_t", "convnext_tiny"]),
    ],
)
def test_a_setting_of_a_family_is_one_of_its_swept_operators_that_have_it(owner, setting, expected):
    known = registered()
    swept = {name: known[name] for name in SWEPT}
    found = settings_by_operator([(owner, setting, "1")], swept, known)
    assert found == tuple((name, setting, "1") for name in expected)


@pytest.mark.parametrize(
    ("owner", "setting", "error", "message"),
    [
        (
            "modle",
            "operator",
            UnknownNameError,
            "unknown operator in --set 'modle'; known: .*; did you mean 'model'\\?",
        ),
        (
            "model",
            "operatr",
            UnknownNameError,
            "unknown setting of internimage_t, .* 'operatr'; known: .*; did you mean 'operator'\\?",
        ),
        ("attention", "head_dim", UsageError, "--set names attention, which is not swept: add it to --ops"),
        ("convolution", "n_div", UsageError, "--set names convolution, of which nothing is swept: add it to --ops"),
    ],
)
def test_a_setting_that_nobody_takes_is_one_line(owner, setting, error, message):
    options = {"ops": SWEPT, "settings": [f"{owner}.{setting}=1"], "device": "cpu"}
    with pytest.raises(error, match=message):
        plan_cells(make_request(options, registered()), [], registered())


def test_the_command_line_swaps_the_operator_of_every_network():
    arguments = ["--ops", "internimage_t,flash_internimage_t", "--set", "model.operator=dcnv3,none", "--dtypes", "fp32"]
    result = CliRunner().invoke(app, ["sweep", *arguments, "--device", "cpu", "--dry-run"])
    assert result.exit_code == 0, result.output
    cells = [
        line.split("/")[0] for line in result.stdout.splitlines() if "/model/fwd/" in line and "largest" not in line
    ]
    assert cells == 2 * ["internimage_t"] + 2 * ["flash_internimage_t"]
