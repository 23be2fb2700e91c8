"""What arrived for an intent: counts of 10 s for an hour, peaks of 5 min for a day (joints.md §4).

Histories form a lattice: joining takes, bucket by bucket, the larger count. So it does not matter
how often a gateway's hour is read, or whether an operator that restarted has read parts of it.
Replicas of the gateway see different requests: theirs are added before they are joined.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

BUCKET_SECONDS: Final = 10
HISTORY_SECONDS: Final = 3600
PEAK_SECONDS: Final = 300
PEAKS_SECONDS: Final = 86_400
_BUCKETS: Final = HISTORY_SECONDS // BUCKET_SECONDS
_PEAKS: Final = PEAKS_SECONDS // PEAK_SECONDS
# Bursts of one gap between two buckets say little about an hour; beyond this a load is one burst.
_MOST_DISPERSION: Final = 100.0
_FEWEST_PAIRS: Final = 30
_MOST_COUNT: Final = 10**9


class LoadHistoryInvalidError(Exception):
    """A stored history cannot be read; the message names the field. Start with an empty one."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests that arrived within 10 s, and the tokens of those that ended in it."""

    start: int
    requests: int
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadHistory:
    """What one intent was asked for.

    Attributes:
        since: Where counting began, epoch seconds, a multiple of 10; before it nothing is known.
        until: Up to where everything is known; the same unit. A bucket in between that is absent
            had no request.
        buckets: Of the last hour, by start, none empty.
        peaks: Most requests of 10 s within each 5 min of the last day, by start, none 0.
    """

    since: int = 0
    until: int = 0
    buckets: tuple[Bucket, ...] = ()
    peaks: tuple[tuple[int, int], ...] = ()

    def requests(self, seconds: int) -> int:
        """Return the requests of the last so many known seconds."""
        first, count = self.until - seconds, 0
        for bucket in reversed(self.buckets):
            if bucket.start < first:
                break
            count += bucket.requests
        return count

    def known_seconds(self, seconds: int) -> int:
        """Return how much of the last so many seconds is known."""
        return max(0, min(seconds, self.until - self.since))

    def rate(self, seconds: int) -> float:
        """Return requests per second over the last so many seconds; 0 where nothing is known."""
        known = self.known_seconds(seconds)
        return self.requests(known) / known if known else 0.0

    def lengths(self) -> tuple[float, float] | None:
        """Return mean prompt and output tokens of the hour; None before a request ended."""
        requests = prompt = output = 0
        for bucket in self.buckets:
            requests += bucket.requests
            prompt += bucket.prompt_tokens
            output += bucket.output_tokens
        if not requests or not output:
            return None
        return prompt / requests, output / requests

    def busy_rate(self, *, percentile: int, window_seconds: int, rate_seconds: int) -> float:
        """Return a percentile of the rates over ``rate_seconds`` that end within the window.

        Rates over 10 s would be noise at a few requests a minute; over 5 min they are what plans
        are made for. A rate that begins before counting did is left out.
        """
        counts = self._counts(window_seconds + rate_seconds)
        width = max(1, rate_seconds // BUCKET_SECONDS)
        if len(counts) <= width:
            return self.rate(rate_seconds)
        running = sum(counts[:width])
        sums = [running]
        for gone, come in zip(counts, counts[width:], strict=False):
            running += come - gone
            sums.append(running)
        sums.sort()
        rank = max(1, math.ceil(len(sums) * percentile / 100))
        return sums[rank - 1] / (width * BUCKET_SECONDS)

    def dispersion(self, seconds: int) -> float:
        """Return variance ÷ mean of the 10 s counts: 1 for Poisson arrivals, at least 1.

        From successive differences (von Neumann), so that a load that rises is not taken for one
        that varies.
        """
        counts = self._counts(seconds)
        mean = sum(counts) / max(1, len(counts))
        if len(counts) <= _FEWEST_PAIRS or mean <= 0:
            return 1.0
        squares = sum((b - a) ** 2 for a, b in itertools.pairwise(counts))
        variance = squares / (2 * (len(counts) - 1))
        return min(_MOST_DISPERSION, max(1.0, variance / mean))

    def _counts(self, seconds: int) -> list[int]:
        """Return the 10 s counts of the last so many seconds, oldest first, zeros included."""
        known = self.known_seconds(min(seconds, HISTORY_SECONDS))
        first = self.until - known
        counts = [0] * (known // BUCKET_SECONDS)
        for bucket in self.buckets:
            if bucket.start >= first:
                counts[(bucket.start - first) // BUCKET_SECONDS] = bucket.requests
        return counts


def read(rows: Iterable[Sequence[float]], *, now: float, shift: float = 0.0) -> LoadHistory:
    """Return the history that one gateway replica reports (contracts §7).

    Args:
        rows: ``[epoch_10s, requests, prompt_tokens, output_tokens, errors]`` each.
        now: The operator's epoch seconds when it asked; the bucket that runs then is left out.
        shift: The operator's clock minus the replica's, seconds.
    """
    until = _floor(now)
    # Up to half a bucket is no shift worth making: rounding it would move counts to and fro.
    moved = round(shift / BUCKET_SECONDS) * BUCKET_SECONDS
    found: dict[int, Bucket] = {}
    for row in rows:
        start = _floor(float(row[0])) + moved
        if until - HISTORY_SECONDS <= start < until:
            requests, prompt, output = (max(0, int(v)) for v in row[1:4])
            found[start] = Bucket(start, requests, prompt, output)
    kept = tuple(b for _, b in sorted(found.items()) if b.requests or b.output_tokens)
    since = kept[0].start if kept else until
    return LoadHistory(since=since, until=until, buckets=kept, peaks=_peaks(kept))


def added(parts: Iterable[LoadHistory]) -> LoadHistory:
    """Return what several replicas saw together, at one time."""
    every = list(parts)
    if not every:
        return LoadHistory()
    sums: dict[int, Bucket] = {}
    for bucket in (b for part in every for b in part.buckets):
        old = sums.get(bucket.start, Bucket(bucket.start, 0))
        sums[bucket.start] = Bucket(
            bucket.start,
            old.requests + bucket.requests,
            old.prompt_tokens + bucket.prompt_tokens,
            old.output_tokens + bucket.output_tokens,
        )
    buckets = tuple(b for _, b in sorted(sums.items()))
    return LoadHistory(
        since=min(part.since for part in every),
        until=max(part.until for part in every),
        buckets=buckets,
        peaks=_peaks(buckets),
    )


def join(a: LoadHistory, b: LoadHistory) -> LoadHistory:
    """Return both histories as one, the larger count of each bucket, cut to an hour and a day."""
    if not a.until or not b.until:
        return a if a.until else b
    until = max(a.until, b.until)
    first, oldest = until - HISTORY_SECONDS, until - PEAKS_SECONDS
    buckets = {bucket.start: bucket for bucket in a.buckets if bucket.start >= first}
    for bucket in b.buckets:
        if bucket.start >= first:
            old = buckets.get(bucket.start)
            buckets[bucket.start] = bucket if old is None else _larger(old, bucket)
    peaks = dict(a.peaks)
    for start, count in b.peaks:
        peaks[start] = max(count, peaks.get(start, 0))
    return LoadHistory(
        since=min(a.since, b.since),
        until=until,
        buckets=tuple(bucket for _, bucket in sorted(buckets.items())),
        peaks=tuple(peak for peak in sorted(peaks.items()) if peak[0] >= oldest),
    )


def _larger(a: Bucket, b: Bucket) -> Bucket:
    return Bucket(
        a.start,
        max(a.requests, b.requests),
        max(a.prompt_tokens, b.prompt_tokens),
        max(a.output_tokens, b.output_tokens),
    )


def _peaks(buckets: Iterable[Bucket]) -> tuple[tuple[int, int], ...]:
    peaks: dict[int, int] = {}
    for bucket in buckets:
        slot = bucket.start // PEAK_SECONDS * PEAK_SECONDS
        peaks[slot] = max(bucket.requests, peaks.get(slot, 0))
    return tuple(peak for peak in sorted(peaks.items()) if peak[1])


def _floor(seconds: float) -> int:
    return int(seconds // BUCKET_SECONDS) * BUCKET_SECONDS


def dump(histories: Mapping[str, LoadHistory], *, most_bytes: int = 900_000) -> str:
    """Return the document of a namespace's ConfigMap, about 2 KB per busy intent.

    What does not fit into ``most_bytes`` is left out, the quietest intents first.
    """
    parts: list[tuple[str, dict[str, Any]]] = []
    left = most_bytes
    order = sorted(histories.items(), key=lambda h: (-h[1].requests(HISTORY_SECONDS), h[0]))
    for name, history in order:
        entry = _to_dict(history)
        left -= len(json.dumps({name: entry}, separators=(",", ":")))
        if left >= 0:
            parts.append((name, entry))
    document = {"v": 1, "intents": dict(sorted(parts))}
    return json.dumps(document, separators=(",", ":"))


def parse(text: str) -> dict[str, LoadHistory]:
    """Read what ``dump`` wrote.

    Raises:
        LoadHistoryInvalidError: Another version, or a field of another form; the message names it.
    """
    try:
        return _parsed(json.loads(text))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise LoadHistoryInvalidError(
            f"Load history cannot be read: {type(error).__name__}: {error}. It starts anew."
        ) from error


def _parsed(document: dict[str, Any]) -> dict[str, LoadHistory]:
    if document["v"] != 1:
        raise LoadHistoryInvalidError(
            f"Load history: v is {document['v']!r}, but this release reads 1. It starts anew."
        )
    return {str(name): _of_dict(entry) for name, entry in document["intents"].items()}


def _to_dict(history: LoadHistory) -> dict[str, Any]:
    first = history.buckets[0].start if history.buckets else history.until
    last = history.buckets[-1].start if history.buckets else first - BUCKET_SECONDS
    rows = {b.start: b for b in history.buckets}
    grid = [rows.get(s, Bucket(s, 0)) for s in range(first, last + 1, BUCKET_SECONDS)]
    return {
        "since": history.since,
        "until": history.until,
        "from": first,
        "requests": [b.requests for b in grid],
        "promptTokens": [b.prompt_tokens for b in grid],
        "outputTokens": [b.output_tokens for b in grid],
        "peaks": [[start // PEAK_SECONDS, count] for start, count in history.peaks],
    }


def _of_dict(entry: Mapping[str, Any]) -> LoadHistory:
    first = _floor(_whole(entry["from"]))
    columns = [[_whole(v) for v in entry[key]] for key in ("requests", "promptTokens")]
    columns.append([_whole(v) for v in entry["outputTokens"]])
    if len({len(column) for column in columns}) != 1 or len(columns[0]) > _BUCKETS:
        raise LoadHistoryInvalidError(
            f"Load history: requests, promptTokens and outputTokens must be equally long, at most "
            f"{_BUCKETS}; they have {', '.join(str(len(c)) for c in columns)}. It starts anew."
        )
    rows = (
        Bucket(first + n * BUCKET_SECONDS, *counts)
        for n, counts in enumerate(zip(*columns, strict=True))
    )
    peaks = [(_whole(p[0]) * PEAK_SECONDS, _whole(p[1])) for p in entry["peaks"]]
    return LoadHistory(
        since=_floor(_whole(entry["since"])),
        until=_floor(_whole(entry["until"])),
        buckets=tuple(b for b in rows if b.requests or b.output_tokens or b.prompt_tokens),
        peaks=tuple(sorted(dict(peaks).items())[-_PEAKS:]),
    )


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 10 * _MOST_COUNT:
        raise LoadHistoryInvalidError(
            f"Load history: {value!r} is no count or time. It starts anew."
        )
    return value
