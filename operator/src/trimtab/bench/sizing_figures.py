"""What a policy's answers to recorded requests come to: late ones by cause, allocation, waste, learning."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.bench.report import percent
from trimtab.rightsizing.simulate import Cause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trimtab.bench.report import JSON
    from trimtab.rightsizing.simulate import Function, Replay

CURVE: Final = 200
_BIN: Final = 10
_AFTER: Final = 50
_UNTIL: Final = 250
# Student's t, two-sided 95 %, by degrees of freedom; beyond 30 the normal's.
_T: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_T_MANY: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A policy's answers in one seed, as arrays over requests.

    Attributes:
        number: Place in the seed's order, over all functions.
        place: Place among the function's own requests, from 0.
        vcpu: Allocated.
        seconds: Of the run, and of the one that was killed before it.
        wasted_vcpu: Allocated beyond the class that what was used fills.
        excess_vcpu: Allocated beyond the oracle's class.
        mem_mib: Allocated; NaN where the runs do not tell inputs apart by memory, as the next two.
        wasted_mib: Allocated beyond the peak.
        oom: 1 where it was killed for its memory.
        late: Whether the deadline was missed.
        causes: Why, of those.
        sources: Who decided.
    """

    number: NDArray[np.int64]
    place: NDArray[np.int64]
    vcpu: NDArray[np.float64]
    seconds: NDArray[np.float64]
    wasted_vcpu: NDArray[np.float64]
    excess_vcpu: NDArray[np.float64]
    mem_mib: NDArray[np.float64]
    wasted_mib: NDArray[np.float64]
    oom: NDArray[np.float64]
    late: NDArray[np.bool_]
    causes: tuple[Cause | None, ...]
    sources: tuple[str, ...]


def answers(function: Function, replay: Replay, *, memory: bool) -> Answers:
    """Return a function's answers; `memory` says whether its runs tell about memory."""
    ladder = np.asarray(function.ladder.cpu_m) / 1000
    vcpu = np.asarray(replay.cpu_m) / 1000
    places = np.searchsorted(ladder, np.asarray(replay.used) - 1e-9)
    filled = ladder[np.minimum(places, len(ladder) - 1)]
    oracle = np.asarray([function.oracle(i) for i in range(len(function.inputs))]) / 1000
    floors = np.asarray([recorded.floor_mib for recorded in function.inputs])
    index = np.asarray(replay.index, dtype=np.int64)
    mem = np.asarray(replay.mem_mib, dtype=np.float64)
    told = 1.0 if memory else math.nan
    return Answers(
        number=np.asarray(replay.number, dtype=np.int64),
        place=np.arange(len(index)),
        vcpu=vcpu,
        seconds=np.asarray(replay.seconds),
        wasted_vcpu=np.maximum(0.0, vcpu - filled),
        excess_vcpu=np.maximum(0.0, vcpu - oracle[index]),
        mem_mib=mem * told,
        wasted_mib=(mem - floors[index]) * told,
        oom=np.asarray(replay.oom, dtype=np.float64) * told,
        late=np.asarray([cause is not None for cause in replay.cause], dtype=np.bool_),
        causes=tuple(replay.cause),
        sources=tuple(replay.source),
    )


def together(parts: Sequence[Answers]) -> Answers:
    """Return several functions' answers of one seed as one."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in Answers.__dataclass_fields__
        if name not in {"causes", "sources"}
    }
    return Answers(
        **joined,
        causes=tuple(cause for part in parts for cause in part.causes),
        sources=tuple(source for part in parts for source in part.sources),
    )


def figures(seeds: Sequence[Answers], *, warm_up: int) -> JSON:
    """Return a policy's figures over seeds; all but the learning curve leave the warm-up out."""
    kept = [one.number >= warm_up for one in seeds]
    late = [one.late[keep] for one, keep in zip(seeds, kept, strict=True)]
    vcpu = [one.vcpu[keep] for one, keep in zip(seeds, kept, strict=True)]
    pairs = list(zip(seeds, kept, strict=True))
    causes = Counter(
        cause
        for one, keep in pairs
        for cause, counted in zip(one.causes, keep, strict=True)
        if counted and cause is not None
    )
    requests = sum(len(part) for part in late)
    wasted = np.concatenate([one.wasted_vcpu[keep] for one, keep in pairs])
    excess = np.concatenate([one.excess_vcpu[keep] for one, keep in pairs])
    return {
        "requests": requests,
        "late": int(sum(part.sum() for part in late)),
        "violations_percent": _share(_mean(np.concatenate(late))),
        "by_cause": {str(cause): causes.get(cause, 0) for cause in Cause},
        "mean_vcpu": _rounded(_mean(np.concatenate(vcpu))),
        "mean_vcpu_seconds": _rounded(
            _mean(np.concatenate([(one.vcpu * one.seconds)[keep] for one, keep in pairs]))
        ),
        "wasted_vcpu_p50": _quantile(wasted, 0.5),
        "wasted_vcpu_p95": _quantile(wasted, 0.95),
        "excess_vcpu_p50": _quantile(excess, 0.5),
        "excess_vcpu_p95": _quantile(excess, 0.95),
        "mean_memory_mib": _rounded(_told([one.mem_mib[keep] for one, keep in pairs])),
        "wasted_memory_mib": _rounded(_told([one.wasted_mib[keep] for one, keep in pairs])),
        "oom_percent": _share(_told([one.oom[keep] for one, keep in pairs])),
        "ooms_after_50": _total([one.oom[one.place >= _AFTER] for one in seeds]),
        "decisions": dict(
            sorted(
                Counter(
                    source
                    for one, keep in pairs
                    for source, counted in zip(one.sources, keep, strict=True)
                    if counted
                ).items()
            )
        ),
        "sizes": max((_sizes(one, keep) for one, keep in pairs), default=0),
        "learning_curve": _curve(seeds),
        "violations_51_250_percent": _share(
            _mean(
                np.concatenate(
                    [one.late[(one.place >= _AFTER) & (one.place < _UNTIL)] for one in seeds]
                )
            )
        ),
        "ci95": {
            "violations_percent": _interval([100 * part.mean() for part in late if part.size]),
            "mean_vcpu": _interval([part.mean() for part in vcpu if part.size]),
        },
    }


def _sizes(one: Answers, keep: NDArray[np.bool_]) -> int:
    """Return how many different sizes a seed used."""
    memory = np.nan_to_num(one.mem_mib[keep])
    return len(set(zip(one.vcpu[keep].tolist(), memory.tolist(), strict=True)))


def _curve(seeds: Sequence[Answers]) -> list[JSON]:
    """Return late share and allocation by place among a function's first 200 requests."""
    found = []
    for begin in range(0, CURVE, _BIN):
        inside = [(one.place >= begin) & (one.place < begin + _BIN) for one in seeds]
        late = np.concatenate([one.late[at] for one, at in zip(seeds, inside, strict=True)])
        vcpu = np.concatenate([one.vcpu[at] for one, at in zip(seeds, inside, strict=True)])
        if late.size:
            found.append(
                {
                    "from": begin + 1,
                    "to": begin + _BIN,
                    "requests": int(late.size),
                    "violations_percent": percent(float(late.mean())),
                    "mean_vcpu": _rounded(float(vcpu.mean())),
                }
            )
    return found


def _mean(values: NDArray[np.generic]) -> float | None:
    return float(values.astype(np.float64).mean()) if values.size else None


def _told(parts: Sequence[NDArray[np.float64]]) -> float | None:
    values = np.concatenate(parts)
    return _mean(values[np.isfinite(values)])


def _total(parts: Sequence[NDArray[np.float64]]) -> int | None:
    values = np.concatenate(parts)
    told = values[np.isfinite(values)]
    return int(told.sum()) if told.size else None


def _quantile(values: NDArray[np.float64], share: float) -> float | None:
    return _rounded(float(np.quantile(values, share))) if values.size else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _share(value: float | None) -> float | None:
    return None if value is None else percent(value)


def _interval(values: Sequence[float]) -> list[float] | None:
    """Return Student's interval of the mean over seeds; None for one seed."""
    if len(values) < 2:
        return None
    array = np.asarray(values)
    freedom = len(array) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _T_MANY
    half = t * float(array.std(ddof=1)) / math.sqrt(len(array))
    return [round(float(array.mean()) - half, 4), round(float(array.mean()) + half, 4)]
