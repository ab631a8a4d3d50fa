"""The revision of the checkout that a file is in."""

import os
import subprocess
from pathlib import Path

__all__ = ["git_revision"]


def git_revision(file: Path) -> str | None:
    """Commit of the checkout that tracks `file`, with `+dirty` when tracked files differ from it; else None."""
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
        return None
    return f"{revision}+dirty" if dirty else revision
