"""What live replicas say about predictions, and step models corrected by it (planner.md §7).

An anchor is a minute of decode-only steps: requests would mix queueing in. Errors are logarithms of
measured over predicted, shrunk by n/(n + 1), and bilinear in (log₂ TP, log₂ B): a factor found at
one tensor-parallel size is no factor for the others, and taking it for one spoils them.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trimtab.planning.curves import Curve
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Anchor
from trimtab.planning.step_model import StepModel, StepWork

_LARGEST = math.log(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How far one prediction was off: ``error`` = ln(measured/predicted)."""

    tensor_parallel_size: int
    batch: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """The correction of a family of step models that differ in their tensor-parallel size alone.

    Attributes:
        residuals: What is known, in any order.
        sizes: Tensor-parallel sizes that the family has.
        policy: Constants.
    """

    residuals: tuple[Residual, ...]
    sizes: tuple[int, ...]
    policy: PlannerPolicy

    @property
    def suspect(self) -> bool:
        """Whether a prediction is off by more than a factor of two: measure again, correct nothing."""
        rows = _by_size(self.residuals).values()
        return any(abs(error) > _LARGEST for row in rows for error in row.ys)

    @property
    def good(self) -> bool:
        """Whether the anchors are many, spread, and predict each other (planner.md §7)."""
        policy = self.policy
        found = {r.tensor_parallel_size for r in self.residuals}
        if len(self.residuals) < policy.good_anchors or self.suspect:
            return False
        if len(found) < min(2, len(self.sizes)):
            return False
        batches = [r.batch for r in self.residuals]
        if max(batches) < policy.good_anchor_spread * min(batches):
            return False
        return self.unexplained() <= policy.good_anchor_error_permille / 1000

    def unexplained(self) -> float:
        """Return the median |e| of each anchor under the correction that the others make."""
        errors = []
        for i, left_out in enumerate(self.residuals):
            others = replace(self, residuals=self.residuals[:i] + self.residuals[i + 1 :])
            known = others.log_factor(left_out.tensor_parallel_size, left_out.batch)
            errors.append(abs(left_out.error - known))
        return statistics.median(errors) if errors else 0.0

    def log_factor(self, tensor_parallel_size: int, batch: float) -> float:
        """Return the logarithm of what a prediction is to be multiplied by; 0 without anchors.

        Between anchored sizes it is linear in log₂ TP; outside their range half of the nearest
        size's correction is taken. A suspect family is not corrected.
        """
        count = len(self.residuals)
        if self.suspect:
            return 0.0
        return count / (count + 1) * self.seen(tensor_parallel_size, batch)

    def seen(self, tensor_parallel_size: int, batch: float) -> float:
        """Return ln(measured/predicted) as the anchors saw it, neither shrunk nor refused; 0 of none."""
        rows = _by_size(self.residuals)
        if not rows:
            return 0.0
        return self._bilinear(rows, tensor_parallel_size, _log2(batch))

    def _bilinear(self, rows: Mapping[int, Curve], size: int, x: float) -> float:
        below = max((s for s in rows if s <= size), default=None)
        above = min((s for s in rows if s >= size), default=None)
        if below is None or above is None:
            nearest = rows[min(rows) if below is None else max(rows)]
            return nearest.at(x) * self.policy.beyond_anchored_permille / 1000
        if below == above:
            return rows[below].at(x)
        share = (_log2(size) - _log2(below)) / (_log2(above) - _log2(below))
        return rows[below].at(x) * (1 - share) + rows[above].at(x) * share

    def apply(self, model: StepModel, *, tensor_parallel_size: int) -> StepModel:
        """Return a step model of the family with its times corrected."""
        knots = sorted({x for row in _by_size(self.residuals).values() for x in row.xs})
        if not knots:
            return model
        factors = [self.log_factor(tensor_parallel_size, 2.0**x) for x in knots]
        return replace(model, correction=Curve(tuple(knots), tuple(factors)))


def correction(
    anchors: Iterable[Anchor], models: Mapping[int, StepModel], *, policy: PlannerPolicy
) -> Correction:
    """Return what anchors say about step models, by tensor-parallel size.

    Anchors of few steps, and of sizes without a model, say nothing. The newest of each key count,
    those that come last.
    """
    newest: dict[str, list[Anchor]] = {}
    for anchor in anchors:
        if anchor.steps >= policy.anchor_steps and anchor.tensor_parallel_size in models:
            newest.setdefault(anchor.key, []).append(anchor)
    kept = [a for found in newest.values() for a in found[-policy.kept_anchors :]]
    return Correction(
        residuals=tuple(
            Residual(
                tensor_parallel_size=a.tensor_parallel_size,
                batch=a.batch,
                error=math.log(a.step_us / _predicted_us(models[a.tensor_parallel_size], a)),
            )
            for a in kept
        ),
        sizes=tuple(sorted(models)),
        policy=policy,
    )


def calibrate(
    model: StepModel,
    anchors: Iterable[Anchor],
    *,
    tensor_parallel_size: int = 1,
    models: Mapping[int, StepModel] | None = None,
    policy: PlannerPolicy,
) -> StepModel:
    """Return a step model corrected by anchors of its family.

    Args:
        model: What is to be corrected, as fitted.
        anchors: Of its key and of the keys that differ in the tensor-parallel size alone, the
            newest last.
        tensor_parallel_size: Of ``model``.
        models: The family by tensor-parallel size; anchors of sizes that are not there say nothing.
            None stands for ``model`` alone.
        policy: Constants.
    """
    family = {tensor_parallel_size: model, **(models or {})}
    found = correction(anchors, family, policy=policy)
    return found.apply(model, tensor_parallel_size=tensor_parallel_size)


def _predicted_us(model: StepModel, anchor: Anchor) -> float:
    plain = replace(model, correction=None)
    batch = anchor.batch
    work = StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=anchor.kv_tokens)
    return plain.step_us(work)


def _by_size(residuals: Sequence[Residual]) -> dict[int, Curve]:
    """Return per size the mean errors over log₂ B, flat beyond both ends.

    Batches within half an octave are one point: two that differ by a hair would make a slope out
    of their noise.
    """
    grouped: dict[int, dict[int, list[Residual]]] = {}
    for residual in residuals:
        bucket = round(2 * _log2(residual.batch))
        grouped.setdefault(residual.tensor_parallel_size, {}).setdefault(bucket, []).append(
            residual
        )
    return {
        size: _flat([buckets[bucket] for bucket in sorted(buckets)])
        for size, buckets in grouped.items()
    }


def _flat(groups: Sequence[Sequence[Residual]]) -> Curve:
    xs = [statistics.fmean(_log2(r.batch) for r in group) for group in groups]
    ys = [statistics.fmean(r.error for r in group) for group in groups]
    # A curve keeps its last slope; a second knot of equal height ends it.
    return Curve((*xs, xs[-1] + 1), (*ys, ys[-1]))


def _log2(value: float) -> float:
    return math.log2(max(1.0, value))
