"""Why an invocation gets its size, as plain data: for `why`, dry runs and advice on recorded runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab.rightsizing.buckets import bucket_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.rightsizing.sizer import FunctionModel
    from trimtab.rightsizing.types import Choice, Decision, Features

JSON = dict[str, Any]  # any: JSON


def explain(model: FunctionModel, features: Features, *, decision: Decision) -> JSON:
    """Return features, bucket, class costs, candidates, gate and size of a decision.

    Args:
        model: That made the decision; nothing in it changes.
        features: That it was made from.
        decision: As `preview` or `decide` returned it.
    """
    bucket = model.buckets.get(bucket_key(features)) if features.missing is None else None
    return {
        "features": {
            **dict(zip(model.layout.numbers, features.numbers, strict=False)),
            "categories": list(features.categories),
            "missing": features.missing,
        },
        "bucket": {
            "key": [] if features.missing is not None else list(bucket_key(features)),
            "runs": 0 if bucket is None else len(bucket.works),
            "peaks": 0 if bucket is None else len(bucket.peaks),
        },
        "cpu": _choice(decision.cpu, model.ladder.cpu_m),
        "memory": _choice(decision.memory, model.ladder.mem_mib),
        "want": {"cpu_m": decision.want.cpu_m, "mem_mib": decision.want.mem_mib},
        "size": {"cpu_m": decision.size.cpu_m, "mem_mib": decision.size.mem_mib},
        "infeasible": decision.infeasible,
        "confidence": round(model.confidence, 3),
        "observations": model.observations,
    }


def _choice(choice: Choice, classes: Sequence[int]) -> JSON:
    return {
        "class": classes[choice.index],
        "source": str(choice.source),
        "gate": None if choice.gate is None else str(choice.gate),
        "candidates": {str(source): classes[index] for source, index in choice.candidates.items()},
        "costs": {
            str(size): round(cost, 4)
            for size, cost in zip(classes, choice.costs or (), strict=False)
        },
    }
