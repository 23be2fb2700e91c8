"""Latency and capacity of replicas under a steady load, in closed form (planner.md §5).

With n sequences running, n/(n_o - 1) requests end per step, so a step computes p = n_i·n/(n_o - 1)
prompt tokens beside the decodes, takes t(n), and the rate is n/((n_o - 1)·t(n)). The note's fixed
point is this curve read backwards; its maximum is the capacity.

Around the fixed point the number of running sequences fluctuates more than a Poisson number,
because a full batch is slow and so stays full. The chain "one more at rate λ, one less at rate
k/((n_o - 1)·t(k))" has its distribution in product form; mean and percentiles are read off it
(`tests/unit/planning/test_steady.py` holds both against a simulation step by step). Prompt tokens are
not spread evenly: a share of the steps carries a chunk, which is what a sequence beside it feels.

A plan asks about hundreds of replica counts of dozens of configurations. What does not depend on the
load is computed once per configuration, and the rest for many loads at once: a row is one replica
at one rate, a column a number of requests in it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Final

import numpy as np

from trimtab.planning.step_arrays import Beside, Bools, Floats, Ints, StepModels, pick, totals
from trimtab.planning.step_model import StepModel
from trimtab.planning.waits import Line, Waits

_ITERATIONS: Final = 40
_GRID_STEP: Final = 1.2
_MOST_WAITING: Final = 8
_NEGLIGIBLE: Final = 1e-7
# Logarithm of a probability that is lost in the rounding of any sum with the likeliest one's, by far.
_UNSEEN: Final = -80.0
# Last likely states between which rows are looked at apart, if they are more than a few.
_WIDTHS: Final = (8, 24, 64, 192, 768)
_FEW: Final = 48
_STEP_ERROR: Final = 1e-4
# Of nobody's arrivals: its logarithm is finite.
_LEAST_RATIO: Final = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """What a replica runs and for which requests.

    Attributes:
        model: Its step times.
        prompt: Mean prompt tokens.
        output: Mean output tokens, at least 1.
        token_budget: Most tokens of a step.
        max_sequences: Most sequences at once, beside what the KV cache allows.
        window: Tokens that a query sees at most; 0 is all.
    """

    model: StepModel
    prompt: int
    output: int
    token_budget: int
    max_sequences: int
    window: int = 0


class Replicas:
    """Replicas of several kinds; times in µs. ``which`` says by number of what kind a row is.

    Attributes:
        decode_us: Per kind and k, time of a step that decodes k sequences.
        service_us: Per kind and k, time to compute one prompt beside k sequences.
        unloaded_us: Per kind, end-to-end time of a request that is alone.
    """

    def __init__(self, kinds: Sequence[ReplicaKind]) -> None:
        """Prepare all that does not depend on the load."""
        self._models = StepModels([kind.model for kind in kinds])
        self._prompt = np.array([float(kind.prompt) for kind in kinds])
        self._tokens = np.array([max(1.0, kind.output - 1.0) for kind in kinds])
        self._kv_tokens = np.array([kind.prompt + kind.output / 2 for kind in kinds])
        windows = np.array([float(kind.window or np.inf) for kind in kinds])
        self._context = np.minimum(self._kv_tokens, windows)
        self._budget = np.array([float(kind.token_budget) for kind in kinds])
        self._most = np.array(
            [max(1, min(kind.max_sequences, kind.token_budget - 1)) for kind in kinds]
        )
        which = np.arange(len(kinds))[:, None]
        batch = np.arange(self._most.max() + 1.0)[None, :]
        self.decode_us = self._decode_us(which, batch)
        chunks = self._chunks(which, batch)
        self._chunk = self._prompt[which] / chunks
        self._chunk_us = self._extra_us(which, batch, self._chunk, resting=self.decode_us)
        self.service_us = chunks * (self.decode_us + self._chunk_us)
        decodes = np.array([kind.output > 1 for kind in kinds])
        decoding = np.where(decodes, self._tokens * self.decode_us[:, 1], 0.0)
        self.unloaded_us: Floats = self.service_us[:, 0] + decoding

    def slots(self, which: Ints, *, kv_tokens: Ints, sequences: Ints) -> Ints:
        """Return how many sequences a replica decodes at once, by its KV cache and a cap."""
        by_kv = (kv_tokens / self._kv_tokens[which]).astype(np.intp)
        slots: Ints = np.maximum(1, np.minimum(np.minimum(self._most[which], sequences), by_kv))
        return slots

    def max_running(self, number: int, target_us: float) -> int:
        """Return the most sequences whose decode step stays within ``target_us``; 0 if not one."""
        steps = self.decode_us[number]
        low, high = 0, int(self._most[number])
        while low < high:
            middle = (low + high + 1) // 2
            if steps[middle] <= target_us:
                low = middle
            else:
                high = middle - 1
        return low

    def capacity(self, which: Ints, slots: Ints) -> Floats:
        """Return the largest sustainable rates, requests per second."""
        grid, below, at = self._throughputs
        places = (grid < slots[:, None]).sum(axis=1)
        best: Floats = np.maximum(below[which, places], at[which, slots - 1])
        return best

    def steady(self, which: Ints, *, slots: Ints, rate: Floats) -> "States":
        """Return the steady states at some rates, which are to lie below the capacity."""
        steps = self._steps(which, slots, rate)
        batch = np.arange(1, steps.shape[1] + 1)
        tokens = self._tokens[which]
        endings = batch / (tokens[:, None] * steps) * 1e6
        with np.errstate(divide="ignore", invalid="ignore"):  # a rate of 0: nobody comes
            rises = np.log(rate[:, None] / endings)
            waiting = _waiting(rises, slots)
        # Beyond the slots requests wait and end at the full batch's rate.
        found = np.arange(1, int((slots + waiting).max()) + 1)
        running = np.minimum(found, slots[:, None])
        endings = pick(endings, running - 1)
        heights = np.cumsum(pick(rises, running - 1), axis=1)
        heights[found > (slots + waiting)[:, None]] = -np.inf
        top = np.maximum(0.0, heights.max(axis=1))[:, None]
        # States that no sum would notice: most of those of a replica that is little used.
        width = 1 + int(np.max(np.nonzero((heights > top + _UNSEEN).any(axis=0))[0], initial=0))
        heights, running, endings = (t[:, :width] for t in (heights, running, endings))
        weights = np.exp(np.concatenate([-top, heights - top], axis=1))
        seen = weights / totals(weights)[:, None]
        decoding = totals(running * seen[:, 1:])
        # Little's law with what really ends: a chain that is cut loses a few arrivals.
        ended = totals(seen[:, 1:] * endings)
        with np.errstate(invalid="ignore"):
            step_us = np.where(
                rate > 0, decoding / (ended * tokens) * 1e6, self.decode_us[which, 1]
            )
        return States(
            which=which,
            slots=slots,
            rate=rate,
            steps=steps,
            seen=seen,
            most=slots + waiting,
            running=decoding,
            step_us=step_us,
        )

    def waits(self, states: "States") -> Waits:
        """Return what a request waits for its first token; for screening only.

        The prompt's own steps, half the step that runs at arrival, a queue of prompts with fixed
        service time and exponential tail, and the wait for a slot if all are taken. Prompts that
        are short beside the token budget share steps instead of queueing.
        """
        slots = states.slots[:, None]
        likely = states.likely()
        last = int(np.nonzero(likely.any(axis=0))[0][-1])
        # Who finds all slots but one taken waits as all after it do, but for slots that come free.
        found = np.arange(max(1, min(last + 1, int(slots.max()) - 1)))
        single = likely[:, : len(found)] & (found < slots - 1)
        sure, use, tail = self._prompt_waits(states, np.minimum(found, slots - 1))
        return Waits(
            shares=np.where(single, states.seen[:, : len(found)], 0.0),
            sure=sure,
            use=use,
            tail=tail,
            line=self._line(states, likely),
        )

    def _prompt_waits(self, states: "States", others: Ints) -> tuple[Floats, Floats, Floats]:
        """Return of prompts beside ``others`` the certain time, the use of the queue and its tail."""
        which = states.which
        service = pick(self.service_us[which], others)
        share = np.minimum(1.0, self._prompt / self._budget)[which][:, None]
        use = np.minimum(0.99, share * states.rate[:, None] * service / 1e6)
        busy = 0.5 * pick(self.decode_us[which], others)
        return service + busy, use, service / (2 * (1 - use))

    def _line(self, states: "States", likely: Bools) -> Line | None:
        """Return the waits of who finds all slots but one taken, or all; None if nobody does."""
        which, slots = states.which, states.slots[:, None]
        taken = likely & (np.arange(likely.shape[1]) >= slots - 1)
        count = taken.sum(axis=1)
        if not count.any():
            return None
        first = taken.argmax(axis=1)[:, None]
        full = pick(states.steps, slots - 1)
        freed = self._tokens[which][:, None] * full / slots
        sure, use, tail = (t[:, 0] for t in self._prompt_waits(states, slots - 1))
        return Line(
            count=count.astype(np.float64),
            share=np.where(count > 0, pick(states.seen, first)[:, 0], 0.0),
            log_ratio=np.log(np.maximum(_LEAST_RATIO, states.rate * freed[:, 0] / 1e6)),
            sure=sure + np.maximum(0, first - slots + 1)[:, 0] * freed[:, 0],
            step=freed[:, 0],
            use=use,
            tail=tail,
        )

    def tpot_us(self, states: "States", quantiles: Sequence[float]) -> Floats:
        """Return quantiles of time per output token, a column each; for screening only.

        A request keeps about the company that it found. The prompts that interrupt it are a Poisson
        number on top.
        """
        which, most = states.which[:, None], states.slots[:, None] - 1.0
        others = np.minimum(states.others(quantiles), most)
        company = states.between(others + 1)
        usual = states.between(np.minimum(states.others([0.5]), most) + 1)
        met = states.rate[:, None] * self._tokens[which] * usual / 1e6
        chunks = self._chunks(which, 1 + others)
        chunk_us = self._extra_us(which, 1 + others, self._prompt[which] / chunks)
        z = np.array([NormalDist().inv_cdf(quantile) for quantile in quantiles])
        prompts = z * np.sqrt(met) * chunks * chunk_us / self._tokens[which]
        return np.where(
            company < usual, company, usual + np.hypot(np.maximum(0.0, company - usual), prompts)
        )

    def extrapolates(self, states: "States") -> Bools:
        """Tell which states run into large steps outside the measured grid."""
        batch = np.maximum(1.0, states.running)
        chunk = self._prompt[states.which] / self._chunks(states.which, batch)
        tokens = np.minimum(self._budget[states.which], batch + chunk)
        return self._models.extrapolates(
            states.which, tokens=tokens, batch=batch, context=self._context[states.which]
        )

    @cached_property
    def _throughputs(self) -> tuple[Floats, Floats, Floats]:
        """Return a grid of batches, the best rate of each kind below its points, and at all slots."""
        grid = [1.0]
        while grid[-1] * _GRID_STEP < self._most.max():
            grid.append(grid[-1] * _GRID_STEP)
        which = np.arange(len(self._most))[:, None]
        rates = self._throughput(which, np.array(grid)[None, :])
        below = np.zeros((len(rates), len(grid) + 1))
        below[:, 1:] = np.maximum.accumulate(rates, axis=1)
        every = np.arange(1.0, self._most.max() + 1)[None, :]
        at = self._throughput(which, every, resting=self.decode_us[:, 1:])
        return np.array(grid), below, at

    def _throughput(self, which: Ints, running: Floats, *, resting: Floats | None = None) -> Floats:
        """Return the rates at which so many sequences work; prompts must keep up.

        ``resting`` are the times of steps that only decode them, where they are known.
        """
        prompt = self._prompt[which]
        tokens = prompt * running / self._tokens[which]
        # Where the budget binds, prompts fill it, and sequences wait for prompts.
        full = np.maximum(1.0, self._budget[which] - running)
        binds = tokens > full
        chunk = prompt / self._chunks(which, running)
        part = np.where(binds, full, np.maximum(tokens, chunk))
        resting = self._decode_us(which, running) if resting is None else resting
        extra = self._extra_us(which, running, part, resting=resting)
        often = np.where(binds | (tokens > chunk), 1.0, tokens / chunk)
        step = resting + often * extra
        ended: Floats = np.where(binds, full / prompt, running / self._tokens[which])
        return ended / step * 1e6

    def _steps(self, which: Ints, slots: Ints, rate: Floats) -> Floats:
        """Return the mean times of steps of 1, 2, … sequences while prompts arrive."""
        batch = np.arange(1, slots.max() + 1)
        decode = self.decode_us[which, 1 : len(batch) + 1]
        extra, chunk = (t[which, 1 : len(batch) + 1] for t in (self._chunk_us, self._chunk))
        per_us = (rate / 1e6 * self._prompt[which])[:, None]
        share = per_us / chunk * extra
        with np.errstate(divide="ignore"):
            alone = decode / (1 - share)
            single = (share < 1) & (per_us * decode / (1 - share) <= chunk)
        steps = np.where(single, alone, decode + extra)
        several = np.nonzero(~single & (batch <= slots[:, None]))
        if len(several[0]):
            steps[several] = self._shared_steps(
                which[several[0]],
                (several[1] + 1).astype(np.float64),
                per_us[several[0], 0],
                decode=decode[several],
                extra=extra[several],
                chunk=chunk[several],
            )
        return steps

    def _shared_steps(
        self,
        which: Ints,
        batch: Floats,
        per_us: Floats,
        *,
        decode: Floats,
        extra: Floats,
        chunk: Floats,
    ) -> Floats:
        """Return the mean times of steps in which parts of several prompts may be computed."""
        context, prompt = self._context[which], self._prompt[which]
        steps = Beside(self._models, which, batch, context=context, sampled=1 + batch)
        time = decode + extra
        room = self._budget[which] - batch
        moving = np.ones(len(time), dtype=bool)
        for _ in range(_ITERATIONS):
            part = np.maximum(np.minimum(room, per_us * time), chunk)
            step = steps.step_us(part + batch, part * prompt / 2)
            after = decode + np.maximum(0.0, step - decode)
            moving &= np.abs(after - time) > _STEP_ERROR * time
            if not moving.any():
                break
            time = np.where(moving, after, time)
        return time

    def _chunks(self, which: Ints, beside: Floats) -> Floats:
        """Return in how many parts a prompt is computed."""
        room = np.maximum(1.0, self._budget[which] - beside)
        return np.maximum(1.0, np.ceil(self._prompt[which] / room))

    def _extra_us(
        self, which: Ints, beside: Floats, chunk: Floats, *, resting: Floats | None = None
    ) -> Floats:
        """Return what ``chunk`` prompt tokens add to a step of ``beside`` sequences.

        ``resting`` is that step's time without them, where it is known.
        """
        context = self._context[which]
        steps = Beside(self._models, which, beside, context=context, sampled=1 + beside)
        step = steps.step_us(chunk + beside, chunk * self._prompt[which] / 2)
        alone = self._decode_us(which, beside) if resting is None else resting
        return np.maximum(0.0, step - alone)

    def _decode_us(self, which: Ints, batch: Floats) -> Floats:
        """Return the time of a step that decodes ``batch`` sequences, not only whole ones."""
        return self._models.decode_us(which, batch, context=self._context[which])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class States:
    """Steady states of replicas, a row each; times in µs.

    Attributes:
        which: Of what kind each row is.
        slots: Sequences that it decodes at once.
        rate: Requests per second.
        steps: Mean time of a step of 1, 2, … sequences, prompts included.
        seen: Probability that an arriving request finds k others, by k; beyond the slots they wait.
            Of what lies beyond the last column nothing is left.
        most: Most others that a request may find.
        running: Sequences that decode on average.
        step_us: Mean time per output token over requests.
    """

    which: Ints
    slots: Ints
    rate: Floats
    steps: Floats
    seen: Floats
    most: Ints
    running: Floats
    step_us: Floats

    def likely(self) -> Bools:
        """Tell which numbers of others a request may well find."""
        return self.seen > _NEGLIGIBLE

    def alike(self) -> Iterator[tuple[Ints, "States"]]:
        """Yield rows with about equally many likely states, and their states without the unlikely.

        It changes nothing but the time that figures take: a table is as wide as its widest row, and a
        full replica has a hundred times as many likely states as one that is little used.
        """
        likely = self.likely()
        last = likely.shape[1] - 1 - np.argmax(likely[:, ::-1], axis=1)
        kinds = np.digitize(last, _WIDTHS) if len(last) > _FEW else np.zeros(len(last), np.intp)
        for kind in np.unique(kinds):
            rows: Ints = np.nonzero(kinds == kind)[0]
            some = self.only(rows)
            # One column more than likely ones: quantiles are reached within them.
            yield rows, replace(some, seen=some.seen[:, : int(last[rows].max()) + 2])

    def only(self, rows: Bools | Ints) -> "States":
        """Return some of the rows."""
        return States(
            which=self.which[rows],
            slots=self.slots[rows],
            rate=self.rate[rows],
            steps=self.steps[rows],
            seen=self.seen[rows],
            most=self.most[rows],
            running=self.running[rows],
            step_us=self.step_us[rows],
        )

    def others(self, quantiles: Sequence[float]) -> Floats:
        """Return quantiles of the others that a request finds, interpolated between integers."""
        wanted = np.array(quantiles)[None, :]
        below = np.zeros((len(self.seen), self.seen.shape[1] + 1))
        np.cumsum(self.seen, axis=1, out=below[:, 1:])
        found = (below[:, 1:, None] < wanted[:, None, :]).sum(axis=1)
        here = np.minimum(found, self.most[:, None])
        missing = wanted - pick(below, here)
        share = pick(self.seen, here)
        between = np.maximum(0.0, here - 1 + missing / share)
        return np.where(
            found > self.most[:, None], self.most[:, None], np.where(here, between, 0.0)
        )

    def between(self, batch: Floats) -> Floats:
        """Return the mean step times at batches between integers."""
        low = np.maximum(1, np.floor(batch).astype(np.intp))
        here = pick(self.steps, low - 1)
        after = pick(self.steps, np.minimum(low, self.steps.shape[1] - 1))
        line = here + (batch - low) * (after - here)
        return np.where((batch <= low) | (low >= self.slots[:, None]), here, line)


def _waiting(rises: Floats, slots: Ints) -> Ints:
    """Return how many waiting requests there may be before more of them are negligible.

    Args:
        rises: By how much the logarithm of a state's probability exceeds the one's before it.
        slots: States of each row in which nobody waits.
    """
    inside = np.arange(1, rises.shape[1] + 1) <= slots[:, None]
    heights = np.cumsum(np.where(inside, rises, 0.0), axis=1)
    top = np.maximum(0.0, np.where(inside, heights, -np.inf).max(axis=1))
    full, last = heights[:, -1], pick(rises, slots[:, None] - 1)[:, 0]
    least = top + math.log(_NEGLIGIBLE)
    most = (_MOST_WAITING - 1) * (slots + 1)
    falls = np.where(last < 0, np.minimum(np.ceil((least - full) / last), most), most)
    return np.where(full <= least, 0.0, falls).astype(np.intp)
