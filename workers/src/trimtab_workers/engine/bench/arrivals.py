"""Which requests come when: lengths by stated quantiles, open-loop arrivals, one seed for all sides.

Lengths are drawn from the quantiles of Azure's LLM inference traces of 2023 (AzurePublicDataset,
`AzureLLMInferenceTrace_{conv,code}.csv`, CC-BY 4.0; Patel et al., Splitwise, ISCA'24), linearly in
between: the trace itself is not needed, and prompt and output lengths are drawn independently.
"""

from __future__ import annotations

import bisect
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHARES: Final = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of prompts and outputs at each of `SHARES`."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]


# fmt: off
LENGTHS: Final[Mapping[str, Lengths]] = {
    "azure-conv": Lengths(
        prompt=(2, 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 14050),
        output=(7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000),
    ),
    "azure-code": Lengths(
        prompt=(3, 17, 75, 147, 578, 1469, 2745, 5194, 7315, 7436, 7437),
        output=(6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 1899),
    ),
}
# fmt: on


def at_share(quantiles: Sequence[int], share: float) -> float:
    """Return the length below which a share (0 to 1) of the requests lies."""
    above = min(max(1, bisect.bisect_left(SHARES, share)), len(SHARES) - 1)
    low, high = SHARES[above - 1], SHARES[above]
    part = (share - low) / (high - low)
    return quantiles[above - 1] + (quantiles[above] - quantiles[above - 1]) * part


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a run.

    Attributes:
        seconds: After the run's start, whatever the engine is doing then (open loop).
        seed: Draws its token ids, so that they need not be sent or kept.
    """

    seconds: float
    model: str
    prompt_tokens: int
    output_tokens: int
    seed: int

    def token_ids(self, vocab: int) -> tuple[int, ...]:
        """Return the prompt: random ids, the same on every side."""
        rng = random.Random(self.seed)  # noqa: S311 - token ids, not secrets
        return tuple(rng.randrange(vocab) for _ in range(self.prompt_tokens))

    def to_dict(self) -> dict[str, float | str | int]:
        """Return what another process makes it from."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run's load.

    Attributes:
        lengths: A name among `LENGTHS`.
        divisor: Lengths are divided by it, for small models.
        longest: Prompt and output together are cut to so many tokens.
        seconds: In which requests arrive.
        burst_seconds, pause_seconds: Bursts on the first model alternate with pauses.
        burst_rate: Requests/s inside a burst, Poisson.
        visit_seconds: Mean gap between requests to the other models; None for none.
        seed: Of everything random.
    """

    lengths: str
    divisor: float
    longest: int
    seconds: float
    burst_seconds: float
    pause_seconds: float
    burst_rate: float
    visit_seconds: float | None
    seed: int = 0


def bursts_on_one(models: Sequence[str], load: Load) -> tuple[Arrival, ...]:
    """Return arrivals: bursts on the first model, rare visits to the others, in order of time.

    Raises:
        ValueError: No model, or a rate, time or length that is not positive.
    """
    numbers = (load.seconds, load.burst_seconds, load.burst_rate, load.divisor, load.longest - 1)
    if not models or min(numbers) <= 0 or load.pause_seconds < 0:
        raise ValueError(
            f"bursts_on_one: {len(models)} models and {load}. Give a model and positive figures."
        )
    rng = random.Random(load.seed)  # noqa: S311 - arrivals, not secrets
    times = [(at, models[0]) for at in _burst_times(rng, load)]
    if load.visit_seconds is not None and len(models) > 1:
        at = rng.expovariate(1 / load.visit_seconds)
        while at < load.seconds:
            times.append((at, models[1 + len(times) % (len(models) - 1)]))
            at += rng.expovariate(1 / load.visit_seconds)
    drawn = LENGTHS[load.lengths]
    return tuple(_arrival(rng, load, drawn, seconds=at, model=model) for at, model in sorted(times))


def _burst_times(rng: random.Random, load: Load) -> list[float]:
    """Poisson arrivals on the time inside bursts, with the pauses put in between."""
    times: list[float] = []
    period = load.burst_seconds + load.pause_seconds
    inside = rng.expovariate(load.burst_rate)
    while True:
        number, rest = divmod(inside, load.burst_seconds)
        at = number * period + rest
        if at >= load.seconds:
            return times
        times.append(at)
        inside += rng.expovariate(load.burst_rate)


def _arrival(
    rng: random.Random, load: Load, drawn: Lengths, *, seconds: float, model: str
) -> Arrival:
    prompt = max(1, round(at_share(drawn.prompt, rng.random()) / load.divisor))
    output = max(1, round(at_share(drawn.output, rng.random()) / load.divisor))
    output = min(output, load.longest - 1)
    return Arrival(
        seconds=round(seconds, 6),
        model=model,
        prompt_tokens=min(prompt, load.longest - output),
        output_tokens=output,
        seed=rng.getrandbits(32),
    )


def alternating(models: Sequence[str], load: Load) -> tuple[Arrival, ...]:
    """Return arrivals at `burst_rate` that go to one model after another, each for a burst's time.

    With bursts below a second this is the load under which lending must thrash.
    """
    rng = random.Random(load.seed)  # noqa: S311 - arrivals, not secrets
    drawn = LENGTHS[load.lengths]
    found = []
    at = rng.expovariate(load.burst_rate)
    while at < load.seconds:
        model = models[int(at / load.burst_seconds) % len(models)]
        found.append(_arrival(rng, load, drawn, seconds=at, model=model))
        at += rng.expovariate(load.burst_rate)
    return tuple(found)
