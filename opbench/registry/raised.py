"""Where the user's own code raised what made a cell fail, and the whole traceback as text."""

import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

__all__ = ["place_of", "traceback_text"]

GENERATED = ("<frozen ", "<eval_with_key>")
"""How the names of files begin that are none, and that no one wrote."""
INSTALLED = {"site-packages", "dist-packages"}
LONGEST_LINE = 1000
LONGEST_TEXT = 20_000
"""Characters of a traceback that are kept, from its end: the innermost frames and the error stand there."""


def place_of(error: BaseException, modules: Iterable[str] = ()) -> str:
    """`file.py:line` of the innermost frame in the user's code; empty where no frame is.

    That is code outside the standard library and installed packages, and that of the packages of `modules`; failing
    that, a package that is neither opbench's harness nor PyTorch.

    Args:
        error: as it was caught.
        modules: names of those that define the operator and the provider.
    """
    own = [folder for module in modules if (folder := _folder(module))]
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inner = [(name, line) for name, line in reversed(frames) if not _of_a_library(name)]
    chosen = next(((name, line) for name, line in inner if _is_own(name, own)), inner[0] if inner else None)
    return f"{_printable(Path(chosen[0]).name)}:{chosen[1]}" if chosen else ""


def traceback_text(error: BaseException) -> str:
    """The traceback in printable lines, cut where it is very long."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(_printable(line[:LONGEST_LINE]) for line in lines)[-LONGEST_TEXT:]


def _folder(module: str) -> str:
    """Folder of a module's package, or the file of a module in none."""
    package = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None)
    if package is None or module.partition(".")[0] == "opbench":
        return ""
    path = Path(package)
    return str(path.parent if path.name == "__init__.py" else path)


def _of_a_library(name: str) -> bool:
    """Whether a file is of the harness, PyTorch, what its compilers made, or the standard library."""
    harness = Path(__file__).parents[1]
    path = Path(name)
    if path.is_relative_to(harness):
        return not path.is_relative_to(harness / "operators")
    if name.startswith(GENERATED) or any(part.startswith("torchinductor_") for part in path.parts):
        return True
    for package in ("torch", "triton"):
        found = getattr(sys.modules.get(package), "__file__", None)
        if found and path.is_relative_to(Path(found).parent):
            return True
    return not INSTALLED & {*path.parts} and path.is_relative_to(sysconfig.get_path("stdlib"))


def _is_own(name: str, own: Iterable[str]) -> bool:
    path = Path(name)
    return not INSTALLED & {*path.parts} or any(path.is_relative_to(folder) for folder in own)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
