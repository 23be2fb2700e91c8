"""Anchors from the first repeat: what live workers counted, for predictions of the other repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.planning.snapshot import Anchor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trimtab.bench.road.forecast import Forecast
    from trimtab.bench.road.ledger import Row
    from trimtab.bench.road.matrix import Way

STEPS, SECONDS, SEQUENCES, CONTEXT = (
    f"trimtab_engine_decode_only_{name}"
    for name in ("steps", "seconds", "sequences", "context_tokens")
)
PREEMPTIONS = "vllm:num_preemptions"
COUNTED = (STEPS, SECONDS, SEQUENCES, CONTEXT, PREEMPTIONS)


def anchors(rows: Iterable[Row], ways: Mapping[str, Way], forecast: Forecast) -> tuple[Anchor, ...]:
    """Return one anchor per run of the first repeat that one replica alone served.

    Steps, not requests: what requests see contains queueing (planner.md §7).
    """
    found = []
    for row in sorted(rows, key=lambda r: r.run.key):
        way = ways.get(row.run.way)
        counted = row.counters
        if row.run.repeat or way is None or way.replicas > 1 or not counted:
            continue
        steps = round(counted[STEPS])
        if steps:
            found.append(
                Anchor(
                    key=forecast.key(way.precision),
                    depth=forecast.depth,
                    batch=counted[SEQUENCES] / steps,
                    kv_tokens=counted[CONTEXT] / steps,
                    step_us=round(1e6 * counted[SECONDS] / steps),
                    steps=steps,
                )
            )
    return tuple(found)
