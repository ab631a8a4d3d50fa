"""Installs revisions of a repository into places of their own, and leaves nothing behind."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from opbench.errors import GateError, UsageError
from opbench.text import one_line

__all__ = ["ProjectSource", "find_source", "installed", "other_requirements", "require_clean"]

GIT_LIMIT_S = 120
INSTALL_LIMIT_S = 1800
"""Room to compile extensions."""


@dataclass(frozen=True, slots=True)
class ProjectSource:
    """What an arm is made from.

    Attributes:
        label: as it was given.
        repository: top folder of the repository that holds it; None for a folder.
        commit: full hash; empty for a folder.
        folder: a project's folder, taken as it is; None for a revision.
    """

    label: str
    repository: Path | None = None
    commit: str = ""
    folder: Path | None = None

    @property
    def described(self) -> str:
        """The label, with the commit where that says more."""
        return (
            self.label
            if not self.commit or self.commit.startswith(self.label)
            else f"{self.label} ({self.commit[:12]})"
        )


def find_source(text: str, repository: Path) -> ProjectSource:
    """The revision or the folder that a text names; a folder where it names one that holds a project.

    Args:
        text: a git revision of the repository, or a folder with a pyproject.toml or setup.py.
        repository: any folder of the repository.

    Raises:
        UsageError: neither of them, no git, or no repository.
    """
    folder = Path(text)
    if folder.is_dir() and any((folder / name).is_file() for name in ("pyproject.toml", "setup.py")):
        return ProjectSource(text, folder=folder.resolve())
    if folder.is_absolute() or text.startswith((".", "-")):
        raise UsageError(f"{text}: no project there (a folder with pyproject.toml or setup.py), and no git revision")
    top = Path(_git(repository, "rev-parse", "--show-toplevel"))
    try:
        commit = _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    except UsageError:
        raise UsageError(
            f"{text}: neither a revision of {top.name} nor a folder with a project; "
            "in a shallow clone fetch the whole history first"
        ) from None
    return ProjectSource(text, repository=top, commit=commit)


def require_clean(source: ProjectSource) -> None:
    """Refuse to measure what is checked out while tracked files differ from it: they would not be in what is measured.

    Raises:
        UsageError: they differ.
    """
    if not source.repository or source.commit != _git(source.repository, "rev-parse", "HEAD"):
        return
    if changed := _git(source.repository, "status", "--porcelain", "--untracked-files=no"):
        first = changed.splitlines()[0][2:].strip()
        raise UsageError(
            f"{source.repository.name} has changes that are not committed ({first}, ...), which {source.label} does "
            "not hold: commit them, or measure the working tree with --head ."
        )


@contextmanager
def installed(sources: dict[str, ProjectSource], work: Path) -> Iterator[dict[str, Path]]:
    """Install each source into a folder of its own under `work`, without network and without its dependencies.

    Worktrees are removed again as soon as they are installed, and in any case at the end.

    Raises:
        GateError: a revision cannot be checked out or installed.
    """
    places = {}
    for name, source in sources.items():
        place = work / f"{name}-installed"
        with _tree(source, work / f"{name}-tree") as tree:
            _install(source, tree, place)
        places[name] = place
    yield places


def other_requirements(places: Mapping[str, Path]) -> list[str]:
    """What is declared as a dependency in one place alone; a gate installs none."""
    base, head = (_requirements(place) for place in places.values())
    return sorted(base ^ head)


def _requirements(place: Path) -> set[str]:
    return {text for found in distributions(path=[str(place)]) for text in found.requires or ()}


@contextmanager
def _tree(source: ProjectSource, path: Path) -> Iterator[Path]:
    """The source's files in a folder that may be written to."""
    if source.folder:
        try:
            shutil.copytree(source.folder, path, symlinks=True, ignore=_not_source)
        except (OSError, shutil.Error) as error:
            raise GateError(f"{source.label}: cannot be copied: {one_line(str(error))}") from None
        yield path
        return
    assert source.repository  # noqa: S101 - a revision has one
    try:
        try:
            _git(source.repository, "worktree", "add", "--quiet", "--detach", str(path), source.commit)
        except UsageError as error:
            raise GateError(f"{source.label}: cannot be checked out: {error}") from None
        yield path
    finally:
        with suppress(UsageError):
            _git(source.repository, "worktree", "remove", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)
        with suppress(UsageError):
            _git(source.repository, "worktree", "prune")


def _not_source(folder: str, names: list[str]) -> set[str]:
    """What a copy leaves out: history, environments and what builds leave."""
    left_out = {".git", "__pycache__", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    return {
        name
        for name in names
        if name in left_out or name.endswith(".egg-info") or (Path(folder) / name / "pyvenv.cfg").is_file()
    }


def _install(source: ProjectSource, tree: Path, place: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-index",
        "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(place), str(tree),
    ]  # fmt: skip
    # The repository's own folder must not be on the path of the build.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONPATH")}
    done = _run(command, INSTALL_LIMIT_S, variables, cwd=tree.parent)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        telling = next((line for line in lines if "rror" in line), lines[-1] if lines else "no message")
        raise GateError(f"{source.label}: cannot be installed: {one_line(telling)}{_hint(tree)}")


def _hint(tree: Path) -> str:
    """What a project is built with and is not installed here, where the gate looks for it: it fetches nothing."""
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
        needed = [str(text) for text in project.get("build-system", {}).get("requires", ["setuptools"])]
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    missing = [text for text in needed if (name := re.match(r"[\w.-]+", text)) and not _is_installed(name[0])]
    if not missing:
        return ""
    return f"; the gate builds with what is installed here: pip install {shlex.join(missing)}"


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _git(folder: Path, *arguments: str) -> str:
    """What git prints.

    Raises:
        UsageError: no git, no repository, or git refuses; says which.
    """
    # In a git hook these would point at another repository.
    variables = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = _run(["git", "-C", str(folder), *arguments], GIT_LIMIT_S, variables)
    except FileNotFoundError:
        raise UsageError("git is not installed: give folders as --base and --head") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"git {arguments[0]} failed"]
        raise UsageError(one_line(lines[-1].removeprefix("fatal: ")))
    return done.stdout.strip()


def _run(
    command: list[str], limit_s: float, variables: dict[str, str], cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
            env=variables,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired:
        raise GateError(f"{command[0]} took longer than {limit_s} s") from None
