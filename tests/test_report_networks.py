"""Tables of whole networks: throughput, the operators of one network, and published throughputs beside ours."""

from dataclasses import replace

import pytest
from report_fixtures import make_run, measurement

from opbench.backbones.operators import OPERATORS
from opbench.report import published_network_tables, render, write_tables
from opbench.report.networks import network_tables
from opbench.results.measurement import Status
from opbench.results.published_networks import published_networks
from opbench.workload.case import Shape

IMAGES = Shape(16, 800, 800, 3)


def measured(name, value, operator="", dtype="fp16", shape=IMAGES, **changes):
    settings = (("operator", operator), ("offset_std_px", 1.0)) if operator else ()
    found = measurement(
        name, shape, dtype, value, shape_list="backbone", level="model", settings=settings, provider="triton", **changes
    )
    return replace(found, cell=replace(found.cell, parameter_count=30_000_000, mac_count=5_000_000_000))


def swapped(tmp_path, *, without=True):
    values = {"dcnv3": 100.0, "dcnv4": 80.0, "conv3x3": Status.OUT_OF_MEMORY} | ({"none": 60.0} if without else {})
    return make_run(tmp_path / "run", [measured("internimage_t", value, name) for name, value in values.items()])


def test_throughput_with_parameters_and_macs(tmp_path):
    run = make_run(tmp_path / "run", [measured("internimage_t", 100.0, "dcnv3"), measured("slak_tiny", Status.TIMEOUT)])
    [table] = network_tables(run)
    assert table.columns[2:] == ("parameters\n(M)", "800×800×3\nMAC / image (G)", "800×800×3\nfp16 (images/s)")
    assert table.rows == (
        ("internimage_t", "triton", "30.0", "5.00", "160"),
        ("slak_tiny", "triton", "30.0", "5.00", "timeout"),
    )


def test_memory_stands_there_where_it_is_known(tmp_path):
    with_memory = replace(measured("slak_tiny", 10.0), peak_memory_bytes=3 * 2**30)
    [table] = network_tables(make_run(tmp_path / "run", [with_memory]))
    assert (table.columns[-1], table.rows[0][-1]) == ("800×800×3\nmemory fp16 (GiB)", "3.00")


def test_an_operators_share_is_what_the_network_without_it_lacks(tmp_path):
    _, table = network_tables(swapped(tmp_path))
    assert table.title == "Operators in internimage_t (triton): backbone, batch 16, model, fwd"
    assert table.rows == (
        ("dcnv3", "100", "40.0", "40 %", "160"),
        ("dcnv4", "80.0", "20.0", "25 %", "200"),
        ("conv3x3", "OOM", "—", "—", "—"),
        ("none", "60.0", "—", "—", "267"),
    )


def test_without_that_network_no_share_is_told(tmp_path):
    _, table = network_tables(swapped(tmp_path, without=False))
    assert table.rows[0] == ("dcnv3", "100", "—", "—", "160")
    assert "--set internimage_t.operator=...,none" in table.notes[-1]


def test_published_throughputs_stand_beside_those_of_the_batch_or_the_largest(tmp_path):
    run = make_run(
        tmp_path / "run",
        [
            measured("internimage_b", 40.0, "dcnv3", shape=Shape(2, 800, 800, 3)),
            measured("internimage_b", 20.0, "dcnv4", shape=Shape(2, 800, 800, 3)),
            measured("internimage_b", 40.0, "dcnv3", shape=Shape(64, 800, 800, 3)),
            measured("convnext_base", 80.0, shape=Shape(4, 800, 800, 3)),
            measured("replknet_31b", Status.OUT_OF_MEMORY, shape=Shape(2, 800, 800, 3)),
        ],
    )
    [table] = published_network_tables(run)
    assert table.title == "Measured beside InternImage Table F, 800×800, fp16"
    assert table.rows == (
        ("InternImage-B", "internimage_b", "triton", "50.0", "54.0", "1.00", "1.00"),
        ("ConvNeXt-B", "convnext_base", "triton", "50.0", "58.0", "1.00", "1.07"),
    )
    assert "A100, batch 2, dtype not stated. Measured: batch 2, 4, fp16" in table.notes[1]
    assert {path.stem for path in write_tables(run)} >= {table.name}


def test_systems_with_heads_are_of_their_dtype_and_labelled(tmp_path):
    cells = [
        measured(name, 10.0, operator, dtype, Shape(1, 512, 512, 3))
        for name, operator in (("internimage_t", "dcnv3"), ("flash_internimage_t", "dcnv4"))
        for dtype in ("fp32", "bf16")
    ]
    tables = published_network_tables(make_run(tmp_path / "run", cells))
    published = {table.title.rpartition(", ")[2]: [row[4] for row in table.rows] for table in tables}
    assert published == {"fp32": ["91.0", "105"], "bf16": ["123", "145"]}
    assert all("Published with Mask2Former" in render(table, "markdown") for table in tables)


def test_one_network_alone_is_not_compared(tmp_path):
    assert published_network_tables(make_run(tmp_path / "run", [measured("convnext_base", 1.0)])) == []


@pytest.mark.parametrize("published", published_networks(), ids=lambda each: f"{each.source} {each.label}")
def test_published_networks_are_networks_of_opbench(published):
    known = {operator.name: operator for operator in OPERATORS}
    assert not published.network or published.network in known
    if published.settings:
        name, _, value = published.settings.partition("=")
        assert known[published.network].settings[name].default == value
    assert (published.scope == "backbone") == (published.batch is not None)
