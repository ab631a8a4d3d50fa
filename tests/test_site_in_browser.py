"""The site in a real browser, from disk and from a server, under a path as GitHub Pages has it.

Chromium and its driver are needed as for tests/test_report_page.py.
"""

import contextlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import (
    DESKTOP,
    PHONE,
    accessibility_faults,
    chromium,
    console_errors,
    missing_browser,
    requested_addresses,
    resize,
)
from report_fixtures import HOSTILE, hostile_run
from test_history import add_run
from test_report_page import browser_test, choose, click, wait_for
from test_site import OTHER_DEVICE, cells

from opbench.report import write_site

pytestmark = browser_test
RUNS = 10


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Ten nights with a step, a run of another device, and one that is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    for day in range(RUNS):
        add_run(folder / "nightly", day, cells(1.0 + 0.001 * (day % 3), 2.0 if day < 5 else 2.5))
    add_run(folder, 3, cells(9.0, 9.5), name="other", environment=OTHER_DEVICE)
    (add_run(folder, 4, cells(1.0), name="damaged") / "run.json").write_text("{")
    index, _ = write_site([folder], tmp_path_factory.mktemp("site") / "public")
    return index.parent


@pytest.fixture(scope="module")
def driver():
    assert missing_browser() is None, missing_browser()
    with chromium(DESKTOP) as driver:
        yield driver


@pytest.fixture
def shown(driver):
    resize(driver, DESKTOP)
    driver.get("about:blank")  # the same address with another fragment would load nothing
    requested_addresses(driver)
    yield driver
    assert console_errors(driver) == []


def show(driver, site, page):
    driver.get((site / "index.html").resolve().as_uri().replace("index.html", page))
    wait_for(driver, "return document.readyState === 'complete'")


@contextlib.contextmanager
def served(folder, path):
    """The address of a folder under a path of a server."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, address):
            assert address.startswith(f"/{path}/"), address
            return super().translate_path(address.removeprefix(f"/{path}"))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{path}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


FOUND = """return [...document.querySelectorAll('#found tbody tr')].map(line => [...line.cells].slice(0, 3)
  .map(cell => cell.textContent))"""


def ask(driver, words):
    driver.execute_script("byId('words').value = arguments[0]; byId('words').dispatchEvent(new Event('input'))", words)


def test_the_search_finds_by_operator_shape_and_dtype(shown, site):
    show(shown, site, "index.html")
    everything = [
        ["Conv (3×3) torch", "2×8×8×32", "fp16"], ["Conv (3×3) torch", "1×28×28×64", "fp16"],
        ["DCNv4 torch", "2×8×8×32", "fp16"], ["DCNv4 torch", "1×28×28×64", "fp16"], ["DCNv4 torch", "2×8×8×32", "fp32"],
    ]  # fmt: skip
    assert shown.execute_script(FOUND) == []
    for words, expected in (
        ("torch", everything),
        ("DCNV4", everything[2:]),
        ("dcnv4 28×28", everything[3:4]),
        ("8x8", [line for line in everything if "8×8×32" in line[1]]),
        ("8x64", []),  # is not in 28x28x64
        ("fp16 conv", everything[:2]),
        ("module (3", everything[:2]),
        ("conv bf16", []),
    ):
        ask(shown, words)
        assert shown.execute_script(FOUND) == expected, words
    assert shown.execute_script("return byId('hits').textContent") == "No cell has all of this."
    ask(shown, "")
    choose(shown, "by-operator", "dcnv4")
    choose(shown, "by-dtype", "fp16")
    assert shown.execute_script(FOUND) == everything[2:4]
    choose(shown, "by-shape", "1x28x28x64")
    assert shown.execute_script(FOUND) == everything[3:4]
    asked = shown.current_url
    assert asked.endswith("index.html#operator=dcnv4&shape=1x28x28x64&dtype=fp16")
    click(shown, "#reset")
    assert shown.execute_script(FOUND) == []
    shown.get("about:blank")
    shown.get(asked)  # an address that was kept
    assert shown.execute_script(FOUND) == everything[3:4]
    assert shown.execute_script("return byId('by-dtype').value") == "fp16"
    assert all(address.startswith(("file:", "data:", "about:")) for address in requested_addresses(shown))


def test_a_figure_found_opens_its_cell_and_the_history_its_chart(shown, site):
    show(shown, site, "index.html#operator=dcnv4&shape=1x28x28x64&dtype=fp16")
    figures = shown.execute_script("return [...document.querySelectorAll('#found li')].map(one => one.textContent)")
    assert figures == [
        *(f"2.50 nightly/night-{day:02d}" for day in range(9, 4, -1)), "2.00 nightly/night-04", "and 5 older", "history"
    ]  # fmt: skip
    click(shown, "#found li a")
    wait_for(shown, "return document.querySelector('dialog[open]')")
    assert shown.current_url.endswith("runs/nightly-night-09.html#row-3")
    assert shown.execute_script("return byId('cell-title').textContent") == "DCNv4 (torch) module fwd 1x28x28x64 fp16"
    shown.back()
    click(shown, "#found li:last-child a")
    wait_for(shown, "return document.querySelector('.history canvas')")
    titles = "return [...document.querySelectorAll('.history h3')].map(title => title.textContent)"
    assert shown.execute_script(titles) == ["DCNv4 [torch] 1×28×28×64 fp16 module fwd"]


def test_a_chart_of_the_history_shows_its_points_and_steps_and_opens_a_run(shown, site):
    show(shown, site, "history.html")
    shown.execute_script("settle()")
    assert shown.execute_script("return panels.map(({ cell }) => cell.steps.length)") == [1, 1, 0, 0]
    option = "return panels[0].chart.getOption()"
    [_, levels, points] = shown.execute_script(option + ".series")
    assert [point["value"][1] for point in points["data"]] == [2.0] * 5 + [2.5] * 5
    assert [line["xAxis"] for line in points["markLine"]["data"]] == [4.5]
    assert [point[1] for point in levels["data"]] == [2.0, 2.0, None, 2.5, 2.5, None]
    shown.execute_script("panels[0].chart.dispatchAction({ type: 'showTip', seriesIndex: 2, dataIndex: 7 })")
    assert "nightly/night-07" in shown.execute_script("return panels[0].box.textContent")
    ask(shown, "conv3x3")
    assert shown.execute_script("return panels.map(({ cell }) => cell.operator)") == ["conv3x3", "conv3x3"]
    place = """settle(); const box = panels[1].box; box.scrollIntoView({ block: 'center', behavior: 'instant' });
      const [x, y] = panels[1].chart.convertToPixel({ seriesIndex: 2 }, panels[1].cell.points[6].slice(0, 2));
      const at = box.getBoundingClientRect(); return [at.left + x, at.top + y]"""
    x, y = map(round, shown.execute_script(place))
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        event = {"type": kind, "x": x, "y": y, "button": "none" if kind == "mouseMoved" else "left", "clickCount": 1}
        shown.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    wait_for(shown, "return location.href.includes('runs/nightly-night-06.html#row-0')")


def test_a_theme_that_is_chosen_holds_on_the_next_page(shown, site):
    show(shown, site, "index.html")
    choose(shown, "theme", "dark")
    show(shown, site, "compare/nightly-night-05.html")
    assert shown.execute_script("return getComputedStyle(document.documentElement).colorScheme") == "dark"
    choose(shown, "theme", "")


PAGES = ("index.html#words=torch", "history.html", "compare/nightly-night-05.html", "runs/nightly-night-05.html")


@pytest.mark.parametrize(
    ("size", "theme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light"),
        pytest.param(PHONE, "dark", id="phone-dark"),
        pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.slow),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
    ],
)
def test_the_pages_fit_and_are_accessible(shown, site, size, theme):
    resize(shown, size)
    for page in PAGES:
        show(shown, site, page)
        choose(shown, "theme", theme)
        shown.execute_script("settle(); document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert shown.execute_script("return document.documentElement.scrollWidth <= innerWidth"), page
        edges = "return [0, ...[...document.querySelectorAll('.cards')].map(one => one.getBoundingClientRect().right)]"
        assert max(shown.execute_script(edges)) <= size[0], page
        assert accessibility_faults(shown) == [], page
        choose(shown, "theme", "")


def test_served_under_a_path_it_asks_for_its_own_files_alone(shown, site):
    with served(site, "project/pages") as address:
        shown.get(address)
        wait_for(shown, "return byId('hits').textContent")
        ask(shown, "dcnv4")
        assert len(shown.execute_script(FOUND)) == 3
        click(shown, "#runs tbody a")
        wait_for(shown, "return location.pathname.includes('/runs/') && performance.getEntriesByName('charts').length")
        click(shown, "nav.site a[href*=compare]")
        wait_for(shown, "return location.pathname.includes('/compare/') && document.readyState === 'complete'")
        click(shown, "nav.site a[href*=history]")
        wait_for(shown, "return location.pathname.endsWith('/history.html') && document.querySelector('canvas')")
        asked = [one for one in requested_addresses(shown) if not one.startswith(("data:", "about:", "blob:"))]
    assert len(asked) > 10
    assert all(one.startswith(address) for one in asked)


@pytest.mark.slow
def test_a_hostile_run_runs_no_script(shown, tmp_path):
    for number in (1, 2):
        path = hostile_run(tmp_path / "hostile" / str(number)).path
        text = (path / "run.json").read_text()
        (path / "run.json").write_text(text.replace('"started_at": "', f'"started_at": "2026-03-0{number}", "x": "'))
    write_site([tmp_path / "hostile"], tmp_path / "site")
    for page in sorted(path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.html")):
        show(shown, tmp_path / "site", Path(page).as_posix().replace("%", "%25"))
        shown.execute_script("settle()")
        if str(page) == "index.html":
            ask(shown, "hacked")
            assert HOSTILE in shown.execute_script("return byId('found').textContent")
        assert shown.execute_script("return window.hacked") is None
        assert shown.execute_script("return document.querySelectorAll('img, iframe').length") == 0
