"""The folder of a site: what is not of a site made before is neither overwritten nor removed."""

import json
import re
from collections.abc import Collection
from pathlib import Path

from opbench.errors import UsageError
from opbench.files import make_folder, storage_errors, write_whole

__all__ = ["MANIFEST", "SiteFolder"]

MANIFEST = "opbench-site.json"
"""Names the site's files, so that the next time tells them from others."""
NO_JEKYLL = ".nojekyll"
"""Has GitHub Pages publish the files as they are."""
FOLDERS = ("assets", "compare", "runs")
OURS = re.compile(rf"(index|history)\.html|({'|'.join(FOLDERS)})/[^/\\]+\.(html|css|js)")


class SiteFolder:
    """A folder to write a site into: new, empty but for hidden files, or with a site that was made before.

    Raises:
        UsageError: it holds something else.
        StorageError: it cannot be made.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        """Claim it for files of these names, relative with `/`."""
        self.path = path
        self._names = frozenset(names)
        self._before = _files_before(path)
        for name in sorted(self._names - self._before):
            if (path / name).exists() or (path / name).is_symlink():
                raise UsageError(f"{path / name}: was not made by a site before, and would be overwritten")
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        self._remember(self._names | self._before)
        for folder in FOLDERS:
            make_folder(path / folder)
        if not (path / NO_JEKYLL).exists():
            write_whole(path / NO_JEKYLL, "")

    def write(self, name: str, text: str) -> None:
        """Write one of the files; StorageError where it cannot be written."""
        write_whole(self.path / name, text)

    def finish(self) -> None:
        """Remove files of the site before that this one does not have."""
        for name in self._before - self._names:
            with storage_errors(self.path / name):
                (self.path / name).unlink(missing_ok=True)
        self._remember(self._names)

    def _remember(self, names: Collection[str]) -> None:
        write_whole(self.path / MANIFEST, json.dumps({"opbench_site": 1, "files": sorted(names)}, indent=1) + "\n")


def _files_before(path: Path) -> frozenset[str]:
    if not path.exists():
        return frozenset()
    if not path.is_dir():
        raise UsageError(f"{path}: must be a folder")
    manifest = path / MANIFEST
    if not manifest.exists():
        if others := sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")):
            raise UsageError(f"{path}: holds {others[0]} and no site; name a folder that is new or empty")
        return frozenset()
    try:
        names = json.loads(manifest.read_text("utf-8"))["files"]
        if not all(OURS.fullmatch(name) for name in names):
            raise ValueError("a name that no site's file has")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{manifest}: damaged; remove the site's files, or name another folder") from None
    return frozenset(names)
