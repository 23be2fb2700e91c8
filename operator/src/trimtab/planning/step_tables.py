"""Step times looked up instead of computed, so that a simulated event costs microseconds."""

import math
from bisect import bisect_right
from dataclasses import replace

from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.step_model import StepModel, StepWork


class StepTables:
    """The step times of one model under one scheduler, shared by the replicas of a simulation."""

    __slots__ = (
        "_alone",
        "_beside",
        "_factors",
        "_knots",
        "_lines",
        "_model",
        "_plain",
        "_us_per_work",
        "_window",
    )

    def __init__(self, model: StepModel, limits: SchedulerLimits) -> None:
        self._model = model
        self._plain = replace(model, correction=None)
        self._us_per_work = sum(kind.layers * kind.prefill_us_per_work for kind in model.kinds)
        self._alone: dict[tuple[int, int], float] = {}
        self._window = limits.window
        self._knots = model.contexts()
        self._lines: dict[tuple[int, int], tuple[float, float, float, float]] = {}
        self._factors: dict[int, float] = {}
        # Of kinds without surfaces: layers, what so many sequences cost, and each token of context.
        self._beside: dict[int, tuple[tuple[int, float, float], ...]] | None = {}
        if any(kind.decode is not None or kind.mixed for kind in model.kinds):
            self._beside = None

    def decode(self, batch: int, kv_tokens: float) -> tuple[float, float, float]:
        """Return a decode step's µs, what each next one takes more, and for how many that holds."""
        context = kv_tokens / batch
        window = self._window
        if window and context >= window:
            return self._step_us(batch, window), 0.0, math.inf
        key = batch, bisect_right(self._knots, context)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._line(batch, key[1])
        start, us, slope, end = line
        return (
            us + slope * (context - start),
            slope,
            (min(end, window) if window else end) - context,
        )

    def _line(self, batch: int, right: int) -> tuple[float, float, float, float]:
        """Return where a straight part begins, its µs there, its slope, and where it ends."""
        knots = self._knots
        if right == 0:
            return 0.0, self._step_us(batch, knots[0]), 0.0, knots[0]
        end = knots[right] if right < len(knots) else math.inf
        right = min(right, len(knots) - 1)
        low, high = knots[right - 1], knots[right]
        us = self._step_us(batch, low)
        return low, us, (self._step_us(batch, high) - us) / (high - low), end

    def _step_us(self, batch: int, context: float) -> float:
        return self._model.step_us(
            StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=batch * context)
        )

    def mixed_us(
        self, *, decodes: int, kv_tokens: int, prompt_tokens: int, work: float, ends: int
    ) -> float:
        """Return the µs of a step with parts of prompts, of which ``ends`` are last ones."""
        seen = min(kv_tokens, decodes * self._window) if self._window else kv_tokens
        tokens, sampled = decodes + prompt_tokens, decodes + ends
        alone = self._alone.get((tokens, sampled))
        if alone is None:
            alone = self._plain.step_us(StepWork(tokens=tokens, sampled=sampled))
            self._alone[tokens, sampled] = alone
        us = alone + self._us_per_work * work
        if decodes:
            us += self._decoding_us(decodes, seen / decodes, prompt_tokens)
        factor = self._factors.get(decodes)
        if factor is None:
            factor = self._factors[decodes] = self._model.factor(decodes)
        return us * factor

    def _decoding_us(self, decodes: int, context: float, prompt_tokens: int) -> float:
        """Return what sequences cost beyond their tokens beside a part of a prompt."""
        if self._beside is None:
            return sum(
                kind.layers
                * (
                    kind.decode_us(decodes, context)
                    + kind.mixed_us(prompt_tokens, decodes, context)
                )
                for kind in self._model.kinds
            )
        found = self._beside.get(decodes)
        if found is None:
            found = self._beside[decodes] = tuple(
                (kind.layers, kind.sequences.at(decodes), kind.kv.at(decodes))
                for kind in self._model.kinds
            )
        return sum(layers * (each + per_token * context) for layers, each, per_token in found)
