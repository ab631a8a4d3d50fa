"""A sweep over the cards of a fleet, from what was asked to the rows."""

import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opbench.device.ceilings import Ceilings
from opbench.device.identity import GPU_UUID, Identity, gpu_uuid, host_of
from opbench.errors import FleetError, UsageError
from opbench.registry.places import is_place, same_place
from opbench.results.measurement import Measurement
from opbench.results.origins import Origin
from opbench.results.run import CEILINGS, Run
from opbench.results.run_json import RUN
from opbench.results.sentinels import AFTER, BEFORE, add_sentinels
from opbench.sweeps.conduct import Conduct, FleetMode
from opbench.sweeps.fleet.driver import Card, Driver, Lane
from opbench.sweeps.fleet.fleet import Answer, Fleet, Lost
from opbench.sweeps.option_fields import Options, items, read_options
from opbench.sweeps.plan import plan_differences
from opbench.sweeps.progress import Progress
from opbench.sweeps.request import SweepRequest
from opbench.sweeps.start import (
    Prepared,
    accepted_differences,
    create_run,
    new_folder,
    open_to_continue,
    refused_differences,
)
from opbench.text import one_line

__all__ = ["FleetSweep", "connect_fleet", "measure", "start_fleet"]

CARD = re.compile(r"card-(\d{1,9})")


@dataclass(frozen=True, slots=True)
class FleetSweep:
    """Cards and what they measure.

    Attributes:
        cards: by their names in the fleet.
        runs: likewise; one for all, or where each repeats the whole plan one for each.
    """

    cards: Mapping[str, Card]
    runs: Mapping[str, Run]

    @property
    def every_run(self) -> list[Run]:
        """Each once."""
        return list({run.path: run for run in self.runs.values()}.values())

    def cards_of(self, run: Run) -> dict[str, Card]:
        """Those that measure one of the runs, by their names in the fleet."""
        return {name: card for name, card in self.cards.items() if self.runs[name] is run}


def connect_fleet(conduct: Conduct, options: Options) -> AbstractContextManager[Fleet]:
    """The fleet that options name, until the block ends.

    Raises:
        FleetError: its engine is not installed, it does not answer, or has nothing to run on.
        UsageError: an option that no card could follow.
    """
    from opbench.sweeps.fleet.ray_fleet import connect

    given = read_options(SweepRequest, options)  # before anything is started
    address = str(conduct.fleet).partition(":")[2]
    return connect(address, given.get("device") or "auto", given.get("threads"))


def start_fleet(
    fleet: Fleet,
    options: Options,
    conduct: Conduct,
    out: Path | None,
    progress: Progress,
    *,
    resume: bool = False,
    accept_differences: bool | Collection[str] = False,
) -> FleetSweep:
    """Have every card plan, and make the folder of the run, or of each card's, or open it to go on.

    Raises:
        FleetError: a card cannot be used, or differs from the first in more than its UUID.
        OpbenchError: as start_run and continue_run.
    """
    folders = _folders(out) if resume and out else {}
    sources = [same_place(text) for text in items("--ops", options.get("ops") or ()) if is_place(text)]
    runs = {name: open_to_continue(folder, {"sources": sources}) for name, folder in folders.items()}
    command = next((run.command for run in runs.values()), None)
    prepared = _prepare(fleet, {**options, "device": fleet.device_type}, command, progress)
    _require_alike(fleet, prepared, accept_differences)
    if note := next(iter(prepared.values())).note:
        progress.note(note)
    if conduct.fleet_mode is FleetMode.SHARE:
        first = next(iter(prepared.values()))
        run = runs[""] if runs else create_run(first, out, conduct)
        if runs:
            there = Identity.of(run.environment, code=True).without(GPU_UUID)
            differing = [accepted_differences(run, one, there, accept_differences) for one in prepared.values()]
            run.differences = tuple(dict.fromkeys(line for lines in differing for line in lines))
        return FleetSweep(_named(prepared, run.run_id, run.origins.values()), dict.fromkeys(prepared, run))
    return _replicas(prepared, runs, conduct, out, accept_differences)


def measure(fleet: Fleet, sweep: FleetSweep, conduct: Conduct, progress: Progress) -> None:
    """Measure what the runs lack: ceilings and a sentinel of each card, the cells, and the sentinel once more.

    Raises:
        ResultsError: another sweep writes there, or a journal is damaged.
        StorageError: a row cannot be written; those before stay readable.
    """
    driver = Driver(fleet, sweep.cards, progress)
    with ExitStack() as journals:
        lanes: dict[Path, Lane] = {}
        every = sweep.every_run
        repeat = int(every[0].command.get("repeat", 1))
        total = sum(len(run.plan()) for run in every) * repeat
        first = 1
        for run in every:
            lanes[run.path] = Lane(run, journals.enter_context(run.append()), total, first)
            first += len(run.plan()) * repeat
        by_card = {name: lanes[run.path] for name, run in sweep.runs.items()}
        providers = sorted({cell.provider for run in every for cell in run.plan()})
        driver.ask("open", {**every[0].command, "cell_timeout_s": conduct.cell_timeout_s}, providers)
        _keep_origins(sweep, driver.ask("ceilings", conduct.ceilings_budget_s))
        _keep_sentinels(sweep, driver.ask("sentinel", BEFORE))
        for repetition in range(1, repeat + 1):
            if repetition > 1:
                driver.ask("renew")
            cards = driver.cards
            schedules = {
                path: lane.schedule(repetition, conduct, [cards[name] for name in cards if by_card[name] is lane])
                for path, lane in lanes.items()
            }
            driver.measure(by_card, {name: schedules[run.path] for name, run in sweep.runs.items()})
            if left := sum(len(schedule.left) for schedule in schedules.values()):
                progress.note(f"{left} cells were not measured: the cards that could are lost")
        _keep_sentinels(sweep, driver.ask("sentinel", AFTER))


def _folders(out: Path) -> dict[str, Path]:
    """Folders of the runs to go on with: of one that cards share under the empty name, else by card."""
    if (out / RUN).exists() or not out.is_dir():
        return {"": out}
    return {path.name: path for path in sorted(out.iterdir()) if CARD.fullmatch(path.name)} or {"": out}


def _prepare(
    fleet: Fleet, options: dict[str, Any], command: Mapping[str, Any] | None, progress: Progress
) -> dict[str, Prepared]:
    """What the options stand for on each card; a card that is lost at this is an error."""
    waiting = [*fleet.cards]
    progress.stage(f"loading PyTorch on {len(waiting)} card{'' if len(waiting) == 1 else 's'}")
    for name in waiting:
        fleet.call(name, "prepare", options, None if command is None else dict(command), os.getcwd())
    given: dict[str, Any] = {}
    while len(given) < len(waiting):
        for event in fleet.wait():
            if isinstance(event, Lost):
                raise FleetError(f"the card on {fleet.place(event.card)} cannot be used: {event.why}")
            if isinstance(event, Answer):
                if "refused" in event.value:
                    raise UsageError(event.value["refused"])
                given[event.card] = Prepared.from_json(event.value)
    order = sorted(waiting, key=lambda name: (_place(given[name].environment), int(name)))
    return {name: given[name] for name in order}


def _require_alike(fleet: Fleet, prepared: Mapping[str, Prepared], accepted: bool | Collection[str]) -> None:
    (first_name, first), *others = prepared.items()
    there = Identity.of(first.environment, code=True).without(GPU_UUID)
    for name, one in others:
        here = Identity.of(one.environment, code=True).without(GPU_UUID)
        of_plan = plan_differences(first.plan, one.plan)
        if refused := refused_differences(there, here, accepted, of_plan):
            raise FleetError(
                f"the cards on {fleet.place(first_name)} (there) and {fleet.place(name)} (here) differ: "
                f"{one_line('; '.join(refused), 1000)} (--accept-differences measures on both all the same)"
            )


def _named(prepared: Mapping[str, Prepared], run_id: str, known: Collection[Origin]) -> dict[str, Card]:
    """The cards with their names: of one that measured for the run before, and is as it was, the same name."""
    free = [origin for origin in known if origin.actor]
    numbers = [int(found[1]) for origin in free if (found := CARD.fullmatch(origin.actor))]
    latest = max(numbers, default=0)
    cards = {}
    for name, one in prepared.items():
        here = (_place(one.environment), Identity.of(one.environment, code=True))
        same = next((o for o in free if (_place(o.environment), Identity.of(o.environment, code=True)) == here), None)
        if same:
            free.remove(same)
            cards[name] = Card(same.actor, same.run_id, one.environment)
        else:
            latest += 1
            cards[name] = Card(f"card-{latest}", f"{run_id}.card-{latest}", one.environment)
    return cards


def _replicas(
    prepared: Mapping[str, Prepared],
    known: Mapping[str, Run],
    conduct: Conduct,
    out: Path | None,
    accepted: bool | Collection[str],
) -> FleetSweep:
    """A run for each card, in folders beside each other; of those that went before, the ones whose card is there."""
    if known and "" in known:
        raise FleetError(f"{out}: its cards shared one run; go on without --fleet-mode replicate")
    cards = _named(prepared, "", [origin for run in known.values() for origin in run.origins.values()])
    runs: dict[str, Run] = {}
    for name, card in cards.items():
        one = prepared[name]
        if run := known.get(card.name):
            run.differences = accepted_differences(run, one, Identity.of(run.environment, code=True), accepted)
            runs[name] = run
        elif known:
            raise FleetError(f"{card} measured nothing in {out}: go on with the cards that did, or start a new run")
        else:
            folder = out or new_folder(one.environment)
            out = folder
            runs[name] = create_run(one, folder / card.name, conduct)
    return FleetSweep(
        {name: replace(card, origin=f"{runs[name].run_id}.{card.name}") for name, card in cards.items()}, runs
    )


def _keep_origins(sweep: FleetSweep, ceilings: Mapping[str, Any]) -> None:
    """Say in each run.json where its rows will be from, before there is one."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    for run in sweep.every_run:
        found = []
        for name, card in sweep.cards_of(run).items():
            given, known = ceilings.get(name), run.origins.get(card.origin)
            limits = Ceilings.from_json(given) if isinstance(given, dict) else None
            begun = known.started_at if known else started_at
            found.append(Origin(card.origin, begun, "", card.environment, limits, card.name))
        run.add_origins(found)
        if not (run.path / CEILINGS).exists():
            run.write_ceilings(next((one.ceilings for one in found if one.ceilings), None) or "no card measured them")


def _keep_sentinels(sweep: FleetSweep, lines: Mapping[str, str]) -> None:
    for run in sweep.every_run:
        measured = [
            replace(Measurement.from_json(json.loads(lines[name])), origin=card.origin)
            for name, card in sweep.cards_of(run).items()
            if name in lines
        ]
        add_sentinels(run.path, measured)


def _place(environment: Mapping[str, Any]) -> tuple[str, str]:
    return host_of(environment), gpu_uuid(environment)
