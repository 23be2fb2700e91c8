"""Statistics of sides that alternate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.engine.bench.paired import paired_ratio, percentile, rounds, spread

POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20)


def test_rounds_alternate():
    """Sides run forwards and backwards in turns, so that linear drift cancels over two rounds."""
    assert [*rounds("AB", 4)] == [("A", "B"), ("B", "A"), ("A", "B"), ("B", "A")]
    assert [*rounds("ABC", 2)] == [("A", "B", "C"), ("C", "B", "A")]


def test_ratio_is_taken_inside_a_round():
    """A machine that becomes half as fast changes both sides, not their ratio."""
    ratio = paired_ratio([20.0, 10.0, 22.0], [10.0, 5.0, 10.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.2)


def test_percentile_interpolates():
    """The median of four is between the middle two; the ends are the extremes."""
    samples = [4.0, 1.0, 3.0, 2.0]
    assert percentile(samples, 50) == 2.5
    assert (percentile(samples, 0), percentile(samples, 100)) == (1.0, 4.0)


@given(POSITIVE, st.floats(0, 100))
def test_percentiles_stay_inside_and_grow(samples, percent):
    """A percentile lies between the extremes and grows with the share."""
    found = percentile(samples, percent)
    assert min(samples) <= found <= max(samples)
    assert percentile(samples, percent / 2) <= found * (1 + 1e-12)


@given(POSITIVE)
def test_spread_contains_its_median(samples):
    """The median lies in the range."""
    found = spread(samples)
    assert found.low <= found.median <= found.high


def test_nothing_measured_is_an_error():
    """No sample, unequal rounds, a round of 0 or a share beyond 100 is refused."""
    with pytest.raises(ValueError, match="samples is empty"):
        spread([])
    with pytest.raises(ValueError, match="2 rounds against 1"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="a round of 0"):
        paired_ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="1 samples at 101"):
        percentile([1.0], 101)
