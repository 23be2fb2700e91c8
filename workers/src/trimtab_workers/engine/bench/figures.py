"""From answers to the figures that a comparison prints; pure."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.bench.paired import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab_workers.engine.bench.replay import Answer

GOOD_TTFT_SECONDS: Final = 1.0
GOOD_TPOT_SECONDS: Final = 0.050


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run.

    Attributes:
        ttft_p50, ttft_p99: Seconds from when a request was due to its first token.
        tbt_p50, tbt_p99: Seconds between two tokens of a request, pauses by preemption included.
        goodput: Requests/s with a first token within 1 s and a mean gap within 50 ms.
        tokens_per_second: Output tokens over the time from the first arrival to the last token.
    """

    requests: int
    failed: int
    output_tokens: int
    seconds: float
    tokens_per_second: float
    goodput: float
    ttft_p50: float
    ttft_p99: float
    tbt_p50: float
    tbt_p99: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready figures."""
        return asdict(self)


def figures(answers: Sequence[Answer], *, skip_seconds: float = 0.0) -> Figures:
    """Return a run's figures, without the requests that were due while it warmed up.

    Raises:
        ValueError: No request has a token.
    """
    counted = [answer for answer in answers if answer.arrival_seconds >= skip_seconds]
    done = [answer for answer in counted if answer.token_seconds and answer.error is None]
    if not done:
        raise ValueError(
            f"figures: none of {len(answers)} answers has a token after {skip_seconds} s. Let the "
            "run take longer, or look at its errors."
        )
    first = min(answer.arrival_seconds for answer in counted)
    seconds = max(answer.token_seconds[-1] for answer in done) - first
    ttft = [answer.token_seconds[0] - answer.arrival_seconds for answer in done]
    gaps = [gap for answer in done for gap in gaps_of(answer)] or [0.0]
    good = sum(
        answer.token_seconds[0] - answer.arrival_seconds <= GOOD_TTFT_SECONDS
        and mean_gap(answer) <= GOOD_TPOT_SECONDS
        for answer in done
    )
    tokens = sum(len(answer.tokens) for answer in done)
    return Figures(
        requests=len(counted),
        failed=len(counted) - len(done),
        output_tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        goodput=good / seconds,
        ttft_p50=percentile(ttft, 50),
        ttft_p99=percentile(ttft, 99),
        tbt_p50=percentile(gaps, 50),
        tbt_p99=percentile(gaps, 99),
    )


def gaps_of(answer: Answer) -> list[float]:
    """Return the seconds between an answer's tokens."""
    times = answer.token_seconds
    return [after - before for before, after in itertools.pairwise(times)]


def mean_gap(answer: Answer) -> float:
    """Return an answer's mean gap, its time per output token; 0 with one token."""
    gaps = gaps_of(answer)
    return sum(gaps) / len(gaps) if gaps else 0.0


def equal_answers(one: Sequence[Answer], other: Sequence[Answer]) -> int:
    """Return how many requests were answered with the same tokens on two sides."""
    return sum(a.tokens == b.tokens for a, b in zip(one, other, strict=True))
