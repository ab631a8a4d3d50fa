"""One process of one arm: times the cells it is told to, and a sentinel that no revision touches.

The gate runs this very file, by its path, for both arms; only `opbench` and the operators come from the arm's own
place, the first on PYTHONPATH. Standard input and the file descriptor named by the first argument carry JSON lines: a
request in, an answer out. The first request says what to measure and how; each one after it names one thing to do.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import IO, Any

PROTOCOL = 1
SENTINEL_SAMPLES = 20
SENTINELS = {"cpu": (256, 2**22, 1), "cuda": (2048, 2**28, 5)}
"""Side of the matrix, bytes to copy, launches per sample: on CUDA enough that launching is a small part of it."""
LEAD_FACTOR = 2
"""The device waits for so many times what the host needs to queue a launch."""


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
    if first["protocol"] != PROTOCOL:
        raise SystemExit(f"protocol must be {PROTOCOL}, got {first['protocol']}")
    # All that the gate needs of a revision's opbench: one whose opbench lacks it cannot be an arm.
    from opbench import registry
    from opbench.case import Cell
    from opbench.environment import collect_environment, comparison_identity
    from opbench.options import make_request
    from opbench.run import plan
    from opbench.runner import CellRunner, RunOptions

    def answer(**message: Any) -> None:  # noqa: ANN401
        out.write(json.dumps(message) + "\n")
        out.flush()

    operators = dict(registry.registered())
    asked = make_request(first["options"], operators)
    planned = plan(asked, operators)
    for name, fraction in first["inject"].items():
        operators[name] = slowed(operators[name], fraction)
    runner = CellRunner(RunOptions.of(asked.to_json()), operators.__getitem__)
    answer(ready=True)
    for request in requests:
        if request["do"] == "plan":
            environment = collect_environment(asked.device)
            cells = [cell.to_json() for cell in planned]
            answer(plan=cells, identity=comparison_identity(environment), environment=environment)
        elif request["do"] == "sentinel":
            answer(sentinel=sentinel(asked.device))
        else:
            measurement = runner.run(Cell.from_json(request["cell"]))
            answer(measurement=json.loads(measurement.to_json_line()))
            if runner.device_broken:  # the cells that this process does not reach are missing, not wrong
                raise SystemExit(f"{asked.device} no longer answers this process since {measurement.cell.key}")


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


def slowed(operator: Any, fraction: float) -> Any:  # noqa: ANN401 - the arm's own Operator
    """An operator whose forward passes really take longer by `fraction`: for the gate's self-test.

    On the CPU each launch waits, busily, for `fraction` of the time that it has just taken; on CUDA a kernel that
    spins for that part of the median follows each launch.
    """

    def slow(build: Callable[..., Callable[[], Any]]) -> Callable[..., Callable[[], Any]]:
        def build_slowed(case: Any, tensors: Any) -> Callable[[], Any]:  # noqa: ANN401
            forward = build(case, tensors)
            on_cuda = any(tensor.is_cuda for tensor in tensors.values())
            return _spin_on_cuda(forward, fraction) if on_cuda else _spin_on_cpu(forward, fraction)

        return build_slowed

    return replace(
        operator, providers=tuple(replace(provider, build=slow(provider.build)) for provider in operator.providers)
    )


def _spin_on_cpu(forward: Callable[[], Any], fraction: float) -> Callable[[], Any]:
    clock = time.perf_counter

    def launch() -> Any:  # noqa: ANN401
        start = clock()
        out = forward()
        end = clock()
        until = end + fraction * (end - start)
        while clock() < until:
            pass
        return out

    return launch


def _spin_on_cuda(forward: Callable[[], Any], fraction: float) -> Callable[[], Any]:
    import torch

    spin: Callable[[int], None] = torch.cuda._sleep

    def times_ms(launch: Callable[[], Any], lead_cycles: int) -> tuple[float, float]:
        """Medians of a launch on the device, and of the host's time to queue one."""
        device, host = [], []
        for _ in range(SENTINEL_SAMPLES):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            spin(lead_cycles)  # the device is busy while the host queues, so that no wait for the host is counted
            queued = time.perf_counter()
            start.record()
            launch()
            end.record()
            host.append((time.perf_counter() - queued) * 1e3)
            end.synchronize()
            device.append(start.elapsed_time(end))
        return float(statistics.median(device)), float(statistics.median(host))

    cycles = 1_000_000
    per_ms = cycles / times_ms(lambda: spin(cycles), cycles)[0]
    _, host_ms = times_ms(forward, 0)  # warms up, too
    extra = int(per_ms * fraction * times_ms(forward, int(LEAD_FACTOR * host_ms * per_ms))[0])

    def launch() -> Any:  # noqa: ANN401
        out = forward()
        spin(extra)
        return out

    return launch


if __name__ == "__main__":
    main()
