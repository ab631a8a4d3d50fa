"""Shape lists: the built-in ones, a user's own file, and one exact line for every way a file can be bad."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from work import counted_calls

from opbench.errors import ShapeFileError, UnknownNameError, UsageError
from opbench.workload.case import Shape
from opbench.workload.shapes import ShapeList, builtin_shape_lists, load_shape_list, load_shape_lists

ITEM = "- {batch: 1, height: 8, width: 9, channels: 32}\n"
BUILTIN = (
    "backbone",
    "backbone_smoke",

    "deformable_detr", "fasternet", "high_resolution", "internimage", "large_kernel", "smoke", "standard",
    "standard_batch1",
)  # fmt: skip
KNOWN = f"{', '.join(BUILTIN)}, or the path of a YAML file (there is none of that name)"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes `mine.yaml` in the working directory, so that errors name it without a folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(content: str | bytes, name: str = "mine.yaml") -> str:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write_file


def failure(name: str) -> str:
    with pytest.raises(ShapeFileError) as raised:
        load_shape_list(name)
    return str(raised.value)


def test_builtin_names():
    assert builtin_shape_lists() == BUILTIN


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("standard", "64x56x56x128 64x28x28x256 64x14x14x512 64x7x7x1024 64x14x14x768"),
        ("high_resolution", "1x200x320x128 1x100x160x256 1x50x80x512 1x25x40x1024 1x64x64x768"),
        ("deformable_detr", "1x100x167x256 2x100x167x256 1x200x334x256"),
        (
            "internimage",
            "64x56x56x112 64x28x28x224 64x14x14x448 64x7x7x896 2x200x200x112 2x100x100x224 2x50x50x448 2x25x25x896",
        ),
        ("smoke", "1x28x28x64 1x14x14x128 2x9x13x96"),
        ("fasternet", " ".join(f"32x{56 >> s}x{56 >> s}x{w << s}" for w in (40, 96, 128, 192) for s in range(4))),
        (
            "large_kernel",
            " ".join(
                f"32x{56 >> s}x{56 >> s}x{w}"
                for widths in ((128, 256, 512, 1024), (124, 249, 499, 998), (64, 128, 320, 512))
                for s, w in enumerate(widths)
            ),
        ),
    ],
)
def test_builtin_shapes(name, shapes):
    loaded = load_shape_list(name)
    assert (loaded.name, loaded.source) == (name, f"opbench_shapes/{name}.yaml")
    assert " ".join(map(str, loaded.shapes)) == shapes


@pytest.mark.parametrize("name", ["standard", "high_resolution"])
def test_description_says_that_the_batch_size_is_inferred(name):
    description = load_shape_list(name).description
    assert "DCNv4 paper's supplement" in description
    assert "does not state the batch size" in description
    assert "inferred" in description


def test_users_file(write):
    text = "description: |\n  two\n  lines\nshapes:\n- batch: 1\n  height: 8\n  width: 9\n  channels: 32\n"
    assert load_shape_list(write(text)) == ShapeList("mine", "two lines", (Shape(1, 8, 9, 32),), "mine.yaml")


def test_description_is_optional_and_order_is_kept(write):
    text = "shapes:\n" + ITEM.replace("1,", "2,") + ITEM
    loaded = load_shape_list(write(text))
    assert loaded.description == ""
    assert loaded.shapes == (Shape(2, 8, 9, 32), Shape(1, 8, 9, 32))


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfshapes:\n" + ITEM.encode(), b"shapes:\r\n" + ITEM.encode()])
def test_byte_order_mark_and_windows_line_ends(write, content):
    assert load_shape_list(write(content)).shapes == (Shape(1, 8, 9, 32),)


def test_largest_sizes_are_accepted(write):
    text = "shapes: [{batch: 1048576, height: 65536, width: 1, channels: 1}]"
    assert load_shape_list(write(text)).shapes[0].elements == 2**36


def test_thousand_shapes_are_accepted(write):
    items = [f"- {{batch: 1, height: {n}, width: 9, channels: 32}}\n" for n in range(1, 1001)]
    assert len(load_shape_list(write("shapes:\n" + "".join(items))).shapes) == 1000


def size_line(field: str, value: str) -> str:
    sizes = {"batch": "1", "height": "8", "width": "9", "channels": "32"} | {field: value}
    return "shapes:\n-" + "".join(f"\n  {name}: {size}" for name, size in sizes.items()) + "\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "must be a positive integer, got 'x'"),
        ("'56'", "must be a positive integer, got '56'"),
        ("0", "must be a positive integer, got 0"),
        ("-5", "must be a positive integer, got -5"),
        ("+5", "must be a positive integer, got +5"),
        ("56.0", "must be a positive integer, got 56.0"),
        ("1e3", "must be a positive integer, got '1e3'"),
        (".inf", "must be a positive integer, got .inf"),
        ("true", "must be a positive integer, got true"),
        ("1:30", "must be a positive integer, got 1:30"),
        ("0x1F", "must be a positive integer, got 0x1F"),
        ("0b11", "must be a positive integer, got 0b11"),
        ("017", "must be a positive integer, got 017"),
        ("1_000", "must be a positive integer, got 1_000"),
        ("１２", "must be a positive integer, got '１２'"),
        ("2024-01-01", "must be a positive integer, got 2024-01-01"),
        ("", "must be a positive integer, got nothing"),
        ("[1, 2]", "must be a positive integer, got a list"),
        ("{}", "must be a positive integer, got an empty mapping"),
        ("1048577", "must be at most 1048576, got 1048577"),
        ("9" * 5000, f"must be at most 1048576, got {'9' * 40}..."),
    ],
)
@pytest.mark.parametrize(("field", "line"), [("batch", 3), ("height", 4), ("width", 5), ("channels", 6)])
def test_bad_sizes_name_line_and_field(write, field, line, value, message):
    assert failure(write(size_line(field, value))) == f"mine.yaml:{line}: {field} {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "shapes:\n- {batch: 1, heigth: 8, width: 9, channels: 32}\n",
            "2: unknown key 'heigth' (did you mean height?); allowed: batch, height, width, channels",
        ),
        ("shape:\n" + ITEM, "1: unknown key 'shape' (did you mean shapes?); allowed: description, shapes"),
        ("shapes:\n" + ITEM + "7: 1\n", "3: unknown key 7; allowed: description, shapes"),
        ("shapes:\n" + ITEM + "? [a]\n: 1\n", "3: unknown key a list; allowed: description, shapes"),
        (
            "shapes:\n" + ITEM + "- batch: 1\n  height: 8\n  width: 9\n",
            "3: channels is missing; a shape needs batch, height, width and channels",
        ),
        ("description: nothing else\n", "1: shapes is missing; a shape file needs shapes"),
        ("shapes:\n- batch: 1\n  width: 2\n  batch: 1\n", "4: batch is given twice, first on line 2"),
        ("shapes:\n" + ITEM + "shapes:\n" + ITEM, "3: shapes is given twice, first on line 1"),
        ("shapes: []\n", "1: shapes must be a non-empty list, got an empty list"),
        ("shapes:\n", "1: shapes must be a non-empty list, got nothing"),
        ("shapes: {a: 1}\n", "1: shapes must be a non-empty list, got a mapping"),
        (
            "shapes:\n- 1x28x28x64\n",
            "2: a shape must be a mapping with batch, height, width and channels, got '1x28x28x64'",
        ),
        (
            "shapes:\n- [1, 28, 28, 64]\n",
            "2: a shape must be a mapping with batch, height, width and channels, got a list",
        ),
        (
            "shapes:\n" + ITEM + "# the same again\n" + ITEM,
            "4: shape 1x8x9x32 is given twice, first on line 2",
        ),
        (
            "shapes:\n- {batch: 1048576, height: 65536, width: 1, channels: 2}\n",
            "2: shape 1048576x65536x1x2 must have at most 68719476736 (2**36) elements, got 137438953472",
        ),
        ("description: 5\nshapes:\n" + ITEM, "1: description must be text, got 5"),
        ("description: [a]\nshapes:\n" + ITEM, "1: description must be text, got a list"),
        (
            'description: "a\\e[2J"\nshapes:\n' + ITEM,
            r"1: description must be printable text, got character '\x1b'",
        ),
        (
            'description: "\\uD800"\nshapes:\n' + ITEM,
            r"1: description must be printable text, got character '\ud800'",
        ),
        ("- 1\n- 2\n", "1: a shape file must be a mapping with shapes, got a list"),
        ("hello\n", "1: a shape file must be a mapping with shapes, got 'hello'"),
        ("---\n", "2: a shape file must be a mapping with shapes, got nothing"),
        ("shapes:\n" + ITEM + "---\nshapes:\n" + ITEM, "3: must be one YAML document, got a second one"),
        ("shapes: [\n{batch: 1\n", "3: not YAML: expected ',' or '}', but got '<stream end>'"),
        ("shapes:\n\t- 1\n", r"2: not YAML: found character '\t' that cannot start any token"),
        ('shapes:\n- "\\UFFFFFFFF"\n', "2: not YAML: an escape names no character (on this line or below)"),
        ("shapes: &a\n- *a\n", "1: anchors and aliases are not allowed, got anchor &a"),
        ("shapes:\n- *nowhere\n", "2: anchors and aliases are not allowed, got alias *nowhere"),
        ("shapes:\n- <<: {batch: 1}\n", "2: merge keys are not allowed, got <<"),
        (
            "shapes: !!python/object/apply:os.system ['true']\n",
            "1: tags are not allowed, got tag:yaml.org,2002:python/object/apply:os...",
        ),
        ("shapes:\n- {batch: !!int 1}\n", "2: tags are not allowed, got tag:yaml.org,2002:int"),
        ("shapes:\n- ! 1\n", "2: tags are not allowed, got !"),
        ("shapes:\n\n  " + "[" * 8 + "]" * 8, "3: nested deeper than 8 levels"),
        ("shapes:\n- {batch: 1, \x00}\n", r"2: control character '\x00' is not allowed"),
        ("shapes:\n- {batch: 1, \x1b[31m}\n", r"2: control character '\x1b' is not allowed"),
    ],
)
def test_bad_files_name_file_line_and_field(write, text, message):
    assert failure(write(text)) == f"mine.yaml:{message}"


def test_not_utf8_names_line_and_byte(write):
    assert failure(write(b"shapes:\n# caf\xe9\n")) == "mine.yaml:2: must be UTF-8 text, got byte 0xe9"
    utf16 = ("shapes:\n" + ITEM).encode("utf-16")
    assert failure(write(utf16)) == f"mine.yaml:1: must be UTF-8 text, got byte 0x{utf16[0]:02x}"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_empty_file(write, text):
    assert failure(write(text)) == "mine.yaml: must hold a list of shapes, got an empty file"


def test_more_than_a_thousand_shapes(write):
    items = [f"- {{batch: 1, height: {n}, width: 9, channels: 32}}\n" for n in range(1, 1002)]
    message = "mine.yaml:2: shapes must hold at most 1000 shapes, got 1001"
    assert failure(write("shapes:\n" + "".join(items))) == message


def test_file_over_one_mebibyte(write):
    text = "shapes:\n" + ITEM
    padded = text + "#" * (2**20 - len(text))
    assert load_shape_list(write(padded)).shapes == (Shape(1, 8, 9, 32),)
    assert failure(write(padded + "#")) == "mine.yaml: must be at most 1048576 bytes (1 MiB), got more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "1: anchors and aliases are not allowed, got anchor &a"),
        ("[" * 2**20, "1: nested deeper than 8 levels"),
        ("- " * 2**19, "1: nested deeper than 8 levels"),
        ("? " * 2**19, "1: nested deeper than 8 levels"),
        ("[" + "a," * (2**19 - 1) + "]", "1: too much YAML; a file holds at most 1000 shapes"),
        ("- a\n" * 2**18, "19997: too much YAML; a file holds at most 1000 shapes"),
        ("9" * 2**20, f"1: a shape file must be a mapping with shapes, got {'9' * 40}..."),
    ],
    ids=["aliases", "flow", "block", "keys", "items", "lines", "digits"],
)
def test_bombs_are_refused_with_little_work(write, text, message):
    name = write(text)
    with counted_calls() as calls:
        assert failure(name) == f"mine.yaml:{message}"
    assert calls.count < 10 * 2**20  # up to 3 million, some seconds; without the limits 40 to 70 million, minutes


def test_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shown in [
        ("standrad", "standrad"),
        ("", ""),
        ("no/mine.yaml", "no/mine.yaml"),
        ("a\0b", r"a\x00b"),
    ]:
        with pytest.raises(UnknownNameError) as raised:
            load_shape_list(name)
        hint = "; did you mean 'standard'?" if name == "standrad" else ""
        assert str(raised.value) == f"unknown shape list {shown!r}; known: {KNOWN}{hint}"


def test_directory_pipe_device_and_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    assert failure("folder.yaml") == "folder.yaml: must be a YAML file, got a directory"
    os.mkfifo("pipe.yaml")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.yaml")
        for name in ("pipe.yaml", "/dev/zero", "socket.yaml"):
            assert failure(name) == f"{name}: must be a regular file, got a device, pipe or socket"


def test_symbolic_links(write):
    Path("link.yaml").symlink_to(write("shapes:\n" + ITEM))
    assert load_shape_list("link.yaml").name == "link"
    Path("loop.yaml").symlink_to("loop.yaml")
    assert failure("loop.yaml") == "loop.yaml: cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize("method", ["open", "stat"])
def test_no_permission(write, monkeypatch, method):
    name = write("shapes:\n" + ITEM)

    def deny(*_, **__):  # a mode of 000 does not stop root, who runs the tests in a container
        raise PermissionError(13, "Permission denied", name)

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, deny)
        message = failure(name)
    assert message == "mine.yaml: cannot be read: Permission denied"


def test_file_name_that_is_not_printable(write):
    message = failure(write("shapes:\n" + ITEM, name="a\nb.yaml"))
    assert message == r"a\nb.yaml: the file's name must be printable, it becomes the list's name"


def test_file_with_a_builtin_name(write):
    name = write("shapes:\n" + ITEM, name="smoke.yaml")
    message = "smoke.yaml: 'smoke' names a built-in list with other shapes; rename the file"
    assert failure(name) == message
    assert load_shape_list("smoke").source == "opbench_shapes/smoke.yaml"
    same = "shapes:\n" + "".join(
        f"- {{batch: {s.batch}, height: {s.height}, width: {s.width}, channels: {s.channels}}}\n"
        for s in load_shape_list("smoke").shapes
    )
    assert load_shape_list(write(same, name="smoke.yaml")).source == "smoke.yaml"


def test_several_lists(write):
    mine = write("shapes:\n" + ITEM)
    lists = load_shape_lists(["standard", mine])
    assert [shape_list.name for shape_list in lists] == ["standard", "mine"]
    with pytest.raises(UsageError) as raised:
        load_shape_lists([mine, "standard", f"./{mine}"])
    assert str(raised.value) == "shape list 'mine' is given twice: mine.yaml and ./mine.yaml"
    with pytest.raises(UsageError, match="'standard' is given twice"):
        load_shape_lists(["standard", "standard"])


FRAGMENTS = (
    *(
        "shapes:",
        "description:",
        "batch: 1",
        "height",
        ": ",
        ", ",
        "\n",
        "- ",
        "  ",
        "{",
        "}",
        "[",
        "]",
        "1:30",
    ),
    *(
        "&a",
        "*a",
        "<<",
        "!!int",
        "|",
        ">",
        '"',
        "'",
        "\\",
        "\\x",
        "%YAML",
        "---",
        "...",
        "?",
        "#",
        "\t",
        "\x07",
        "é",
    ),
    ITEM,
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS)).map("".join).map(str.encode)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(TEXTS, TEXTS.map(lambda text: b"shapes:\n" + text), st.binary(max_size=200)))
def test_any_content_loads_or_gives_one_line(write, content):
    name = write(content)
    message = ""
    try:
        shapes = load_shape_list(name).shapes
    except ShapeFileError as error:
        shapes, message = (), str(error)
    assert bool(shapes) != message.startswith("mine.yaml:")
    assert message.isprintable()
