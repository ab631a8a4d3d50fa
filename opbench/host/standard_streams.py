"""Standard output and error that hold where their other end is gone, full, or knows no Unicode."""

import codecs
import errno
import io
import os
from contextlib import suppress
from typing import Any, TextIO, cast

from opbench.errors import StorageError

__all__ = ["fill_closed_descriptors", "guarded", "plain"]

ASCII = {
    "×": "x", "·": "*", "•": "*", "±": "+/-", "µ": "u", "τ": "tau", "…": "...", "→": "->", "≤": "<=", "≥": ">=",
    "°": "deg ", "–": "-", "—": "-", "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "├": "|", "┤": "|", "└": "`",
    **dict.fromkeys("╭╮╰╯┌┐┘┬┴┼", "+"),
    **{block: str(height) for height, block in enumerate("▁▂▃▄▅▆▇█", start=1)},
}  # fmt: skip
"""What stands for a character where the locale lacks it; anything else becomes its escape."""

ERROR_HANDLER = "opbench_ascii"
STDERR = 2


def guarded(stream: TextIO | None, name: str) -> TextIO:
    """A stream to use in place of a standard one.

    A reader that leaves (`opbench sweep | head -1`) or a terminal that closes changes nothing about what a command does
    or its exit code; what it still says is lost. So it is where there was no stream from the start (`opbench sweep
    >&-`). Any other failure, such as a full disk, is a StorageError.

    Args:
        stream: sys.stdout or sys.stderr; None where it was closed when Python started.
        name: what to call it in the error; "" if none may be raised, since there is no place left to say it.
    """
    codecs.register_error(ERROR_HANDLER, _in_ascii)
    if stream is None:
        return cast(TextIO, _Nowhere())
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=ERROR_HANDLER)
    return cast(TextIO, _Guarded(stream, name))


class _Nowhere(io.TextIOBase):
    """Takes every text, and keeps none."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """As TextIO.write."""
        return len(text)


class _Guarded:
    """Writes and flushes of a stream, and everything else as the stream has it."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        """As TextIO.write."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """As TextIO.flush."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Send the rest to nowhere: Python tries again at its end what it could not write."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._name and error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
            raise StorageError(f"{self._name}: cannot be written: {error.strerror}") from None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a stream has
        return getattr(self._stream, name)


def fill_closed_descriptors() -> None:
    """Put the null device wherever one of the three standard streams is closed.

    Otherwise the next file that is opened would get its number, and whatever a library prints would go into that file.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(opened, True)
    os.close(opened)


def plain(text: str, encoding: str) -> str:
    """Text as a guarded stream of this encoding shows it, so that its width is known before."""
    codecs.register_error(ERROR_HANDLER, _in_ascii)
    return text.encode(encoding, ERROR_HANDLER).decode(encoding)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if (replacement := ASCII.get(error.object[error.start])) is not None:
        return replacement, error.start + 1
    return codecs.backslashreplace_errors(error)
