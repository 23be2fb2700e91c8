"""What the operator learns from a gateway: load, lengths and latencies per intent.

Pure, the clock is an argument. `Observed.document` is `GET /-/observed`
(docs/design/20261123-contracts.md, section 7): counts of 10 s for one hour, the coefficient of
variation of the gaps between arrivals, the median over windows of five minutes, moments of prompt
and output lengths that the operator can merge across replicas, raw TTFT and TPOT samples of five minutes, the gateway's own overhead.
Everything is bounded, whatever the load.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKET_SECONDS: Final = 10
BUCKETS: Final = 360
SAMPLE_SECONDS: Final = 300.0
SAMPLES: Final = 512
POD_SAMPLES: Final = 200
GAP_WINDOW_SECONDS: Final = 300
_FEWEST_GAPS: Final = 10
_FEWEST_WINDOWS: Final = 3
# Arrivals that a clock hardly tells apart; their square is no number.
_SHORTEST_SECONDS: Final = 1e-9
_MOST_CV: Final = 100.0


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations (Welford); two of them merge exactly (Chan)."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, value: float) -> None:
        """Take in one value."""
        self.n += 1
        delta = value - self.mean
        self.mean += delta / self.n
        self.m2 += delta * (value - self.mean)

    def merge(self, other: Moments) -> None:
        """Take in all values of another."""
        if not other.n:
            return
        total = self.n + other.n
        delta = other.mean - self.mean
        self.m2 += other.m2 + delta * delta * self.n * other.n / total
        self.mean += delta * other.n / total
        self.n = total

    def to_dict(self) -> dict[str, float]:
        """Return `{"n", "mean", "m2"}`."""
        return {"n": self.n, "mean": self.mean, "m2": self.m2}


@dataclass(slots=True)
class _Bucket:
    start: int
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    errors: int = 0
    gaps: Moments = field(default_factory=Moments)
    prompt: Moments = field(default_factory=Moments)
    output: Moments = field(default_factory=Moments)


class _Samples:
    """The newest values of the last five minutes."""

    def __init__(self, size: int) -> None:
        self._rows: deque[tuple[float, float]] = deque(maxlen=size)

    def add(self, value: float, *, now: float) -> None:
        self._rows.append((now, value))

    def values(self, *, now: float) -> list[float]:
        while self._rows and self._rows[0][0] <= now - SAMPLE_SECONDS:
            self._rows.popleft()
        return [value for _, value in self._rows]


class _Intent:
    def __init__(self) -> None:
        self.buckets: deque[_Bucket] = deque()
        self.last_arrival: float | None = None
        self.ttft = _Samples(SAMPLES)
        self.tpot = _Samples(SAMPLES)
        self.overhead = _Samples(SAMPLES)
        self.pods: dict[str, _Samples] = {}

    def pod_latencies(self, now: float) -> dict[str, tuple[float, int]]:
        values = {uid: samples.values(now=now) for uid, samples in self.pods.items()}
        self.pods = {uid: self.pods[uid] for uid, rows in values.items() if rows}
        return {uid: (median(rows), len(rows)) for uid, rows in values.items() if rows}

    def expire(self, now: float) -> None:
        oldest = _bucket_start(now) - (BUCKETS - 1) * BUCKET_SECONDS
        while self.buckets and self.buckets[0].start < oldest:
            self.buckets.popleft()

    def bucket(self, now: float) -> _Bucket:
        self.expire(now)
        start = _bucket_start(now)
        if self.buckets and self.buckets[-1].start >= start:
            return self.buckets[-1]  # a clock set back counts into the newest bucket
        self.buckets.append(_Bucket(start))
        return self.buckets[-1]


def _bucket_start(now: float) -> int:
    return int(now // BUCKET_SECONDS) * BUCKET_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one request ended. Times are milliseconds, None where they could not be seen."""

    failed: bool
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    overhead_ms: float | None = None
    pod_uid: str | None = None


class Observed:
    """The record of every intent that got a request within the last hour."""

    def __init__(self) -> None:
        self._intents: dict[str, _Intent] = {}

    def arrived(self, intent: str, *, now: float) -> None:
        """Count an arrival, failed or not."""
        record = self._intents.setdefault(intent, _Intent())
        bucket = record.bucket(now)
        bucket.requests += 1
        # A pause ends one load and begins another; it is no gap of either.
        if record.last_arrival is not None and now - record.last_arrival <= GAP_WINDOW_SECONDS:
            bucket.gaps.add(max(0.0, now - record.last_arrival))
        record.last_arrival = now

    def ended(self, intent: str, outcome: Outcome, *, now: float) -> None:
        """Record how a request ended."""
        record = self._intents.setdefault(intent, _Intent())
        bucket = record.bucket(now)
        bucket.errors += outcome.failed
        if outcome.prompt_tokens is not None:
            bucket.prompt_tokens += outcome.prompt_tokens
            bucket.prompt.add(outcome.prompt_tokens)
        if outcome.output_tokens is not None:
            bucket.output_tokens += outcome.output_tokens
            bucket.output.add(outcome.output_tokens)
        if outcome.overhead_ms is not None:
            record.overhead.add(outcome.overhead_ms, now=now)
        if outcome.ttft_ms is not None:
            record.ttft.add(outcome.ttft_ms, now=now)
        if outcome.tpot_ms is not None:
            record.tpot.add(outcome.tpot_ms, now=now)
            if outcome.pod_uid is not None:
                samples = record.pods.setdefault(outcome.pod_uid, _Samples(POD_SAMPLES))
                samples.add(outcome.tpot_ms, now=now)

    def pod_latencies(self, intent: str, *, now: float) -> dict[str, tuple[float, int]]:
        """Return median TPOT in milliseconds and number of samples by pod uid."""
        record = self._intents.get(intent)
        return {} if record is None else record.pod_latencies(now)

    def document(self, *, replica: str, now: float) -> dict[str, Any]:
        """Return `/-/observed`; `now` is seconds since the epoch."""
        self._expire(now)
        intents = {key: _report(record, now) for key, record in sorted(self._intents.items())}
        return {"v": 1, "replica": replica, "now": now, "intents": intents}

    def _expire(self, now: float) -> None:
        for key, record in list(self._intents.items()):
            record.expire(now)
            if not record.buckets:
                del self._intents[key]


def _report(record: _Intent, now: float) -> dict[str, Any]:
    overhead = record.overhead.values(now=now)
    return {
        "counts": [
            [row.start, row.requests, row.prompt_tokens, row.output_tokens, row.errors]
            for row in record.buckets
        ],
        "gap_cv": _variation(_windows(record.buckets)),
        "prompt": _merged(bucket.prompt for bucket in record.buckets).to_dict(),
        "output": _merged(bucket.output for bucket in record.buckets).to_dict(),
        "ttft_ms": [round(value, 3) for value in record.ttft.values(now=now)],
        "tpot_ms": [round(value, 3) for value in record.tpot.values(now=now)],
        "overhead_ms_p50": round(median(overhead), 3) if overhead else None,
        "pods": {
            uid: {"tpot_ms_p50": round(tpot, 3), "n": n}
            for uid, (tpot, n) in sorted(record.pod_latencies(now).items())
        },
    }


def _merged(parts: Iterable[Moments]) -> Moments:
    whole = Moments()
    for part in parts:
        whole.merge(part)
    return whole


def _windows(buckets: Iterable[_Bucket]) -> list[Moments]:
    """Return the gaps of each five minutes: over an hour, a rate that changes would look uneven."""
    windows: dict[int, Moments] = {}
    for row in buckets:
        windows.setdefault(row.start // GAP_WINDOW_SECONDS, Moments()).merge(row.gaps)
    return [
        gaps
        for gaps in windows.values()
        if gaps.n >= _FEWEST_GAPS and gaps.mean > _SHORTEST_SECONDS
    ]


def _variation(windows: list[Moments]) -> float | None:
    """Return standard deviation ÷ mean of the gaps: 1 for Poisson arrivals, None if unknown.

    The median over requests: a client's pause, a redeploy or a clock's step makes one window uneven.
    """
    if len(windows) < _FEWEST_WINDOWS:
        return None
    # With no more weight than the median window no window outweighs the others together.
    most = median(gaps.n for gaps in windows)
    weighted = sorted((_squared(gaps), min(gaps.n, most)) for gaps in windows)
    upto = list(itertools.accumulate(weight for _, weight in weighted))
    return math.sqrt(weighted[bisect.bisect_left(upto, upto[-1] / 2)][0])


def _squared(gaps: Moments) -> float:
    """Return the squared CV of the law that a window's gaps are of.

    Few gaps show too little of a wide law: of n Gamma gaps with CV² = C the sample's squared CV is
    n·C/(n + C) on average (their mean and their CV are independent).
    """
    seen = gaps.m2 / gaps.mean**2 / (gaps.n - 1)
    return min(_MOST_CV**2, gaps.n * seen / max(_SHORTEST_SECONDS, gaps.n - seen))
