"""What tells this machine from others in results, without naming it: runs are sent to other people."""

import hashlib
import os
import platform

from opbench.text import one_line

__all__ = ["HOST_VARIABLE", "host_label"]

HOST_VARIABLE = "OPBENCH_HOST"


def host_label() -> str:
    """$OPBENCH_HOST; without it eight digits of a hash of the machine's name, empty where it has none."""
    if given := os.environ.get(HOST_VARIABLE, "").strip():
        return one_line(given, 60)
    name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8] if name else ""
