"""What one more number would tell of an engine: host time per sequence and step, which operators do not hold.

Sampling, detokenising and streaming take host time with every sequence, however many GPUs compute. A table of
operators has none of it (planner.md §1); a fingerprint that was measured in the engine carries it in F. Here
it is found from the rows themselves, each predicted by the others: so it says what is missing, and is no
prediction.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from trimtab.bench.report import JSON, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.anchored import Compared

_TRIED_US: Final = range(101)


def host_time(compared: Sequence[Compared]) -> JSON:
    """Return the µs per sequence that explain a group's times per output token best, and the error left.

    ``mape_percent`` is that of rows left out one at a time.
    """
    misses = [
        [abs(_with_host(one, us) / one.row.tpot_ms - 1) for us in _TRIED_US] for one in compared
    ]
    sums = [sum(column) for column in zip(*misses, strict=True)]
    left = []
    for row in misses:
        others = [total - own for total, own in zip(sums, row, strict=True)]
        left.append(row[others.index(min(others))])
    return {
        "us_per_sequence": sums.index(min(sums)),
        "mape_percent": percent(statistics.fmean(left)),
        "raw_mape_percent": percent(statistics.fmean(row[0] for row in misses)),
    }


def _with_host(one: Compared, us: int) -> float:
    return one.predicted.tpot_ms + us * one.row.concurrency / 1000
