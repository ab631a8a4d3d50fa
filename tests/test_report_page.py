"""The HTML page: what it holds, that nothing in a run can become markup, and how it behaves in a real browser.

The browser tests need Chromium and its driver (Debian: chromium, chromium-driver). Without them they are skipped, and
say so; with OPBENCH_REQUIRE_BROWSER set, as in .ci/run, they fail.
"""

import base64
import csv
import hashlib
import io
import itertools
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest
from browser import (
    DESKTOP,
    PHONE,
    accessibility_faults,
    chromium,
    console_errors,
    missing_browser,
    open_page,
    requested_addresses,
)
from ceiling_fixtures import example_ceilings
from report_fixtures import HOSTILE, Markup, hostile_run, make_run, measurement

from opbench.errors import UsageError
from opbench.registry.registry import PAPER_ORDER
from opbench.report import write_page
from opbench.report.cell_text import cell_text
from opbench.report.layout import PAPER_LABELS
from opbench.report.page.data import MOST_SAMPLES, page_data
from opbench.report.page.environment import in_words
from opbench.report.page.html import page
from opbench.report.value_text import shape_text
from opbench.results.energy import EnergyWindow
from opbench.results.frames import load_results
from opbench.results.measurement import Status
from opbench.results.published import PublishedRun, open_run
from opbench.results.run import Run
from opbench.workload.case import OPERATOR_DIRECTIONS, OPERATOR_LEVELS, Dtype, Shape

SHAPES = [Shape(64, 56, 56, 128), Shape(64, 28, 28, 256), Shape(64, 14, 14, 512)]


def example_cells(factor=1.0, operators=tuple(PAPER_LABELS)):
    """Both levels of every operator; one cell of each kind of failure; one that beats the example ceilings."""
    cells = []
    for (rank, operator), level, dtype, (place, shape) in itertools.product(
        enumerate(operators), ("module", "core"), ("fp32", "fp16"), enumerate(SHAPES)
    ):
        value = factor * (rank + 1.37) * (3.1 - place) * (1.0 if dtype == "fp32" else 0.43)
        value *= 1.0 if level == "module" else 0.71
        if operator == "flash_attention_2" and dtype == "fp32":
            value = Status.NOT_APPLICABLE
        elif operator == "attention" and place == 0:
            value = Status.OUT_OF_MEMORY
        elif operator == "dcnv3" and place == 1 and level == "core":
            value = Status.ERROR
        flop_count = 10**9 if (operator, place) != ("conv3x3", 0) else 10**12
        cells.append(measurement(operator, shape, dtype, value, level=level, flop_count=flop_count))
    return cells


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "first", example_cells())
    run.write_ceilings(example_ceilings())
    return Run.open(run.path)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "second", example_cells(factor=0.8))


def data_of(text):
    return json.loads(Markup(text).scripts[0])


# What the page holds


def test_the_page_names_no_other_host_and_its_policy_names_its_scripts(example):
    text = page([example])
    markup = Markup(text)
    for tag, attributes in markup.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert {tag for tag, _ in markup.tags}.isdisjoint({"iframe", "object", "embed", "base"})
    css = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    [policy] = [a["content"] for tag, a in markup.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    named = re.findall(r"'sha256-([^']+)'", policy)
    own = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in markup.scripts[1:]]
    assert named == own


def test_every_row_is_in_the_data_as_it_is(example, second):
    data = data_of(page([example, second]))
    assert data == json.loads(json.dumps(page_data([example, second]) | {"runs": data["runs"]}))
    expected = [row.to_dict() for row in (*example.rows(), *second.rows())]
    assert [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]] == expected
    assert data["owner"] == [0] * len(example.rows()) + [1] * len(second.rows())
    count = len(example.rows())
    assert data["base"] == [*range(count), *range(count)]  # the same cell of the first run


def test_tables_point_at_the_rows_of_their_cells(example, second):
    data = page_data([example, second])
    rows = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
    seen = []
    for table in data["tables"]:
        for line in table["lines"]:
            for shape, cells in zip(table["shapes"], line["cells"], strict=True):
                for dtype, cell in zip(table["dtypes"], cells, strict=True):
                    row = rows[cell]
                    assert (row["operator"], row["dtype"], row["level"]) == (line["operator"], dtype, table["level"])
                    assert f"{row['height']}×{row['width']}×{row['channels']}" == shape
                    assert data["owner"][cell] == line["run"]
                    seen.append(cell)
    assert sorted(seen) == list(range(len(rows)))
    assert [line["run"] for line in data["tables"][0]["lines"][:4]] == [0, 1, 0, 1]  # side by side


def test_samples_are_kept_or_stand_as_percentiles(tmp_path):
    shape = SHAPES[0]
    few = measurement("conv3x3", shape, "fp32", 1.25)
    many = measurement("dcnv4", shape, "fp32", 2.0)
    object.__setattr__(many, "latencies_ms", tuple(float(n) for n in range(1, 2 * MOST_SAMPLES + 2)))
    data = page_data([make_run(tmp_path, [few, many])])
    assert data["samples"]["0"] == list(few.latencies_ms)
    percentiles = data["samples"]["1"]
    assert len(percentiles) == 101
    assert percentiles[0] == 1.0
    assert percentiles[50] == 201.0
    assert percentiles[100] == 401.0


def test_published_figures_load_as_a_run():
    run = open_run(Path("published"))
    assert isinstance(run, PublishedRun)
    frame = load_results("published")
    assert len(frame) == 140
    assert set(frame["device"]) == {"A100 2023 (published)"}
    assert frame["latency_ms"].count() == (frame["status"] == "ok").sum()
    data = page_data([run])
    texts = [cell_text(row) for row in run.rows()]
    assert len(data["tables"]) == 2
    assert "0.833" in texts
    assert not data["samples"]
    assert not any(data["charts"][name] for name in ("roofline", "throughput", "split", "launches"))
    assert "not measured by this project" in page([run])


def test_published_figures_have_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_page([PublishedRun()]) == Path("report.html")
    with pytest.raises(UsageError, match="--write is for runs"):
        PublishedRun().write_measurements_csv()


def test_published_figures_stand_beside_a_runs_own(example):
    data = page_data([example, PublishedRun()])
    rows = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
    [published] = [
        number for number, row in enumerate(rows)
        if [row[column] for column in ("provider", "operator", "shape", "dtype")]
        == ["published", "dcnv4", "64x56x56x128", "fp16"]
    ]  # fmt: skip
    base = rows[data["base"][published]]
    assert (base["operator"], base["provider"], base["shape"]) == ("dcnv4", "torch", "64x56x56x128")


def test_environments_are_told_in_words_and_units():
    told = in_words(
        {
            "memory_bytes": 25276502016,
            "cudnn_version": 92600,
            "packages": {"torch": "2.15.0", "flash_attn": None},
            "cpu": {"torch_threads": 2, "load_average": [1.64111328125, 1, 0.5]},
            "gpu": {"l2_cache_bytes": 52428800, "max_sm_clock_mhz": 1980, "power_limit_w": 700.0},
            "time_budget_s": 1.0,
            "memory_limit_gib": None,
            "unknown_thing": {"a": []},
        }
    )
    assert told == {
        "Memory": "23.5 GiB",
        "cuDNN": "9.26.0",
        "Packages": "torch 2.15.0, flash_attn none",
        "CPU torch threads": "2",
        "Load (1, 5, 15 minutes)": "1.64, 1, 0.50",
        "GPU L2 cache": "50.0 MiB",
        "GPU max SM clock": "1980 MHz",
        "GPU power limit": "700 W",
        "Time budget": "1 s",
        "Memory limit": "none",
        "Unknown thing a": "none",
    }


def test_no_value_of_an_environment_is_lost_to_another_of_the_same_words():
    assert in_words({"a": {"b_d": 1}, "a_b": {"d": 2}}) == {"A b d": "1", "a_b.d": "2"}


def test_each_series_of_a_user_has_its_own_look(tmp_path):
    shape = SHAPES[0]
    providers = [f"mine{number}" for number in range(5)]
    operators = ["dcnv4", "own_operator", "other_operator"]
    cells = [measurement(o, shape, "fp32", 1.0, provider=p) for o in operators for p in providers]
    data = page_data([make_run(tmp_path, cells)])
    assert data["series_of"] == list(range(15))
    looks = [(series["light"], series["symbol"], series["filled"]) for series in data["series"]]
    assert len(set(looks)) == 15
    assert len({colour for colour, *_ in looks[:12]}) == len({symbol for _, symbol, _ in looks[:12]}) == 12
    assert data["series"][1]["name"] == "DCNv4 [mine1]"


def test_lines_against_the_spread_of_offsets_point_at_their_rows(tmp_path):
    cells = [
        measurement("dcnv4", shape, "fp32", 1.0 + spread, settings=settings)
        for shape in SHAPES[:2]
        for spread in (4.0, 0.5)
        for settings in spread_settings(spread)
    ]
    run = make_run(tmp_path, [*cells, measurement("dcnv3", SHAPES[0], "fp32", 3.0, settings=spread_settings(1.0)[0])])
    lines = page_data([run])["charts"]["offsets"]
    sizes = [shape_text(shape) for shape in SHAPES[:2]]
    assert [line["name"] for line in lines] == [
        f"DCNv4 [{distribution}, {size}]" for size in sizes for distribution in ("normal", "uniform")
    ]
    assert [line["points"] for line in lines] == [
        [[0.5, 2], [4.0, 0]], [[0.5, 3], [4.0, 1]], [[0.5, 6], [4.0, 4]], [[0.5, 7], [4.0, 5]],
    ]  # fmt: skip
    assert {line["look"] for line in lines} == {0}
    assert [bool(line["dash"]) for line in lines] == [False, True, False, True]


def spread_settings(spread):
    return (("offset_std_px", spread),), (("offset_std_px", spread), ("offset_distribution", "uniform"))


def test_published_figures_look_like_the_operator_that_they_stand_beside(example):
    data = page_data([example, PublishedRun()])
    looks = {}
    for series, row in zip(data["series_of"], data["rows"], strict=True):
        operator = row[data["columns"].index("operator")]
        looks.setdefault(operator, set()).add((data["series"][series]["light"], data["series"][series]["name"]))
    assert {len(found) for found in looks.values()} == {1}


def test_empty_sections_are_one_line(tmp_path):
    quiet = make_run(tmp_path, [measurement("conv3x3", SHAPES[0], "fp32", 1.0)])
    quiet.write_ceilings(example_ceilings())
    text = page([Run.open(quiet.path)])
    assert "<p>Failed: none. Suspicious: none. Warnings: none.</p>" in text
    assert "<h3>Warnings" not in text


@pytest.fixture(scope="module")
def large_page(tmp_path_factory):
    return write_page([two_thousand_rows(tmp_path_factory.mktemp("runs") / "large")])


def test_a_page_of_two_thousand_rows_is_under_five_megabytes(large_page):
    assert large_page.name == "report.html"
    assert large_page.stat().st_size < 5_000_000


def two_thousand_rows(path):
    """2,016 rows of 400 samples: the paper's operators, twelve shapes, four dtypes, both levels, three directions."""
    cells = []
    shapes = [*SHAPES, *(Shape(1, 8 * n, 8 * n, 64) for n in range(1, 10))]
    for (rank, operator), shape, dtype, level, direction in itertools.product(
        enumerate(PAPER_ORDER), shapes, map(str, Dtype), map(str, OPERATOR_LEVELS), map(str, OPERATOR_DIRECTIONS)
    ):
        cell = measurement(operator, shape, dtype, 1.0, level=level, direction=direction)
        samples = tuple((rank + 1) * (1 + 1e-3 * ((7919 * n) % 400)) for n in range(400))
        object.__setattr__(cell, "latencies_ms", samples)
        cells.append(cell)
    run = make_run(path, cells)
    run.write_ceilings(example_ceilings())
    return run


# Hostile runs


def test_nothing_in_a_run_folder_becomes_markup(tmp_path, second):
    harmless, hostile = Markup(page([second])), Markup(page([hostile_run(tmp_path)]))
    assert len(hostile.scripts) == len(harmless.scripts)
    assert hostile.scripts[1:] == harmless.scripts[1:]
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in harmless.tags}
    assert not any(name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert data_of(page([hostile_run(tmp_path / "again")]))["rows"][0][1] == HOSTILE


# In a browser

browser_test = pytest.mark.skipif(
    missing_browser() is not None and "OPBENCH_REQUIRE_BROWSER" not in os.environ, reason=str(missing_browser())
)


def in_windows(*sizes):
    return pytest.mark.parametrize("driver", sizes, ids=["desktop", "phone"], indirect=True, scope="module")


on_both = in_windows(DESKTOP, PHONE)
on_a_desktop = in_windows(DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow))
"""What does not depend on the window's size: on a phone in the long tests."""


@pytest.fixture(scope="module")
def driver(request):
    assert missing_browser() is None, missing_browser()
    with chromium(request.param) as driver:
        yield driver


@pytest.fixture(scope="module")
def small_page(example, second, tmp_path_factory):
    return write_page([example, second], tmp_path_factory.mktemp("pages") / "page.html")


@pytest.fixture
def shown(driver, small_page):
    open_page(driver, small_page)
    yield driver
    assert console_errors(driver) == []
    assert all(address.startswith(("file:", "data:", "blob:")) for address in requested_addresses(driver))


def column_texts(driver, table, column):
    cells = f"[data-table='{table}'] tbody tr td:nth-of-type({column})"
    return driver.execute_script(f'return [...document.querySelectorAll("{cells}")].map(c => c.textContent)')


def click(driver, selector):
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


@browser_test
@on_both
def test_every_figure_shown_is_its_rows(shown, example, second):
    rows = [*example.rows(), *second.rows()]
    figures = shown.execute_script(
        "return [...document.querySelectorAll('.figure')].map(f => [f.dataset.row, f.textContent])"
    )
    assert len(figures) == len(rows)
    for row, text in figures:
        assert text == cell_text(rows[int(row)])
    assert "!" in "".join(text for _, text in figures)


@browser_test
@on_a_desktop
def test_a_heading_sorts_and_the_keyboard_reaches_it(shown):
    before = column_texts(shown, 0, 1)
    click(shown, "[data-table='0'] [data-column='0-0']")
    up = [float(text.strip("~!")) for text in column_texts(shown, 0, 1) if text[-1].isdigit()]
    assert up == sorted(up)
    assert column_texts(shown, 0, 1)[-1] in ("N/A", "OOM")  # what has no figure stands last
    assert shown.execute_script("return document.activeElement.dataset.column") == "0-0"
    assert shown.execute_script("return document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "ascending"
    shown.switch_to.active_element.send_keys("\ue007")  # Enter
    down = [float(text.strip("~!")) for text in column_texts(shown, 0, 1) if text[-1].isdigit()]
    assert down == up[::-1]
    shown.switch_to.active_element.send_keys("\ue007")
    assert column_texts(shown, 0, 1) == before


@browser_test
@on_a_desktop
def test_arrow_keys_move_between_figures_and_enter_opens_one(shown):
    shown.execute_script("document.querySelector('.figure').focus()")
    tab_stops = shown.execute_script("return document.querySelectorAll('.figure[tabindex=\"0\"]').length")
    assert tab_stops == 2  # one a table
    for key in ("\ue014", "\ue015", "\ue012", "\ue015"):  # right, down, left, down
        shown.switch_to.active_element.send_keys(key)
    place = shown.execute_script(
        "return [document.activeElement.closest('td').cellIndex, document.activeElement.closest('tr').rowIndex]"
    )
    assert place == [1, 4]
    row = shown.execute_script("return document.activeElement.dataset.row")
    shown.switch_to.active_element.send_keys("\ue007")
    shown_row = shown.execute_script("return [byId('cell').open, byId('cell-title').textContent]")
    assert shown_row[0]
    assert shown_row[1] == shown.execute_script(f"return rowName({row})")
    shown.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert not shown.execute_script("return byId('cell').open")


@browser_test
@pytest.mark.parametrize(
    ("facet", "choice", "column"),
    [("operator", "dcnv4", "operator"), ("dtype", "fp16", "dtype"), ("level", "core", "level"), ("run", "B", None)],
)
@on_a_desktop
def test_a_filter_hides_its_rows_from_tables_and_chart(shown, facet, choice, column):
    left = "return [...document.querySelectorAll('.figure')].map(f => Number(f.dataset.row))"
    before = shown.execute_script(left)
    points = "settle(); return panels.filter(p => p.kind.place !== 'more').map(p => pointsOf(p).length)"
    drawn = """settle();
      const drawn = p => p.chart.getOption().series.flatMap(s => s.type === 'scatter' ? s.data : []).length;
      return panels.filter(p => p.kindName === 'throughput' && p.box.clientWidth)
        .map(p => [pointsOf(p).length, drawn(p)])"""
    points_before = shown.execute_script(points)
    assert min(points_before) > 0
    click(shown, f"[data-facet='{facet}'] input[value='{choice}']")
    after = shown.execute_script(left)
    assert 0 < len(after) < len(before)
    if column:
        values = shown.execute_script(f"return arguments[0].map(row => value(row, '{column}'))", after)
        assert choice not in values
        assert len(after) == sum(
            v != choice for v in shown.execute_script(f"return arguments[0].map(row => value(row, '{column}'))", before)
        )
    assert sum(shown.execute_script(points)) < sum(points_before)
    assert all(expected == number for expected, number in shown.execute_script(drawn))
    assert "/" in shown.execute_script(f"return document.querySelector('[popovertarget=pick-{facet}]').textContent")
    click(shown, "#reset")
    assert shown.execute_script(left) == before
    assert shown.execute_script(points) == points_before


@browser_test
@on_a_desktop
def test_nothing_left_is_said(shown):
    for choice in ("fp32", "fp16"):
        click(shown, f"[data-facet='dtype'] input[value='{choice}']")
    assert shown.execute_script("return byId('nothing').checkVisibility()")
    assert not shown.execute_script("return [...document.querySelectorAll('.group')].some(s => s.checkVisibility())")
    texts = "settle(); return panels.filter(p => p.box.clientWidth).map(p => p.chart.getOption().title?.[0].text)"
    assert set(shown.execute_script(texts)) == {"Every cell is filtered out"}


def choose(driver, select, choice):
    driver.execute_script(
        "byId(arguments[0]).value = arguments[1]; byId(arguments[0]).dispatchEvent(new Event('change'))", select, choice
    )


@browser_test
@on_a_desktop
def test_other_figures_than_latency(shown, example, second):
    rows = [*example.rows(), *second.rows()]
    choose(shown, "metric", "ratio")
    text = {
        int(row): text
        for row, text in shown.execute_script(
            "return [...document.querySelectorAll('.figure')].map(f => [f.dataset.row, f.textContent])"
        )
    }
    for number, row in enumerate(rows):
        if row.status == "ok":
            expected = "1.00" if number < len(rows) / 2 else "0.800"
            assert text[number].strip("~!") == expected
    choose(shown, "metric", "limit")
    assert (
        shown.execute_script("return document.querySelector('caption').textContent")
        == "share of the device's limit (%)"
    )


@browser_test
@on_a_desktop
def test_images_per_second_of_networks(driver, tmp_path):
    image = Shape(16, 224, 224, 3)
    cells = [measurement(name, image, "fp16", value, level="model") for name, value in (("a", 8.0), ("b", 4.0))]
    open_page(driver, write_page([make_run(tmp_path / "run", cells)], tmp_path / "page.html"))
    choose(driver, "metric", "images")
    figures = "return [...document.querySelectorAll('.figure')].map(f => [f.textContent, f.title.split('; ').at(-1)])"
    assert driver.execute_script(figures) == [["2000", "0.500 × the column's best"], ["4000", ANY]]
    assert driver.execute_script("return document.querySelector('caption').textContent") == "images per second"


@browser_test
@on_a_desktop
def test_figures_that_no_row_has_are_no_choice(shown):
    choices = "return [...document.querySelectorAll('select option')].map(option => option.value)"
    assert not {"images", "energy", "perjoule"} & set(shown.execute_script(choices))


@browser_test
@on_a_desktop
def test_energy_of_a_launch_and_flop_per_joule(driver, tmp_path):
    """800 J in 2 s; a launch has 4 GFLOP."""
    window = EnergyWindow("nvml", 800_000.0, 2.0, 4000, 40, 70.0)
    cells = [
        replace(measurement("a", Shape(1, 8, 8, 8), dtype, 1.0), energy=replace(window, launches=launches))
        for dtype, launches in (("fp32", 4000), ("fp16", 8000))
    ]
    open_page(driver, write_page([make_run(tmp_path / "run", cells)], tmp_path / "page.html"))
    figures = "return [...document.querySelectorAll('.figure')].map(f => f.textContent)"
    for metric, shown in (("energy", ["200", "100"]), ("perjoule", ["20.0", "40.0"])):
        choose(driver, "metric", metric)
        assert driver.execute_script(figures) == shown


KINDS = "return panels.map(p => [p.kindName, p.group])"
SHOW_TIP = """const panel = panels[arguments[0]];
  const series = panel.chart.getOption().series;
  const seriesIndex = series.findIndex(s => !s.silent && s.data.length);
  panel.chart.dispatchAction({type: 'showTip', seriesIndex, dataIndex: 0}); return panel.box.textContent"""


@browser_test
@on_both
def test_every_chart_is_drawn_before_it_is_scrolled_to_and_hovers(shown):
    shown_kinds = shown.execute_script(KINDS)
    groups = ["standard, module, fwd", "standard, core, fwd"]
    per_group = [[kind, group] for group in groups for kind in ("throughput", "roofline", "precision")]
    # no errors, no two timers in this run
    assert shown_kinds == [*per_group, *([kind, None] for kind in ("scaling", "split", "speedup"))]
    assert shown.execute_script("return scrollY") == 0
    for number, (kind, _) in enumerate(shown_kinds):
        drawn = shown.execute_script(f"return panels[{number}].chart.getOption().series.map(s => s.data.length)")
        assert sum(drawn) > 0, kind
        assert "64x" in shown.execute_script(SHOW_TIP, number), kind
        shown.execute_script(f"panels[{number}].table.open = true; drawFigures(panels[{number}])")
        figures = f"return panels[{number}].table.querySelectorAll('tbody tr').length"
        assert shown.execute_script(figures) == shown.execute_script(f"return pointsOf(panels[{number}]).length") > 0


OPTION = "settle(); return panels.find(p => p.kindName === '{}').chart.getOption()"


@browser_test
@on_both
def test_axes_and_ceilings_are_chosen_in_the_bar(shown):
    axis = OPTION.format("roofline") + ".xAxis[0].type"
    assert shown.execute_script(axis) == "log"
    click(shown, "#log-x")
    assert shown.execute_script(axis) == "value"
    lines = OPTION.format("roofline") + ".series.filter(s => s.silent).length"
    assert shown.execute_script(lines) > 0
    click(shown, "#ceilings")
    assert shown.execute_script(lines) == 0


@browser_test
@on_both
def test_small_multiples_by_dtype_with_names_at_the_lines(shown):
    assert len(shown.execute_script(OPTION.format("throughput") + ".grid")) == 2  # fp32 and fp16
    assert not shown.execute_script(OPTION.format("throughput") + ".legend")
    texts = shown.execute_script(OPTION.format("throughput") + ".graphic[0].elements.map(e => e.style.text ?? '')")
    for name in ("fp32", "fp16", "Conv (3×3)", "DCNv3"):
        assert name in texts
    assert any("fp32 peak" in text for text in texts)
    long = "shorten('my_package:attention_with_a_long_name [torch_compile]', 160)"
    assert re.fullmatch(r"my_pa.*… \[torch_compile\]", shown.execute_script(f"return {long}"))
    assert shown.execute_script(f"return widthOf({long})") <= 160
    # Names keep their distance within their pane.
    places = shown.execute_script("return spread([10, 11, 12, 90, 91], 14, 0, 100)")
    assert all(later - earlier >= 14 for earlier, later in itertools.pairwise(sorted(places)))
    assert min(places) >= 0
    assert max(places) <= 100


@browser_test
@on_both
def test_a_point_and_its_line_stand_where_their_axes_say(shown):
    """The leader of a name starts at the point: what places it is the same scale as the axes'."""
    off = """settle(); return panels.filter(p => p.kindName === 'throughput').flatMap(p => {
      const { series, graphic } = p.chart.getOption();
      const starts = graphic[0].elements.filter(e => e.type === 'polyline').map(e => e.shape.points[0]);
      const points = series.filter(s => s.type === 'scatter').flatMap(s => s.data.map(d =>
        p.chart.convertToPixel({ xAxisIndex: s.xAxisIndex, yAxisIndex: s.yAxisIndex }, d.value)));
      return starts.map(([x, y]) => Math.min(...points.map(([a, b]) => Math.hypot(a + 6 - x, b - y))));
    })"""
    found = shown.execute_script(off)
    assert len(found) > 10
    assert max(found) < 1


@browser_test
@on_a_desktop
def test_the_bar_behind_a_figure_is_its_ratio_to_the_best(shown, example, second):
    rows = [*example.rows(), *second.rows()]
    found = shown.execute_script(
        "return [...document.querySelectorAll('.figure')].map(f => [f.dataset.row, f.style.backgroundSize])"
    )
    best = {}
    count = len(rows) / 2
    for number, row in enumerate(rows):
        if row.status == "ok":
            column = (number < count, *(getattr(row, name) for name in ("level", "shape", "dtype")))
            best[column] = min(best.get(column, row.latency_ms), row.latency_ms)
    seen = 0
    for number, size in found:
        row = rows[int(number)]
        if size:
            column = (int(number) < count, *(getattr(row, name) for name in ("level", "shape", "dtype")))
            expected = 100 * best[column] / row.latency_ms
            assert abs(float(size.split("%")[0]) - expected) < 0.06
            seen += 1
    assert seen == sum(row.status == "ok" for row in rows)


@browser_test
@on_both
def test_the_bar_of_filters_is_one_line_that_stays_in_view(shown):
    shown.execute_script("scrollTo({top: 1500, behavior: 'instant'})")
    top, height = shown.execute_script("const r = byId('filters').getBoundingClientRect(); return [r.top, r.height]")
    assert top == 0
    assert height < 60
    shown.execute_script("document.querySelector('.opener').focus()")
    shown.switch_to.active_element.send_keys("\ue007")  # Enter
    inside = """const r = document.querySelector('.pick:popover-open').getBoundingClientRect();
      return r.left >= 0 && r.right <= innerWidth && r.top > 0 && r.bottom <= innerHeight"""
    wait_for(shown, inside)
    shown.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert shown.execute_script("return document.querySelector('.pick:popover-open')") is None


def wait_for(driver, script):
    deadline = time.monotonic() + 20
    while not driver.execute_script(script):
        assert time.monotonic() < deadline, script
        time.sleep(0.02)


@browser_test
@on_a_desktop
def test_paper_is_light_and_the_page_as_before_afterwards(shown):
    choose(shown, "theme", "dark")
    dark = shown.execute_script(OPTION.format("throughput") + ".textStyle.color")
    shown.execute_script("dispatchEvent(new Event('beforeprint'))")
    light = shown.execute_script("return panels[0].chart.getOption().textStyle.color")
    shown.execute_script("dispatchEvent(new Event('afterprint'))")
    assert light != dark == shown.execute_script(OPTION.format("throughput") + ".textStyle.color")


@browser_test
@on_a_desktop
def test_the_speed_up_is_the_quotient_of_two_rows(shown):
    choose(shown, "against", "dcnv4")
    data = OPTION.format("speedup") + ".series[0].data"
    assert shown.execute_script(f"{data}.length") > 0
    wrong = """.filter(({item, value: [, , z]}) =>
      value(item.rows[1], 'operator') !== 'dcnv4'
      || value(item.rows[0], 'shape') !== value(item.rows[1], 'shape')
      || Math.abs(2 ** z - value(item.rows[1], 'latency_ms') / value(item.rows[0], 'latency_ms')) > 1e-9).length"""
    assert shown.execute_script(data + wrong) == 0


@browser_test
@on_both
def test_a_cell_shows_its_samples_and_every_column(shown, example):
    click(shown, ".figure[data-row='0']")
    row = example.rows()[0]
    assert shown.execute_script(
        "return byId('cell-facts').querySelector('[data-column=\"latency_ms\"]').textContent"
    ) == str(row.latency_ms)
    counts = shown.execute_script(
        "return cellChart.getOption().series[0].data.map(d => d.value[1]).reduce((a, b) => a + b, 0)"
    )
    assert counts == row.samples
    assert "row 1 of measurements.csv of run A (first)" in shown.execute_script("return byId('cell-facts').textContent")
    shown.execute_script("byId('cell').close()")
    failed = next(n for n, r in enumerate(example.rows()) if r.status == "error")
    click(shown, f".figure[data-row='{failed}']")
    assert shown.execute_script("return byId('cell-note').textContent") == "error: made to be error"


@browser_test
@on_a_desktop
def test_the_line_of_the_median_stands_at_the_median(driver, tmp_path):
    latency_ms = 0.0876  # ECharts would draw it at 0.09, which is in another bar
    run = make_run(tmp_path / "run", [measurement("dcnv4", Shape(1, 8, 8, 16), "fp32", latency_ms)])
    open_page(driver, write_page([run], tmp_path / "page.html"))
    driver.execute_script("showCell(0)")
    lines, median, rounded = driver.execute_script(
        """const vertical = (one) => one.style.stroke === css("--worst") && one.shape.x1 === one.shape.x2;
        const at = (value) => cellChart.convertToPixel({ xAxisIndex: 0 }, value);
        const lines = cellChart.getZr().storage.getDisplayList(true).filter(vertical).map((line) => line.shape.x1);
        return [lines, at(arguments[0]), at(0.09)];""",
        latency_ms,
    )
    assert lines == [pytest.approx(median, abs=1)]
    assert rounded - median > 10


@browser_test
@on_a_desktop
def test_failures_warnings_and_environment_are_listed(shown, example, second):
    text = shown.execute_script("return byId('failed').textContent")
    failed = [row for row in (*example.rows(), *second.rows()) if row.status in ("error", "out_of_memory")]
    assert f"Failed: {len(failed)} cells" in text
    # Equal reasons are one line with the count.
    reasons = {row.reason for row in failed}
    lines = shown.execute_script("return [...byId('failed').querySelectorAll('tbody tr')].map(r => r.textContent)")
    assert len(lines) == len(reasons) == 2
    for reason in reasons:
        count = sum(row.reason == reason for row in failed)
        assert any(line.startswith(reason) and f"{count} cells" in line for line in lines)
    assert shown.execute_script("return byId('failed').querySelectorAll('li').length") == len(failed)
    suspicious = shown.execute_script("return byId('suspicious').textContent")
    assert "implies" in suspicious
    assert "No ceilings: the run holds no ceilings.json" in shown.execute_script("return byId('warnings').textContent")
    assert "Device" in shown.execute_script("return byId('environment').textContent")


@browser_test
@on_a_desktop
def test_the_csv_is_measurements_csv(shown, example, tmp_path):
    text = shown.execute_script("return csvOf(0)")
    with (example.write_measurements_csv()).open(newline="") as file:
        expected = list(csv.DictReader(file))
    got = list(csv.DictReader(io.StringIO(text)))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        for column in expected[0]:
            same = one[column] == other[column] or float(one[column]) == float(other[column])
            assert same, column
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    shown.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    click(shown, ".download")
    file = tmp_path / "measurements.csv"
    deadline = time.monotonic() + 20
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert file.read_bytes().decode() == text


@browser_test
@on_both
def test_the_page_is_accessible(shown):
    for theme in ("light", "dark"):
        choose(shown, "theme", theme)
        assert accessibility_faults(shown) == [], theme


@browser_test
@on_both
def test_the_page_fits_its_window(shown):
    assert shown.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    wide = shown.execute_script("return innerWidth")
    edge = "return Math.max(...panels.map(p => p.node.getBoundingClientRect().right))"
    assert 0.9 * wide < shown.execute_script(edge) <= wide  # no empty half
    off = "return panels.filter(p => p.chart.getWidth() !== p.box.clientWidth).length"
    assert shown.execute_script(off) == 0


@browser_test
@on_both
def test_words_are_wrapped_and_not_cut(shown):
    cut = """return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())
      .map(e => [e.clientWidth, e.scrollWidth]).filter(([seen, all]) => all > seen)"""
    click(shown, ".figure[data-row='0']")
    assert shown.execute_script(cut, "#cell, #cell-facts") == []
    shown.execute_script("byId('cell').close()")
    assert shown.execute_script("return document.querySelectorAll('#failed .scroll, #suspicious .scroll').length") == 2
    assert shown.execute_script(cut, "#failed .scroll, #suspicious .scroll") == []


@browser_test
@on_a_desktop
def test_a_hostile_run_runs_no_script(driver, tmp_path):
    run = hostile_run(tmp_path)
    open_page(driver, write_page([run], tmp_path / "page.html"))
    choose(driver, "against", HOSTILE)
    driver.execute_script("settle()")
    kinds = driver.execute_script(KINDS)
    assert len(kinds) > 1
    for number in range(len(kinds)):
        assert HOSTILE in driver.execute_script(SHOW_TIP, number)
    driver.execute_script("for (const f of document.querySelectorAll('.figure')) { f.click(); byId('cell').close(); }")
    time.sleep(0.2)  # an image's onerror comes later
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return document.querySelectorAll('img, body svg, iframe').length") == 0
    assert HOSTILE in driver.execute_script("return byId('failed').textContent")
    assert console_errors(driver) == []
    # Even a script that got in would not run: the policy names the page's own by their hashes.
    driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s)"
    )
    assert driver.execute_script("return window.hacked") is None
    driver.get_log("browser")  # the policy's own complaint


@browser_test
@on_both
def test_two_thousand_rows_are_painted_before_the_charts(driver, large_page):
    open_page(driver, large_page)
    assert driver.execute_script("return document.querySelectorAll('.figure').length") == 2016
    assert driver.execute_script("return document.querySelectorAll('.wide-table .below .panel').length") == 18
    paint = driver.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    charts = driver.execute_script("return performance.getEntriesByName('charts')[0].startTime")
    assert 0 < paint < charts
    print(f"first paint after {paint:.0f} ms, charts after {charts:.0f} ms")
    assert console_errors(driver) == []
