"""Which steps a fingerprint measures (planner.md §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class GridError(ValueError):
    """A grid in a fingerprint's specification is wrong; the message names the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPoint:
    """One step: ``batch`` sequences of ``context`` tokens decode beside a ``chunk`` after ``cached``."""

    batch: int = 0
    context: int = 0
    chunk: int = 0
    cached: int = 0

    @property
    def kind(self) -> str:
        """``decode``, ``prefill`` or ``mixed``."""
        if not self.chunk:
            return "decode"
        return "mixed" if self.batch else "prefill"

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values exist once the step is done."""
        return self.batch * (self.context + 1) + self.cached + self.chunk


def _grid(
    decode: Sequence[Sequence[int]],
    prefill: Sequence[Sequence[int]],
    mixed: Sequence[Sequence[int]],
    *,
    mixed_context: int,
) -> tuple[GridPoint, ...]:
    return (
        *(GridPoint(batch=b, context=c) for b, c in decode),
        *(GridPoint(chunk=n, cached=c) for n, c in prefill),
        *(GridPoint(chunk=n, batch=b, context=mixed_context) for n, b in mixed),
    )


CPU = _grid(
    [(b, c) for b in (1, 2, 4, 8) for c in (64, 256, 1024)],
    [(32, 0), (128, 0), (256, 0), (512, 0), (128, 512), (512, 1024)],
    [(128, 4)],
    mixed_context=256,
)
QUICK = _grid(
    [(b, c) for b in (1, 4) for c in (64, 512)],
    [(32, 0), (128, 0), (128, 512)],
    [],
    mixed_context=256,
)
_MOST_TOKENS = 1 << 20


def grid_of(spec: object) -> tuple[GridPoint, ...]:
    """Return the points of a specification's ``grid``: ``cpu``, ``quick`` or explicit lists.

    Raises:
        GridError: Neither a known name nor lists of pairs of non-negative integers.
    """
    if spec == "cpu":
        return CPU
    if spec == "quick":
        return QUICK
    if not isinstance(spec, Mapping):
        raise GridError(
            f"Fingerprint specification's grid is {spec!r:.80}. Give cpu, quick, or an object with "
            "decode, prefill and mixed."
        )
    points = _grid(
        _pairs(spec, "decode"),
        _pairs(spec, "prefill"),
        _pairs(spec, "mixed"),
        mixed_context=256,
    )
    if not any(p.kind == "decode" for p in points) or not any(p.kind == "prefill" for p in points):
        raise GridError(
            "Fingerprint specification's grid needs at least one decode and one prefill point. "
            "Add them."
        )
    return points


def _pairs(spec: Mapping[str, Any], name: str) -> list[tuple[int, int]]:
    rows = spec.get(name) or []
    good = isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == 2
        and all(type(v) is int and 0 <= v <= _MOST_TOKENS for v in row)
        and row[0] > 0
        for row in rows
    )
    if not good:
        raise GridError(
            f"Fingerprint specification's grid.{name} is {rows!r:.80}. Give pairs of integers "
            f"from 0 to {_MOST_TOKENS}, the first above 0."
        )
    return [(row[0], row[1]) for row in rows]
