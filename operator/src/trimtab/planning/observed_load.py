"""Which load is planned for: observed once there is enough of it, held until it clearly moves.

A load moves when it leaves its band by more than chance explains: below 0.6 times the planned one
over 5 min, above 1.2 times over a minute, or over a longer time where the rise is smaller
(planner.md §9). So neither a Poisson minute nor a load on the band's edge asks for plan after plan.
"""

import math
from dataclasses import replace
from typing import Literal

from trimtab.planning.load_history import BUCKET_SECONDS, HISTORY_SECONDS, LoadHistory
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Load
from trimtab.planning.variation import NOTHING_SEEN, POISSON, ObservedVariation, next_variation

Side = Literal["Up", "Down"]
# An idle intent is planned for a request in half an hour: its lengths stay known.
_LEAST_RATE = 1 / 1800
_COVERED = 0.8
# While a target is missed, a load that is this much higher is planned for; less is noise.
_RISEN = 1.05


def next_load(
    history: LoadHistory,
    *,
    held: Load | None,
    declared: Load | None,
    policy: PlannerPolicy,
    lengths: tuple[float, float] | None = None,
    variation: ObservedVariation = NOTHING_SEEN,
    missed: bool = False,
) -> Load | None:
    """Return the observed load to plan for; None while the declared or assumed one holds.

    Args:
        history: What arrived.
        held: The observed load in force, if any.
        declared: What the intent declares, if anything.
        policy: Bands, times and patience.
        lengths: Mean prompt and output tokens of requests that ended; without, those of the
            history, which are short while many requests run.
        variation: How much gaps and lengths vary. Where that has moved, a declared rate that holds
            is planned for with it.
        missed: A target is missed: then any rise counts, be it within the band.
    """
    planned = held or declared
    before = POISSON if planned is None else planned.variation
    varied = next_variation(variation, held=before, policy=policy)
    found = _next_rate(
        history, held=held, declared=declared, lengths=lengths, missed=missed, policy=policy
    )
    if found is None and varied == before:
        return None
    base = found or declared
    return None if base is None else replace(base, variation=varied)


def _next_rate(
    history: LoadHistory,
    *,
    held: Load | None,
    declared: Load | None,
    lengths: tuple[float, float] | None,
    missed: bool,
    policy: PlannerPolicy,
) -> Load | None:
    """Return the load whose rate and lengths are planned for; None while the declared one holds."""
    lengths = lengths or history.lengths()
    if lengths is None or (held is None and not enough(history, policy=policy)):
        return held
    planned = held or declared
    if planned is None:
        return _load(history.rate(_whole(policy.busy_rate_seconds)), lengths)
    side, seconds = outside(history, planned, lengths=lengths, policy=policy)
    if side is None and missed:
        seconds = _whole(policy.busy_rate_seconds)
        least = _RISEN * planned.requests_per_second
        side = "Up" if history.rate(seconds) > least else None
    if side is None:
        return held
    rate = history.rate(seconds)
    if side == "Down":
        # What a scale-down is judged by: a lull between two bursts is not the load. Nor is it
        # followed step by step, or it would end in the middle of its band.
        rate = max(rate, busy_rate(history, policy=policy))
        if rate >= policy.load_low_permille / 1000 * planned.requests_per_second:
            return held
    found = _load(rate, lengths)
    same = planned is not None and found == replace(planned, variation=found.variation)
    return held if same else found


def enough(history: LoadHistory, *, policy: PlannerPolicy) -> bool:
    """Tell whether observed load replaces what is declared or assumed: 200 requests or 10 min."""
    return (
        history.requests(HISTORY_SECONDS) >= policy.observed_requests
        or history.known_seconds(HISTORY_SECONDS) >= policy.observed_seconds
    )


def busy_rate(history: LoadHistory, *, policy: PlannerPolicy) -> float:
    """Return the p95 of the rates of 5 min within the last 30 min, requests per second."""
    return history.busy_rate(
        percentile=policy.busy_percentile,
        window_seconds=_whole(policy.busy_window_seconds),
        rate_seconds=_whole(policy.busy_rate_seconds),
    )


def busy_load(
    history: LoadHistory,
    *,
    planned: Load | None,
    held: Load | None,
    policy: PlannerPolicy,
    lengths: tuple[float, float] | None = None,
) -> Load | None:
    """Return the load that fewer replicas must carry; None where nothing is known.

    Less than 30 min of history may have missed the busy part: then the planned load counts, if
    it is larger. What was found before is held until it is too low or a fifth too high, so that a
    fleet is not planned anew for every request.
    """
    lengths = lengths or history.lengths()
    if lengths is None or not enough(history, policy=policy):
        return planned
    rate = busy_rate(history, policy=policy)
    known = history.known_seconds(_whole(policy.busy_window_seconds))
    if planned is not None and known < policy.busy_window_seconds:
        rate = max(rate, planned.requests_per_second)
    found = _load(rate, lengths)
    if planned is not None:
        found = replace(found, variation=planned.variation)
    return held if held is not None and _covers(held, found) else found


def _covers(held: Load, found: Load) -> bool:
    if held.variation != found.variation:
        return False
    pairs = (
        (held.requests_per_second, found.requests_per_second),
        (held.prompt_tokens, found.prompt_tokens),
        (held.output_tokens, found.output_tokens),
    )
    return all(_COVERED * old <= new <= old for old, new in pairs)


def outside(
    history: LoadHistory, planned: Load, *, lengths: tuple[float, float], policy: PlannerPolicy
) -> tuple[Side | None, int]:
    """Return on which side of its band a load lies, and over how many seconds that shows.

    Requests, prompt tokens and output tokens per second are compared: longer prompts are more load
    too. Up is any of them above its band; Down is all below.
    """
    planned_rates = _rates(planned, lengths=lengths)
    high, low = policy.load_high_permille / 1000, policy.load_low_permille / 1000
    for seconds in map(_whole, policy.load_rise_seconds):
        if history.known_seconds(seconds) < seconds:
            break
        least = min(_thirds(history, seconds))
        for rate, spread in planned_rates:
            # The cheap question first: nearly always nothing has moved.
            if least > high * rate and history.requests(seconds) > high * rate * seconds + _noise(
                history, seconds=seconds, spread=spread, policy=policy
            ):
                return "Up", seconds
    seconds = _whole(policy.load_low_seconds)
    if history.known_seconds(seconds) < seconds:
        return None, 0
    most = max(_thirds(history, seconds))
    for rate, spread in planned_rates:
        if most >= low * rate or history.requests(seconds) >= low * rate * seconds - _noise(
            history, seconds=seconds, spread=spread, policy=policy
        ):
            return None, 0
    return "Down", seconds


def _rates(planned: Load, *, lengths: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the rates of requests that carry the planned requests, prompt and output tokens.

    With each goes how much its length adds to the variance: lengths vary about as much as their
    mean (lognormal, CV 1, planner.md §6).
    """
    rate = max(1e-9, planned.requests_per_second)
    prompt, output = lengths
    return [
        (rate, 0.0),
        (rate * max(1, planned.prompt_tokens) / max(1.0, prompt), 1.0),
        (rate * max(1, planned.output_tokens) / max(1.0, output), 1.0),
    ]


def _noise(history: LoadHistory, *, seconds: int, spread: float, policy: PlannerPolicy) -> float:
    """Return how far chance moves the count of a window."""
    varied = (history.dispersion(HISTORY_SECONDS) + spread) * max(1, history.requests(seconds))
    return policy.load_sigma_milli / 1000 * math.sqrt(varied)


def _thirds(history: LoadHistory, seconds: int) -> list[float]:
    """Return the rates of a window's thirds: a load is outside for all of it, not for a burst."""
    third = max(BUCKET_SECONDS, seconds // 3 // BUCKET_SECONDS * BUCKET_SECONDS)
    if third * 3 > seconds:
        return [history.rate(seconds)]
    upto = [history.requests(third * n) for n in (1, 2, 3)]
    return [(b - a) / third for a, b in zip((0, *upto), upto, strict=False)]


def _load(rate: float, lengths: tuple[float, float]) -> Load:
    prompt, output = lengths
    return Load(
        requests_per_second=_two_digits(max(_LEAST_RATE, rate)),
        prompt_tokens=max(1, round(_two_digits(prompt))),
        output_tokens=max(1, round(_two_digits(output))),
    )


def _two_digits(value: float) -> float:
    """Return a figure with two significant digits: plans should not follow the third."""
    return round(value, 1 - math.floor(math.log10(value))) if value > 0 else 0.0


def _whole(seconds: int) -> int:
    """Return a time as a whole number of buckets, at least one: tests divide policy times."""
    return max(1, seconds // BUCKET_SECONDS) * BUCKET_SECONDS
