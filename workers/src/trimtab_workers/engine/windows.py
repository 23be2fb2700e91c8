"""Decode-only step times by batch and context: what the planner anchors its predictions on."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from dataclasses import asdict, dataclass

WINDOW_SECONDS = 30.0
WINDOWS = 20
_SAMPLES = 512

WindowRow = list[str | int]


def bucket(count: float) -> int:
    """Return the largest power of two that is not above a count; 0 for less than 1."""
    whole = int(count)
    return 1 << (whole.bit_length() - 1) if whole > 0 else 0


@dataclass(slots=True)
class StepTotals:
    """Decode-only steps since the start, their seconds, sequences and context tokens, summed over steps."""

    steps: int = 0
    seconds: float = 0.0
    sequences: int = 0
    context_tokens: int = 0

    def to_dict(self) -> dict[str, int | float]:
        """Return contracts §6's ``decode_only`` of a model."""
        return asdict(self)


class StepWindows:
    """The last 20 windows of 30 s (joints.md §4), rows as [phase, batch, context, steps, µs].

    Batch and context are powers of two at or below the step's sequences and their mean context
    tokens; µs is the median. A window shows up when the first step after its end arrives.
    """

    def __init__(self) -> None:
        self._windows: deque[list[WindowRow]] = deque(maxlen=WINDOWS)
        self._current: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self._counts: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._ends: float | None = None
        self.totals = StepTotals()

    def add(self, *, now: float, seconds: float, sequences: int, context_tokens: int) -> None:
        """Record one decode-only step."""
        totals = self.totals
        totals.steps += 1
        totals.seconds += seconds
        totals.sequences += sequences
        totals.context_tokens += context_tokens
        if self._ends is None or now >= self._ends:
            self._close()
            self._ends = now + WINDOW_SECONDS
        key = bucket(sequences), bucket(context_tokens / sequences)
        self._counts[key] += 1
        if len(self._current[key]) < _SAMPLES:
            self._current[key].append(seconds)

    def _close(self) -> None:
        if self._current:
            self._windows.append(_rows(self._current, self._counts))
        self._current, self._counts = defaultdict(list), defaultdict(int)

    def rows(self, *, now: float) -> list[WindowRow]:
        """Return the rows of all complete windows, oldest first."""
        complete = list(self._windows)
        if self._ends is not None and now >= self._ends:
            complete.append(_rows(dict(self._current), dict(self._counts)))
        return [row for window in complete for row in window]


def _rows(
    samples: dict[tuple[int, int], list[float]], counts: dict[tuple[int, int], int]
) -> list[WindowRow]:
    return [
        ["decode", batch, context, counts[batch, context], round(1e6 * statistics.median(seconds))]
        for (batch, context), seconds in sorted(samples.items())
    ]
