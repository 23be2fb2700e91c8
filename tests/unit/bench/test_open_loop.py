"""The open-loop client of `planner-cpu`, against a real server with a played engine."""

import asyncio
import statistics

import pytest

from tests.unit.server.conftest import running
from tests.unit.server.fake_engine import FakeEngine
from trimtab.bench.open_loop import UNFINISHED, Arrival, Endpoint, drive, scattered


def an_arrival(at=0.0, model="team-a/chat"):
    return Arrival(at_seconds=at, model=model, prompt_tokens=4, output_tokens=3)


async def test_requests_wait_for_nobody():
    """All requests are sent although none was answered, and their tokens are the server's count."""
    engine = FakeEngine(gate=asyncio.Semaphore(0))
    async with running(engine) as worker, asyncio.TaskGroup() as group:
        load = group.create_task(
            drive(Endpoint(url=worker.url("")), [an_arrival()] * 8, until_seconds=60.0)
        )
        await engine.until(lambda: engine.running == 8)
        for _ in range(24):
            engine.gate.release()
        outcomes = await load
    assert [o.output_tokens for o in outcomes] == [3] * 8
    assert {o.error for o in outcomes} == {None}
    assert all(0 < o.ttft_seconds <= o.end_seconds for o in outcomes)


async def test_what_runs_at_the_end_is_broken_off():
    """A request that the server holds counts as unfinished, and the server is told."""
    engine = FakeEngine(gate=asyncio.Semaphore(1))
    async with running(engine) as worker:
        (outcome,) = await drive(Endpoint(url=worker.url("")), [an_arrival()], until_seconds=3.0)
        await engine.until(lambda: len(engine.aborted) == 1)
    assert outcome.error == UNFINISHED


async def test_refusals_and_silence_are_counted_by_kind():
    """A refusal is its status, a server that is not there the exception; neither ends the load."""
    engine = FakeEngine()
    async with running(engine) as worker:
        url = worker.url("")
        (refused,) = await drive(
            Endpoint(url=url, token="t"), [an_arrival(model="nobody")], until_seconds=60.0
        )
    (gone,) = await drive(Endpoint(url=url), [an_arrival()], until_seconds=60.0)
    assert refused.error == "HTTP 404"
    assert gone.error == "ClientConnectorError"


def test_a_load_has_its_mean_number_of_requests():
    """Equal seeds give equal times, rising, exactly as many as the rate says, and lengths keep their means."""
    shape = {"model": "m", "prompt_tokens": 64, "output_tokens": 200, "length_cv": 1.0}
    found = scattered(rate=0.5, seconds=100.0, seed=1, **shape)
    assert found == scattered(rate=0.5, seconds=100.0, seed=1, **shape)
    assert len(found) == 50
    times = [a.at_seconds for a in found]
    assert times == sorted(times)
    assert times[-1] <= 100.0
    assert statistics.fmean(a.prompt_tokens for a in found) == pytest.approx(64, rel=0.05)
    assert statistics.fmean(a.output_tokens for a in found) == pytest.approx(200, rel=0.05)
    assert statistics.stdev(a.output_tokens for a in found) > 120
    equal = scattered(rate=0.5, seconds=100.0, seed=1, **shape | {"length_cv": 0.0})
    assert {(a.prompt_tokens, a.output_tokens) for a in equal} == {(64, 200)}
