import math

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tests.unit.planning.builders import POLICY
from trimtab.planning.calibration import Correction, Residual

SIZES = (1, 2, 4, 8)
SEEN: set[str] = set()
RESIDUALS = st.lists(
    st.builds(
        Residual,
        tensor_parallel_size=st.sampled_from(SIZES),
        batch=st.floats(1, 512),
        error=st.floats(-1, 1),
    ),
    max_size=8,
)
PLACES = st.tuples(st.sampled_from((1, 2, 3, 4, 8, 16)), st.floats(0, 4096))


def a_correction(residuals):
    return Correction(residuals=tuple(residuals), sizes=SIZES, policy=POLICY)


@given(RESIDUALS, PLACES)
def test_a_correction_never_exceeds_what_was_observed(residuals, place):
    """It lies between the errors seen, shrunk towards none, and within a factor of two."""
    found = a_correction(residuals)
    factor = found.log_factor(*place)
    assert abs(factor) <= math.log(2)
    shrunk = [r.error * len(residuals) / (len(residuals) + 1) for r in residuals]
    assert min([0.0, *shrunk]) - 1e-9 <= factor <= max([0.0, *shrunk]) + 1e-9
    if found.suspect:
        assert factor == 0
    kind = "suspect" if found.suspect else "corrected" if factor else "untouched"
    SEEN.add(kind)
    event(kind)


@given(RESIDUALS.flatmap(lambda r: st.tuples(st.just(r), st.permutations(r))), PLACES)
def test_the_order_of_anchors_does_not_matter(orders, place):
    """Permuted anchors correct alike."""
    first, second = (a_correction(residuals).log_factor(*place) for residuals in orders)
    assert first == pytest.approx(second, abs=1e-12)


@given(st.sampled_from(SIZES), st.floats(1, 512), st.floats(-0.69, 0.69), st.integers(1, 64))
def test_equal_anchors_are_believed_more_the_more_there_are(size, batch, error, count):
    """At their own place n equal errors correct n/(n + 1) of it, so the error never changes sign."""
    found = a_correction([Residual(tensor_parallel_size=size, batch=batch, error=error)] * count)
    left = error - found.log_factor(size, batch)
    assert left == pytest.approx(error / (count + 1), abs=1e-9)


def test_every_kind_of_correction_was_seen():
    """Suspect, corrected and untouched families occur among the examples, run here if need be."""
    test_a_correction_never_exceeds_what_was_observed()
    assert {"suspect", "corrected", "untouched"} <= SEEN
