"""Which cells a shard has, and what a sweep of one does with them."""

import random
import re

import pytest
from builders import make_case, make_cell
from hypothesis import given, settings
from hypothesis import strategies as st

from opbench.errors import UsageError
from opbench.results.shards import own_places, shard_text

OPERATORS = st.sampled_from(["conv3x3", "dcnv3", "dcnv4"])
SIDES = st.integers(1, 9)


@given(st.dictionaries(st.tuples(OPERATORS, SIDES), st.integers(1, 6), max_size=20), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_each_cell_is_in_one_shard_and_groups_stay_together(groups, count):
    plan = [
        make_cell(make_case(operator, shape=(1, side, side, 8)), f"provider{number}")
        for (operator, side), cells in groups.items()
        for number in range(cells)
    ]
    shards = [own_places(plan, f"{number}/{count}") for number in range(1, count + 1)]
    assert sorted(place for places in shards for place in places) == [*range(len(plan))]
    homes = {}
    for number, places in enumerate(shards):
        assert places == sorted(places)
        for place in places:
            case = plan[place].case
            assert homes.setdefault((case.operator, case.shape), number) == number
    sizes = [len(places) for places in shards]
    assert max(sizes) - min(sizes) <= max(groups.values(), default=0)

    shuffled = random.Random(count).sample(plan, len(plan))  # noqa: S311 - no secret
    for number, places in enumerate(shards, start=1):
        again = own_places(shuffled, f"{number}/{count}")
        assert {shuffled[place].key for place in again} == {plan[place].key for place in places}


def test_without_a_shard_all_cells_are_measured():
    assert own_places([make_cell(), make_cell()], None) == [0, 1]


@pytest.mark.parametrize(("given", "read"), [("1/1", "1/1"), ("02/3", "2/3"), ("10/10", "10/10")])
def test_a_shard_is_read(given, read):
    assert shard_text("--shard", given) == read


@pytest.mark.parametrize("given", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1/99999", 3, None, "1 / 3"])
def test_anything_else_is_one_line(given):
    message = f"--shard must be K/N with K from 1 to N, and N at most 10000, got {given!r}"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        shard_text("--shard", given)
