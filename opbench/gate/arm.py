"""One process of one arm: times the cells it is told to, and a sentinel that no revision touches.

The gate runs this very file, by its path, for both arms, so that the sentinel is the same code in both; `opbench` and
the operators come from the arm's own place, the first on PYTHONPATH. Standard input and the file descriptor named by
the first argument carry JSON lines: a request in, an answer out. The first request says what to measure and how; each
one after it names one thing to do.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol

PROTOCOL = 1
"""Of opbench.gate.serve, which it speaks besides 0."""
FIRST_REVISION = "7ab3d03"
"""The oldest that has all the names of protocol 0."""
FURTHER = ("sources", "kernels", "conditions")
"""Methods of Served that a revision of either protocol may lack; it then answers nothing."""
SENTINEL_SAMPLES = 20
SENTINELS = {"cpu": (256, 2**22, 1), "cuda": (2048, 2**28, 5)}
"""Side of the matrix, bytes to copy, launches per sample: on CUDA enough that launching is a small part of it."""


class Revision(Protocol):
    """The opbench of an arm, by whichever protocol: as opbench.gate.serve.Served."""

    device: str

    def plan(self) -> dict[str, Any]:
        """As Served.plan."""
        ...

    def measure(self, key: str) -> dict[str, Any]:
        """As Served.measure."""
        ...


class NotComparableError(Exception):
    """This gate cannot drive the opbench of this arm; says why."""


def main() -> None:
    """Serve until standard input ends."""
    requests = (json.loads(line) for line in sys.stdin)
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as out:
        try:
            _serve(next(requests), requests, out)
        except Exception as error:
            if type(error).__module__ == "opbench.errors":  # meant for a reader: no traceback
                raise SystemExit(str(error)) from None
            raise


def _serve(first: Mapping[str, Any], requests: Iterable[Mapping[str, Any]], out: IO[str]) -> None:
    def answer(**message: Any) -> None:  # noqa: ANN401
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        options = _with_threads(first["options"])
        revision = _open(options, first["inject"])
    except NotComparableError as error:
        answer(not_comparable=str(error))
        return
    answer(ready=True)
    for request in requests:
        if request["do"] == "plan":
            answer(**revision.plan())
        elif request["do"] == "sentinel":
            answer(sentinel=sentinel(revision.device))
        elif request["do"] in FURTHER:
            method = getattr(revision, request["do"], None)
            answer(**(method(**request["with"]) if method else {}))
        else:
            # The gate asks for bursts where both revisions have told the conditions of their GPU, and so know them.
            measure = "measure_in_bursts" if request.get("bursts") else "measure"
            answered = getattr(revision, measure)(request["key"])
            answer(**answered)
            if "ended" in answered:  # the cells that this process does not reach are missing, not wrong
                raise SystemExit(answered["ended"])


def _with_threads(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without the threads, which are set here: revisions that do not know them run with them, too."""
    left = dict(options)
    if threads := left.pop("threads", None):
        import torch

        torch.set_num_threads(threads)
    return left


def _open(options: Mapping[str, Any], inject: Mapping[str, float]) -> Revision:
    """The arm's opbench by the newest protocol that both speak; which one is asked before anything else.

    Raises:
        NotComparableError: there is none.
    """
    try:
        serve = _own("opbench.gate.serve")
    except ModuleNotFoundError:
        return _Protocol0(options)
    if PROTOCOL not in serve.PROTOCOLS:
        theirs = ", ".join(map(str, serve.PROTOCOLS))
        raise NotComparableError(
            f"its opbench speaks protocol {theirs} of the gate, this one 0, {PROTOCOL}; run the gate from a revision "
            "that speaks the protocols of both arms (PROTOCOLS in opbench/gate/serve.py)"
        )
    revision: Revision = serve.serve(PROTOCOL, options, inject)
    return revision


def _own(name: str) -> Any:  # noqa: ANN401 - a module, or what it holds
    """A module of the arm's own opbench.

    Raises:
        ModuleNotFoundError: it has none of that name, though an editable installation of another revision may.
    """
    import opbench

    module = import_module(name)
    if not Path(str(module.__file__)).is_relative_to(Path(str(opbench.__file__)).parent):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return module


class _Protocol0:
    """A revision from before opbench.gate.serve, by the names that its modules had then: these never change."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            registered, make_request = _own("opbench.registry").registered, _own("opbench.options").make_request
            run, runner, self._environment = (_own(f"opbench.{name}") for name in ("run", "runner", "environment"))
        except (ImportError, AttributeError) as error:
            if isinstance(error, ImportError) and not str(error.name).startswith("opbench"):
                raise
            raise NotComparableError(
                f"its opbench cannot be driven by protocol 0 of the gate ({error}); "
                f"the gate works from revision {FIRST_REVISION} on"
            ) from None
        operators = dict(registered())
        asked = make_request(options, operators)
        self.device: str = asked.device
        self._cells = {cell.key: cell for cell in run.plan(asked, operators)}
        self._runner = runner.CellRunner(runner.RunOptions.of(asked.to_json()), operators.__getitem__)

    def plan(self) -> dict[str, Any]:
        environment = self._environment.collect_environment(self.device)
        cells = [cell.to_json() for cell in self._cells.values()]
        identity = self._environment.comparison_identity(environment)
        return {"plan": cells, "identity": identity, "environment": environment}

    def measure(self, key: str) -> dict[str, Any]:
        measurement = self._runner.run(self._cells[key])
        answer: dict[str, Any] = {"measurement": json.loads(measurement.to_json_line())}
        if self._runner.device_broken:
            answer["ended"] = f"{self.device} no longer answers this process since {key}"
        return answer


def sentinel(device: str) -> dict[str, list[float]]:
    """Milliseconds of a matrix product and of a memory copy, by name."""
    import torch

    device_type = device.partition(":")[0]
    side, copied_bytes, launches = SENTINELS[device_type]
    a = torch.ones(side, side, device=device)
    product = torch.empty_like(a)
    source = torch.ones(copied_bytes // 4, device=device)
    target = torch.empty_like(source)

    def synchronize() -> None:
        if device_type == "cuda":
            torch.cuda.synchronize(device)

    def times_ms(launch: Callable[[], object]) -> list[float]:
        taken = []
        for _ in range(SENTINEL_SAMPLES + 3):
            synchronize()
            start = time.perf_counter()
            for _ in range(launches):
                launch()
            synchronize()
            taken.append((time.perf_counter() - start) * 1e3 / launches)
        return taken[3:]  # the first ones warm up

    return {
        "matrix product": times_ms(lambda: torch.mm(a, a, out=product)),
        "memory copy": times_ms(lambda: target.copy_(source)),
    }


if __name__ == "__main__":
    main()
