"""Builders of simulated queues: name only what a test is about."""

import random

from tests.unit.planning.builders import a_fingerprint
from trimtab.planning.queue_sim import simulate
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.step_model import StepWork, fit
from trimtab.planning.workload import Arrival

DEPTH = 30
MODEL = fit(a_fingerprint(), depth=DEPTH)
ROOMY = 1_000_000


def limits(**fields):
    return SchedulerLimits(**{"token_budget": 512, "max_running": 32} | fields)


def arrival(at_us=0.0, *, prompt=100, output=10):
    return Arrival(at_us=at_us, prompt=prompt, output=output)


def poisson(rate, *, count, prompt, output, seed=1):
    """Return requests of fixed lengths with exponential gaps."""
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate) * 1e6
        found.append(arrival(now, prompt=prompt, output=output))
    return found


def run(*arrivals, kv_tokens=ROOMY, model=MODEL, replicas=1, max_events=None, **fields):
    """Return (result, events of all replicas)."""
    events = []
    result = simulate(
        model,
        kv_tokens=kv_tokens,
        limits=limits(**fields),
        arrivals=arrivals,
        replicas=replicas,
        max_events=max_events,
        observe=lambda _, event: events.append(event),
    )
    return result, events


def chunk_us(chunk, *, cached=0, batch=0, kv_tokens=0, sampled=1):
    """One step that computes a part of a prompt beside ``batch`` sequences."""
    return MODEL.step_us(
        StepWork(
            tokens=chunk + batch,
            sampled=sampled + batch,
            work=chunk * (cached + chunk / 2),
            batch=batch,
            kv_tokens=kv_tokens,
        )
    )


def decode_us(*lengths):
    """One step that decodes sequences of these lengths."""
    return MODEL.step_us(
        StepWork(
            tokens=len(lengths),
            sampled=len(lengths),
            batch=len(lengths),
            kv_tokens=sum(lengths),
        )
    )
