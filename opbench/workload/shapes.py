"""Reads shape lists, built-in or a user's own YAML file; a bad file gives one line that names the place."""

import difflib
import re
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from opbench.errors import ShapeFileError, UnknownNameError, UsageError
from opbench.workload.case import Shape

if TYPE_CHECKING:
    import yaml

__all__ = ["ShapeList", "builtin_shape_lists", "load_shape_list", "load_shape_lists"]

MAX_FILE_BYTES = 2**20
MAX_SHAPES = 1000
MAX_SIZE = 2**20
MAX_ELEMENTS = 2**36
MAX_NESTING = 8
MAX_EVENTS = 20 * MAX_SHAPES
"""PyYAML reads some 100 kB/s: without this a full-size file of one-character items takes most of a minute."""

BUILTIN_PACKAGE = "opbench_shapes"
SIZE_FIELDS = tuple(field.name for field in fields(Shape))
LIST_FIELDS = ("description", "shapes")
PLAIN_INTEGER = re.compile(r"0|[1-9][0-9]*")


@dataclass(frozen=True)
class ShapeList:
    """Shapes under one name, as a sweep runs them."""

    name: str
    """The file's stem."""
    description: str
    shapes: tuple[Shape, ...]
    source: str
    """Where it was read from: the path as given, or the built-in file."""


def builtin_shape_lists() -> tuple[str, ...]:
    """Names of the shape lists that ship with opbench, sorted."""
    files = resources.files(BUILTIN_PACKAGE).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_shape_list(name_or_path: str) -> ShapeList:
    """Read one shape list.

    Args:
        name_or_path: name of a built-in list, which wins, or path of a YAML file.

    Returns:
        The shapes in the file's order.

    Raises:
        UnknownNameError: it is neither a built-in name nor an existing file.
        ShapeFileError: the file cannot be used; one line with file, line and field.
    """
    known = builtin_shape_lists()
    if name_or_path in known:
        return _load_builtin(name_or_path)
    data = _read_bounded(name_or_path, known)
    source, name = _printable(name_or_path), Path(name_or_path).stem
    if not name.isprintable():
        raise ShapeFileError(f"{source}: the file's name must be printable, it becomes the list's name")
    shape_list = _FileReader(source).read(name, data)
    # A run records only the list's name, and published figures are looked up by it.
    if name in known and shape_list.shapes != _load_builtin(name).shapes:
        raise ShapeFileError(f"{source}: {name!r} names a built-in list with other shapes; rename the file")
    return shape_list


def load_shape_lists(names: Sequence[str]) -> tuple[ShapeList, ...]:
    """Read several shape lists, each by built-in name or path.

    Raises:
        UsageError: two of them have the same name, so their rows could not be told apart.
        UnknownNameError, ShapeFileError: as load_shape_list.
    """
    by_name: dict[str, ShapeList] = {}
    for name_or_path in names:
        shape_list = load_shape_list(name_or_path)
        first = by_name.setdefault(shape_list.name, shape_list)
        if first is not shape_list:
            raise UsageError(f"shape list {shape_list.name!r} is given twice: {first.source} and {shape_list.source}")
    return tuple(by_name.values())


def _load_builtin(name: str) -> ShapeList:
    data = resources.files(BUILTIN_PACKAGE).joinpath(f"{name}.yaml").read_bytes()
    return _FileReader(f"{BUILTIN_PACKAGE}/{name}.yaml").read(name, data)


def _read_bounded(name_or_path: str, known: Sequence[str]) -> bytes:
    """The bytes of a user's file, refusing what is no regular file before opening it: a FIFO would block."""
    path, shown = Path(name_or_path), _printable(name_or_path)
    unknown = UnknownNameError("shape list", shown, [*known, "or the path of a YAML file (there is none of that name)"])
    if not name_or_path:
        raise unknown
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ShapeFileError(f"{shown}: must be a YAML file, got a directory")
        if not stat.S_ISREG(mode):
            raise ShapeFileError(f"{shown}: must be a regular file, got a device, pipe or socket")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte in the path
        raise unknown from None
    except OSError as error:
        raise ShapeFileError(f"{shown}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ShapeFileError(f"{shown}: must be at most {MAX_FILE_BYTES} bytes (1 MiB), got more")
    return data


def _printable(text: str) -> str:
    """The text, escaped where it would break the one line of an error."""
    return text if text.isprintable() else ascii(text)[1:-1]


class _FileReader:
    """Turns one file's bytes into a ShapeList; works on YAML nodes, so that every error knows its line."""

    def __init__(self, source: str) -> None:
        self.source = source

    def read(self, name: str, data: bytes) -> ShapeList:
        fields_by_name = self._mapping(self._root(data), "a shape file", LIST_FIELDS, required=("shapes",))
        description = ""
        if "description" in fields_by_name:
            description = self._description(fields_by_name["description"])
        return ShapeList(name, description, self._shapes(fields_by_name["shapes"]), self.source)

    def _fail(self, where: "yaml.Node | yaml.Event | int", message: str) -> NoReturn:
        line = where if isinstance(where, int) else _line(where)
        raise ShapeFileError(f"{self.source}:{line}: {message}")

    def _root(self, data: bytes) -> "yaml.Node":
        """The document's node, after the scan that makes composing it safe."""
        import yaml

        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._fail(line, f"must be UTF-8 text, got byte 0x{data[error.start]:02x}")
        try:
            self._scan(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._fail(line, f"control character {chr(error.character)!r} is not allowed")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            self._fail(mark.line + 1 if mark else 1, f"not YAML: {_printable(str(error.problem))}")
        if node is None:
            raise ShapeFileError(f"{self.source}: must hold a list of shapes, got an empty file")
        return node

    def _scan(self, text: str) -> None:
        """Refuse what could blow up or hide something, on the stream of events: no recursion, no objects."""
        import yaml

        depth, documents, line = 0, 0, 1
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        for _ in range(MAX_EVENTS):
            try:
                event = next(events, None)
            except (ValueError, OverflowError):  # PyYAML lets "\UFFFFFFFF" reach chr()
                self._fail(line, "not YAML: an escape names no character (on this line or below)")
            if event is None:
                return
            line = _line(event)
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            self._refuse(event, depth, documents)
        self._fail(line, f"too much YAML; a file holds at most {MAX_SHAPES} shapes")

    def _refuse(self, event: "yaml.Event", depth: int, documents: int) -> None:
        import yaml

        if documents > 1:
            self._fail(event, "must be one YAML document, got a second one")
        if depth > MAX_NESTING:
            self._fail(event, f"nested deeper than {MAX_NESTING} levels")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            kind = "alias *" if isinstance(event, yaml.AliasEvent) else "anchor &"
            self._fail(event, f"anchors and aliases are not allowed, got {kind}{_short(event.anchor)}")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._fail(event, f"tags are not allowed, got {_printable(_short(event.tag))}")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.style is None:
            self._fail(event, "merge keys are not allowed, got <<")

    def _mapping(
        self, node: "yaml.Node", what: str, allowed: Sequence[str], required: Sequence[str]
    ) -> dict[str, "yaml.Node"]:
        """The values of a mapping by key, each key known and given once."""
        import yaml

        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"{what} must be a mapping with {_and(required)}, got {_got(node)}")
        found: dict[str, yaml.Node] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key: str = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            if key not in allowed:
                close = difflib.get_close_matches(key[:40], allowed, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                self._fail(key_node, f"unknown key {_got(key_node)}{hint}; allowed: {', '.join(allowed)}")
            if key in found:
                self._fail(key_node, f"{key} is given twice, first on line {first_lines[key]}")
            found[key] = value_node
            first_lines[key] = _line(key_node)
        for key in required:
            if key not in found:
                self._fail(node, f"{key} is missing; {what} needs {_and(required)}")
        return found

    def _description(self, node: "yaml.Node") -> str:
        import yaml

        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            self._fail(node, f"description must be text, got {_got(node)}")
        text = " ".join(node.value.split())
        # Escapes can name what UTF-8 cannot store and what a terminal would obey.
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs"):
                self._fail(node, f"description must be printable text, got character {character!r}")
        return text

    def _shapes(self, node: "yaml.Node") -> tuple[Shape, ...]:
        import yaml

        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._fail(node, f"shapes must be a non-empty list, got {_got(node)}")
        if len(node.value) > MAX_SHAPES:
            self._fail(node, f"shapes must hold at most {MAX_SHAPES} shapes, got {len(node.value)}")
        first_lines: dict[Shape, int] = {}
        for item in node.value:
            shape = self._shape(item)
            if shape in first_lines:
                self._fail(item, f"shape {shape} is given twice, first on line {first_lines[shape]}")
            first_lines[shape] = _line(item)
        return tuple(first_lines)

    def _shape(self, node: "yaml.Node") -> Shape:
        sizes = self._mapping(node, "a shape", SIZE_FIELDS, required=SIZE_FIELDS)
        shape = Shape(**{field: self._size(field, sizes[field]) for field in SIZE_FIELDS})
        if shape.elements > MAX_ELEMENTS:
            self._fail(node, f"shape {shape} must have at most {MAX_ELEMENTS} (2**36) elements, got {shape.elements}")
        return shape

    def _size(self, field: str, node: "yaml.Node") -> int:
        import yaml

        # YAML 1.1 also reads 0x1F, 017, 1_000 and 1:30 as integers, which nobody means by a size.
        plain = isinstance(node, yaml.ScalarNode) and node.style is None and PLAIN_INTEGER.fullmatch(node.value)
        if not plain or node.value == "0":
            self._fail(node, f"{field} must be a positive integer, got {_got(node)}")
        digits: str = node.value
        if len(digits) > len(str(MAX_SIZE)) or int(digits) > MAX_SIZE:
            self._fail(node, f"{field} must be at most {MAX_SIZE}, got {_short(digits)}")
        return int(digits)


def _line(where: "yaml.Node | yaml.Event") -> int:
    return where.start_mark.line + 1 if where.start_mark else 1


def _got(node: "yaml.Node") -> str:
    """What a node holds, for an error: text in quotes, numbers as written."""
    import yaml

    if not isinstance(node, yaml.ScalarNode):
        kind = "mapping" if isinstance(node, yaml.MappingNode) else "list"
        return f"a {kind}" if node.value else f"an empty {kind}"
    if node.tag.endswith(":str"):
        return repr(_short(node.value))
    return _short(node.value) if node.value else "nothing"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
