"""Launches one after the other, without a pause of the device between them; nothing is timed."""

from collections.abc import Callable

from opbench.timing.timer import Launch

__all__ = ["back_to_back"]


def back_to_back(launch: Launch, device: str) -> Callable[[int], None]:
    """A function of a count that runs so many launches: on a CPU, until they are done.

    On a GPU it queues them and waits for those of the call before. So the device has work throughout, and between the
    ends of two calls it runs as many launches as one call queues.

    Args:
        launch: the closure.
        device: "cpu" or "cuda:N", the current one.
    """

    def run(count: int) -> None:
        for _ in range(count):
            launch()

    if device == "cpu":
        return run
    import torch

    ends: list[torch.cuda.Event] = []

    def queue(count: int) -> None:
        run(count)
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        ends.append(end)
        if len(ends) > 1:
            ends.pop(0).synchronize()

    return queue
