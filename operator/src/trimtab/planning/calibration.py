"""What live replicas say about predictions, and step models corrected by it (planner.md §7).

An anchor is a minute of decode-only steps: requests would mix queueing in. Errors are logarithms of
measured over predicted, shrunk by n/(n + 1), and bilinear in (log₂ TP, log₂ B): a factor found at
one tensor-parallel size is no factor for the others, and taking it for one spoils them.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from trimtab.planning.curves import Curve
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Anchor
from trimtab.planning.step_model import StepModel, StepWork

_LARGEST = math.log(2)
_FEWEST_AGREEING = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How far one prediction was off: ``error`` = ln(measured/predicted)."""

    tensor_parallel_size: int
    batch: float
    error: float


@dataclass(frozen=True, slots=True)
class _Span:
    """Errors over log₂ B of one tensor-parallel size: between two rows, or a part of the nearest."""

    below: Curve
    above: Curve | None = None
    share: float = 0.0
    permille: int | None = None

    def at(self, x: float) -> float:
        """Return the error at log₂ B."""
        value = self.below.at(x)
        if self.permille is not None:
            return value * self.permille / 1000
        if self.above is None:
            return value
        return value * (1 - self.share) + self.above.at(x) * self.share


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The correction of a family of step models that differ in their tensor-parallel size alone.

    What follows from the residuals is worked out once: every option of a plan asks for it.

    Attributes:
        residuals: What is known, in any order.
        sizes: Tensor-parallel sizes that the family has.
        policy: Constants.
    """

    residuals: tuple[Residual, ...]
    sizes: tuple[int, ...]
    policy: PlannerPolicy

    @cached_property
    def suspect(self) -> bool:
        """Whether a prediction is off by more than a factor of two: measure again, correct nothing.

        Where a size, or one batch of it, has three anchors or more, their median says so: one
        contended minute is no wrong fingerprint.
        """
        for size, found in _sizes(self.residuals).items():
            if len(found) < _FEWEST_AGREEING:
                if any(abs(error) > _LARGEST for error in self._rows[size].ys):
                    return True
                continue
            groups = [found, *(g for g in _groups(found) if len(g) >= _FEWEST_AGREEING)]
            if any(abs(statistics.median(r.error for r in g)) > _LARGEST for g in groups):
                return True
        return False

    @cached_property
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
        for left_out in self.residuals:
            rows, count = self._trusted_rows, len(self._trusted)
            if _trusted(left_out):
                rows, count = self._without(left_out), count - 1
            known = self._shrunk(rows, count, left_out.tensor_parallel_size, left_out.batch)
            errors.append(abs(left_out.error - known))
        return statistics.median(errors) if errors else 0.0

    def log_factor(self, tensor_parallel_size: int, batch: float) -> float:
        """Return the logarithm of what a prediction is to be multiplied by; 0 without anchors.

        Between anchored sizes it is linear in log₂ TP; outside their range half of the nearest
        size's correction is taken. A suspect family is not corrected, and a single anchor beyond a
        factor of two corrects nothing.
        """
        if self.suspect or not self._trusted_rows:
            return 0.0
        count = len(self._trusted)
        known = self._spans[0]
        if tensor_parallel_size not in known:
            known[tensor_parallel_size] = self._span(self._trusted_rows, tensor_parallel_size)
        return count / (count + 1) * known[tensor_parallel_size].at(_log2(batch))

    def seen(self, tensor_parallel_size: int, batch: float) -> float:
        """Return ln(measured/predicted) as the anchors saw it, neither shrunk nor refused; 0 of none."""
        if not self._rows:
            return 0.0
        known = self._spans[1]
        if tensor_parallel_size not in known:
            known[tensor_parallel_size] = self._span(self._rows, tensor_parallel_size)
        return known[tensor_parallel_size].at(_log2(batch))

    @cached_property
    def _spans(self) -> tuple[dict[int, "_Span"], dict[int, "_Span"]]:
        """Between which rows each size lies, of the trusted ones and of all: every option asks."""
        return {}, {}

    @cached_property
    def _rows(self) -> dict[int, Curve]:
        return _by_size(self.residuals)

    @cached_property
    def _trusted(self) -> tuple[Residual, ...]:
        return tuple(r for r in self.residuals if _trusted(r))

    @cached_property
    def _trusted_rows(self) -> dict[int, Curve]:
        return _by_size(self._trusted)

    @cached_property
    def _trusted_groups(self) -> dict[int, dict[int, list[Residual]]]:
        return {size: _buckets(found) for size, found in _sizes(self._trusted).items()}

    @cached_property
    def _trusted_means(self) -> dict[int, dict[int, tuple[float, float]]]:
        return {
            size: {bucket: _mean(group) for bucket, group in groups.items()}
            for size, groups in self._trusted_groups.items()
        }

    def _without(self, left_out: Residual) -> dict[int, Curve]:
        """Return the trusted rows without one residual: only its own group's mean is found anew."""
        size, bucket = left_out.tensor_parallel_size, _bucket(left_out)
        rest = list(self._trusted_groups[size][bucket])
        rest.remove(left_out)
        means = self._trusted_means[size]
        left = {b: _mean(rest) if b == bucket else means[b] for b in means if b != bucket or rest}
        rows = {s: row for s, row in self._trusted_rows.items() if s != size}
        return rows | ({size: _through([left[b] for b in sorted(left)])} if left else {})

    def _shrunk(self, rows: Mapping[int, Curve], count: int, size: int, batch: float) -> float:
        return count / (count + 1) * self._span(rows, size).at(_log2(batch)) if rows else 0.0

    def _span(self, rows: Mapping[int, Curve], size: int) -> "_Span":
        below = max((s for s in rows if s <= size), default=None)
        above = min((s for s in rows if s >= size), default=None)
        if below is None or above is None:
            nearest = rows[min(rows) if below is None else max(rows)]
            return _Span(nearest, permille=self.policy.beyond_anchored_permille)
        if below == above:
            return _Span(rows[below])
        share = (_log2(size) - _log2(below)) / (_log2(above) - _log2(below))
        return _Span(rows[below], above=rows[above], share=share)

    def apply(self, model: StepModel, *, tensor_parallel_size: int) -> StepModel:
        """Return a step model of the family with its times corrected."""
        knots = sorted({x for row in self._trusted_rows.values() for x in row.xs})
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


def _trusted(residual: Residual) -> bool:
    return abs(residual.error) <= _LARGEST


def _by_size(residuals: Sequence[Residual]) -> dict[int, Curve]:
    """Return per size the mean errors over log₂ B, flat beyond both ends.

    Batches within half an octave are one point: two that differ by a hair would make a slope out
    of their noise.
    """
    return {size: _flat(_groups(found)) for size, found in _sizes(residuals).items()}


def _sizes(residuals: Iterable[Residual]) -> dict[int, list[Residual]]:
    """Return the residuals by tensor-parallel size."""
    grouped: dict[int, list[Residual]] = {}
    for residual in residuals:
        grouped.setdefault(residual.tensor_parallel_size, []).append(residual)
    return grouped


def _groups(residuals: Iterable[Residual]) -> list[list[Residual]]:
    """Return the residuals of one size by half octaves of their batch, the least first."""
    buckets = _buckets(residuals)
    return [buckets[bucket] for bucket in sorted(buckets)]


def _buckets(residuals: Iterable[Residual]) -> dict[int, list[Residual]]:
    buckets: dict[int, list[Residual]] = {}
    for residual in residuals:
        buckets.setdefault(_bucket(residual), []).append(residual)
    return buckets


def _bucket(residual: Residual) -> int:
    """Return the half octave of a residual's batch."""
    return round(2 * _log2(residual.batch))


def _flat(groups: Sequence[Sequence[Residual]]) -> Curve:
    return _through([_mean(group) for group in groups])


def _mean(group: Sequence[Residual]) -> tuple[float, float]:
    """Return the mean log₂ B of a group and its mean error."""
    return (
        statistics.fmean([_log2(r.batch) for r in group]),
        statistics.fmean([r.error for r in group]),
    )


def _through(means: Sequence[tuple[float, float]]) -> Curve:
    """Return the curve through groups' means, flat beyond both ends."""
    xs, ys = zip(*means, strict=True)
    # A curve keeps its last slope; a second knot of equal height ends it.
    return Curve((*xs, xs[-1] + 1), (*ys, ys[-1]))


def _log2(value: float) -> float:
    return math.log2(max(1.0, value))
