"""A fleet on a Ray cluster: an actor for each GPU, or where there is none for each node.

Ray places the actors, tells when one is gone, and carries calls and answers. It retries and restarts nothing.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from opbench.errors import FleetError
from opbench.sweeps.fleet.card_worker import CardWorker
from opbench.sweeps.fleet.fleet import Answer, Event, Lost, Stage
from opbench.text import one_line

__all__ = ["RayFleet", "connect"]

ANSWER_S = 9.0
"""Within which a cluster must say that it is there."""
PING_S = 2.0
"""Between two questions after a card's stage, which are the sign of life, too."""
AUTH_MODE = "RAY_AUTH_MODE"
"""Of a Ray that is being imported: whether it shows the token of ~/.ray. Ray 2.60 asks for one by itself."""
SILENCE_S = 60.0
"""A card that does not answer for so long is lost."""
START_S = 300.0
"""Most that starting an actor and its first call may take: loading PyTorch from a cold disk over a network."""


class RayFleet:
    """Cards on a Ray cluster that this process is connected to.

    Args:
        device: auto, cuda or cpu; auto is cuda where a node has a GPU.
        cpus: of each actor of a CPU; None for all that its node has.
    """

    def __init__(self, device: str, cpus: int | None) -> None:
        import ray

        self._ray = ray
        nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
        self._device_type = _device_type(device, nodes)
        self._actors: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        self._calls: dict[Any, str] = {}
        self._pings: dict[Any, str] = {}
        self._asked_at: dict[str, float] = {}
        self._answered: set[str] = set()
        self._last_asked_at = time.monotonic()
        self._stages: dict[str, str] = {}
        for node, needs in _slots(nodes, self._device_type, cpus):
            self._start(node, needs)
        if not self._actors:
            raise FleetError(f"the Ray cluster has no {'GPU' if self._device_type == 'cuda' else 'CPU'} to run on")

    @property
    def cards(self) -> Sequence[str]:
        """Those that are not lost, by number."""
        return [*self._actors]

    @property
    def device_type(self) -> str:
        """As Fleet has it."""
        return self._device_type

    def place(self, card: str) -> str:
        """Where a card is, for a message on the screen: Ray's address of its node."""
        return self._places[card]

    def call(self, card: str, method: str, *arguments: Any) -> None:  # noqa: ANN401
        """As Fleet has it."""
        self._calls[getattr(self._actors[card], method).remote(*arguments)] = card

    def wait(self) -> list[Event]:
        """As Fleet has it."""
        self._ask_for_stages()
        waited_for = [*self._calls, *self._pings]
        ready, _ = self._ray.wait(waited_for, num_returns=1, timeout=PING_S / 2)
        if ready:
            ready, _ = self._ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        events = [event for reference in ready for event in self._event(reference)]
        for card in self._silent():
            answered = card in self._answered
            patience = SILENCE_S if answered else START_S
            hint = "" if answered else "; is what it needs taken by another job of the cluster?"
            events += self._lose(card, f"no answer for {patience:g} s{hint}")
        return events

    def close(self) -> None:
        """End every actor; with it end the processes that it started."""
        for actor in self._actors.values():
            with suppress(Exception):
                self._ray.kill(actor)
        self._actors.clear()

    def _start(self, node: dict[str, Any], needs: dict[str, float]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        card = str(len(self._places) + 1)
        options = {
            **needs,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 2,  # a call, and a question after its stage
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False),
        }
        self._actors[card] = self._ray.remote(CardWorker).options(**options).remote()
        self._places[card] = str(node["NodeManagerAddress"])

    def _ask_for_stages(self) -> None:
        now = time.monotonic()
        if now - self._last_asked_at < PING_S:
            return
        self._last_asked_at = now
        for card in {*self._calls.values()} - {*self._pings.values()}:
            self._asked_at[card] = now
            self._pings[self._actors[card].stage.remote()] = card

    def _event(self, reference: Any) -> Iterator[Event]:  # noqa: ANN401 - of Ray
        called = reference in self._calls
        card = (self._calls if called else self._pings).pop(reference, None)
        if card is None:  # of a card that was lost a moment ago
            return
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            yield from self._lose(card, _why(error))
            return
        self._answered.add(card)
        if called:
            self._stages.pop(card, None)
            yield Answer(card, value)
        elif value and self._stages.get(card) != value:
            self._stages[card] = value
            yield Stage(card, value)

    def _silent(self) -> list[str]:
        """Cards that do not answer. Counted from the question, so that this process may have slept before it."""
        now = time.monotonic()
        return [
            card
            for card in self._pings.values()
            if now - self._asked_at[card] > (SILENCE_S if card in self._answered else START_S)
        ]

    def _lose(self, card: str, why: str) -> Iterator[Event]:
        actor = self._actors.pop(card, None)
        if actor is None:
            return
        for table in (self._calls, self._pings):
            for reference in [reference for reference, name in table.items() if name == card]:
                del table[reference]
        with suppress(Exception):
            self._ray.kill(actor)
        yield Lost(card, why)


@contextmanager
def connect(address: str, device: str, cpus: int | None) -> Iterator[RayFleet]:
    """A fleet on a Ray cluster, until the block ends; with it end the actors, and a cluster that was started for it.

    Args:
        address: HOST:PORT of the cluster's head, or "auto" for the cluster that this machine is a node of; where empty,
            RAY_ADDRESS counts, and without it a cluster of this machine alone is started, and ends with the block.
        device, cpus: as of RayFleet.

    Raises:
        FleetError: Ray is not installed, no cluster answers there, or it has nothing to run on.
    """
    if find_spec("ray") is None:
        raise FleetError("--fleet ray needs Ray: pip install 'opbench[fleet]'")
    address = address or os.environ.get("RAY_ADDRESS", "") or "local"
    if address != "local":
        _require_answer(address)
    ray = _import_ray()
    _start_ray(ray, address)
    try:
        fleet = RayFleet(device, cpus)
        try:
            yield fleet
        finally:
            fleet.close()
    finally:
        ray.shutdown()


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # it prints a lost node's log among the results
    import ray

    return ray


def _require_answer(address: str) -> None:
    """Raise FleetError where no cluster answers; Ray itself would try for a minute."""
    deadline = time.monotonic() + ANSWER_S
    if address == "auto":
        if not _is_healthy((), deadline):
            raise FleetError("this machine is no node of a Ray cluster; --fleet ray:HOST:PORT names one elsewhere")
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise FleetError(
            f"--fleet ray:ADDRESS takes HOST:PORT of a cluster's head or auto, got {one_line(address, 80)!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S / 2).close()
    except (OSError, OverflowError) as error:
        raise FleetError(f"no Ray cluster answers at {address}: {one_line(str(error), 80)}") from None
    if not _is_healthy(("--address", address), deadline):
        raise FleetError(f"what answers at {address} is no Ray cluster that takes this one's version and token")


def _is_healthy(where: tuple[str, ...], deadline: float) -> bool:
    """Whether a cluster answers; where it asks for the token that this user has, this process shows it from now on."""
    command = (sys.executable, "-m", "ray.scripts.scripts", "health-check", *where)
    modes = {} if AUTH_MODE in os.environ else {AUTH_MODE: "token"}
    for more in ({}, modes):
        try:
            environment = {**os.environ, **more}
            done = subprocess.run(
                command, capture_output=True, timeout=deadline - time.monotonic(), check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode == 0:
            os.environ.update(more)
            return True
    return False


def _start_ray(ray: ModuleType, address: str) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(
            address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            namespace="opbench",
        )  # fmt: skip
    except Exception as error:
        raise FleetError(f"Ray does not start: {one_line(f'{type(error).__name__}: {error}', 300)}") from None
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):  # not in the main thread, where Ray leaves them alone
                signal.signal(number, handler)


def _device_type(device: str, nodes: list[dict[str, Any]]) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise FleetError(
            f"--device must be auto, cpu or cuda with --fleet, got {device!r}: every card is one of the fleet"
        )
    if device == "auto":
        return "cuda" if any(node["Resources"].get("GPU", 0) >= 1 for node in nodes) else "cpu"
    return device


def _slots(
    nodes: list[dict[str, Any]], device_type: str, cpus: int | None
) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Node and needs of each actor."""
    for node in nodes:
        resources = node["Resources"]
        if device_type == "cuda":
            for _ in range(int(resources.get("GPU", 0))):
                yield node, {"num_gpus": 1, "num_cpus": 0}
        elif (has := int(resources.get("CPU", 0))) >= 1:
            yield node, {"num_cpus": min(cpus or has, has)}


def _why(error: Exception) -> str:
    """What Ray says of an actor that is gone, in the words of a row: without addresses and names of machines."""
    text = str(error)
    if "RayTaskError" in text or "RayTaskError" in type(error).__name__:
        return f"the process beside it raises {one_line(text.strip().splitlines()[-1], 200)}"
    if "node" in text and ("has died" in text or "was terminated" in text or "removed" in text):
        return "the node died"
    return "the process beside the card died"
