"""Looks of series: apart in colour for every kind of vision, apart in grey, and one for each operator and provider."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from opbench.report.layout import PAPER_LABELS
from opbench.report.palette import PALETTE, identity_looks

WHITE, DARK = "#ffffff", "#15181c"
# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
LEAST_DISTANCE = {"normal": 25, "no red": 15, "no green": 15}
"""CIE76 of any two colours of the palette; about 2.3 is just visible side by side."""
LEAST_CONTRAST = 2.1
"""By WCAG's formula, against the ground; Okabe and Ito's orange on white has 2.2."""


def linear(colour):
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])


def luminance(colour):
    return float(np.dot([0.2126, 0.7152, 0.0722], linear(colour)))


def lab(colour, vision="normal"):
    """CIE L*a*b* (D65) of an sRGB colour as seen with a kind of vision."""
    seen = np.clip(np.asarray(VISIONS[vision]) @ linear(colour), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (c ** (1 / 3) if c > 216 / 24389 else (24389 / 27 * c + 16) / 116
               for c in to_xyz @ seen / [0.9505, 1, 1.089])  # fmt: skip
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour, ground):
    low, high = sorted([luminance(colour), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


def test_the_formulae_give_known_figures():
    np.testing.assert_allclose(lab("#ff0000"), [53.2, 80.1, 67.2], atol=0.2)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("ground", ["colour", "on_dark"])
def test_any_two_colours_are_apart_in_every_vision(vision, ground):
    colours = [getattr(look, ground) for look in PALETTE]
    assert len(colours) >= 12
    for one, other in itertools.combinations(colours, 2):
        assert math.dist(lab(one, vision), lab(other, vision)) >= LEAST_DISTANCE[vision], (one, other)


def test_colours_stand_out_from_their_ground():
    for look in PALETTE:
        assert contrast(look.colour, WHITE) >= LEAST_CONTRAST, look.colour
        assert contrast(look.on_dark, DARK) >= LEAST_CONTRAST, look.on_dark


def test_without_any_colour_markers_tell_series_apart():
    assert len({look.marker for look in PALETTE}) == len({look.symbol for look in PALETTE}) == len(PALETTE)


@pytest.mark.parametrize("providers", [1, 2, 3, 12, 40])
def test_every_identity_has_a_look_of_its_own(providers):
    identities = [("mine", f"provider{n}") for n in range(providers)]
    looks = identity_looks([*identities, *((operator, "torch") for operator in PAPER_LABELS)]).values()
    assert len({(look.colour, look.marker, look.filled) for look in looks}) == providers + len(PAPER_LABELS)
    alone = list(identity_looks(identities).values())
    assert len({look.colour for look in alone[:12]}) == len({look.marker for look in alone[:12]}) == min(providers, 12)


def test_the_papers_operators_keep_their_look_whatever_else_was_run():
    everything = identity_looks([("mine", "torch"), ("dcnv4", "triton"), ("dcnv4", "torch"), ("conv3x3", "torch")])
    assert everything["dcnv4", "triton"] == identity_looks([("dcnv4", "torch")])["dcnv4", "torch"] == PALETTE[6]
    assert everything["conv3x3", "torch"] == PALETTE[0]
    assert len(set(everything.values())) == 4
