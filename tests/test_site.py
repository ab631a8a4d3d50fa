"""`opbench report --site`: what the files hold, that their links lead somewhere, and what is refused."""

import json
import shutil
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from history_folder import make_history
from report_fixtures import HOSTILE, Markup, hostile_run, measurement
from test_fuzz import call
from test_history import add_run

from opbench.report import write_site
from opbench.report.cell_text import cell_text
from opbench.report.page.html import InSite
from opbench.report.site import site as site_module
from opbench.report.site.folder import MANIFEST
from opbench.report.site.history import history_page
from opbench.report.site.runs import read_runs
from opbench.results.measurement import Status
from opbench.results.published import PublishedRun
from opbench.results.run import Run
from opbench.workload.case import Shape

SHAPES = [Shape(2, 8, 8, 32), Shape(1, 28, 28, 64)]
OTHER_DEVICE = {"device_name": "Other GPU"}
NEW_TORCH = {"packages": {"torch": "2.2"}}


def cells(*latencies_ms, operators=("conv3x3", "dcnv4")):
    """A cell for each operator, shape and latency given; of DCNv4 one failed besides."""
    found = [
        measurement(operator, shape, "fp16", latency)
        for operator in operators
        for shape, latency in zip(SHAPES, latencies_ms, strict=False)
    ]
    return [*found, measurement("dcnv4", SHAPES[0], "fp32", Status.ERROR, reason="no such kernel")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three nights of one device, a run of another one between them, and one that measured nothing."""
    folder = tmp_path_factory.mktemp("runs")
    add_run(folder / "nightly", 1, cells(1.0, 2.0))
    add_run(folder / "nightly", 2, cells(1.01, 2.0), environment=NEW_TORCH)
    add_run(folder / "nightly", 3, cells(1.01, 4.0), environment=NEW_TORCH)
    add_run(folder, 2, cells(9.0, 9.0), name="other", environment=OTHER_DEVICE)
    add_run(folder, 4, [measurement("dcnv4", SHAPES[0], "fp16", Status.ERROR)], name="failed")
    return folder


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


@pytest.fixture(scope="module")
def site(made, tmp_path_factory):
    index, problems = write_site([made, Path("published")], tmp_path_factory.mktemp("site") / "public")
    assert problems == []
    return index.parent


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def search_of(folder):
    text = (folder / "assets" / "search-index.js").read_text()
    return json.loads(text.removeprefix("const SEARCH = ").rstrip().removesuffix(";"))


class Texts(HTMLParser):
    """A page's text without its scripts."""

    def __init__(self, path):
        super().__init__()
        self.text, self._script = "", False
        self.feed(path.read_text())

    def handle_starttag(self, tag, _):
        self._script = tag == "script"
        self.text += " "

    def handle_data(self, data):
        self.text += "" if self._script else data


def text_of(path):
    return " ".join(Texts(path).text.split())


# What it holds


def test_every_link_is_relative_and_leads_to_a_file_of_the_site(site):
    pages = list(site.rglob("*.html"))
    assert {str(page.relative_to(site)) for page in pages} == {
        "index.html", "history.html", "runs/published.html", "runs/nightly-night-01.html", "runs/nightly-night-02.html",
        "runs/nightly-night-03.html", "runs/other.html", "runs/failed.html", "compare/nightly-night-02.html",
        "compare/nightly-night-03.html",
    }  # fmt: skip
    reached = set()
    for page in pages:
        for tag, attributes in Markup(page.read_text()).tags:
            for name in {"href", "src"} & attributes.keys():
                address = urlsplit(attributes[name])
                assert (address.scheme, address.netloc) in (("", ""), ("data", "")), (page, tag, attributes)
                assert not address.path.startswith("/") or address.scheme
                if address.path and not address.scheme:
                    target = (page.parent / unquote(address.path)).resolve()
                    assert target.is_relative_to(site.resolve())
                    assert target.is_file(), (page, attributes)
                    reached.add(target)
                if address.fragment.startswith("row-"):
                    data = json.loads(Markup(target.read_text()).scripts[0])
                    assert int(address.fragment.removeprefix("row-")) < len(data["rows"])
    found = search_of(site)
    assert {(site / run["page"]).resolve() for run in found["runs"]} <= reached
    assert reached == {path.resolve() for path in (*pages, *(site / "assets").iterdir())}
    assert (site / ".nojekyll").read_bytes() == b""


def test_charts_are_once_in_the_site(site):
    library = (site / "assets" / "echarts.min.js").stat().st_size
    sizes = [path.stat().st_size for path in site.rglob("*.html")]
    assert sum(sizes) < library
    for page in (site / "runs").iterdir():
        markup = Markup(page.read_text())
        assert [bool(script) for script in markup.scripts] == [True] + [False] * (len(markup.scripts) - 1)
        assert "<style" not in page.read_text()


def test_the_index_lists_every_run_newest_first(site, made):
    text = text_of(site / "index.html")
    names = ("failed", "nightly/night-03", "nightly/night-02", "nightly/night-01")
    order = [text.index(f"{name} 20") for name in names]
    assert order == sorted(order)
    assert "6 runs" in text
    assert "4 ok, 1 failed" in text
    assert "on 3 devices, 2026-03-02 to 2026-03-05" in text  # the paper's year is no date of a run
    assert "slower 2 slower" in text


def test_the_search_index_has_every_row_of_every_run(site, made):
    found = search_of(site)
    names = {run["name"]: place for place, run in enumerate(found["runs"])}
    told = {}
    for cell in found["cells"]:
        level, direction, shape_list = cell["kind"]
        for run, row, text in cell["found"]:
            assert (run, row) not in told
            told[run, row] = (
                cell["operator"], cell["provider"], cell["shape"], cell["dtype"], level, direction, shape_list,
                cell["settings"], text,
            )  # fmt: skip
    expected = {}
    for path in (*made.glob("*/run.json"), *made.glob("*/*/run.json")):
        name = path.parent.relative_to(made).as_posix()
        expected |= {(names[name], number): row for number, row in enumerate(Run.open(path.parent).rows())}
    expected |= {(names["published"], number): row for number, row in enumerate(PublishedRun().rows())}
    assert told == {
        place: (
            row.operator, row.provider, row.shape, row.dtype, row.level, row.direction, row.shape_list, row.settings,
            cell_text(row),
        )
        for place, row in expected.items()
    }  # fmt: skip
    with_history = {(cell["operator"], cell["shape"], cell["dtype"]) for cell in found["cells"] if cell["history"]}
    assert with_history == {(name, str(shape), "fp16") for name in ("conv3x3", "dcnv4") for shape in SHAPES}


def test_settings_that_differ_are_shown(tmp_path):
    settings = [(("kernel_size", 3), ("group_channels", number)) for number in (16, 32)]
    add_run(tmp_path / "runs", 1, [measurement("dcnv4", SHAPES[0], "fp16", 1.0, settings=each) for each in settings])
    write_site([tmp_path / "runs"], tmp_path / "site")
    assert [cell["shown"] for cell in search_of(tmp_path / "site")["cells"]] == [
        "group_channels=16", "group_channels=32",
    ]  # fmt: skip


def test_a_run_is_compared_with_the_one_before_it_on_its_device(site):
    second, third = (text_of(site / "compare" / f"nightly-night-0{number}.html") for number in (2, 3))
    assert "nightly/night-02 against nightly/night-01" in second
    assert "same" in second
    assert "Allowed to differ: torch: 2.1 in the base, 2.2 in the head" in second
    assert "nightly/night-03 against nightly/night-02" in third
    assert "slower: 2 of 5 cells: slower by more than 10 %" in third
    assert "2.000" in third
    assert "Cells without a ratio: 1" in third
    slowest = third.index("1x28x28x64 fp16")
    assert slowest < third.index("2x8x8x32 fp16")


def test_the_run_before_is_the_latest_that_has_a_cell_in_common(tmp_path):
    runs = tmp_path / "runs"
    add_run(runs, 1, cells(1.0))
    add_run(runs, 2, [measurement("slak", SHAPES[0], "fp16", 1.0)])
    add_run(runs, 3, cells(1.0))
    add_run(runs, 4, [*cells(1.0), measurement("slak", SHAPES[0], "fp16", 1.0)])
    write_site([runs], tmp_path / "site")
    compared = tmp_path / "site" / "compare"
    assert {path.name for path in compared.iterdir()} == {"night-03.html", "night-04.html"}
    assert "night-03 against night-01" in text_of(compared / "night-03.html")
    assert "night-04 against night-03" in text_of(compared / "night-04.html")


def test_the_history_has_a_chart_of_each_cell_that_was_measured_again(site):
    data = json.loads(Markup((site / "history.html").read_text()).scripts[0])
    assert [len(series["cells"]) for series in data["series"]] == [4, 0]
    names = [data["runs"][run]["name"] for run in data["series"][0]["runs"]]
    assert names == ["nightly/night-01", "nightly/night-02", "nightly/night-03"]
    [cell] = [c for c in data["series"][0]["cells"] if (c["operator"], c["shape"]) == ("dcnv4", "1x28x28x64")]
    assert [(x, ms, row) for x, ms, _, _, _, row in cell["points"]] == [(0, 2.0, 3), (1, 2.0, 3), (2, 4.0, 3)]
    text = text_of(site / "history.html")
    assert "Fewer than 8 runs" in text
    assert "Other GPU, cuda-event, cold: 1 run" in text


def test_a_step_is_in_the_table_and_in_its_cell(tmp_path):
    for day in range(12):
        add_run(tmp_path / "runs", day, cells(1.0 + 0.001 * (day % 3), 2.0 if day < 6 else 2.5))
    write_site([tmp_path / "runs"], tmp_path / "site")
    data = json.loads(Markup((tmp_path / "site" / "history.html").read_text()).scripts[0])
    steps = {(cell["operator"], cell["shape"]): cell["steps"] for cell in data["series"][0]["cells"]}
    assert {name for name, found in steps.items() if found} == {("conv3x3", "1x28x28x64"), ("dcnv4", "1x28x28x64")}
    [[x, change, text]] = steps["dcnv4", "1x28x28x64"]
    assert (x, change) == (6, pytest.approx(0.25))
    assert text.startswith("+25.0 %: ")
    assert list(steps)[:2] == [("conv3x3", "1x28x28x64"), ("dcnv4", "1x28x28x64")]  # those with a step first
    assert "+25.0 %" in text_of(tmp_path / "site" / "history.html")


def test_charts_of_what_moved_by_itself_come_before_those_that_moved_with_the_machine(tmp_path):
    make_history(tmp_path, runs=16, cells=10)
    text = history_page(read_runs([tmp_path]), InSite(defaultdict(str), (), ""))
    [series] = json.loads(Markup(text).scripts[0])["series"]
    assert [(cell["operator"], cell["provider"], len(cell["steps"])) for cell in series["cells"]][:2] == [
        ("dcnv4", "triton", 2), ("conv3x3", "torch", 1),
    ]  # fmt: skip


# Made again


def test_the_same_runs_give_the_same_bytes_in_whatever_order(made, site, tmp_path):
    write_site([Path("published"), made], tmp_path / "again")
    assert files(tmp_path / "again") == files(site)
    write_site([made, Path("published")], tmp_path / "again")
    assert files(tmp_path / "again") == files(site)


def test_one_run_more_leaves_the_pages_of_the_others_and_one_less_removes_its_own(runs, tmp_path):
    out = tmp_path / "site"
    write_site([runs], out)
    before = files(out)
    add_run(runs / "nightly", 5, cells(1.0, 4.0), environment=NEW_TORCH)
    (out / "CNAME").write_text("mine.example")
    write_site([runs], out)
    after = files(out)
    assert after.keys() - before.keys() == {"CNAME", "runs/nightly-night-05.html", "compare/nightly-night-05.html"}
    kept = [name for name in before if name.startswith(("runs/", "compare/"))]
    assert kept
    assert all(after[name] == before[name] for name in kept)
    shutil.rmtree(runs / "nightly" / "night-05")
    write_site([runs], out)
    assert files(out) == before | {"CNAME": b"mine.example"}


def test_a_site_that_was_cut_short_is_made_again(runs, tmp_path, monkeypatch):
    out = tmp_path / "site"
    with monkeypatch.context() as patched:
        patched.setattr(site_module, "history_page", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_site([runs], out)
    assert not (out / "index.html").exists()
    write_site([runs], out)
    write_site([runs], tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


# Bad input


def test_a_damaged_run_is_named_and_the_site_is_made(runs, tmp_path):
    (runs / "nightly" / "night-01" / "run.json").write_text("{")
    (runs / "other" / "journal.jsonl").write_text("{}\n")
    (runs / "nightly" / "night-03" / "ceilings.json").write_text("[")
    code, out, err = call("report", "--site", tmp_path / "site", runs)
    assert code == 1
    assert out == f"{tmp_path / 'site' / 'index.html'}\n"
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("opbench: left out: ") for line in lines)
    index = text_of(tmp_path / "site" / "index.html")
    assert "3 runs could not be read" in index
    for name in ("nightly/night-01", "other", "nightly/night-03"):
        assert any(str(runs / name) in line for line in lines)
        assert f"{name}/" in index
    assert str(tmp_path) not in index  # a place on this machine is nothing for a page
    assert "3 runs could not be read" in text_of(tmp_path / "site" / "history.html")
    assert {path.name for path in (tmp_path / "site" / "runs").iterdir()} == {"failed.html", "nightly-night-02.html"}


def test_a_run_that_is_there_twice_counts_once(runs, tmp_path):
    shutil.copytree(runs / "nightly" / "night-02", runs / "z-copy")
    assert call("report", "--site", tmp_path / "site", runs, runs / "other")[0] == 0  # the folder named twice, too
    index = text_of(tmp_path / "site" / "index.html")
    assert "z-copy is the run of nightly/night-02 once more, and counts once." in index
    assert index.count("once more") == 1
    assert not (tmp_path / "site" / "runs" / "z-copy.html").exists()
    assert len(list((tmp_path / "site" / "runs").iterdir())) == 5


def test_runs_of_the_same_name_have_pages_of_their_own(tmp_path):
    for number, folder in enumerate(("one", "two", "two/deep/two")):
        add_run(tmp_path / folder, number, cells(1.0), name="run")
    write_site([tmp_path / "one", tmp_path / "two" / "run", tmp_path / "two" / "deep" / "two"], tmp_path / "site")
    names = sorted(run["name"] for run in search_of(tmp_path / "site")["runs"])
    assert names == ["run", "run/run", "two/run"]
    assert len(list((tmp_path / "site" / "runs").iterdir())) == 3


def test_no_run_is_one_line_and_nothing_is_written(runs, tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    (add_run(broken, 1, cells(1.0)) / "run.json").write_text("{")
    for given, message in (
        ([tmp_path / "gone"], "gone: no such folder"),
        ([runs, empty], "empty: no run there"),
        ([broken], f"no run that can be read; {broken / 'night-01'}"),
        ([runs / "other" / "run.json"], "run.json: no such folder"),
    ):
        code, out, err = call("report", "--site", tmp_path / "site", *given)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
        assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("name", ["index.html", "notes.txt", "runs/mine.html"])
def test_a_folder_with_something_else_is_refused(runs, tmp_path, name):
    out = tmp_path / "site"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    code, _, err = call("report", "--site", out, runs)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{out}: holds {name.partition('/')[0]} and no site; name a folder that is new or empty" in err
    assert files(out) == {name: b"mine"}


def test_a_file_in_a_site_that_is_not_of_it_is_not_overwritten(runs, tmp_path):
    out = tmp_path / "site"
    write_site([runs], out)
    (out / "runs" / "nightly-night-05.html").write_text("mine")
    before = files(out)
    add_run(runs / "nightly", 5, cells(1.0, 4.0))
    code, _, err = call("report", "--site", out, runs)
    assert (code, err.count("\n")) == (2, 1)
    assert "nightly-night-05.html: was not made by a site before, and would be overwritten" in err
    assert files(out) == before


@pytest.mark.parametrize(
    "manifest",
    ["{", "[]", '{"files": 1}', '{"files": [1]}', '{"files": ["../runs/x.html"]}', '{"files": ["runs/../../a.html"]}'],
)
def test_a_list_of_files_that_no_site_wrote_is_refused(runs, tmp_path, manifest):
    out = tmp_path / "site"
    out.mkdir()
    (out / MANIFEST).write_text(manifest)
    code, _, err = call("report", "--site", out, runs)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{MANIFEST}: damaged" in err
    assert files(out) == {MANIFEST: manifest.encode()}


def test_a_checkout_may_hold_the_site_and_a_link_is_not_followed(runs, tmp_path):
    out = tmp_path / "site"
    (out / ".git").mkdir(parents=True)
    (out / ".nojekyll").write_text("mine")
    write_site([runs], out)
    assert (out / ".nojekyll").read_text() == "mine"
    shutil.move(out / "runs", tmp_path / "elsewhere")
    (out / "runs").symlink_to(tmp_path / "elsewhere")
    code, _, err = call("report", "--site", out, runs)
    assert code == 3
    assert "runs: cannot be written: it is a symbolic link" in err


def test_a_file_for_a_folder_is_refused(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = call("report", "--site", tmp_path / "file", runs)
    assert (code, err) == (2, f"opbench: {tmp_path / 'file'}: must be a folder\n")


@pytest.mark.parametrize("option", ["--paper", "--samples", "--write", ("--format", "html"), ("--out", "page.html")])
def test_options_of_other_reports_do_not_go_with_a_site(runs, tmp_path, option):
    options = (option,) if isinstance(option, str) else option
    code, _, err = call("report", "--site", tmp_path / "site", *options, runs)
    assert code == 2
    assert "--site goes with none of --format, --paper, --samples, --write and --out" in " ".join(err.split())
    assert not (tmp_path / "site").exists()


def test_nothing_in_a_run_folder_becomes_markup(runs, tmp_path):
    for number in (1, 2):  # two, for a comparison and a chart
        path = hostile_run(tmp_path / "hostile" / str(number)).path
        run = json.loads((path / "run.json").read_text())
        run |= {"started_at": f"2026-03-0{number}T00:00:00+00:00", "run_id": f"{HOSTILE}{number}"}
        (path / "run.json").write_text(json.dumps(run))
    (add_run(tmp_path / "hostile", 3, cells(1.0), name="<b>damaged") / "run.json").write_text("<i>")
    write_site([runs], tmp_path / "harmless")
    write_site([tmp_path / "hostile"], tmp_path / "attacked")
    tags = {tag for page in (tmp_path / "harmless").rglob("*.html") for tag, _ in Markup(page.read_text()).tags}
    pages = list((tmp_path / "attacked").rglob("*.html"))
    assert len(pages) == 5
    for page in pages:
        markup = Markup(page.read_text())
        assert {tag for tag, _ in markup.tags} <= tags, page
        assert not any(name.startswith("on") for _, attributes in markup.tags for name in attributes)
        [policy] = [a["content"] for _, a in markup.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "</script" not in (tmp_path / "attacked" / "assets" / "search-index.js").read_text()
    assert any(cell["operator"] == HOSTILE for cell in search_of(tmp_path / "attacked")["cells"])
    assert "<b>damaged" in text_of(tmp_path / "attacked" / "index.html")
