"""What a plan is made for: rate and lengths, declared, observed or assumed, and traces drawn from them."""

import hashlib
import math
from dataclasses import dataclass
from typing import Final, Protocol

from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Load
from trimtab.planning.variation import LEAST_GAP_CV, MOST_GAP_CV, POISSON, Variation

# Loads closer than this share a simulation: rate 5 %, lengths 10 % (planner.md §6).
_RATE_GRID: Final = 1.05
_LENGTH_GRID: Final = 1.10


class Draws(Protocol):
    """A source of randomness that is given to planning, as `random.Random` is."""

    def gammavariate(self, _shape: float, _scale: float, /) -> float:
        """Return a Gamma number of a shape and a scale."""

    def lognormvariate(self, _mean: float, _deviation: float, /) -> float:
        """Return e to a normal number of a mean and a standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a trace.

    Attributes:
        at_us: When it arrives, µs on any clock that starts before the first one.
        prompt: Uncached prompt tokens, at least 1.
        output: Output tokens, at least 1.
    """

    at_us: float
    prompt: int
    output: int

    def __post_init__(self) -> None:
        """Refuse what no request can be."""
        if self.prompt < 1 or self.output < 1 or not self.at_us >= 0:
            raise ValueError(
                f"Arrival at {self.at_us} µs with {self.prompt} prompt and {self.output} output "
                "tokens: give a time of at least 0 and at least one token of each."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """The load of one intent.

    Attributes:
        rate: Requests per second over all replicas; 0 means one request in flight at a time.
        prompt: Mean uncached prompt tokens.
        output: Mean output tokens, at least 1.
        assumed: Nothing was declared or observed (``LoadAssumed``).
        variation: How much gaps and lengths vary.
    """

    rate: float
    prompt: int
    output: int
    assumed: bool
    variation: Variation = POISSON


def planned_load(load: Load | None, *, context_length: int, policy: PlannerPolicy) -> PlannedLoad:
    """Return what to plan for; without a declared rate, one request in flight.

    Assumed lengths are cut to the model's context, prompt and output in proportion.
    """
    if load is not None and load.requests_per_second > 0:
        return PlannedLoad(
            rate=load.requests_per_second,
            prompt=load.prompt_tokens,
            output=load.output_tokens,
            assumed=False,
            variation=load.variation,
        )
    if load is not None:
        return PlannedLoad(
            rate=0.0, prompt=load.prompt_tokens, output=load.output_tokens, assumed=True
        )
    prompt, output = policy.assumed_prompt_tokens, policy.assumed_output_tokens
    if prompt + output > context_length:
        output = max(1, context_length * output // (prompt + output))
        prompt = max(1, context_length - output)
    return PlannedLoad(rate=0.0, prompt=prompt, output=output, assumed=True)


def synthesize(
    load: PlannedLoad,
    *,
    count: int,
    draws: Draws,
    variation: Variation,
    longest: int,
) -> tuple[Arrival, ...]:
    """Return a trace of a load: Gamma gaps, lognormal lengths (planner.md §6).

    Args:
        load: Rate and mean lengths; a rate of 0 has no trace.
        count: Requests.
        draws: Seeded by the caller with `trace_seed`, alike for all options of an intent.
        variation: How much gaps and lengths vary.
        longest: Prompt + output are cut to so many tokens, the prompt first.

    Raises:
        ValueError: The load has no rate, or ``longest`` holds no request.
    """
    if load.rate <= 0 or longest < 2:
        raise ValueError(
            f"A trace needs a rate above 0 and room for 2 tokens, but the rate is {load.rate} and "
            f"the longest request {longest} tokens. Declare a load."
        )
    cv = min(max(variation.gap, LEAST_GAP_CV), MOST_GAP_CV)
    shape = 1 / cv**2
    prompts = _lognormal(load.prompt, cv=variation.prompt)
    outputs = _lognormal(load.output, cv=variation.output)
    now, found = 0.0, []
    for _ in range(count):
        now += draws.gammavariate(shape, 1e6 / load.rate / shape)
        # A zero spread draws too, so that later numbers are the same for every variation.
        prompt = max(1, round(draws.lognormvariate(*prompts)))
        output = min(max(1, round(draws.lognormvariate(*outputs))), longest - 1)
        found.append(Arrival(at_us=now, prompt=min(prompt, longest - output), output=output))
    return tuple(found)


def _lognormal(mean: int, *, cv: float) -> tuple[float, float]:
    """Return mean and deviation of the logarithm of lengths."""
    spread = math.log(1 + cv**2)
    return math.log(max(1, mean)) - spread / 2, math.sqrt(spread)


def load_bucket(load: PlannedLoad) -> tuple[int, int, int]:
    """Return the cell of a logarithmic grid of rate and lengths; loads of one cell are planned alike."""
    return (
        round(math.log(load.rate) / math.log(_RATE_GRID)) if load.rate > 0 else -(10**6),
        round(math.log(max(1, load.prompt)) / math.log(_LENGTH_GRID)),
        round(math.log(max(1, load.output)) / math.log(_LENGTH_GRID)),
    )


def trace_seed(uid: str, load: PlannedLoad) -> int:
    """Return the seed of an intent's traces: all its options are compared on the same requests."""
    text = f"{uid} {load_bucket(load)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
