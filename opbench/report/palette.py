"""How a series looks in every plot and on the page: an identity, which is an operator under one provider, has one look.

A look differs from the others of its run in its colour and in its marker, so that series stay apart in grey and for
the colour-blind; lines also differ in their dashes. Nothing here imports a library that draws.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from opbench.report.layout import PAPER_LABELS

__all__ = ["DASHED", "DASH_DOTTED", "DOTTED", "PALETTE", "Identity", "Look", "identity_looks"]

Identity = tuple[str, ...]
"""Operator, provider, and whatever else tells two series of a run apart."""


@dataclass(frozen=True, slots=True)
class Look:
    """Look of one series.

    Attributes:
        colour: on white.
        on_dark: on the page's dark ground; the same hue.
        marker: Matplotlib's name.
        symbol: the same marker for ECharts.
        dash: of lines, in widths of the line: drawn, left out, drawn, ...; empty for a solid line.
        filled: hollow markers come with the second round through the palette.
    """

    colour: str
    on_dark: str
    marker: str
    symbol: str
    dash: tuple[float, ...] = ()
    filled: bool = True


PLUS = "path://M3.5,0h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z"
CROSS = "path://M2,0L5,3L8,0L10,2L7,5L10,8L8,10L5,7L2,10L0,8L3,5L0,2z"
STAR = "path://M5,0L6.2,3.4L9.8,3.5L6.9,5.6L8,9.1L5,7L2,9.1L3.1,5.6L0.2,3.5L3.8,3.4z"
PENTAGON = "path://M5,0L9.8,3.5L8,9.1L2,9.1L0.2,3.5z"
HEXAGON = "path://M5,0L9.3,2.5L9.3,7.5L5,10L0.7,7.5L0.7,2.5z"
DASHED, DOTTED, DASH_DOTTED = (5.0, 2.0), (1.0, 1.5), (6.0, 1.5, 1.0, 1.5)

PALETTE = (
    # Okabe and Ito's colours, safe for colour-vision deficiencies, without their yellow: too faint on white.
    Look("#000000", "#e9ebee", "o", "circle"),
    Look("#E69F00", "#E69F00", "s", "rect"),
    Look("#56B4E9", "#56B4E9", "^", "triangle"),
    Look("#009E73", "#00B386", "D", "diamond"),
    Look("#0072B2", "#0088FF", "v", "path://M0,0.7L10,0.7L5,9.3z"),
    Look("#D55E00", "#D55E00", "P", PLUS),
    Look("#CC79A7", "#CC79A7", "X", CROSS),
    # These stay apart from them, and from each other, in normal and in red-blind and green-blind vision.
    Look("#480078", "#8844BB", "<", "path://M9.3,0L9.3,10L0.7,5z", DASHED),
    Look("#783018", "#885533", ">", "path://M0.7,0L0.7,10L9.3,5z", DASHED),
    Look("#306060", "#556666", "p", PENTAGON, DASHED),
    Look("#A8A860", "#EEFF88", "h", HEXAGON, DASHED),
    Look("#7878F0", "#665588", "*", STAR, DASHED),
)
"""The first seven belong to the paper's operators, in its order."""

LATER_DASHES = (DOTTED, DASH_DOTTED)
"""Of the second and third dozen of series."""


def identity_looks(identities: Iterable[Identity]) -> dict[Identity, Look]:
    """A look for each identity, all different.

    The first provider of one of the paper's operators looks the same whatever else was run. Everything else takes what
    is left in the order given, so a run's plots agree where all are given the run's identities.
    """
    reserved = {operator: number for number, operator in enumerate(PAPER_LABELS)}
    numbers: dict[Identity, int] = {}
    others: list[Identity] = []
    for identity in dict.fromkeys(identities):
        number = reserved.pop(identity[0], None)
        if number is None:
            others.append(identity)
        else:
            numbers[identity] = number
    free = [*range(len(PAPER_LABELS), len(PALETTE)), *reserved.values()]
    free += range(len(PALETTE), len(PALETTE) + len(others))
    numbers |= dict(zip(others, free, strict=False))
    return {identity: _look(number) for identity, number in numbers.items()}


def _look(number: int) -> Look:
    """The palette's look of that number; beyond the palette its colours come again with other markers and dashes."""
    again, place = divmod(number, len(PALETTE))
    if not again:
        return PALETTE[place]
    colours, shape = PALETTE[place], PALETTE[(place + again) % len(PALETTE)]
    dash = LATER_DASHES[(again - 1) % len(LATER_DASHES)]
    return Look(colours.colour, colours.on_dark, shape.marker, shape.symbol, dash, filled=again % 2 == 0)
