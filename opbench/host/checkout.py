"""The revision of the checkout that a file is in."""

import os
import re
import subprocess
from pathlib import Path

__all__ = ["REVISION_FILE", "git_revision"]

REVISION_FILE = ".opbench-revision"
"""At the top of a copy that travelled without its .git: what git_revision said of the checkout."""

REVISION = re.compile(r"[0-9a-f]{40,64}(\+dirty)?")


def git_revision(file: Path) -> str | None:
    """Commit of the checkout that tracks `file`, with `+dirty` when tracked files differ from it; else None.

    Of a copy without .git what its REVISION_FILE says.
    """
    # In a git hook these would point at another repository.
    variables = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"  # status must not write the index of a checkout that is in use

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=10, check=True, env=variables)
        return done.stdout.decode(errors="replace").strip()

    try:
        # A site-packages folder can lie inside some other project's checkout.
        git("ls-files", "--error-unmatch", "--", file.name)
        revision = git("rev-parse", "--verify", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return _noted_revision(file)
    return f"{revision}+dirty" if dirty else revision


def _noted_revision(file: Path) -> str | None:
    """What the nearest REVISION_FILE above a file says; nothing in a checkout, or of what is installed."""
    for folder in file.absolute().parents:
        if (folder / ".git").exists() or folder.name in ("site-packages", "dist-packages"):
            return None
        try:
            text = (folder / REVISION_FILE).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        return text if REVISION.fullmatch(text) else None
    return None
