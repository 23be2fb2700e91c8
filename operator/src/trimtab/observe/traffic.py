"""What the gateways saw of each intent, merged over their replicas (contracts §7)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.variation import NOTHING_SEEN, ObservedVariation, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WINDOW_SECONDS: Final = 300.0
FEWEST_REQUESTS: Final = 50
_BUCKET_SECONDS: Final = 10.0
_FEWEST: Final = 2
_FEWEST_TELLING: Final = PlannerPolicy().observed_requests // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One intent's last five minutes, over all gateway replicas.

    Latencies are raw samples in milliseconds, sorted. Lengths are means in tokens over the hour.
    """

    requests: int
    errors: int
    requests_per_second: float
    requests_hour: int
    prompt_tokens: float | None
    output_tokens: float | None
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    overhead_ms: float | None
    variation: ObservedVariation = NOTHING_SEEN

    def percentile(self, samples: tuple[float, ...], percent: int) -> float | None:
        """Return the nearest-rank percentile of sorted samples, None without any."""
        if not samples:
            return None
        rank = max(1, math.ceil(len(samples) * percent / 100))
        return samples[rank - 1]


def merge(documents: Iterable[Mapping[str, Any]]) -> dict[str, Traffic]:
    """Merge the replicas' documents by intent; a garbled part is passed over.

    The window ends at each document's own `now`: gateways' clocks may differ.
    """
    parts: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for document in documents:
        now = float(document.get("now") or 0.0)
        for intent, entry in (document.get("intents") or {}).items():
            if isinstance(entry, dict):
                parts.setdefault(intent, []).append((now, entry))
    return {intent: _merged(entries) for intent, entries in sorted(parts.items())}


def _merged(entries: list[tuple[float, Mapping[str, Any]]]) -> Traffic:
    requests = errors = hour = 0
    span = _BUCKET_SECONDS
    ttft: list[float] = []
    tpot: list[float] = []
    overheads: list[float] = []
    for now, entry in entries:
        for row in entry.get("counts") or ():
            start, count, failed = float(row[0]), int(row[1]), int(row[4])
            hour += count
            if start > now - WINDOW_SECONDS:
                requests += count
                errors += failed
                span = max(span, min(WINDOW_SECONDS, now - start))
        ttft += [float(v) for v in entry.get("ttft_ms") or ()]
        tpot += [float(v) for v in entry.get("tpot_ms") or ()]
        if entry.get("overhead_ms_p50") is not None:
            overheads.append(float(entry["overhead_ms_p50"]))
    return Traffic(
        requests=requests,
        errors=errors,
        requests_per_second=requests / span,
        requests_hour=hour,
        prompt_tokens=_mean(entry.get("prompt") for _, entry in entries),
        output_tokens=_mean(entry.get("output") for _, entry in entries),
        ttft_ms=tuple(sorted(ttft)),
        tpot_ms=tuple(sorted(tpot)),
        overhead_ms=max(overheads) if overheads else None,
        variation=ObservedVariation(
            gap=_gaps([entry for _, entry in entries]),
            prompt=_lengths([entry.get("prompt") for _, entry in entries]),
            output=_lengths([entry.get("output") for _, entry in entries]),
        ),
    )


def _gaps(entries: Sequence[Mapping[str, Any]]) -> Sample | None:
    """Return the gaps' variation of all replicas' requests together, of as many as the quietest tells of.

    Each replica gets a random part of one stream. Of gaps with a squared CV of C² a share p then has
    1 + p·(C² - 1): so what all see beyond Poisson's 1 adds up to what there is. A replica that has seen
    little is left out: what it says is chance, and its share is missing from that sum.
    """
    counted = [sum(int(row[1]) for row in entry.get("counts") or ()) for entry in entries]
    seen = [
        (float(cv), requests)
        for cv, requests in zip((entry.get("gap_cv") for entry in entries), counted, strict=True)
        if isinstance(cv, int | float) and not isinstance(cv, bool) and requests >= _FEWEST_TELLING
    ]
    if not seen:
        return None
    share = sum(requests for _, requests in seen) / sum(counted)
    squared = 1 + sum(cv * cv - 1 for cv, _ in seen) / share
    return Sample(math.sqrt(max(0.0, squared)), min(requests for _, requests in seen))


def _lengths(moments: Sequence[Mapping[str, float] | None]) -> Sample | None:
    """Return the variation of lengths over all replicas (Chan's merge of moments)."""
    count, mean, squares = 0, 0.0, 0.0
    for one in moments:
        if not one or not one.get("n"):
            continue
        n, delta = int(one["n"]), float(one["mean"]) - mean
        total = count + n
        squares += float(one["m2"]) + delta * delta * count * n / total
        mean += delta * n / total
        count = total
    if count < _FEWEST or mean <= 0:
        return None
    return Sample(math.sqrt(max(0.0, squares) / (count - 1)) / mean, count)


def _mean(moments: Iterable[Mapping[str, Any] | None]) -> float | None:
    count, total = 0, 0.0
    for moment in moments:
        if moment and moment.get("n"):
            count += int(moment["n"])
            total += int(moment["n"]) * float(moment["mean"])
    return total / count if count else None


def two_digits(value: float) -> str:
    """Return a positive figure with two significant digits as a plain decimal string."""
    if value <= 0 or not math.isfinite(value):
        return "0"
    exponent = math.floor(math.log10(value))
    decimals = max(0, 1 - exponent)
    rounded = round(value, 1 - exponent)
    text = f"{rounded:.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
