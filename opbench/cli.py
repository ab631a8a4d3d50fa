"""The command line: one line and an exit code for whatever goes wrong. The commands are in opbench.commands."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout

import typer

from opbench.commands import register_all
from opbench.commands._shared import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_STORAGE,
    EXIT_USAGE,
    TRACEBACK_VARIABLE,
    fail,
)
from opbench.errors import OpbenchError, StorageError
from opbench.streams import guarded
from opbench.user_cache import places_for_libraries

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # click's own layout: it cuts no name at 60 columns, and rich takes long to import
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Micro-benchmarks of vision operators: every value checked, every failure a row.",
)
register_all(app)


def main() -> None:
    """Run the command line; whatever is raised is one line on standard error and an exit code of its kind."""
    with (
        redirect_stdout(guarded(sys.stdout, "standard output")),
        redirect_stderr(guarded(sys.stderr, "")),
        places_for_libraries(),
    ):
        _run_app()


def _run_app() -> None:
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk refuses no sooner
    except OpbenchError as error:
        fail(str(error), EXIT_STORAGE if isinstance(error, StorageError) else EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        from opbench.measurement import one_line

        what = one_line(f"{type(error).__name__}: {error}")
        fail(f"internal error: {what}; {TRACEBACK_VARIABLE}=1 shows where, for a bug report", EXIT_INTERNAL)


if __name__ == "__main__":
    main()
