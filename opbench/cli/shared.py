"""What several commands need: exit codes, consoles, options of one form."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from opbench.errors import NotComparableError, StorageError

if TYPE_CHECKING:
    from rich.console import Console

    from opbench.compare.verdicts import Comparison
    from opbench.workload.operator import Operator

EXIT_FAILED_CELLS = 1
EXIT_UNREADABLE = 1
"""Of commands that read many runs and could not read one; they show the others."""
EXIT_USAGE = 2
EXIT_STORAGE = 3
EXIT_INTERNAL = 70
EXIT_VERDICT_STORAGE = 74
"""Of commands that end in a verdict, where 3 means inconclusive; sysexits.h calls it EX_IOERR."""
EXIT_INTERRUPTED = 130

TRACEBACK_VARIABLE = "OPBENCH_TRACEBACK"
"""Shows where something was raised: by a mistake of ours, or in a cell by the user's code."""

NoColor = Annotated[bool, typer.Option("--no-color", help="No colours; the variable NO_COLOR does the same.")]

PIPE_WIDTH = 160
"""Columns of tables that do not go to a terminal: the widest one fits."""

ComparisonFormats = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="LIST",
        help="Of terminal, markdown, csv, junit, github. [default: terminal; with --out also markdown, csv and junit]",
    ),
]
ComparisonOut = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Write comparison.md, comparison.csv and junit.xml there. [default: only print]"
    ),
]
AcceptDifferences = Annotated[
    bool, typer.Option("--accept-differences", help="Go on although the plan or the environment differs.")
]
AcceptDifference = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-difference",
        metavar="NAME",
        help="Go on although this differs, such as driver; several add up. The rows say it. [default: none]",
    ),
]
Inconclusive = Annotated[
    str, typer.Option("--inconclusive", metavar="fail|pass", help="What an inconclusive verdict exits with: 3 or 0.")
]


def fail(message: str, code: int) -> NoReturn:
    """One line on standard error, and an exit code."""
    print(f"opbench: {message}", file=sys.stderr)
    sys.exit(code)


def known_operators() -> "dict[str, Operator]":
    """Every registered operator; a line on standard error for each plug-in that cannot be imported."""
    from opbench.registry import registry

    for line in registry.left_out():
        print(f"opbench: warning: {line}; its operator is left out", file=sys.stderr)
    return registry.registered()


def shows_tracebacks(isolation: str | None) -> bool:
    """Whether the traceback of a cell that raises is printed: in the sweep's own process, and where it is asked for."""
    return isolation == "none" or bool(os.environ.get(TRACEBACK_VARIABLE))


def interrupt_on_termination() -> None:
    """Let SIGTERM, and a terminal that closes, do what Ctrl-C does; SIGHUP stays ignored under nohup."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def split(option: str, text: str | None) -> list[str] | None:
    """The items of a comma-separated option."""
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise typer.BadParameter(f"{option} must be names separated by commas, got {text!r}")
    return items


def text_width() -> int:
    """Columns of the terminal, or of a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


def stdout(no_color: bool = False) -> "Console":
    """A console that is as wide as the terminal, or as the widest table."""
    from rich.console import Console

    # None leaves it to NO_COLOR.
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False, no_color=no_color or None)


@contextmanager
def verdict_exit_codes() -> Iterator[None]:
    """Around a command that ends in a verdict: what cannot be written must not look like `inconclusive`, which is 3."""
    try:
        yield
    except StorageError as error:
        fail(str(error), EXIT_VERDICT_STORAGE)
    except NotComparableError as error:
        from opbench.compare.verdicts import Verdict

        fail(str(error), Verdict.NOT_COMPARABLE.exit_code)


def chosen_formats(text: str | None, out: Path | None) -> list[str]:
    """The formats that --format names, each once, or the default ones.

    Raises:
        UnknownNameError: one that is not known.
        UsageError: --out, and none that has a file.
    """
    from opbench.errors import UnknownNameError, UsageError
    from opbench.report.comparison import COMPARISON_FORMATS

    files = [name for name, form in COMPARISON_FORMATS.items() if form.file]
    formats = split("--format", text) or (["terminal", *files] if out else ["terminal"])
    for name in formats:
        if name not in COMPARISON_FORMATS:
            raise UnknownNameError("format", name, COMPARISON_FORMATS)
    if out and not set(formats) & set(files):
        raise UsageError(f"--out is for {', '.join(files)}; --format names none of them")
    return list(dict.fromkeys(formats))


def accepts_inconclusive(text: str) -> bool:
    """Whether `--inconclusive` is pass; UsageError where it is neither pass nor fail."""
    return passes("--inconclusive", text)


def passes(option: str, text: str) -> bool:
    """Whether an option is pass.

    Raises:
        UsageError: neither pass nor fail.
    """
    from opbench.errors import UsageError

    if text not in ("fail", "pass"):
        raise UsageError(f"{option} must be fail or pass, got {text!r}")
    return text == "pass"


def conclude(
    comparison: "Comparison",
    formats: list[str],
    out: Path | None,
    *,
    accept_inconclusive: bool,
    accept_same_source: bool = False,
    no_color: bool = False,
) -> NoReturn:
    """Show a comparison and exit with the code of its verdict."""
    from opbench.compare.verdicts import Verdict
    from opbench.report.comparison import show_comparison

    accepted = [Verdict.INCONCLUSIVE] if accept_inconclusive else []
    if comparison.same_source and accept_same_source:
        accepted.append(Verdict.NOT_COMPARABLE)
    for path in show_comparison(comparison, formats, out, stdout(no_color), accepted=accepted):
        print(path, file=sys.stderr)
    sys.exit(0 if comparison.verdict in accepted else comparison.exit_code)
