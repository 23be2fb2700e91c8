"""Latency and capacity of one replica under a steady load, in closed form (planner.md §5).

With n sequences running, n/(n_o - 1) requests end per step, so a step computes p = n_i·n/(n_o - 1)
prompt tokens beside the decodes, takes t(n), and the rate is n/((n_o - 1)·t(n)). The note's fixed
point is this curve read backwards; its maximum is the capacity.

Around the fixed point the number of running sequences fluctuates more than a Poisson number,
because a full batch is slow and so stays full. The chain "one more at rate λ, one less at rate
k/((n_o - 1)·t(k))" has its distribution in product form; mean and percentiles are read off it
(`tests/unit/planning/test_steady.py` holds both against a simulation step by step). Prompt tokens are
not spread evenly: a share of the steps carries a chunk, which is what a sequence beside it feels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

from trimtab.planning.step_model import StepModel, StepWork

_ITERATIONS = 40
_GRID_STEP = 1.2
_MOST_WAITING = 8
_NEGLIGIBLE = 1e-7
_EXACT = 1e-10

StepTimes = dict[tuple[float, float, float, int], float]
"""Step times of one step model, µs, by (prompt tokens, decodes, context, prompt length)."""

_Wait = tuple[float, float, float, float]
"""Probability, certain time, probability of queueing, mean of the queue's exponential tail."""


@dataclass(frozen=True, slots=True)
class _Company:
    """Waits with rising certain times, and the probability of each one and all after it."""

    waits: tuple[_Wait, ...]
    ahead: tuple[float, ...]

    @classmethod
    def of(cls, waits: Sequence[_Wait]) -> Self:
        ranked = sorted(waits, key=lambda wait: wait[1])
        ahead = [0.0]
        for wait in reversed(ranked):
            ahead.append(ahead[-1] + wait[0])
        return cls(tuple(ranked), tuple(reversed(ahead)))

    def exceeded(self, share: float) -> float:
        """Return the time that a wait exceeds with probability ``share``.

        That probability falls in jumps where a certain time ends, and between them as a sum of
        exponentials, on whose logarithm Newton's method comes from the left and never overshoots.
        """
        first = self._first(share)
        if first == 0:
            return self.waits[0][1]
        time = self.waits[first - 1][1]
        edge = self.waits[first][1] if first < len(self.waits) else math.inf
        for _ in range(_ITERATIONS):
            value, slope = self.ahead[first], 0.0
            for p, sure, use, tail in self.waits[:first]:
                late = p * use * math.exp((sure - time) / tail)
                value += late
                slope += late / tail
            if value <= share:
                break
            step = value * math.log(value / share) / slope if slope > 0 else math.inf
            time += step
            if time >= edge:
                return edge
            if step <= _EXACT * time:
                break
        return time

    def _first(self, share: float) -> int:
        """Return the first wait at whose certain time at most ``share`` is left; none: their number."""
        # Before this one more than that lies ahead alone.
        low, high = 0, len(self.waits)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.ahead[middle + 1] <= share else (middle + 1, high)
        step = 1
        while low < len(self.waits) and self._left(low) > share:
            low, step = low + step, 2 * step
        low, high = max(0, low - step // 2), min(low, len(self.waits))
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._left(middle) <= share else (middle + 1, high)
        return low

    def _left(self, index: int) -> float:
        """Return the probability that a wait is longer than one's certain time."""
        time = self.waits[index][1]
        return self.ahead[index + 1] + sum(
            p * use * math.exp((sure - time) / tail)
            for p, sure, use, tail in self.waits[: index + 1]
        )


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
        rate: Requests per second.
        step_us: Mean time per output token over requests.
        running: Sequences that decode on average.
        seen: Probability that an arriving request finds k others, by k; beyond the slots they wait.
    """

    rate: float
    step_us: float
    running: float
    seen: tuple[float, ...]

    def others(self, quantile: float) -> float:
        """Return a quantile of the others that a request finds, interpolated between integers."""
        below = 0.0
        for k, share in enumerate(self.seen):
            if below + share >= quantile:
                return max(0.0, k - 1 + (quantile - below) / share) if k else 0.0
            below += share
        return float(len(self.seen) - 1)


class Replica:
    """The closed-form behaviour of one replica: a step model, mean lengths and limits."""

    def __init__(
        self,
        model: StepModel,
        *,
        prompt: int,
        output: int,
        limits: ReplicaLimits,
        memo: StepTimes | None = None,
    ) -> None:
        """Prepare; ``memo`` is kept by a caller who asks for many replicas of one step model."""
        self._model = model
        self._prompt = prompt
        self._tokens = max(1, output - 1)
        self._decodes = output > 1
        self._limits = limits
        self._capacity: float | None = None
        self._times: dict[int, tuple[float, float, float]] = {}
        # Each is asked for again and again with equal arguments: per percentile, per iteration.
        self._memo: StepTimes = {} if memo is None else memo
        self._rested: dict[float, float] = {}
        self._companies: dict[float, _Company] = {}
        self._firsts: dict[tuple[int, float], tuple[float, float, float]] = {}
        context = prompt + output / 2
        self._context = min(context, float(limits.window)) if limits.window else context
        by_kv = limits.kv_tokens / (prompt + output / 2)
        self.slots = max(1, min(limits.max_sequences, limits.token_budget - 1, int(by_kv)))

    def capacity(self) -> float:
        """Return the largest sustainable rate, requests per second."""
        if self._capacity is None:
            self._capacity = max(self._throughput(n) for n in self._grid())
        return self._capacity

    def unloaded_us(self) -> float:
        """Return the end-to-end time of a request that is alone."""
        decode = self._tokens * self.decode_us(0.0) if self._decodes else 0.0
        return self.service_us(0.0) + decode

    def steady(self, rate: float) -> Steady:
        """Return the steady state at ``rate``, which is to lie below the capacity."""
        if rate <= 0:
            return Steady(rate=0.0, step_us=self.decode_us(0.0), running=0.0, seen=(1.0,))
        logs, endings = [0.0], [0.0]
        for k in range(1, self.slots + 1):
            endings.append(k / (self._tokens * self._step_us(k, rate)) * 1e6)
            logs.append(logs[-1] + math.log(rate / endings[-1]))
        # Beyond the slots requests wait and end at the full batch's rate.
        most = _MOST_WAITING * (self.slots + 1)
        while logs[-1] > max(logs) + math.log(_NEGLIGIBLE) and len(logs) < most:
            endings.append(endings[-1])
            logs.append(logs[-1] + math.log(rate / endings[-1]))
        top = max(logs)
        weights = [math.exp(x - top) for x in logs]
        total = sum(weights)
        seen = tuple(w / total for w in weights)
        running = sum(min(k, self.slots) * p for k, p in enumerate(seen))
        # Little's law with what really ends: a chain that is cut loses a few arrivals.
        ended = sum(p * e for p, e in zip(seen, endings, strict=True))
        return Steady(
            rate=rate, step_us=running / (ended * self._tokens) * 1e6, running=running, seen=seen
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

        A request keeps about the company that it found. The prompts that interrupt it are a Poisson
        number on top.
        """
        others = min(state.others(quantile), self.slots - 1.0)
        company = self._between(others + 1, state.rate)
        usual = self._between(min(state.others(0.5), self.slots - 1.0) + 1, state.rate)
        met = state.rate * self._tokens * usual / 1e6
        chunks = self._chunks(1 + others)
        chunk = self._extra_us(self._prompt / chunks, beside=1 + others)
        z = NormalDist().inv_cdf(quantile)
        prompts = z * math.sqrt(met) * chunks * chunk / self._tokens
        if company < usual:
            return company
        return usual + math.hypot(company - usual, prompts)

    def ttft_us(self, state: Steady, *, quantile: float | None) -> float:
        """Return the mean (None) or a quantile of time to first token; for screening only.

        The prompt's own steps, half the step that runs at arrival, a queue of prompts with fixed
        service time and exponential tail, and the wait for a slot if all are taken. Prompts that
        are short beside the token budget share steps instead of queueing.
        """
        found = self._company(state)
        if quantile is None:
            return sum(p * (sure + use * tail) for p, sure, use, tail in found.waits)
        return found.exceeded(1 - quantile)

    def decode_us(self, others: float) -> float:
        """Return the time of a step that decodes a request and ``others``."""
        return self._resting_us(1 + others)

    def service_us(self, others: float) -> float:
        """Return the time to compute one prompt beside ``others``."""
        chunks = self._chunks(others)
        extra = self._extra_us(self._prompt / chunks, beside=others)
        return chunks * (self._resting_us(others) + extra)

    def busiest(self, state: Steady) -> StepWork:
        """Return a large step that the state runs into, to tell extrapolation."""
        batch = max(1.0, state.running)
        chunk = self._prompt / self._chunks(batch)
        tokens = min(float(self._limits.token_budget), batch + chunk)
        return StepWork(tokens=tokens, sampled=batch, batch=batch, kv_tokens=batch * self._context)

    def _company(self, state: Steady) -> _Company:
        """Return the waits of an arriving request by how many others it finds."""
        if state.rate not in self._companies:
            waits = [
                (share, *self._first_token(k, state.rate))
                for k, share in enumerate(state.seen)
                if share > _NEGLIGIBLE
            ]
            self._companies[state.rate] = _Company.of(waits)
        return self._companies[state.rate]

    def _first_token(self, found: int, rate: float) -> tuple[float, float, float]:
        """Return (certain time, probability of queueing, mean of the queue's tail) beside others."""
        if (found, rate) not in self._firsts:
            self._firsts[found, rate] = self._first_token_anew(found, rate)
        return self._firsts[found, rate]

    def _first_token_anew(self, found: int, rate: float) -> tuple[float, float, float]:
        others = min(found, self.slots - 1)
        service = self.service_us(others)
        share = min(1.0, self._prompt / self._limits.token_budget)
        use = min(0.99, share * rate * service / 1e6)
        busy = 0.5 * self._resting_us(others)
        waiting = found - others
        slot = 0.0
        if waiting:
            slot = waiting * self._tokens * self._step_us(self.slots, rate) / self.slots
        return service + busy + slot, use, service / (2 * (1 - use))

    def _grid(self) -> Sequence[float]:
        grid, n = [], 1.0
        while n < self.slots:
            grid.append(n)
            n *= _GRID_STEP
        return [*grid, float(self.slots)]

    def _throughput(self, running: float) -> float:
        """Return the rate at which ``running`` sequences work; 0 if prompts cannot keep up."""
        tokens = self._prompt * running / self._tokens
        if tokens > self._limits.token_budget - running:
            # The budget binds: prompts fill it, and sequences wait for prompts.
            full = self._limits.token_budget - running
            step = self._resting_us(running) + self._extra_us(full, beside=running)
            return full / self._prompt / step * 1e6
        chunk = self._prompt / self._chunks(running)
        step = self._resting_us(running)
        if tokens <= chunk:
            step += tokens / chunk * self._extra_us(chunk, beside=running)
        else:
            step += self._extra_us(tokens, beside=running)
        return running / self._tokens / step * 1e6

    def _step_us(self, batch: int, rate: float) -> float:
        """Return the mean time of a step of ``batch`` while prompts arrive at ``rate``."""
        if batch not in self._times:
            chunk = self._prompt / self._chunks(batch)
            self._times[batch] = (
                self._resting_us(batch),
                self._extra_us(chunk, beside=batch),
                chunk,
            )
        decode, extra, chunk = self._times[batch]
        per_us = rate / 1e6 * self._prompt
        share = per_us / chunk * extra
        if share < 1 and per_us * decode / (1 - share) <= chunk:
            return decode / (1 - share)
        time = decode + extra
        room = self._limits.token_budget - batch
        for _ in range(_ITERATIONS):
            tokens = min(float(room), per_us * time)
            after = decode + self._extra_us(max(tokens, chunk), beside=batch)
            if abs(after - time) <= 1e-4 * time:
                break
            time = after
        return time

    def _between(self, batch: float, rate: float) -> float:
        """Return the mean step time at a batch between integers."""
        low = max(1, math.floor(batch))
        here = self._step_us(low, rate)
        if batch <= low or low >= self.slots:
            return here
        return here + (batch - low) * (self._step_us(low + 1, rate) - here)

    def _chunks(self, beside: float) -> int:
        room = max(1.0, self._limits.token_budget - beside)
        return max(1, math.ceil(self._prompt / room))

    def _resting_us(self, batch: float) -> float:
        """Return the time of a step that only decodes; 0 if there is nothing to decode."""
        if batch <= 0:
            return 0.0
        found = self._rested.get(batch)
        if found is not None:
            return found
        key = (0.0, batch, self._context, 0)
        found = self._memo.get(key)
        if found is None:
            kv_tokens = batch * self._context
            found = self._model.step_us(
                StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=kv_tokens)
            )
            self._memo[key] = found
        self._rested[batch] = found
        return found

    def _extra_us(self, chunk: float, *, beside: float) -> float:
        """Return what ``chunk`` prompt tokens add to a step of ``beside`` sequences."""
        key = (chunk, beside, self._context, self._prompt)
        step = self._memo.get(key)
        if step is None:
            step = self._model.step_us(
                StepWork(
                    tokens=chunk + beside,
                    sampled=1 + beside,
                    work=chunk * self._prompt / 2,
                    batch=beside,
                    kv_tokens=beside * self._context,
                )
            )
            self._memo[key] = step
        return max(0.0, step - self._resting_us(beside))
