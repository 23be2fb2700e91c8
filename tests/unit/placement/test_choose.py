from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.placement.choose import expected_max, group_factor

SCORES = st.lists(st.integers(900, 1500), min_size=1, max_size=8)


def test_a_group_is_as_slow_as_its_slowest_member():
    """One GPU that is 6 % slow slows all four."""
    assert group_factor([1001, 1060, 998, 1000]) == 1060


def test_a_group_without_scores_is_an_error_that_says_what_to_give():
    """Nothing is no median."""
    with pytest.raises(ValueError, match="1000 for an unscored one"):
        group_factor([])


@pytest.mark.parametrize("k", [0, 4])
def test_a_group_larger_than_the_pool_or_empty_is_an_error(k):
    """The message names what was asked for and what there is."""
    with pytest.raises(ValueError, match=f"k = {k} among 3 scores"):
        expected_max([1000, 1010, 1020], k)


@given(scores=SCORES, data=st.data())
def test_the_expected_factor_is_the_mean_over_all_groups(scores, data):
    """It equals brute force, lies between mean and largest, and a larger group is never faster."""
    k = data.draw(st.integers(1, len(scores)))
    every = [group_factor(group) for group in combinations(scores, k)]
    found = expected_max(scores, k)
    assert found == pytest.approx(fmean(every), rel=1e-12)
    assert fmean(scores) - 1e-9 <= found <= max(scores)
    if k > 1:
        assert found >= expected_max(scores, k - 1) - 1e-9


def test_two_slow_gpus_of_276_cost_large_groups_more():
    """Rare slow GPUs hardly matter alone, and do to groups of eight."""
    scores = [1000] * 274 + [1060] * 2
    alone, eight = expected_max(scores, 1), expected_max(scores, 8)
    assert alone == pytest.approx(1000 + 60 * 2 / 276)
    assert eight == pytest.approx(1000 + 60 * (1 - (268 * 267) / (276 * 275)), rel=1e-9)
