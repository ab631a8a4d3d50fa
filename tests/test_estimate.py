"""A figure with its interval goes into logarithms and back, at any size."""

import math

import pytest

from opbench.compare.estimate import Estimate, Unit


@pytest.mark.parametrize("unit", [Unit.MS, Unit.RATIO])
@pytest.mark.parametrize("values", [(2.0, 0.5, 3.0), (1e-300, 1e-308, 1e300)])
def test_a_logarithm_leads_back(unit, values):
    found = Estimate(*values, unit)
    assert found.log() == Estimate(*map(math.log, values), Unit.LOG)
    back = found.log().exp(unit)
    assert (back.value, back.low, back.high, back.unit) == (*map(pytest.approx, values), unit)


def test_an_estimate_of_zero_or_beyond_all_bounds_has_a_logarithm():
    assert Estimate(1, 0, math.inf, Unit.RATIO).log() == Estimate(0, -math.inf, math.inf, Unit.LOG)
    assert Estimate(0, -math.inf, 800, Unit.LOG).exp(Unit.RATIO) == Estimate(1, 0, math.inf, Unit.RATIO)


def test_another_unit_is_refused():
    found = Estimate(2, 1, 3, Unit.MS)
    found.require(Unit.MS)
    with pytest.raises(ValueError, match="must be an estimate in ratio, got one in ms"):
        found.require(Unit.RATIO)
    with pytest.raises(ValueError, match="got a logarithm"):
        found.log().log()
    with pytest.raises(ValueError, match="must be an estimate in log, got one in ms"):
        found.exp(Unit.RATIO)
    with pytest.raises(ValueError, match="must become a time or a ratio, not a logarithm"):
        found.log().exp(Unit.LOG)
