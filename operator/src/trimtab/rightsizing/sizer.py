"""One function's model: from an input's features to a size, and from its usage back (rightsizer.md §6)."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from trimtab.rightsizing import policy as policies
from trimtab.rightsizing.buckets import Bucket, Buckets, bucket_key
from trimtab.rightsizing.learner import Basis, Scaler
from trimtab.rightsizing.resource import Resource, index_of
from trimtab.rightsizing.samples import lesson
from trimtab.rightsizing.selection import CPU_ENTRY, MEMORY_ENTRY
from trimtab.rightsizing.sizes import choose_sizes, round_up, switch
from trimtab.rightsizing.targets import Work, need_cpu, need_mem, split, throttled
from trimtab.rightsizing.types import (
    Choice,
    Decision,
    Features,
    Gate,
    Outcome,
    PeakKind,
    Size,
    Source,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trimtab.rightsizing.policy import SizerPolicy
    from trimtab.rightsizing.types import Ladder, Usage

_WANTS: Final = 256
_SIZES_EVERY: Final = 64
_RECENT_WORKS: Final = 64
_TELLING: Final = 10
_ANSWERED: Final = Outcome()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a function's features look like; another layout is another model.

    Attributes:
        numbers: Names of the numeric features; the first two make the bucket.
        categories: Whether there are any categories.
        deadlines: Whether clients send deadlines of their own: the first number per second of budget is
            then one more number.
    """

    numbers: tuple[str, ...]
    categories: bool = False
    deadlines: bool = False


class FunctionModel:
    """Decides sizes for one function and learns from what its invocations used.

    Attributes:
        ladder: The classes to choose from.
        layout: What its features look like.
        sizes: Those in use; empty means every size of the ladder.
        dropped: Samples that taught less than everything, by reason.
        missing: Requests that got the default size because a feature was missing, by feature.
    """

    def __init__(
        self,
        ladder: Ladder,
        *,
        layout: Layout,
        few_sizes: bool = True,
        policy: SizerPolicy = policies.DEFAULT,
    ) -> None:
        self.ladder = ladder
        self.layout = layout
        self.policy = policy
        self.few_sizes = few_sizes
        width = len(layout.numbers) + layout.deadlines
        self.scaler = Scaler(width)
        self.basis = Basis(numbers=width, categories=layout.categories, hinges=policy.hinges)
        self.cpu = self._resource(ladder.cpu_m, ladder.default.cpu_m, memory=False)
        self.memory = self._resource(ladder.mem_mib, ladder.default.mem_mib, memory=True)
        self.buckets = Buckets()
        self.sizes: tuple[Size, ...] = ()
        self.dropped: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.observations = 0
        self.works: deque[Work] = deque(maxlen=_RECENT_WORKS)
        self.gated: deque[bool] = deque(maxlen=policy.watched)
        self.undersized: deque[bool] = deque(maxlen=policy.watched)
        self._wants: deque[Size] = deque(maxlen=_WANTS)
        largest = ladder.largest
        self._weights = (1.0 / largest.cpu_m, 1.0 / largest.mem_mib)

    def _resource(self, classes: tuple[int, ...], default: int, *, memory: bool) -> Resource:
        policy = self.policy
        return Resource(
            classes,
            default=classes.index(default),
            width=self.basis.width,
            under=policy.under_memory if memory else policy.under_cpu,
            entry=MEMORY_ENTRY if memory else CPU_ENTRY,
            policy=policy,
        )

    @property
    def confidence(self) -> float:
        """Share of the last invocations that were not gated, less what was undersized."""
        if not self.gated:
            return 0.0
        followed = 1 - sum(self.gated) / len(self.gated)
        undersized = sum(self.undersized) / len(self.undersized) if self.undersized else 0.0
        return followed * (1 - undersized)

    @property
    def too_short(self) -> bool:
        """Whether a quota would not bind: the median invocation uses too little CPU."""
        return (
            len(self.works) >= _TELLING
            and median(work.cpu_s for work in self.works) < self.policy.short_s
        )

    def decide(self, features: Features, *, budget_s: float) -> Decision:
        """Return what an invocation is given, and remember that it was asked.

        Args:
            features: Of its input.
            budget_s: Seconds until the deadline, less the reserve.
        """
        decision = self.preview(features, budget_s=budget_s)
        if features.missing is not None:
            self.missing[features.missing.partition(":")[0]] += 1
        self.gated.append(decision.cpu.gate is not None or decision.memory.gate is not None)
        self._wants.append(decision.want)
        return decision

    def preview(self, features: Features, *, budget_s: float) -> Decision:
        """Return what an invocation would be given; nothing is counted or learned."""
        if features.missing is not None:
            return self._decision(
                self.cpu.gated(Gate.FEATURE_MISSING),
                self.memory.gated(Gate.FEATURE_MISSING),
                infeasible=False,
            )
        bucket = self.buckets.get(bucket_key(features)) or Bucket()
        x = self._inputs(features, budget_s)
        cpu, infeasible = self._choose_cpu(x, bucket, budget_s)
        memory = self.memory.choose(
            x, runs=len(bucket.peaks), need=bucket.memory() if bucket.peaks else None
        )
        floor = self.memory.target(features.length / 2**20)
        if memory.index < floor:
            memory = Choice(
                index=floor, source=memory.source, gate=memory.gate, candidates=memory.candidates
            )
        return self._decision(cpu, memory, infeasible=infeasible)

    def _choose_cpu(
        self, x: NDArray[np.float64], bucket: Bucket, budget_s: float
    ) -> tuple[Choice, bool]:
        if self.too_short:
            needs = sorted(self._need(work, budget_s) for work in self.works)
            most = needs[-max(1, len(needs) // 10)]
            return Choice(index=self.cpu.target(most), source=Source.TOO_SHORT), False
        works, margin = bucket.works, self.policy.margin
        if not works:
            return self.cpu.choose(x, runs=0, need=None), False
        need = bucket.cpu(budget_s=budget_s, margin=margin, share=self.policy.bucket_share)
        chosen = self.cpu.choose(x, runs=len(works), need=1000 * need.cpu)
        return chosen, need.infeasible and chosen.gate is None

    def observe(
        self,
        features: Features,
        usage: Usage,
        *,
        budget_s: float,
        outcome: Outcome = _ANSWERED,
    ) -> None:
        """Learn from an invocation that has ended.

        Args:
            features: As they were when it was decided.
            usage: What it used; its pod's real size is in it.
            budget_s: As it was when it was decided.
            outcome: Whether its usage can be trusted to teach.
        """
        if not _measured(usage):
            self.dropped["not_finite"] += 1
            return
        taught = lesson(usage, outcome)
        if taught.dropped is not None:
            self.dropped[taught.dropped] += 1
        if not (taught.cpu or taught.memory) or not usage.wall_s > 0:
            return
        self.observations += 1
        late = taught.cpu and usage.wall_s > budget_s and throttled(usage)
        largest = self.ladder.largest
        missed = (usage.oom and usage.alloc.mem_mib < largest.mem_mib) or (
            late and usage.alloc.cpu_m < largest.cpu_m
        )
        if features.missing is None:
            self._learn(features, usage, budget_s, cpu=taught.cpu, retried=outcome.retried)
        self._watch(missed)

    def _learn(
        self, features: Features, usage: Usage, budget_s: float, *, cpu: bool, retried: bool
    ) -> None:
        """Update scaler and levels first: what is learned is what will be looked up."""
        self.scaler.add(self._numbers(features, budget_s))
        self.basis.admit(features.categories)
        x = self._inputs(features, budget_s)
        bucket = self.buckets.ensure(bucket_key(features))
        if cpu:
            self._learn_cpu(x, bucket, usage, budget_s)
        self._learn_memory(x, bucket, usage, length=features.length, retried=retried)

    def _learn_cpu(
        self, x: NDArray[np.float64], bucket: Bucket, usage: Usage, budget_s: float
    ) -> None:
        work = split(usage, width_seen=max(bucket.widths, default=self.ladder.cpu_m[-1] / 1000))
        if not throttled(usage):
            bucket.widths.append(work.width)
        late_unhindered = usage.wall_s > budget_s and not throttled(usage)
        # A size of 0m is no quota, and no class.
        limited = late_unhindered and usage.alloc.cpu_m > 0
        at_most = index_of(self.cpu.classes, usage.alloc.cpu_m) if limited else None
        target = self.cpu.target(self._need(work, budget_s), at_most=at_most)
        least = self.cpu.target(
            1000 * need_cpu(work, budget_s=budget_s, margin=1.0).cpu, at_most=at_most
        )
        runs, policy = len(bucket.works), self.policy
        before = (
            bucket.cpu(budget_s=budget_s, margin=policy.margin, share=policy.bucket_share).cpu
            if runs
            else None
        )
        self.cpu.learn(
            x, target=target, least=least, runs=runs, need=None if before is None else 1000 * before
        )
        bucket.works.append(work)
        self.works.append(work)

    def _learn_memory(
        self,
        x: NDArray[np.float64],
        bucket: Bucket,
        usage: Usage,
        *,
        length: int,
        retried: bool,
    ) -> None:
        """A kill without a retry asks for twice the limit: the peak that would have been is unknown."""
        need = need_mem(
            usage.peak_anon_mib,
            kind=usage.peak_kind,
            body_bytes=length,
            margin=self.policy.margin,
        )
        given = usage.alloc.mem_mib
        if usage.oom:
            need = max(need, 2.0 * given + 1)
        elif usage.peak_kind is PeakKind.CUMULATIVE and need > given:
            return
        runs = len(bucket.peaks)
        before = bucket.memory() if runs else None
        self.memory.learn(
            x,
            target=self.memory.target(need),
            least=self.memory.target(max(usage.peak_anon_mib, given + 1 if usage.oom else 0)),
            runs=runs,
            need=before,
            weight=self.policy.oom_weight if usage.oom or retried else 1.0,
        )
        bucket.peaks.append(need)

    def _watch(self, missed: bool) -> None:  # noqa: FBT001 - one fact, named where it is made
        """Restart the counts where too many of the last invocations were given too little."""
        self.undersized.append(missed)
        policy = self.policy
        if len(self.undersized) == policy.watched and (
            sum(self.undersized) > policy.drift_share * policy.watched
        ):
            self.restart()

    def restart(self) -> None:
        """Forget how much was seen, not what was learned: the default size until it is confirmed."""
        self.undersized.clear()
        self.works.clear()
        self.buckets = Buckets()
        self.cpu.restart()
        self.memory.restart()

    def _need(self, work: Work, budget_s: float) -> float:
        return 1000 * need_cpu(work, budget_s=budget_s, margin=self.policy.margin).cpu

    def _numbers(self, features: Features, budget_s: float) -> tuple[float, ...]:
        if not self.layout.deadlines:
            return features.numbers
        first = features.numbers[0] if features.numbers else 1.0
        return (*features.numbers, first / max(budget_s, 1e-3))

    def _inputs(self, features: Features, budget_s: float) -> NDArray[np.float64]:
        z = self.scaler.standard(self._numbers(features, budget_s))
        return self.basis.inputs(z, features.categories)

    def _decision(self, cpu: Choice, memory: Choice, *, infeasible: bool) -> Decision:
        want = Size(self.ladder.cpu_m[cpu.index], self.ladder.mem_mib[memory.index])
        size = round_up(want, self.sizes, weights=self._weights) if self.sizes else want
        return Decision(want=want, size=size, cpu=cpu, memory=memory, infeasible=infeasible)

    def choose_sizes(self) -> bool:
        """Choose the sizes in use anew where that pays; return whether they changed.

        Call it every 64 feedbacks, off the request path.
        """
        if not self.few_sizes or self.observations % _SIZES_EVERY or not self._wants:
            return False
        wants = list(self._wants)
        found = choose_sizes(wants, default=self.ladder.default, weights=self._weights)
        if found == self.sizes:
            return False
        if self.sizes and not switch(self.sizes, found, wants=wants, weights=self._weights):
            return False
        self.sizes = found
        return True


def _measured(usage: Usage) -> bool:
    """Return whether every figure is finite and not negative."""
    figures = (usage.cpu_s, usage.wall_s, usage.throttled_s, usage.peak_anon_mib)
    return all(0 <= figure < math.inf for figure in figures)
