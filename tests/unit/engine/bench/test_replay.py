"""Replaying arrivals on an engine, and the figures that come out."""

import pytest

from tests.unit.engine.builders import an_engine, kv_memory
from trimtab_workers.engine.bench.arrivals import Arrival
from trimtab_workers.engine.bench.figures import equal_answers, figures, gaps_of, mean_gap
from trimtab_workers.engine.bench.replay import (
    Answer,
    counters,
    difference,
    replay,
    total,
    virtual,
)
from trimtab_workers.engine.clock import VirtualClock


class SteppingClock(VirtualClock):
    """A clock that moves a little each time it is read, as if work took time."""

    def now(self) -> float:
        self.advance(0.001)
        return super().now()


def arrivals(*seconds: float, prompt: int = 20, output: int = 6) -> list[Arrival]:
    return [
        Arrival(seconds=at, model="m", prompt_tokens=prompt, output_tokens=output, seed=n)
        for n, at in enumerate(seconds)
    ]


def test_every_arrival_is_answered_in_time_order():
    """Requests enter when they are due, waits pass in between, and times count from the due time."""
    clock = SteppingClock()
    engine = an_engine(clock=clock, prefix_caching=False)
    clock.advance(100.0)
    answers = replay(engine, arrivals(0.0, 0.5, 30.0), wait=virtual(clock), start_seconds=100.2)
    assert [len(answer.tokens) for answer in answers] == [6, 6, 6]
    assert [answer.arrival_seconds for answer in answers] == [0.0, 0.5, 30.0]
    for answer in answers:
        assert answer.error is None
        assert answer.arrival_seconds < answer.token_seconds[0] < answer.arrival_seconds + 1
        assert answer.token_seconds == sorted(answer.token_seconds)
    assert 130.0 < clock.now() < 132.0


def test_a_run_under_pressure_is_counted_and_answers_alike():
    """A short cache preempts, the counters of that run say so, and tokens are those of a long one."""
    load = arrivals(*[0.0] * 6, prompt=20, output=70)
    waits = VirtualClock()
    roomy = replay(an_engine(prefix_caching=False, clock=waits), load, wait=virtual(waits))
    clock = VirtualClock()
    short = an_engine(memory_bytes=kv_memory(11), prefix_caching=False, clock=clock)
    before = counters(short.registry)
    tight = replay(short, load, wait=virtual(clock))
    counted = difference(counters(short.registry), before)
    assert total(counted, "vllm:num_preemptions") > 0
    assert total(counted, "trimtab_engine_recomputed_tokens") > 0
    assert equal_answers(roomy, tight) == 6


def test_labels_are_summed_by_their_ending():
    """Bytes by direction and reason are added up for the reasons that are asked for."""
    counted = {
        "trimtab_engine_link_bytes/h2d/swap": 5.0,
        "trimtab_engine_link_bytes/d2h/swap": 7.0,
        "trimtab_engine_link_bytes/h2d/wake": 11.0,
        "trimtab_engine_link_stall_seconds/swap": 100.0,
    }
    assert total(counted, "trimtab_engine_link_bytes", ending=("/swap",)) == 12.0
    assert total(counted, "trimtab_engine_link_bytes") == 23.0


def test_figures():
    """Throughput, percentiles and goodput of two hand-made answers, a failed one and a late one."""
    answers = [
        Answer(model="m", arrival_seconds=1.0, token_seconds=[1.5, 1.53, 1.56], tokens=[1, 2, 3]),
        Answer(model="m", arrival_seconds=2.0, token_seconds=[5.0, 5.2], tokens=[4, 5]),
        Answer(model="m", arrival_seconds=3.0, error="lost"),
        Answer(model="m", arrival_seconds=0.1, token_seconds=[9.0], tokens=[6]),
    ]
    found = figures(answers, skip_seconds=1.0)
    assert (found.requests, found.failed, found.output_tokens) == (3, 1, 5)
    assert found.seconds == pytest.approx(4.2)
    assert found.tokens_per_second == pytest.approx(5 / 4.2)
    assert found.goodput == pytest.approx(1 / 4.2)
    assert found.ttft_p50 == pytest.approx(1.75)
    assert found.tbt_p99 == pytest.approx(0.2, rel=0.02)
    assert (mean_gap(answers[3]), gaps_of(answers[3])) == (0.0, [])


def test_nothing_answered_is_an_error():
    """A run without a token has no figures."""
    with pytest.raises(ValueError, match="none of 1 answers has a token"):
        figures([Answer(model="m", arrival_seconds=0.0, error="lost")])
