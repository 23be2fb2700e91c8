"""The load generator: the same arrivals for equal seeds, in time whatever the server does."""

from __future__ import annotations

import asyncio

import openai
import pytest

from e2e.load import Arrival, Limits, Outcome, drive, percentile, poisson, summary
from tests.unit.server.conftest import running
from tests.unit.server.fake_engine import FakeEngine


def an_arrival(at: float = 0.0) -> Arrival:
    return Arrival(at_seconds=at, model="team-a/chat", prompt_tokens=4, output_tokens=3)


def an_outcome(at: float, *, ttft: float, tpot: float | None = 0.01) -> Outcome:
    return Outcome(
        arrival=an_arrival(at),
        lag_seconds=0.0,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        end_seconds=at + 1,
        output_tokens=3,
    )


def test_arrivals_repeat_and_keep_their_rate():
    """Equal seeds give equal arrivals; over a long time they come at the rate that was asked."""
    shape = {"seconds": 500.0, "models": ("a", "b"), "prompt_tokens": 1, "output_tokens": 1}
    arrivals = poisson(rate=4.0, seed=1, **shape)
    assert arrivals == poisson(rate=4.0, seed=1, **shape)
    assert arrivals != poisson(rate=4.0, seed=2, **shape)
    assert len(arrivals) == pytest.approx(2000, rel=0.1)
    assert [arrival.model for arrival in arrivals[:3]] == ["a", "b", "a"]


async def test_arrivals_wait_for_nobody():
    """All requests are sent although the server has answered none: the loop is open."""
    engine = FakeEngine(gate=asyncio.Semaphore(0))
    async with (
        running(engine) as worker,
        openai.AsyncOpenAI(base_url=worker.url("/v1"), api_key="x", max_retries=0) as client,
    ):
        async with asyncio.TaskGroup() as group:
            load = group.create_task(drive(client, [an_arrival() for _ in range(8)]))
            await engine.until(lambda: engine.running == 8)
            for _ in range(24):
                engine.gate.release()
        outcomes = load.result()
    assert [outcome.output_tokens for outcome in outcomes] == [3] * 8
    assert all(len(outcome.gaps_seconds) == 3 for outcome in outcomes)


def test_percentiles_are_values_that_occurred():
    """The nearest rank: no value between two measured ones is invented."""
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(map(float, range(1, 101))), 0.99) == 99.0
    assert percentile([5.0], 0.99) == 5.0


def test_goodput_needs_both_limits_and_warmup_is_dropped():
    """A request counts as good if TTFT and TPOT both hold; those of the warm-up count nowhere."""
    outcomes = [
        an_outcome(0.5, ttft=9.0),
        an_outcome(1.0, ttft=0.1),
        an_outcome(1.5, ttft=2.0),
        an_outcome(2.0, ttft=0.1, tpot=0.2),
        Outcome(arrival=an_arrival(2.0), lag_seconds=0.0, error="RateLimitError"),
    ]
    result = summary(outcomes, limits=Limits(), warmup_seconds=1.0)
    assert (result["requests"], result["completed"]) == (4, 3)
    assert result["errors"] == {"RateLimitError": 1}
    assert result["goodput_per_second"] == 0.5
    assert result["ttft_ms"]["p50"] == 100.0
