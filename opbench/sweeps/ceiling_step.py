"""A device's ceilings: those that are kept, and what they lack, measured now in a worker process."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from opbench.device.ceiling_cache import keep, known_ceilings
from opbench.device.ceilings import Ceilings, Missing, Probe
from opbench.device.identity import Identity
from opbench.device.interference import OTHER_LOAD
from opbench.device.snapshots import others_now
from opbench.sweeps.isolation.executor import START_LIMIT_S
from opbench.sweeps.isolation.worker_process import SupervisorLost, WorkerDied, Workers
from opbench.sweeps.progress import NULL_PROGRESS, Progress

__all__ = ["DEFAULT_BUDGET_S", "ceilings_for", "default_budget_s", "serve_ceilings"]

DEFAULT_BUDGET_S = {"cpu": 15.0, "cuda": 30.0}
"""Seconds that all probes of a device may take together, loading torch not included."""

GRACE_S = 1.0
"""What a launch may take beyond the budget before its process is killed."""

MISSING_HOLDS = timedelta(days=1)
"""A probe that failed is not tried again before."""


def default_budget_s(device: str) -> float:
    """DEFAULT_BUDGET_S of "cpu" or "cuda:N"."""
    return DEFAULT_BUDGET_S[device.partition(":")[0]]


def ceilings_for(
    environment: Mapping[str, Any],
    workers: Workers,
    budget_s: float,
    *,
    again: bool = False,
    progress: Progress = NULL_PROGRESS,
) -> Ceilings | str:
    """The ceilings of a device; a text says why there are none.

    Kept probes are not measured again, nor those that failed within a day; but all are that were measured beside other
    work on the device, once that has ended. Of two measurements beside other work, the one with less of it is kept.

    Args:
        environment: of collect_environment; its threads are used.
        workers: where what is lacking is measured; no worker may be running, and none is afterwards.
        budget_s: seconds that measuring may take; 0 for not at all.
        again: measure all, and forget what is kept.
        progress: hears that measuring begins, and about each probe.
    """
    known = None if again else known_ceilings(environment)
    wanted = _probe_names(str(environment["device"]))
    skip = _settled(known) if known else set()
    kept = known
    if known and known.busy and budget_s and _is_calm(environment):
        progress.note(f"the device's limits are measured again: {known.busy} when they were measured before")
        known, skip = None, set()
    if known and skip >= wanted:
        return known
    if not budget_s:
        return known or "not measured: a budget of 0 s"
    progress.note(f"measuring what this device can do at most: up to {budget_s:g} s, once; kept for later sweeps")
    found = _Found(known, skip)
    problem = found.measure(workers, environment, budget_s, progress)
    if problem:
        return kept or problem
    ceilings = found.ceilings(environment)
    if kept and known is None and ceilings.busy and _other_share(ceilings) >= _other_share(kept):
        return kept  # other work has come back
    begun = tuple(entry for entry in ceilings.missing if entry.begun)
    keep(replace(ceilings, missing=begun), environment)
    return ceilings


def serve_ceilings(request: Mapping[str, Any], answer: Callable[..., None]) -> None:
    """Measure in a worker; what it answers is what _Found.measure reads."""
    from opbench.device.ceiling_probes import device_facts, measure_ceilings
    from opbench.device.interference import others_share
    from opbench.device.snapshots import busy_counters, conditions
    from opbench.sweeps.process_limits import torch_threads

    device = request["device"]
    facts = device_facts(device)
    answer(facts={"l2_bytes": facts.l2_bytes, "cache_bytes": facts.cache_bytes, "conditions": conditions(device)})

    def on_family(kind: str, name: str, number: int, total: int) -> None:
        answer(family=[kind, name], number=number, total=total)

    skip = {(kind, name) for kind, name in request["skip"]}
    before = busy_counters()
    with torch_threads(request.get("threads")):
        for result in measure_ceilings(device, request["budget_s"], facts=facts, skip=skip, on_family=on_family):
            share = others_share(before, busy_counters())
            answer(**{"probe" if isinstance(result, Probe) else "missing": asdict(result)}, other_cpu_share=share)
    answer(done=True)


class _Found:
    """What is known of a device so far.

    Args:
        known: kept ceilings to complete.
        skip: (kind, name) of probes that need not be measured.
    """

    def __init__(self, known: Ceilings | None, skip: set[tuple[str, str]]) -> None:
        self._probes = list(known.probes) if known else []
        self._other_shares = [share for share in [known and known.conditions.get("other_cpu_share")] if share]
        kept = known.missing if known else ()
        self._missing = {(entry.kind, entry.name): entry for entry in kept if (entry.kind, entry.name) in skip}
        self._skip = skip
        self._facts: Mapping[str, Any] = {}
        self._family: tuple[str, str] | None = None
        self._begun_at: float | None = None

    def measure(self, workers: Workers, environment: Mapping[str, Any], budget_s: float, progress: Progress) -> str:
        """Measure what is not to be skipped; the text says why nothing could be, and is empty where something was.

        A probe that ends its process or exceeds the budget is missing; another process measures those after it.
        """
        spent = f"the budget of {budget_s:g} s was spent"
        device, threads = str(environment["device"]), (environment.get("cpu") or {}).get("torch_threads")
        while self._left_s(budget_s) > 0:
            self._family = None
            try:
                workers.start()
                request = {"device": device, "budget_s": self._left_s(budget_s), "skip": sorted(self._skip)}
                workers.send({"ceilings": request | {"threads": threads}})
                share = None
                # The first answer may take as long as loading torch does, which the budget does not count.
                message = workers.receive(time.monotonic() + START_LIMIT_S)
                self._facts = message["facts"]
                self._begun_at = self._begun_at or time.monotonic()
                while "done" not in (message := workers.receive(time.monotonic() + self._left_s(budget_s) + GRACE_S)):
                    self._hear(message, progress)
                    share = message.get("other_cpu_share", share)
            except (WorkerDied, SupervisorLost, TimeoutError, ValueError, KeyError, TypeError) as error:
                late = isinstance(error, TimeoutError)
                if self._family is None:
                    return f"measuring failed: {f'no answer within {START_LIMIT_S:g} s' if late else error}"
                self._give_up(self._family, f"{spent} while it ran" if late else str(error))
            else:
                return ""
            finally:
                self._other_shares += [] if share is None else [share]
                workers.kill()
        for kind, name in sorted(_probe_names(device) - self._skip):
            self._missing[kind, name] = Missing(kind, name, f"{spent} before its turn", _now(), begun=False)
        return ""

    def _left_s(self, budget_s: float) -> float:
        return budget_s if self._begun_at is None else self._begun_at + budget_s - time.monotonic()

    def ceilings(self, environment: Mapping[str, Any]) -> Ceilings:
        """All of it."""
        gpu = environment.get("gpu") or {}
        return Ceilings(
            device_name=str(environment["device_name"]),
            identity=Identity.of(environment).parts,
            measured_at=_now(),
            l2_bytes=self._facts["l2_bytes"],
            cache_bytes=self._facts["cache_bytes"],
            probes=tuple(self._probes),
            conditions=self._facts["conditions"]
            | ({"other_cpu_share": max(self._other_shares)} if self._other_shares else {}),
            missing=tuple(self._missing.values()),
            multiprocessors=gpu.get("multiprocessors"),
            max_sm_clock_mhz=gpu.get("max_sm_clock_mhz"),
        )

    def _hear(self, message: Mapping[str, Any], progress: Progress) -> None:
        if "family" in message:
            kind, name = message["family"]
            self._family = (kind, name)
            progress.stage(f"ceilings {message['number']}/{message['total']}: {kind} {name}")
        elif "probe" in message:
            probe = Probe(**message["probe"])
            self._probes.append(probe)
            self._skip.add((probe.kind, probe.name))
        else:
            entry = Missing(**message["missing"])
            self._missing[entry.kind, entry.name] = entry
            self._skip.add((entry.kind, entry.name))

    def _give_up(self, family: tuple[str, str], reason: str) -> None:
        """The probe that was running ended badly; sizes of it that were measured are enough."""
        if family not in self._skip:
            self._missing[family] = Missing(*family, reason, _now(), begun=True)
            self._skip.add(family)


def _is_calm(environment: Mapping[str, Any]) -> bool:
    """Whether nothing else uses the device now."""
    if environment["device"] != "cpu":
        return not environment.get("other_gpu_processes")
    share = others_now()
    return share is not None and share <= OTHER_LOAD


def _other_share(ceilings: Ceilings) -> float:
    """Share of the CPU that others had; where it was not kept, all of it where the load was high."""
    share = ceilings.conditions.get("other_cpu_share")
    return float(share) if share is not None else float(bool(ceilings.busy))


def _probe_names(device: str) -> set[tuple[str, str]]:
    from opbench.device.ceiling_probes import DeviceFacts, probe_families

    facts = DeviceFacts(device.partition(":")[0], l2_bytes=None, cache_bytes=None, free_bytes=0)
    return {(family.kind, family.name) for family in probe_families(facts)}


def _settled(known: Ceilings) -> set[tuple[str, str]]:
    """Probes that have a figure, or failed less than MISSING_HOLDS ago."""
    oldest = datetime.now(UTC) - MISSING_HOLDS
    figures = {(probe.kind, probe.name) for probe in known.probes}
    return figures | {(entry.kind, entry.name) for entry in known.missing if _when(entry.at) > oldest}


def _when(text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
