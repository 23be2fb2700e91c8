"""`InferenceIntent`: a model, a goal and a load; what was decided, why, and what came of it."""

from __future__ import annotations

from typing import ClassVar, Literal

from trimtab.api.v1alpha1.base import (
    METADATA_RULES,
    Column,
    Names,
    Resource,
    Rule,
)
from trimtab.api.v1alpha1.inferenceintent_rules import INTENT_RULES
from trimtab.api.v1alpha1.inferenceintent_spec import (
    Constraints,
    HuggingFaceSource,
    Infeasible,
    InferenceIntentSpec,
    Load,
    ModelSource,
    Objective,
    Precision,
    Sharing,
    Targets,
)
from trimtab.api.v1alpha1.inferenceintent_status import InferenceIntentStatus

__all__ = [
    "Constraints",
    "HuggingFaceSource",
    "Infeasible",
    "InferenceIntent",
    "InferenceIntentSpec",
    "InferenceIntentStatus",
    "Load",
    "ModelSource",
    "Objective",
    "Precision",
    "Sharing",
    "Targets",
]


class InferenceIntent(Resource):
    """A model, a goal and a load. Trimtab decides devices, parallelism, precision and replicas."""

    NAMES: ClassVar[Names] = Names(
        kind="InferenceIntent",
        plural="inferenceintents",
        singular="inferenceintent",
        short=("ii",),
        scope="Namespaced",
        description=(
            "InferenceIntent asks for a model to be served with a goal; Trimtab decides devices, "
            "parallelism, precision, replicas and sharing, and explains each decision in its status."
        ),
    )
    RULES: ClassVar[tuple[Rule, ...]] = METADATA_RULES
    SPEC_RULES: ClassVar[tuple[Rule, ...]] = INTENT_RULES
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column(
            name="Ready",
            json_path='.status.conditions[?(@.type=="Ready")].status',
            description="Whether the model is served as planned.",
        ),
        Column(
            name="Reason",
            json_path='.status.conditions[?(@.type=="Ready")].reason',
            description="Why it is or is not ready.",
        ),
        Column(name="Model", json_path=".status.model.name", description="Name that clients use."),
        Column(
            name="Product",
            json_path=".status.plan.product",
            description="Device product that was chosen.",
        ),
        Column(
            name="Replicas",
            json_path=".status.plan.replicas",
            type="integer",
            description="Replicas that were planned.",
        ),
        Column(
            name="Cost/h",
            json_path=".status.plan.costPerHour",
            description="Cost of the reserved devices per hour.",
        ),
        Column(
            name="TP",
            json_path=".status.plan.tensorParallelSize",
            type="integer",
            wide=True,
            description="Devices that share each layer.",
        ),
        Column(
            name="Precision",
            json_path=".status.plan.precision",
            wide=True,
            description="Precision of the weights.",
        ),
        Column(
            name="TTFT",
            json_path=".status.plan.predicted.timeToFirstTokenMilliseconds",
            wide=True,
            description="Predicted milliseconds to the first token.",
        ),
        Column(
            name="TPOT",
            json_path=".status.plan.predicted.timePerOutputTokenMilliseconds",
            wide=True,
            description="Predicted milliseconds per output token.",
        ),
        Column(
            name="Age",
            json_path=".metadata.creationTimestamp",
            type="date",
            description="Time since creation.",
        ),
    )

    kind: Literal["InferenceIntent"] = "InferenceIntent"
    spec: InferenceIntentSpec
    """spec is what the user wants."""
    status: InferenceIntentStatus | None = None
    """status is what was decided and seen."""

    @property
    def public_name(self) -> str:
        """`namespace/name`, the only name that the worker answers to."""
        return (
            f"{self.metadata.namespace or 'default'}/{self.spec.model.name or self.metadata.name}"
        )
