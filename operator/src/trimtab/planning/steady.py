"""Latency and capacity of one replica under a steady load, in closed form (planner.md §5).

With n sequences running on average, n/(n_o - 1) requests end per step, so a step computes
p = n_i·n/(n_o - 1) prompt tokens beside the decodes, takes t(n), and the rate is n/((n_o - 1)·t(n)).
The note's fixed point is this curve read backwards; read forwards it needs no root, and the
capacity is its maximum.

Two refinements. Prompt tokens are not spread evenly: up to one chunk of one prompt, a share of the
steps carries that chunk, which is what the scheduler does and what a sequence beside it feels. And
a request sees itself and the others: n of them at random arrivals, at most the slots less its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from trimtab.planning.step_model import StepModel, StepWork

_BISECTIONS = 30
_GRID_STEP = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """What bounds one replica: tokens per step, sequences, KV tokens, attention window (0: none)."""

    token_budget: int
    max_sequences: int
    kv_tokens: int
    window: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """A replica's steady state, times in µs.

    Attributes:
        step_us: Mean time per output token.
        running: n, sequences that decode on average.
        others: Sequences that a request sees beside itself.
        chunks: Chunks per prompt.
        chunk_extra_us: What one chunk adds to the step of the sequences beside it.
        service_us: Time to compute one prompt beside the others.
    """

    step_us: float
    running: float
    others: float
    chunks: int
    chunk_extra_us: float
    service_us: float


class Replica:
    """The closed-form behaviour of one replica: a step model, mean lengths and limits."""

    def __init__(
        self, model: StepModel, *, prompt: int, output: int, limits: ReplicaLimits
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._tokens = max(1, output - 1)
        self._decodes = output > 1
        self._limits = limits
        self._capacity: float | None = None
        context = prompt + output / 2
        self._context = min(context, float(limits.window)) if limits.window else context
        by_kv = limits.kv_tokens / (prompt + output / 2)
        self.slots = max(1, min(limits.max_sequences, limits.token_budget - 1, int(by_kv)))

    def capacity(self) -> float:
        """Return the largest sustainable rate, requests per second."""
        if self._capacity is None:
            self._capacity = max(self._rate(n) for n in self._grid())
        return self._capacity

    def unloaded_us(self) -> float:
        """Return the end-to-end time of a request that is alone."""
        decode = self._tokens * self.decode_us(0.0) if self._decodes else 0.0
        return self._service_us(0.0) + decode

    def steady(self, rate: float) -> Steady:
        """Return the steady state with the fewest sequences at ``rate``, or the fullest."""
        running = self._running(rate)
        others = self._others(running)
        chunks = self._chunks(1 + others)
        return Steady(
            step_us=self._step_us(running),
            running=running,
            others=others,
            chunks=chunks,
            chunk_extra_us=self._extra_us(self._prompt / chunks, beside=1 + others),
            service_us=self._service_us(others),
        )

    def max_running(self, target_us: float) -> int:
        """Return the most sequences whose decode step stays within ``target_us``; 0 if not one."""
        low, high = 0, self.slots
        while low < high:
            middle = (low + high + 1) // 2
            if self.decode_us(middle - 1.0) <= target_us:
                low = middle
            else:
                high = middle - 1
        return low

    def tpot_us(self, state: Steady, *, quantile: float) -> float:
        """Return a quantile of time per output token; for screening only.

        The sequences beside a request, and so the prompts that interrupt it, are about Poisson:
        n + z·√n.
        """
        z = NormalDist().inv_cdf(quantile)
        spread = z * math.sqrt(state.others)
        others = min(max(0.0, state.others + spread), self.slots - 1.0)
        met = max(0.0, state.running + z * math.sqrt(state.running))
        return self.decode_us(others) + met * state.chunks * state.chunk_extra_us / self._tokens

    def ttft_us(self, state: Steady, *, rate: float, quantile: float | None) -> float:
        """Return the mean (None) or a quantile of time to first token; for screening only.

        The prompt's own steps, the rest of the step that runs at arrival, and the wait of a queue
        with fixed service time whose tail is exponential. Prompts that are short beside the token
        budget share steps instead of queueing; slots free one by one.
        """
        share = min(1.0, self._prompt / self._limits.token_budget)
        prompts = share * rate * state.service_us / 1e6
        lifetime = state.service_us + self._tokens * state.step_us
        turns = ((prompts, state.service_us), (rate / self.capacity(), lifetime / self.slots))
        busy = 1 - math.exp(-state.running)
        rest = busy * self._resting_us(max(1.0, state.others))
        waits = [_wait_us(min(0.99, use), turn, quantile) for use, turn in turns]
        return state.service_us + rest * (0.5 if quantile is None else quantile) + max(waits)

    def decode_us(self, others: float) -> float:
        """Return the time of a step that decodes a request and ``others``."""
        return self._resting_us(1 + others)

    def busiest(self, state: Steady) -> StepWork:
        """Return the largest step that the state runs into, to tell extrapolation."""
        batch = 1 + state.others
        tokens = min(float(self._limits.token_budget), batch + self._prompt / state.chunks)
        return StepWork(tokens=tokens, sampled=batch, batch=batch, kv_tokens=batch * self._context)

    def _grid(self) -> Sequence[float]:
        grid, n = [], 1 / 64
        while n < self.slots:
            grid.append(n)
            n *= _GRID_STEP
        return [*grid, float(self.slots)]

    def _running(self, rate: float) -> float:
        """Return the fewest running sequences that sustain ``rate``; all slots if none do."""
        if rate <= 0:
            return 0.0
        below = 0.0
        for above in self._grid():
            if self._rate(above) >= rate:
                break
            below = above
        else:
            return float(self.slots)
        for _ in range(_BISECTIONS):
            middle = (below + above) / 2
            if self._rate(middle) >= rate:
                above = middle
            else:
                below = middle
        return above

    def _rate(self, running: float) -> float:
        """Return the rate at which ``running`` sequences decode on average; 0 if prompts cannot keep up."""
        if running <= 0:
            return 0.0
        step = self._step_us(running)
        return running / self._tokens / step * 1e6 if math.isfinite(step) else 0.0

    def _step_us(self, running: float) -> float:
        """Return the mean time of a step; infinite where its prompt tokens exceed the budget."""
        beside = 1 + self._others(running)
        tokens = self._prompt * running / self._tokens
        if tokens > self._limits.token_budget - beside:
            return math.inf
        chunk = self._prompt / self._chunks(beside)
        decode = self._resting_us(beside)
        if tokens <= chunk:
            return decode + tokens / chunk * self._extra_us(chunk, beside=beside)
        return decode + self._extra_us(tokens, beside=beside)

    def _others(self, running: float) -> float:
        return running * (1 - 1 / self.slots)

    def _chunks(self, beside: float) -> int:
        room = max(1.0, self._limits.token_budget - beside)
        return max(1, math.ceil(self._prompt / room))

    def _service_us(self, others: float) -> float:
        chunks = self._chunks(others)
        extra = self._extra_us(self._prompt / chunks, beside=others)
        return chunks * (self._resting_us(others) + extra)

    def _resting_us(self, batch: float) -> float:
        """Return the time of a step that only decodes; 0 if there is nothing to decode."""
        if batch <= 0:
            return 0.0
        kv_tokens = batch * self._context
        return self._model.step_us(
            StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=kv_tokens)
        )

    def _extra_us(self, chunk: float, *, beside: float) -> float:
        """Return what ``chunk`` prompt tokens add to a step of ``beside`` sequences."""
        step = self._model.step_us(
            StepWork(
                tokens=chunk + beside,
                sampled=1 + beside,
                work=chunk * self._prompt / 2,
                batch=beside,
                kv_tokens=beside * self._context,
            )
        )
        return max(0.0, step - self._resting_us(beside))


def _wait_us(use: float, turn_us: float, quantile: float | None) -> float:
    """Return the mean (None) or a quantile of the wait at utilisation ``use``."""
    if use <= 0:
        return 0.0
    scale = turn_us / (2 * (1 - use))
    if quantile is None:
        return use * scale
    return max(0.0, math.log(use / (1 - quantile)) * scale)
