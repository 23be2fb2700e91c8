"""A plain step-by-step simulation of one replica, to hold the closed form against.

Rules of the engine's scheduler without memory pressure: decodes first, then prompt chunks in order of
arrival into the remaining token budget; at most ``slots`` sequences at once.
"""

import random
from dataclasses import dataclass, field

from trimtab.planning.step_model import StepWork


@dataclass
class Request:
    arrival: float
    prompt: int
    output: int
    computed: int = 0
    made: int = 0
    first: float = field(default=0.0)
    last: float = field(default=0.0)


def poisson(rate, *, count, prompt, output, seed=1):
    """Return requests of fixed lengths with exponential gaps, times in µs."""
    draw, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate) * 1e6
        found.append(Request(now, prompt, output))
    return found


def simulate(model, requests, *, budget, slots):
    """Run every request to its end; fills ``first`` and ``last``."""
    waiting, running, now = list(requests), [], 0.0
    while waiting or running:
        if not running:
            now = max(now, waiting[0].arrival)
        while waiting and waiting[0].arrival <= now and len(running) < slots:
            running.append(waiting.pop(0))
        decoding = [r for r in running if r.computed >= r.prompt]
        left, chunks = budget - len(decoding), []
        for request in running:
            if request.computed < request.prompt and left > 0:
                chunk = min(left, request.prompt - request.computed)
                chunks.append((request, chunk))
                left -= chunk
        ending = [r for r, chunk in chunks if r.computed + chunk == r.prompt]
        now += model.step_us(
            StepWork(
                tokens=len(decoding) + sum(c for _, c in chunks),
                sampled=len(decoding) + len(ending),
                work=sum(c * (r.computed + c / 2) for r, c in chunks),
                batch=len(decoding),
                kv_tokens=sum(r.prompt + r.made for r in decoding),
            )
        )
        for request, chunk in chunks:
            request.computed += chunk
        for request in ending:
            request.first = now
        for request in (*decoding, *ending):
            request.made += 1
            request.last = now
        running = [r for r in running if r.made < r.output]


def settled(requests):
    """Drop the first fifth."""
    return requests[len(requests) // 5 :]


def tpots(requests):
    """Return times per output token, sorted, µs."""
    return sorted((r.last - r.first) / (r.output - 1) for r in settled(requests))


def ttfts(requests):
    """Return times to first token, sorted, µs."""
    return sorted(r.first - r.arrival for r in settled(requests))
