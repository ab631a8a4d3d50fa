"""What opbench requires and is not installed; reading results needs only a part of it (docs/reading.md)."""

import re
from importlib.metadata import PackageNotFoundError, requires

__all__ = ["missing_requirement"]

DISTRIBUTIONS = {"pynvml": "nvidia-ml-py", "yaml": "pyyaml"}
"""Names of those that are not called as what is imported."""


def missing_requirement(error: ModuleNotFoundError) -> str | None:
    """The requirement of opbench's that an import did not find, as pip calls it.

    None for a part of a package that is installed, and for what opbench does not require: these are mistakes.
    """
    name = DISTRIBUTIONS.get(error.name or "", error.name)
    try:
        lines = [line for line in requires("opbench") or () if "extra ==" not in line]
    except PackageNotFoundError:
        return None
    return name if name in {re.split(r"[^\w.-]", line)[0].lower() for line in lines} else None
