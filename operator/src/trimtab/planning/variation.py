"""How uneven requests are: coefficients of variation of their gaps and lengths, and when plans follow.

Requests that come in bursts queue where evenly spread ones do not: at equal rates a gap CV of 4 needs
other replicas than one of 1 (Dynamo PR #10528). What is planned for moves when what was seen differs
by more than a quarter and by more than chance explains, so that noise asks for no plans.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trimtab.planning.policy import PlannerPolicy

# Planner.md §6: bursts beyond these are one-off events, smoother gaps are machines' clocks.
LEAST_GAP_CV: Final = 0.5
MOST_GAP_CV: Final = 4.0
# Below, lengths are all but equal; beyond, a few hundred requests do not show how they vary. Decision.
_LEAST_LENGTH_CV: Final = 0.1
_MOST_LENGTH_CV: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """Coefficients of variation: of gaps between requests and of lengths; 1 until observed."""

    gap: float = 1.0
    prompt: float = 1.0
    output: float = 1.0


POISSON: Final = Variation()
"""What is assumed until something else is observed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A coefficient of variation and how many values it is of."""

    cv: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedVariation:
    """What gateways saw within the hour; None where it is not known."""

    gap: Sample | None = None
    prompt: Sample | None = None
    output: Sample | None = None


NOTHING_SEEN: Final = ObservedVariation()


def next_variation(seen: ObservedVariation, *, held: Variation, policy: PlannerPolicy) -> Variation:
    """Return the variation to plan for: ``held`` itself until something has clearly moved.

    Args:
        seen: What was observed; fewer values than replace a declared load (§8) decide nothing.
        held: What is planned for now.
        policy: Counts and patience.
    """
    return Variation(
        gap=_next(
            seen.gap,
            held.gap,
            least=LEAST_GAP_CV,
            most=MOST_GAP_CV,
            error=_gamma_error,
            policy=policy,
        ),
        prompt=_next_length(seen.prompt, held.prompt, policy=policy),
        output=_next_length(seen.output, held.output, policy=policy),
    )


def _next_length(sample: Sample | None, held: float, *, policy: PlannerPolicy) -> float:
    return _next(
        sample,
        held,
        least=_LEAST_LENGTH_CV,
        most=_MOST_LENGTH_CV,
        error=_lognormal_error,
        policy=policy,
    )


def _next(
    sample: Sample | None,
    held: float,
    *,
    least: float,
    most: float,
    error: Callable[[float], float],
    policy: PlannerPolicy,
) -> float:
    if sample is None or sample.count < policy.observed_requests or not math.isfinite(sample.cv):
        return held
    # A tenth is as much as a few hundred values tell.
    found = round(min(max(sample.cv, least), most), 1)
    chance = policy.load_sigma_milli / 1000 * error(max(found, held)) / math.sqrt(sample.count)
    moved = abs(math.log(found / max(held, least)))
    return found if moved > math.log(policy.variation_moved_permille / 1000) + chance else held


def _gamma_error(cv: float) -> float:
    """Return √n times the relative standard error of a CV of n Gamma numbers."""
    return math.sqrt((1 + cv**2) / 2)


def _lognormal_error(cv: float) -> float:
    """Return √n times the relative standard error of a CV of n lognormal numbers.

    By the delta method: (κ - 1)/4 - S·CV + CV², with skewness S and kurtosis κ.
    """
    w = 1 + cv**2
    skewness = (w + 2) * cv
    kurtosis = w**4 + 2 * w**3 + 3 * w**2 - 3
    return math.sqrt((kurtosis - 1) / 4 - skewness * cv + cv**2)
