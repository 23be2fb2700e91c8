"""Compares a fingerprint's prediction with real steps of the full-depth model on this machine.

``python -m trimtab_workers.fingerprint.verify --fingerprint FILE --architecture FILE --depth 30``
prints one JSON row per point: real and predicted µs, error in percent. It needs the memory of the full
model; a plan never does.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Fingerprint, StepPoint, parse
from trimtab.planning.step_model import fit, work_of
from trimtab_workers.fingerprint.grid import GridPoint
from trimtab_workers.fingerprint.truncate import truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

# Points that the grid does not hold as well as some that it does.
POINTS = (
    *(GridPoint(batch=b, context=c) for b, c in ((1, 64), (1, 512), (1, 1024), (2, 256))),
    *(GridPoint(batch=b, context=c) for b, c in ((3, 300), (4, 256), (8, 256), (8, 1024))),
    *(GridPoint(chunk=n) for n in (32, 128, 256)),
    GridPoint(chunk=128, batch=4, context=256),
)
_WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One step of the full model: median of its repeats and the prediction, µs."""

    point: GridPoint
    real_us: int
    predicted_us: int

    @property
    def error_percent(self) -> float:
        """Return how far the prediction lies above (+) or below (-) the real step."""
        return 100 * (self.predicted_us / self.real_us - 1)


def compare(
    fingerprint: Fingerprint,
    architecture: Architecture,
    *,
    depth: int,
    points: Sequence[GridPoint] = POINTS,
    repeats: int = 9,
) -> list[Compared]:
    """Run the full model's steps, points taken in turns, and predict each from the fingerprint."""
    from trimtab_workers.fingerprint.bench import EngineBench  # noqa: PLC0415 - torch

    model = fit(fingerprint, depth=depth)
    bench = EngineBench(
        truncated(architecture, depth=depth, points=points),
        dtype=fingerprint.key.precision,
        threads=fingerprint.key.threads,
        points=points,
        # The full model evicts its own layers; nothing has to be emptied.
        cache_bytes=0,
    )
    for _ in range(_WARM_UP_STEPS):
        bench.step_seconds(points[0], depth=depth)
    taken: list[list[float]] = [[] for _ in points]
    for _ in range(repeats):
        for samples, point in zip(taken, points, strict=True):
            samples.append(bench.step_seconds(point, depth=depth))
    return [
        Compared(
            point=point,
            real_us=round(statistics.median(samples) * 1e6),
            predicted_us=round(model.step_us(work_of(_step(point)))),
        )
        for point, samples in zip(points, taken, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fingerprint", type=Path, required=True)
    parser.add_argument("--architecture", type=Path, required=True, help="canonical form, JSON")
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args(argv)
    architecture = Architecture.from_dict(json.loads(given.architecture.read_text()))
    rows = compare(
        parse(given.fingerprint.read_text()),
        architecture,
        depth=given.depth,
        repeats=given.repeats,
    )
    for row in rows:
        point = {
            name: value
            for name in ("batch", "context", "chunk", "cached")
            if (value := getattr(row.point, name))
        }
        shown = {**point, "real_us": row.real_us, "predicted_us": row.predicted_us}
        print(json.dumps({**shown, "error_percent": round(row.error_percent, 1)}))  # noqa: T201 - output
    return 0


def _step(point: GridPoint) -> StepPoint:
    return StepPoint(
        batch=point.batch,
        context=point.context,
        chunk=point.chunk,
        cached=point.cached,
        t1_us=1,
        mad1_us=0,
        t2_us=1,
        mad2_us=0,
        repeats=1,
    )


if __name__ == "__main__":
    raise SystemExit(main())
