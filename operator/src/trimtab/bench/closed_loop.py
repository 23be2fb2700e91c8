"""What a step model predicts for a fixed number of requests in flight (planner.md §5, closed loop).

Benchmarks of serving engines keep a concurrency: a request that ends is replaced at once. In a
request's output - 1 decode steps each of the others is replaced once, and its prompt interrupts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.planning.step_model import StepWork

if TYPE_CHECKING:
    from trimtab.planning.step_model import StepModel

TOKEN_BUDGET: Final = 8192
"""Tokens per step of the engines that the measured rows are of: their documented default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Mean times of a run, ms."""

    ttft_ms: float
    tpot_ms: float

    def e2e_ms(self, output: int) -> float:
        """Return the time of a request of ``output`` tokens."""
        return self.ttft_ms + (output - 1) * self.tpot_ms


def closed_loop(
    model: StepModel,
    *,
    prompt: int,
    output: int,
    concurrency: int,
    token_budget: int = TOKEN_BUDGET,
) -> Times:
    """Return mean TTFT and TPOT of a replica with ``concurrency`` requests always in flight.

    In a request's life, waiting included, each of the others is replaced once: so its end-to-end
    time is its own prompt, its decode steps, and the others' prompts. How many of these it meets
    while it waits for its first token follows from a queue of fixed service times; the rest
    lengthens its decoding.
    """
    others = concurrency - 1
    context = prompt + output / 2
    chunks = math.ceil(prompt / max(1, token_budget - others))
    chunk = prompt / chunks
    decode = _step_us(model, batch=concurrency, context=context)
    beside = _step_us(model, batch=others, context=context) if others else 0.0
    carrying = _step_us(model, batch=others, context=context, chunk=chunk, prompt=prompt)
    service = chunks * carrying
    interruption = chunks * max(0.0, carrying - beside)
    life = service + (output - 1) * decode + others * interruption
    busy = others * interruption / life
    waited = min(others / 2, busy / (2 * (1 - busy)))
    ttft = service + decode / 2 + waited * interruption
    tpot = decode + (others - waited) / (output - 1) * interruption
    return Times(ttft_ms=ttft / 1000, tpot_ms=tpot / 1000)


def _step_us(
    model: StepModel, *, batch: int, context: float, chunk: float = 0.0, prompt: int = 0
) -> float:
    return model.step_us(
        StepWork(
            tokens=batch + chunk,
            sampled=batch + (1 if chunk else 0),
            work=chunk * prompt / 2,
            batch=batch,
            kv_tokens=batch * context,
        )
    )
