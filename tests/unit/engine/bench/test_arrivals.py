"""Arrivals are open-loop, seeded, and as long as the stated quantiles say."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.engine.bench.arrivals import (
    LENGTHS,
    SHARES,
    Arrival,
    Load,
    at_share,
    bursts_on_one,
)
from trimtab_workers.engine.bench.paired import percentile

LOAD = Load(
    lengths="azure-conv",
    divisor=8,
    longest=640,
    seconds=600,
    burst_seconds=10,
    pause_seconds=20,
    burst_rate=4,
    visit_seconds=15,
    seed=3,
)


@pytest.mark.parametrize("name", [*LENGTHS])
def test_quantiles_are_met(name):
    """At each stated share the sampler returns the stated length, and it grows in between."""
    for quantiles in (LENGTHS[name].prompt, LENGTHS[name].output):
        assert [at_share(quantiles, share) for share in SHARES] == list(quantiles)
        between = [at_share(quantiles, n / 200) for n in range(201)]
        assert between == sorted(between)


def test_published_medians():
    """Medians and 99th percentiles are those that engine.md §9 quotes from the traces."""
    code, conv = LENGTHS["azure-code"], LENGTHS["azure-conv"]
    assert (at_share(code.prompt, 0.5), at_share(code.prompt, 0.99)) == (1469, 7436)
    assert (at_share(conv.output, 0.5), at_share(conv.output, 0.99)) == (129, 601)


def test_bursts_fall_on_the_first_model_and_visits_on_the_others():
    """The first model's requests lie inside bursts at the given rate; others get rare visits."""
    arrivals = bursts_on_one(("a", "b", "c"), LOAD)
    hot = [a.seconds for a in arrivals if a.model == "a"]
    assert all(seconds % 30 < 10 for seconds in hot)
    assert len(hot) == pytest.approx(4 * 200, rel=0.15)
    visits = [a for a in arrivals if a.model != "a"]
    assert {a.model for a in visits} == {"b", "c"}
    assert len(visits) == pytest.approx(40, rel=0.5)
    assert [a.seconds for a in arrivals] == sorted(a.seconds for a in arrivals)


def test_lengths_are_divided_and_cut():
    """Lengths are an eighth of the trace's, and prompt and output together fit the context."""
    arrivals = bursts_on_one(("a",), LOAD)
    assert percentile([a.prompt_tokens for a in arrivals], 50) == pytest.approx(1020 / 8, rel=0.15)
    assert max(a.prompt_tokens + a.output_tokens for a in arrivals) <= 640
    short = bursts_on_one(("a",), dataclasses.replace(LOAD, longest=20))
    assert max(a.prompt_tokens + a.output_tokens for a in short) == 20
    assert min(min(a.prompt_tokens, a.output_tokens) for a in short) >= 1


@given(st.integers(0, 2**20), st.integers(1, 50))
def test_equal_seeds_are_equal_loads(seed, vocab):
    """The same seed gives the same arrivals and token ids, so that sides can draw them alone."""
    load = dataclasses.replace(LOAD, seed=seed, seconds=30)
    arrivals = bursts_on_one(("a", "b"), load)
    assert arrivals == bursts_on_one(("a", "b"), load)
    for arrival in arrivals[:2]:
        again = Arrival(**arrival.to_dict())
        assert again.token_ids(vocab) == arrival.token_ids(vocab)
        assert max(arrival.token_ids(vocab)) < vocab


def test_nonsense_is_refused():
    """A rate of 0 or no model is an error."""
    with pytest.raises(ValueError, match="Give a model and positive figures"):
        bursts_on_one((), LOAD)
    with pytest.raises(ValueError, match="Give a model and positive figures"):
        bursts_on_one(("a",), dataclasses.replace(LOAD, burst_rate=0))
