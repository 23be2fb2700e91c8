"""A planner that is exact and takes no time, and a world of synthetic traffic for it."""

import math
import random
from dataclasses import replace

from tests.unit.planning.builders import CPU, GIB, POLICY, a_fleet, a_pool, an_intent
from trimtab.bench.change.simulate import World
from trimtab.bench.change.values import Decision, Story
from trimtab.bench.planner_change import poisson
from trimtab.planning.load_history import Bucket, LoadHistory, join
from trimtab.planning.replan import Running, Wanted
from trimtab.planning.snapshot import Config, Load

SECOND = 1_000_000
MINUTE = 60 * SECOND
ONE = Config(product="cpu", cpu_model=CPU, precision="bf16", threads=1)
TWO = replace(ONE, threads=2)
CARRIES = 2.0
"""Requests per second of one replica of ONE within the targets; of TWO 1.8 times that."""


def a_load(rate):
    return Load(requests_per_second=rate, prompt_tokens=100, output_tokens=50)


def arrivals(rate, *, seconds, start=0, seed=None, history=None):
    """Return the history of a Poisson load (exact counts without a seed), added to another."""
    draw = poisson(seed) if seed is not None else round
    history = history or LoadHistory()
    start = history.until or start
    for at in range(start, start + seconds, 10):
        count = draw(10 * (rate(at) if callable(rate) else rate))
        row = (Bucket(at, count, 100 * count, 50 * count),) if count else ()
        history = join(history, LoadHistory(since=at, until=at + 10, buckets=row))
    return history


def running(replicas=2, **fields):
    base = Running(config=ONE, replicas=replicas, ready=replicas, generation=1)
    return replace(base, **fields)


def wanted(replicas=2, **fields):
    return replace(Wanted(config=ONE, replicas=replicas, generation=1), **fields)


class Ideal:
    """Wants as many replicas as carry the load with a fifth to spare, and the cheaper configuration."""

    def __init__(self, *, config=lambda _: ONE, policy=POLICY):
        self.config = config
        self.policy = policy
        self.calls = 0

    def __call__(self, snapshot):
        self.calls += 1
        return {i.uid: self._decide(i, snapshot) for i in snapshot.intents}, 0.0

    def _decide(self, intent, snapshot):
        rate = intent.load.requests_per_second if intent.load else 0.0
        busy = intent.busy_load.requests_per_second if intent.busy_load else rate
        config = self.config(snapshot)
        held = next((a for a in snapshot.assignments if a.intent_uid == intent.uid), None)
        pins = intent.constraints
        replicas = max(pins.min_replicas or 1, _needs(rate, config, 1.2))
        replicas = min(replicas, pins.max_replicas or replicas)
        now = held.replicas if held else replicas
        ours = held.config if held else config
        return Decision(
            config=config,
            replicas=replicas,
            memory_bytes=GIB,
            meets=True,
            running_meets=now >= _needs(rate, ours, 1.2),
            fewest=min(now, max(1, _needs(busy, ours, 1.3))),
        )


def carries(config):
    return CARRIES * (1.0 if config.threads == 1 else 1.8)


def _needs(rate, config, margin):
    return max(1, math.ceil(rate * margin / carries(config)))


def a_world(
    rates, *, seconds, events=(), pools=None, seed=0, planner=None, policy=POLICY, **fields
):
    """Return a world of intents with the given rates, by name; constants or functions of time."""
    rules = fields.pop("hysteresis", True)
    intents = [
        an_intent(name, load=a_load(rate(0) if callable(rate) else rate), **fields)
        for name, rate in rates.items()
    ]
    story = Story(
        name="test",
        fleet=a_fleet(
            *intents, pools=pools or tuple(a_pool(f"n{i}", threads=16, gib=64) for i in range(4))
        ),
        rates={
            f"uid-{name}": rate if callable(rate) else (lambda _, rate=rate: rate)
            for name, rate in rates.items()
        },
        events=tuple(events),
        seconds=seconds,
    )
    return World(
        story,
        planner=planner or Ideal(policy=policy),
        sustains=lambda _, config: carries(config),
        arrivals=poisson(seed),
        policy=policy,
        hysteresis=rules,
    )


def changes(life, name="chat"):
    """Return the steps of an intent after its creation, as pairs of kind and replicas."""
    return [
        (t.step.kind, t.step.replicas)
        for t in life.taken
        if t.uid == f"uid-{name}" and t.step.kind != "Create"
    ]


def a_random_load(seed, *, most):
    """Return a rate over time that jumps, drifts and stays, for tests of what must always hold."""
    source = random.Random(seed)
    knots = [(0, source.uniform(0.1, most))]
    while knots[-1][0] < 6 * 3600:
        at, last = knots[-1]
        rate = source.choice((last, source.uniform(0.0, most), last * source.uniform(0.7, 1.3)))
        knots.append((at + source.choice((30, 60, 300, 900, 1800)), min(most, rate)))

    def rate(second):
        return [r for at, r in knots if at <= second][-1]

    return rate
