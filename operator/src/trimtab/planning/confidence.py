"""How far a prediction can be trusted, and the margin that follows (planner.md §7)."""

from collections.abc import Mapping, Sequence
from typing import Final

from trimtab.planning.fingerprint import Fingerprint, Source
from trimtab.planning.plan import Anchoring, Confidence, Level
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.step_model import StepModel

_LEVELS: Final[tuple[Level, ...]] = ("Low", "Medium", "High")
_SKIPPED: Final = "simulation skipped, queueing estimated in closed form"
_OF_SOURCE: Final[Mapping[Source, int]] = {"Measured": 2, "Catalogue": 1, "Roofline": 0}


def assess(
    fingerprint: Fingerprint,
    model: StepModel,
    *,
    engine_version: str,
    extrapolated: bool,
    utilisation_permille: int,
    anchoring: Anchoring | None = None,
    policy: PlannerPolicy,
) -> Confidence:
    """Return the level of a prediction with the reasons for it.

    It starts at the source's level, gains one from good anchors and loses one for each thing that
    makes the estimate weaker.
    """
    level = _OF_SOURCE[fingerprint.source]
    reasons = [f"{fingerprint.source} fingerprint"]
    limit = policy.residual_limit_permille / 1000
    mixed = abs(model.mixed_error) if model.mixed_error is not None else 0.0
    weaknesses = (
        (
            fingerprint.key.engine_version != engine_version,
            f"times of {fingerprint.key.engine} {fingerprint.key.engine_version}, not of {engine_version}",
        ),
        (fingerprint.tp_mode == "Emulated", "tensor parallelism emulated on one device"),
        (extrapolated, "outside the measured grid"),
        (model.residual > limit, f"step model misses its points by {model.residual:.1%}"),
        (mixed > 2 * limit, f"mixed step off by {mixed:.1%}"),
        (
            utilisation_permille > policy.screened_utilisation_permille,
            _SKIPPED,
        ),
        (
            anchoring is not None and anchoring.suspect,
            "live steps are more than twofold off, so anchors are not applied",
        ),
        ("Contended" in fingerprint.notes, "measured on a busy machine"),
        ("Unidentifiable" in fingerprint.notes, "layer time too noisy to separate"),
    )
    for weak, reason in weaknesses:
        if weak:
            level -= 1
            reasons.append(reason)
    if anchoring is not None and not anchoring.suspect:
        level += anchoring.good
        agree = "that foretell each other" if anchoring.good else "too few or too alike to trust"
        reasons.append(f"corrected by {anchoring.count} anchors of live replicas, {agree}")
    return _confidence(level, reasons, fingerprint.source)


def simulated(found: Confidence) -> Confidence:
    """Return the confidence in a prediction whose queue was followed request by request."""
    reasons = [reason for reason in found.reasons if reason != _SKIPPED]
    points = found.points + len(found.reasons) - len(reasons)
    return _confidence(points, [*reasons, "queue simulated"], found.source)


def _confidence(points: int, reasons: Sequence[str], source: Source) -> Confidence:
    level = _LEVELS[min(max(0, points), len(_LEVELS) - 1)]
    return Confidence(level=level, reasons=tuple(reasons), source=source, points=points)


def lowered(confidence: Confidence, reason: str) -> Confidence:
    """Return a confidence one level down, for one reason more."""
    return _confidence(confidence.points - 1, [*confidence.reasons, reason], confidence.source)


def margin_permille(level: Level, *, policy: PlannerPolicy) -> int:
    """Return what is added to a TPOT prediction before it is compared with a target."""
    return {
        "High": policy.margin_high_permille,
        "Medium": policy.margin_medium_permille,
        "Low": policy.margin_low_permille,
    }[level]


def ttft_margin_permille(margin: int, anchoring: Anchoring | None, *, policy: PlannerPolicy) -> int:
    """Return what is added to a TTFT prediction: at least 20 % till good anchors are there."""
    anchored = anchoring is not None and anchoring.good
    return margin if anchored else max(policy.margin_ttft_unanchored_permille, margin)
