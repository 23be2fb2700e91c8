"""What must hold of observed variation, whatever gateways say."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planning.builders import POLICY
from trimtab.observe.traffic import merge
from trimtab.planning.draws import StratifiedDraws
from trimtab.planning.variation import ObservedVariation, Sample, Variation, next_variation

MANY = settings(max_examples=100, deadline=None)
SOME = settings(max_examples=30, deadline=None)
cvs = st.floats(0, 100)
samples = st.none() | st.builds(Sample, cvs, st.integers(0, 10**6))
observed = st.builds(ObservedVariation, gap=samples, prompt=samples, output=samples)
held = st.builds(
    Variation, gap=st.floats(0.5, 4.0), prompt=st.floats(0.1, 4.0), output=st.floats(0.1, 4.0)
)


@MANY
@given(observed, held)
def test_what_is_planned_for_settles_at_once_and_within_bounds(seen, before):
    """The same figures move it once at most."""
    after = next_variation(seen, held=before, policy=POLICY)
    assert next_variation(seen, held=after, policy=POLICY) == after
    assert 0.5 <= after.gap <= 4
    assert 0.1 <= after.prompt <= 4
    assert 0.1 <= after.output <= 4


@SOME
@given(st.floats(0.5, 4.0), st.integers(2, 300), st.integers(0, 2**32))
def test_gaps_are_spread_over_exactly_their_mean(cv, count, seed):
    """Whatever the law, the count and the seed."""
    draws, shape = StratifiedDraws(seed, count=count), 1 / cv**2
    gaps = [draws.gammavariate(shape, 1 / shape) for _ in range(count)]
    assert all(gap >= 0 and math.isfinite(gap) for gap in gaps)
    if shape != 1.0:
        assert sum(gaps) / count == pytest.approx(1.0, rel=1e-9)


def _document(cv, values):
    mean = sum(values) / len(values)
    moments = {
        "n": len(values),
        "mean": mean,
        "m2": sum((v - mean) ** 2 for v in values),
    }
    row = [990, 10 * len(values), 0, 0, 0]
    entry = {"counts": [row], "gap_cv": cv, "prompt": moments, "output": moments}
    return {"v": 1, "now": 1000.0, "intents": {"a/b": entry}}


@SOME
@given(
    st.lists(
        st.tuples(cvs, st.lists(st.integers(1, 5000), min_size=2, max_size=20)),
        min_size=1,
        max_size=4,
    )
)
def test_replicas_are_merged_in_any_order(parts):
    """Lengths vary as all of them together do, and gaps not less than a replica's part shows."""
    documents = [_document(cv, values) for cv, values in parts]
    seen = merge(documents)["a/b"].variation
    back = merge(reversed(documents))["a/b"].variation
    values = [v for _, some in parts for v in some]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert seen.prompt.cv == pytest.approx(spread / mean, abs=1e-6)
    assert seen.prompt.count == len(values)
    told = [cv for cv, some in parts if 10 * len(some) >= POLICY.observed_requests // 2]
    if not told:
        assert seen.gap is None
        return
    assert seen.gap.cv == pytest.approx(back.gap.cv, abs=1e-6)
    if all(cv >= 1 for cv in told):
        assert seen.gap.cv >= max(told) - 1e-9
    if len(parts) == 1:
        assert seen.gap.cv == pytest.approx(parts[0][0], abs=1e-6)
