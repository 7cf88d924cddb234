import itertools

import pytest
from combinations import combine, sometimes


def quick(parameters):
    return [one.values for one in parameters if not one.marks]


def test_every_combination_is_there_once():
    found = [one.values for one in combine("ab", (1, 2, 3), [True, False])]
    assert sorted(found) == sorted(itertools.product("ab", (1, 2, 3), [True, False]))


def test_every_pair_of_values_is_quick():
    factors = ("ab", (1, 2, 3), [True, False])
    found = quick(combine(*factors))
    assert len(found) == 6
    for first, second in itertools.combinations(range(3), 2):
        pairs = {(one[first], one[second]) for one in found}
        assert pairs == set(itertools.product(factors[first], factors[second]))


def test_every_value_alone_is_quick():
    found = quick(combine("abc", (1, 2, 3, 4), together=1))
    assert len(found) == 4
    assert {one[0] for one in found} == set("abc")
    assert {one[1] for one in found} == {1, 2, 3, 4}


@pytest.mark.parametrize("together", [1, 2])
def test_one_value_each_is_one_combination(together):
    assert quick(combine("a", "b", together=together)) == [("a", "b")]


def test_what_is_tried_sometimes_is_slow():
    assert [mark.name for mark in sometimes(1, 2).marks] == ["slow"]
    assert sometimes(1, 2).values == (1, 2)
