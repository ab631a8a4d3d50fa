"""The user's cache folder, and what to do where nothing can be kept there."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["places_for_libraries", "say_if_nothing_is_kept", "user_cache_folder", "writable"]


def user_cache_folder() -> Path:
    """$XDG_CACHE_HOME, else ~/.cache; of a user without a home, under the folder for temporary files.

    opbench_kernels.tuning.cache_path takes the same one.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    return _home() / ".cache"


@cache
def say_if_nothing_is_kept() -> None:
    """Once per process, one line on standard error where the user's cache folder takes no files."""
    folder = user_cache_folder()
    if not writable(folder):
        print(
            f"opbench: {folder} cannot be written: nothing is kept for later runs, such as this device's limits; "
            "set XDG_CACHE_HOME to a folder that can",
            file=sys.stderr,
        )


def writable(folder: Path) -> bool:
    """Whether a folder that may have to be made first takes files; makes nothing."""
    for place in (folder, *folder.absolute().parents):
        if os.path.lexists(place):
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


@contextmanager
def places_for_libraries() -> Iterator[None]:
    """Send what Matplotlib and Triton keep in the home folder elsewhere, where that cannot be written.

    The one says two lines and goes on, the other fails. They get a place under the user's cache folder, or a
    temporary one that goes at the end.
    """
    home = _home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    wanted = {
        "MPLCONFIGDIR": (config / "matplotlib", user_cache_folder() / "matplotlib"),
        "TRITON_HOME": (home / ".triton",),
    }
    missing = [name for name, used in wanted.items() if name not in os.environ and not all(map(writable, used))]
    if not missing:
        yield
        return
    from tempfile import TemporaryDirectory

    with ExitStack() as stack:
        place = user_cache_folder() / "opbench"
        if not writable(place):
            with suppress(OSError):  # nothing can be written at all: whoever needs a place will say so
                place = Path(stack.enter_context(TemporaryDirectory(prefix="opbench-", ignore_cleanup_errors=True)))
        os.environ.update(dict.fromkeys(missing, str(place)))
        try:
            yield
        finally:
            for name in missing:
                os.environ.pop(name, None)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without one, as in some containers
        from tempfile import gettempdir

        return Path(gettempdir())
