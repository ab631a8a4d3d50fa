"""The command line: one line and an exit code for whatever goes wrong. The commands are in opbench.cli.discovery."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from typing import Annotated, NoReturn

import typer

from opbench.cli.discovery import register_all
from opbench.cli.shared import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_STORAGE,
    EXIT_USAGE,
    TRACEBACK_VARIABLE,
    fail,
)
from opbench.errors import OpbenchError, StorageError
from opbench.host.standard_streams import fill_closed_descriptors, guarded
from opbench.host.user_cache import places_for_libraries

__all__ = ["app", "main"]

USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__bases__[0]
"""Of any kind; typer has no public name for it, and brings its own click or not depending on its version."""
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # click's own layout: it cuts no name at 60 columns, and rich takes long to import
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
register_all(app)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"opbench {version('opbench')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Micro-benchmarks of vision operators: every value checked, every failure a row."""


def main() -> None:
    """Run the command line; whatever is raised is one line on standard error and an exit code of its kind."""
    fill_closed_descriptors()
    with (
        redirect_stdout(guarded(sys.stdout, "standard output")),
        redirect_stderr(guarded(sys.stderr, "")),
        places_for_libraries(),
    ):
        _run_app()


def _run_app() -> None:
    try:
        try:
            code = app(
                prog_name="opbench", standalone_mode=False
            )  # which hands over usage errors, and the code of --help
        finally:
            sys.stdout.flush()  # a full disk refuses no sooner
        if code:
            sys.exit(code)
    except OpbenchError as error:
        fail(str(error), EXIT_STORAGE if isinstance(error, StorageError) else EXIT_USAGE)
    except USAGE_ERROR as error:
        _say_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        from opbench.cli.requirements import missing_requirement
        from opbench.text import one_line

        if isinstance(error, ModuleNotFoundError) and (missing := missing_requirement(error)):
            fail(
                f"{_command_given()} needs {missing}, which is not installed: pip install opbench "
                "(docs/reading.md: what works without)",
                EXIT_USAGE,
            )
        what = one_line(f"{type(error).__name__}: {error}")
        fail(f"internal error: {what}; {TRACEBACK_VARIABLE}=1 shows where, for a bug report", EXIT_INTERNAL)


def _say_usage(error: typer.BadParameter) -> NoReturn:
    """What is wrong with a command's words in one line; help where there were no words."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(EXIT_USAGE)
    parameter = getattr(error, "param", None)
    given = _value_given(parameter.opts) if parameter else ""
    place = error.ctx.command_path if error.ctx else "opbench"
    fail(f"{error.format_message().rstrip('.')}{given and f', got {given!r}'} (see {place} --help)", EXIT_USAGE)


def _command_given() -> str:
    """The command that the command line names: `opbench sweep`."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    return " ".join(["opbench", *(word for word in words[:1] if word in known)])


def _value_given(options: list[str]) -> str:
    """The last value that an option has among the words of the command line."""
    words = sys.argv[1:]
    values = [following for word, following in pairwise(words) if word in options]
    values += [value for word in words for name, equals, value in [word.partition("=")] if equals and name in options]
    return values[-1] if values else ""


if __name__ == "__main__":
    main()
