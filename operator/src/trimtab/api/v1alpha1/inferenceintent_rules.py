"""Rules across the fields of an `InferenceIntent`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.base import Rule
from trimtab.api.v1alpha1.inferenceintent_spec import Objective

if TYPE_CHECKING:
    from trimtab.api.v1alpha1.inferenceintent_spec import InferenceIntentSpec, Targets


def _needs_targets(spec: InferenceIntentSpec) -> bool:
    return spec.objective in {Objective.TARGET_LATENCY, Objective.TARGET_COST}


def _latency_targets(targets: Targets) -> int:
    return sum(
        value is not None
        for value in (
            targets.time_to_first_token_milliseconds,
            targets.time_per_output_token_milliseconds,
        )
    )


def _cost_targets(targets: Targets) -> int:
    return sum(
        value is not None
        for value in (targets.cost_per_hour, targets.cost_per_million_output_tokens)
    )


def _stays_below(path: str | None) -> bool:
    return path is None or re.search(r"(^|/)\.\.(/|$)", path) is None


def _sources(spec: InferenceIntentSpec) -> int:
    source = spec.model.source
    return sum(
        value is not None
        for value in (
            source.persistent_volume_claim,
            source.host_path,
            source.image,
            source.hugging_face,
        )
    )


def _positive(amount: str | None) -> bool:
    return amount is None or Decimal(amount) > 0


_UPWARDS: Final = r"'(^|/)[.][.](/|$)'"

INTENT_RULES: Final = (
    Rule(
        expression="!(self.objective in ['TargetLatency', 'TargetCost']) || has(self.targets)",
        message=(
            "spec.targets is required by objectives TargetLatency and TargetCost: give a target, or "
            "choose MinLatency or MinCost"
        ),
        reason="FieldValueRequired",
        field_path=".targets",
        holds=lambda spec: not _needs_targets(spec) or spec.targets is not None,
    ),
    Rule(
        expression="self.objective in ['TargetLatency', 'TargetCost'] || !has(self.targets)",
        message=(
            "spec.targets is only allowed with objectives TargetLatency and TargetCost: remove it, or "
            "choose one of them"
        ),
        reason="FieldValueForbidden",
        field_path=".targets",
        holds=lambda spec: _needs_targets(spec) or spec.targets is None,
    ),
    Rule(
        expression=(
            "self.objective != 'TargetLatency' || !has(self.targets) || "
            "has(self.targets.timeToFirstTokenMilliseconds) || "
            "has(self.targets.timePerOutputTokenMilliseconds)"
        ),
        message=(
            "objective TargetLatency needs spec.targets.timeToFirstTokenMilliseconds, "
            "spec.targets.timePerOutputTokenMilliseconds, or both"
        ),
        reason="FieldValueRequired",
        field_path=".targets",
        holds=lambda spec: (
            spec.objective is not Objective.TARGET_LATENCY
            or spec.targets is None
            or _latency_targets(spec.targets) > 0
        ),
    ),
    Rule(
        expression=(
            "self.objective != 'TargetLatency' || !has(self.targets) || "
            "!(has(self.targets.costPerHour) || has(self.targets.costPerMillionOutputTokens))"
        ),
        message=(
            "spec.targets of objective TargetLatency must not hold cost targets: remove them, or "
            "choose TargetCost"
        ),
        reason="FieldValueForbidden",
        field_path=".targets",
        holds=lambda spec: (
            spec.objective is not Objective.TARGET_LATENCY
            or spec.targets is None
            or _cost_targets(spec.targets) == 0
        ),
    ),
    Rule(
        expression=(
            "self.objective != 'TargetCost' || !has(self.targets) || "
            "has(self.targets.costPerHour) != has(self.targets.costPerMillionOutputTokens)"
        ),
        message=(
            "objective TargetCost needs exactly one of spec.targets.costPerHour and "
            "spec.targets.costPerMillionOutputTokens"
        ),
        reason="FieldValueInvalid",
        field_path=".targets",
        holds=lambda spec: (
            spec.objective is not Objective.TARGET_COST
            or spec.targets is None
            or _cost_targets(spec.targets) == 1
        ),
    ),
    Rule(
        expression=(
            "self.objective != 'TargetCost' || !has(self.targets) || "
            "!(has(self.targets.timeToFirstTokenMilliseconds) || "
            "has(self.targets.timePerOutputTokenMilliseconds) || has(self.targets.percentile))"
        ),
        message=(
            "spec.targets of objective TargetCost must not hold latency targets or a percentile: "
            "remove them, or choose TargetLatency"
        ),
        reason="FieldValueForbidden",
        field_path=".targets",
        holds=lambda spec: (
            spec.objective is not Objective.TARGET_COST
            or spec.targets is None
            or (_latency_targets(spec.targets) == 0 and spec.targets.percentile is None)
        ),
    ),
    Rule(
        expression=(
            "!has(self.targets) || "
            "((!has(self.targets.costPerHour) || double(self.targets.costPerHour) > 0.0) && "
            "(!has(self.targets.costPerMillionOutputTokens) || "
            "double(self.targets.costPerMillionOutputTokens) > 0.0))"
        ),
        message="a cost target in spec.targets must be greater than 0",
        reason="FieldValueInvalid",
        field_path=".targets",
        holds=lambda spec: (
            spec.targets is None
            or (
                _positive(spec.targets.cost_per_hour)
                and _positive(spec.targets.cost_per_million_output_tokens)
            )
        ),
    ),
    Rule(
        expression=(
            "[has(self.model.source.persistentVolumeClaim), has(self.model.source.hostPath), "
            "has(self.model.source.image), has(self.model.source.huggingFace)]"
            ".filter(given, given).size() == 1"
        ),
        message=(
            "spec.model.source needs exactly one of persistentVolumeClaim, hostPath, image and "
            "huggingFace"
        ),
        reason="FieldValueInvalid",
        field_path=".model.source",
        holds=lambda spec: _sources(spec) == 1,
    ),
    Rule(
        expression=(
            "!has(self.model.source.hostPath) || "
            f"!self.model.source.hostPath.path.matches({_UPWARDS})"
        ),
        message="spec.model.source.hostPath.path must not contain '..'",
        reason="FieldValueInvalid",
        field_path=".model.source.hostPath.path",
        holds=lambda spec: (
            spec.model.source.host_path is None or _stays_below(spec.model.source.host_path.path)
        ),
    ),
    Rule(
        expression=(
            "!has(self.model.source.persistentVolumeClaim) || "
            "!has(self.model.source.persistentVolumeClaim.path) || "
            f"!self.model.source.persistentVolumeClaim.path.matches({_UPWARDS})"
        ),
        message="spec.model.source.persistentVolumeClaim.path must not contain '..'",
        reason="FieldValueInvalid",
        field_path=".model.source.persistentVolumeClaim.path",
        holds=lambda spec: (
            spec.model.source.persistent_volume_claim is None
            or _stays_below(spec.model.source.persistent_volume_claim.path)
        ),
    ),
    Rule(
        expression=(
            "!has(self.model.source.image) || !has(self.model.source.image.path) || "
            f"!self.model.source.image.path.matches({_UPWARDS})"
        ),
        message="spec.model.source.image.path must not contain '..'",
        reason="FieldValueInvalid",
        field_path=".model.source.image.path",
        holds=lambda spec: (
            spec.model.source.image is None or _stays_below(spec.model.source.image.path)
        ),
    ),
    Rule(
        expression=(
            "!has(self.constraints) || !has(self.constraints.minReplicas) || "
            "!has(self.constraints.maxReplicas) || "
            "self.constraints.minReplicas <= self.constraints.maxReplicas"
        ),
        message="spec.constraints.minReplicas must not exceed spec.constraints.maxReplicas",
        reason="FieldValueInvalid",
        field_path=".constraints.minReplicas",
        holds=lambda spec: (
            spec.constraints is None
            or spec.constraints.min_replicas is None
            or spec.constraints.max_replicas is None
            or spec.constraints.min_replicas <= spec.constraints.max_replicas
        ),
    ),
)
