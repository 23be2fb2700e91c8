"""Predictions of what simulated requests met, in place of the closed form's (planner.md §6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trimtab.planning.confidence import margin_permille, simulated, ttft_margin_permille
from trimtab.planning.plan import Latency, Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.queue_sim import quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What simulated requests met, µs, in rising order, without the gateway.

    Attributes:
        ttft_us: Times to first token.
        tpot_us: Times per output token of requests of two output tokens or more.
        excess_us: End-to-end times beyond what the same requests take alone.
    """

    ttft_us: tuple[float, ...]
    tpot_us: tuple[float, ...]
    excess_us: tuple[float, ...]


def with_queue(option: Option, queue: Queue, *, overhead_us: int, policy: PlannerPolicy) -> Option:
    """Return an option with the latencies of simulated requests.

    End to end is told for mean lengths, for a long request is no slow one: what requests took beyond
    what the same requests take alone, on top of a mean request alone.

    Args:
        option: Predicted in closed form.
        queue: What requests met there.
        overhead_us: Of the gateway, before the first token.
        policy: For the margins.
    """
    predicted, confidence = option.predicted, simulated(option.confidence)
    percentile = predicted.ttft.percentile
    margin = margin_permille(confidence.level, policy=policy)
    # One output token has no time per output token, however the lengths vary.
    tpots = queue.tpot_us if predicted.tpot.mean_us else ()
    return replace(
        option,
        predicted=replace(
            predicted,
            ttft=_latency(queue.ttft_us, percentile, plus=overhead_us),
            tpot=_latency(tpots, percentile),
            e2e=_latency(queue.excess_us, percentile, plus=predicted.unloaded_e2e_us),
        ),
        confidence=confidence,
        margin_permille=margin,
        ttft_margin_permille=ttft_margin_permille(margin, option.anchoring, policy=policy),
        simulated=True,
    )


def _latency(times: Sequence[float], percentile: int, *, plus: int = 0) -> Latency:
    """Return mean and quantiles of rising times, µs; zeros of none."""
    if not times:
        return Latency(
            mean_us=0, p50_us=0, p95_us=0, p99_us=0, percentile=percentile, percentile_us=0
        )
    p50, p95, p99, chosen = (
        round(quantile(times, share) + plus) for share in (0.5, 0.95, 0.99, percentile / 100)
    )
    return Latency(
        mean_us=round(fmean(times) + plus),
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        percentile=percentile,
        percentile_us=chosen,
    )
