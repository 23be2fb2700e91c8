"""Policies that decide per request or follow what was used: ours, and the baselines beside it.

"-like" means: the idea of that system, with every fix that is known, not its code; what differs is in each
docstring. What needs profiling runs before the first request is in `profiled.py`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.rightsizing.simulate import best_constant
from trimtab.rightsizing.sizer import FunctionModel
from trimtab.rightsizing.targets import smallest_class, split
from trimtab.rightsizing.types import Gate, Size

if TYPE_CHECKING:
    from trimtab.rightsizing.policy import SizerPolicy
    from trimtab.rightsizing.simulate import Asked, Function
    from trimtab.rightsizing.sizer import Layout
    from trimtab.rightsizing.types import Ladder, Outcome, Usage

_MARGIN: Final = 1.15
_WINDOW: Final = 256
_WARM_UP: Final = 10
_RIDGE: Final = 1e-3
_VPA_SHARE: Final = 0.9
_VPA_LEAST: Final = Size(25, 250)
_KRR_SHARE: Final = 0.95


class Trimtab:
    """The production model, as the gateway calls it."""

    def __init__(
        self,
        function: Function,
        *,
        layout: Layout,
        policy: SizerPolicy,
        few_sizes: bool = False,
    ) -> None:
        self.model = FunctionModel(
            function.ladder, layout=layout, policy=policy, few_sizes=few_sizes
        )

    def decide(self, asked: Asked) -> tuple[Size, str]:
        """Return the size in use for the model's want."""
        decision = self.model.decide(asked.features, budget_s=asked.budget_s)
        gate = decision.cpu.gate
        source = f"default:{gate}" if gate is not None else str(decision.cpu.source)
        return decision.size, source

    def observe(self, asked: Asked, usage: Usage, outcome: Outcome) -> None:
        """Learn, and choose the sizes in use when it is time."""
        self.model.observe(asked.features, usage, budget_s=asked.budget_s, outcome=outcome)
        self.model.choose_sizes()


class Constant:
    """One size for every request."""

    def __init__(self, size: Size) -> None:
        self.size = size

    def decide(self, asked: Asked) -> tuple[Size, str]:
        """Return the size."""
        del asked
        return self.size, "constant"

    def observe(self, asked: Asked, usage: Usage, outcome: Outcome) -> None:
        """Learn nothing."""


def best_static(function: Function) -> Constant:
    """Return the best constant in hindsight: the fewest late requests, then the smallest."""
    return Constant(best_constant(function))


class Oracle:
    """Knows each input's times and floor: the smallest class with 95 % in time, and enough memory."""

    def __init__(self, function: Function) -> None:
        self._sizes = [
            Size(function.oracle(index), function.fitting_mib(index))
            for index in range(len(function.inputs))
        ]

    def decide(self, asked: Asked) -> tuple[Size, str]:
        """Return the input's size."""
        return self._sizes[asked.index], "oracle"

    def observe(self, asked: Asked, usage: Usage, outcome: Outcome) -> None:
        """Learn nothing."""


class Regression:
    """Log-log regression of CPU seconds and peak on the features, raised by its residuals' p90, times 1.15.

    Ridge least squares over the last 256 runs, fitted anew after each of the first 64 and then every
    eighth; the default size for ten runs.
    """

    _numbers: int | None = None
    """How many of the features it looks at; None: all."""

    def __init__(self, function: Function) -> None:
        self._ladder = function.ladder
        self._rows: deque[tuple[tuple[float, ...], float, float, float]] = deque(maxlen=_WINDOW)
        self._fit: tuple[np.ndarray, np.ndarray] | None = None
        self._seen = 0

    def decide(self, asked: Asked) -> tuple[Size, str]:
        """Return the class above the regression's need."""
        if asked.features.missing is not None:
            return self._ladder.default, f"default:{Gate.FEATURE_MISSING}"
        if self._fit is None:
            return self._ladder.default, f"default:{Gate.WARMING_UP}"
        weights, residuals = self._fit
        logs = np.asarray(self._inputs(asked)) @ weights + residuals
        cpu_s, peak = np.exp(np.minimum(logs, 50.0))
        ladder = self._ladder
        cpu = ladder.cpu_m[smallest_class(ladder.cpu_m, 1000 * _MARGIN * cpu_s / asked.budget_s)]
        return Size(cpu, ladder.mem_mib[smallest_class(ladder.mem_mib, _MARGIN * peak)]), "learned"

    def observe(self, asked: Asked, usage: Usage, outcome: Outcome) -> None:
        """Fit again; an input that lacks a feature teaches nothing."""
        del outcome
        if asked.features.missing is not None:
            return
        work = split(usage, width_seen=self._ladder.cpu_m[-1] / 1000)
        self._rows.append((self._inputs(asked), work.cpu_s, usage.peak_anon_mib, asked.budget_s))
        self._seen += 1
        if self._seen >= _WARM_UP and (self._seen <= 64 or self._seen % 8 == 0):
            self._fit = self._fitted()

    def _inputs(self, asked: Asked) -> tuple[float, ...]:
        return (1.0, *(math.log1p(value) for value in asked.features.numbers[: self._numbers]))

    def _fitted(self) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray([row[0] for row in self._rows])
        y = np.log(np.maximum([[row[1], row[2]] for row in self._rows], 1e-6))
        weights = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y)
        return weights, np.quantile(y - x @ weights, self._share, axis=0)

    _share = 0.9


class CypressLike(Regression):
    """Cypress (SoCC'22): a regression on the input's size alone, its mean without a raise, times 1.15.

    Differs: the paper's regression is of time at one size and packs requests into batches; here of CPU
    seconds and peak, so that it can choose a class, and nothing is batched.
    """

    _numbers = 1
    _share = 0.5


class UsageLike:
    """One size per function from a percentile of the use that was seen, moved after every run.

    Starts at the default. Use is CPU seconds per second of run time: what was held back by its quota
    looks like that quota, which is how such recommenders see it too.
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._cpu: deque[float] = deque(maxlen=_WINDOW)
        self._peaks: deque[float] = deque(maxlen=_WINDOW)

    def decide(self, asked: Asked) -> tuple[Size, str]:
        """Return the size of the moment."""
        del asked
        if len(self._cpu) < _WARM_UP:
            return self._ladder.default, f"default:{Gate.WARMING_UP}"
        cpu, mem = self._wanted(np.asarray(self._cpu), np.asarray(self._peaks))
        ladder = self._ladder
        return Size(
            ladder.cpu_m[smallest_class(ladder.cpu_m, cpu)],
            ladder.mem_mib[smallest_class(ladder.mem_mib, mem)],
        ), "usage"

    def observe(self, asked: Asked, usage: Usage, outcome: Outcome) -> None:
        """Keep the last 256."""
        del asked, outcome
        self._cpu.append(1000 * usage.cpu_s / usage.wall_s)
        self._peaks.append(usage.peak_anon_mib)

    def _wanted(self, cpu_m: np.ndarray, peaks_mib: np.ndarray) -> tuple[float, float]:
        raise NotImplementedError


class VPALike(UsageLike):
    """VPA's recommender: p90 of use times 1.15, at least 25m and 250 MiB.

    Differs: a window of 256 runs instead of a histogram that halves in a day, run by run instead of a
    minute's samples, no confidence interval, no eviction; memory is p90 of peaks, so kills happen.
    """

    def _wanted(self, cpu_m: np.ndarray, peaks_mib: np.ndarray) -> tuple[float, float]:
        return (
            max(_VPA_LEAST.cpu_m, _MARGIN * float(np.quantile(cpu_m, _VPA_SHARE))),
            max(_VPA_LEAST.mem_mib, _MARGIN * float(np.quantile(peaks_mib, _VPA_SHARE))),
        )


class KRRLike(UsageLike):
    """Robusta's KRR, simple strategy: p95 of CPU use, the largest peak + 15 %.

    Differs: a window of 256 runs instead of two weeks of Prometheus; its CPU figure is given as a limit.
    """

    def _wanted(self, cpu_m: np.ndarray, peaks_mib: np.ndarray) -> tuple[float, float]:
        return float(np.quantile(cpu_m, _KRR_SHARE)), _MARGIN * float(peaks_mib.max())
