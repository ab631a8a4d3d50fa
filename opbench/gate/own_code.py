"""What a revision says of its own code, in an arm's process: its files, and the machine code of its kernels."""

import hashlib
from collections.abc import Sequence
from typing import Any

from opbench.errors import UsageError
from opbench.registry.code import digest, file_name, run_files
from opbench.registry.sources import imported_files
from opbench.text import one_line
from opbench.workload.case import Case
from opbench.workload.operator import Operator, Provider

__all__ = ["kernels", "sources"]

HARNESS = ("opbench.sweeps.runner", "opbench.timing.bursts")
"""The modules that build, check and time a cell."""


def sources(parts: Sequence[tuple[Operator, Provider]]) -> dict[str, Any]:
    """Files by path from the folder that holds their package, none of them imported for it.

    Returns:
        `files`, of each path the digests of opbench.registry.code.digest; `providers`, of each "operator provider" the
        paths of what it runs; `harness`, those of what times it.
    """
    modules = {module: path for root in HARNESS for module, path in imported_files(root).items()}
    harness = {file_name(module, path): path for module, path in modules.items()}
    named = {f"{operator.name} {provider.name}": (operator, provider) for operator, provider in parts}
    runs = {name: run_files(*part) for name, part in named.items()}
    found = harness | {name: path for files in runs.values() for name, path in files.items()}
    return {
        "files": {name: digest(path) for name, path in found.items()},
        "providers": {name: [*files] for name, files in runs.items()},
        "harness": [*harness],
    }


def kernels(operator: Operator, provider: Provider, case: Case, device: str) -> dict[str, Any]:
    """Digests of the machine code of the Triton kernels that a cell launches.

    Returns:
        `kernels`: name and digest of each, in order, none twice; or `unknown`: why they cannot be told.
    """
    from opbench.sweeps.launched import UnknownKernelsError, launched_kernels

    try:
        found = launched_kernels(operator, provider, case, device)
        return {"kernels": sorted({(compiled.metadata.name, _digest(compiled)) for compiled in found})}
    except (UnknownKernelsError, UsageError) as error:
        return {"unknown": one_line(str(error))}
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {one_line(str(error))}"}


def _digest(compiled: Any) -> str:  # noqa: ANN401 - Triton's
    from opbench.inspection.compile import machine_code, require_compiler

    require_compiler()
    return hashlib.sha256(machine_code(compiled).encode()).hexdigest()[:16]
