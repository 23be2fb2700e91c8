"""A request trace cut in two: the first part is what a planner observed, the second is what then came."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.observe.traffic import merge
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.variation import POISSON, Variation, next_variation
from trimtab.planning.workload import PlannedLoad, synthesize
from trimtab_workers.gateway.observed import Observed, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from trimtab.planning.workload import Arrival

_OBSERVED: Final = 5
"""The first fifth is observed: of an hour, twelve minutes."""
_COUNTED_US: Final = 10_000_000
"""The gateway counts requests in buckets of 10 s (joints.md §4)."""
_MOST_COUNTED: Final = 1024
_NAME: Final = "bench/trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLoad:
    """What was observed of a trace, and what then came.

    Attributes:
        name: Of the trace.
        faster: Its gaps were divided by this.
        load: Rate, mean lengths and their variation as plans take them from what was observed.
        counts: Requests in each 10 s that were observed, at the trace's own rate.
        arrivals: What then came, from 0 µs on.
    """

    name: str
    faster: float
    load: PlannedLoad
    counts: tuple[int, ...]
    arrivals: tuple[Arrival, ...]

    @property
    def rate(self) -> float:
        """Requests per second of what then came."""
        return 1e6 * (len(self.arrivals) - 1) / max(1.0, self.arrivals[-1].at_us)

    def from_counts(self, draws: Random, *, longest: int) -> tuple[Arrival, ...]:
        """Return a load with the observed counts of 10 s in their order, drawn evenly within each."""
        variation = replace(self.load.variation, gap=1.0)
        total = sum(self.counts)
        drawn = synthesize(
            self.load, count=total, draws=draws, variation=variation, longest=longest
        )
        times = sorted(
            (n + draws.random()) * _COUNTED_US / self.faster
            for n, count in enumerate(self.counts)
            for _ in range(count)
        )
        return tuple(replace(arrival, at_us=at) for arrival, at in zip(drawn, times, strict=True))[
            :_MOST_COUNTED
        ]

    @property
    def output_tokens(self) -> int:
        """Of what then came."""
        return sum(arrival.output for arrival in self.arrivals)


def observed(
    name: str, arrivals: Sequence[Arrival], *, faster: float, requests: int, longest: int
) -> TraceLoad:
    """Return a trace at a multiple of its rate.

    Args:
        name: Of the trace.
        arrivals: At least 10, in order of time.
        faster: How many times as many requests per second.
        requests: Of what then came, at most.
        longest: Prompt + output; longer prompts are cut, for observation and truth alike.
    """
    fitting = [_cut(arrival, longest) for arrival in arrivals]
    split = max(2, len(fitting) // _OBSERVED)
    before, after = fitting[:split], fitting[split : split + requests]
    gaps = [b.at_us - a.at_us for a, b in itertools.pairwise(before)]
    prompts = [arrival.prompt for arrival in before]
    outputs = [arrival.output for arrival in before]
    begin = after[0].at_us
    return TraceLoad(
        name=name,
        faster=faster,
        load=PlannedLoad(
            rate=faster * 1e6 / max(1.0, statistics.fmean(gaps)),
            prompt=max(1, round(statistics.fmean(prompts))),
            output=max(1, round(statistics.fmean(outputs))),
            assumed=False,
            variation=_variation(before),
        ),
        counts=_counts(before),
        arrivals=tuple(replace(a, at_us=(a.at_us - begin) / faster) for a in after),
    )


def _counts(arrivals: Sequence[Arrival]) -> tuple[int, ...]:
    bins = [0] * (1 + int(arrivals[-1].at_us // _COUNTED_US))
    for arrival in arrivals:
        bins[int(arrival.at_us // _COUNTED_US)] += 1
    return tuple(bins)


def _cut(arrival: Arrival, longest: int) -> Arrival:
    output = min(arrival.output, longest - 1)
    return replace(arrival, prompt=min(arrival.prompt, longest - output), output=output)


def _variation(arrivals: Sequence[Arrival]) -> Variation:
    """Return what plans make of what a gateway says that sees these requests at their own rate.

    A multiple of it varies as much, but would leave too few windows of five minutes to tell.
    """
    gateway, now = Observed(), 0.0
    for arrival in arrivals:
        now = arrival.at_us / 1e6
        gateway.arrived(_NAME, now=now)
        outcome = Outcome(failed=False, prompt_tokens=arrival.prompt, output_tokens=arrival.output)
        gateway.ended(_NAME, outcome, now=now)
    seen = merge([gateway.document(replica="", now=now)])[_NAME]
    return next_variation(seen.variation, held=POISSON, policy=PlannerPolicy())
