"""Tables of the cards of a fleet, and what is written of runs that compare cards."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from opbench.compare.cards import CardReading, card_readings, operator_spreads, outliers
from opbench.files import make_folder, write_whole
from opbench.report.layout import OPERATOR_LABELS
from opbench.report.render import write_table_files
from opbench.report.table import Table
from opbench.report.value_text import ABSENT, count_cells, signed_percent, three_digits
from opbench.results.run import Run
from opbench.results.sentinels import read_sentinels
from opbench.stats import median

__all__ = ["SPREAD_CSV", "card_tables", "draw_spread", "fleet_notes", "runs_by_card", "spread_tables", "write_spread"]

SPREAD_CSV = "cards.csv"


def card_tables(run: Run) -> list[Table]:
    """Of a run that a fleet measured, the cards with their sentinel; which is an outlier is a note. Else none."""
    readings = card_readings(run)
    return [_cards_table(readings, _sentinel_text(run))] if readings else []


def spread_tables(runs: Sequence[Run]) -> list[Table]:
    """Of runs of one plan on several cards: the cards, and how far they are apart in each operator."""
    by_card = runs_by_card(runs)
    readings = [reading for run in runs for reading in card_readings(run)]
    return [_cards_table(readings, _sentinel_text(runs[0])), _spread_table(by_card)]


def write_spread(runs: Sequence[Run]) -> list[Path]:
    """Write tables and cards.csv beside the folders of several cards' runs: each card against the median of all."""
    if len(runs) == 1:
        return []
    folder = runs[0].path.parent
    written = write_table_files(spread_tables(runs), folder / "tables")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("operator", "cells", "card", "relative_latency"))
    for spread in operator_spreads(runs_by_card(runs)):
        for card, relative in spread.relative.items():
            writer.writerow((spread.operator or "all", spread.cells, card, relative))
    write_whole(folder / SPREAD_CSV, text.getvalue())
    return [*written, folder / SPREAD_CSV]


def draw_spread(runs: Sequence[Run]) -> list[Path]:
    """Draw how far several cards are apart, as PNG and SVG in `plots` beside their runs' folders."""
    spreads = operator_spreads(runs_by_card(runs)) if len(runs) > 1 else []
    if not spreads:
        return []
    from opbench.report.plots.cards import cards_figure
    from opbench.report.plots.style import plot_style, save

    folder = runs[0].path.parent / "plots"
    make_folder(folder)
    with plot_style():
        return save(cards_figure(spreads, runs[0].device_name), folder / "cards")


def runs_by_card(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by the name of the card that measured them."""
    return {next((origin.actor for origin in run.origins.values()), run.path.name): run for run in runs}


def _cards_table(cards: Sequence[CardReading], sentinel: str) -> Table:
    values = [card.sentinel_ms for card in cards if card.sentinel_ms is not None]
    middle = median(values) if values else 0.0
    rows = [
        (
            card.name,
            card.host or ABSENT,
            card.gpu_uuid or card.device,
            str(card.cells),
            ABSENT if card.before_ms is None else three_digits(card.before_ms),
            ABSENT if card.after_ms is None else three_digits(card.after_ms),
            ABSENT if card.sentinel_ms is None or not middle else signed_percent(card.sentinel_ms / middle - 1),
        )
        for card in cards
    ]
    return Table(
        name="cards",
        title="Cards of the fleet",
        columns=(
            "Card",
            "Host",
            "GPU",
            "Cells",
            "Sentinel\nbefore (ms)",
            "Sentinel\nafter (ms)",
            "against the\nmedian",
        ),
        rows=tuple(rows),
        notes=tuple(_card_notes(cards, sentinel)),
        text_columns=3,
    )


def fleet_notes(run: Run) -> list[str]:
    """Of a run that a fleet measured, which card is an outlier, and how far the cards are apart. Else none."""
    return _spread_notes(card_readings(run))


def _card_notes(cards: Sequence[CardReading], sentinel: str) -> list[str]:
    notes = [f"Sentinel: {sentinel}, before and after the cells of each card."] if sentinel else []
    notes += _spread_notes(cards)
    for card in cards:
        notes += [f"{card.name}: the sentinel has no value: {problem}." for problem in card.problems]
    return notes


def _spread_notes(cards: Sequence[CardReading]) -> list[str]:
    values = {card.name: card.sentinel_ms for card in cards if card.sentinel_ms is not None}
    notes = []
    for name, deviation in outliers(values).items():
        card = next(card for card in cards if card.name == name)
        how = f"{100 * abs(deviation):.0f} % {'slower' if deviation > 0 else 'faster'}"
        notes.append(
            f"{name} ({card.gpu_uuid or f'host {card.host}'}) is {how} than the median of the fleet: an outlier."
        )
    if len(values) > 1:
        low, high = min(values.values()), max(values.values())
        notes.append(f"From the fastest to the slowest card: {signed_percent(high / low - 1)}.")
    return notes


def _spread_table(by_card: Mapping[str, Run]) -> Table:
    spreads = operator_spreads(by_card)
    rows = [
        (
            OPERATOR_LABELS.get(spread.operator, spread.operator) or "all together",
            str(spread.cells),
            *(signed_percent(spread.relative[name] - 1) for name in by_card),
            signed_percent(spread.spread),
        )
        for spread in spreads
    ]
    cells = sum(spread.cells for spread in spreads[:-1])
    planned = len(next(iter(by_card.values())).plan())
    lacking = planned - cells
    notes = ["Latency of each card against the median of all cards, cell by cell; geometric mean over the cells."]
    if lacking:
        notes.append(f"{count_cells(lacking)} without a value on every card left out.")
    return Table(
        name="cards-spread",
        title="The same cells on every card",
        columns=("Operator", "Cells", *by_card, "slowest over\nfastest"),
        rows=tuple(rows),
        notes=tuple(notes),
        text_columns=1,
    )


def _sentinel_text(run: Run) -> str:
    for sentinel in read_sentinels(run.path):
        case = sentinel.cell.case
        return f"{OPERATOR_LABELS.get(case.operator, case.operator)} {case.level} {case.shape} {case.dtype}"
    return ""
