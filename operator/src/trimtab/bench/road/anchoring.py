"""Anchors from the first repeat: what live workers counted, for predictions of the other repeats."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from trimtab.planning.calibration import correction
from trimtab.planning.snapshot import Anchor
from trimtab.planning.step_model import fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trimtab.bench.road.forecast import Forecast
    from trimtab.bench.road.ledger import Row
    from trimtab.bench.road.matrix import Way
    from trimtab.planning.fingerprint import Fingerprint, StepPoint
    from trimtab.planning.policy import PlannerPolicy

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
                    batch=counted[SEQUENCES] / steps,
                    kv_tokens=counted[CONTEXT] / steps,
                    step_us=round(1e6 * counted[SECONDS] / steps),
                    steps=steps,
                )
            )
    return tuple(found)


def corrected(
    fingerprint: Fingerprint, known: Sequence[Anchor], *, depth: int, policy: PlannerPolicy
) -> Fingerprint:
    """Return a fingerprint with its points corrected by its own anchors, as the planner corrects steps.

    Both depths of a point take the correction of its batch, so that every step on the grid is
    corrected by exactly that factor (planner.md §7).
    """
    own = [anchor for anchor in known if anchor.key == fingerprint.key.digest()]
    if not own:
        return fingerprint
    found = correction(own, {1: fit(fingerprint, depth=depth)}, policy=policy)

    def mended(points: tuple[StepPoint, ...]) -> tuple[StepPoint, ...]:
        factors = [math.exp(found.log_factor(1, point.batch)) for point in points]
        return tuple(
            replace(p, t1_us=round(p.t1_us * factor), t2_us=round(p.t2_us * factor))
            for p, factor in zip(points, factors, strict=True)
        )

    return replace(
        fingerprint,
        decode=mended(fingerprint.decode),
        prefill=mended(fingerprint.prefill),
        mixed=mended(fingerprint.mixed),
    )
