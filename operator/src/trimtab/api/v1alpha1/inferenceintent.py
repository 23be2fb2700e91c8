"""`InferenceIntent`: a model, a goal and a load; what was decided, why, and what came of it."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from trimtab.api.v1alpha1.base import (
    ATOMIC,
    METADATA_RULES,
    SET,
    VISIBLE,
    ApiModel,
    Bytes,
    Column,
    Conditions,
    Count,
    Decimals,
    DNSName,
    Money,
    Names,
    ObservedGeneration,
    Percent,
    PerMille,
    Product,
    Resource,
    Rule,
    Sentence,
    Text,
    Time,
    Word,
)


class Objective(StrEnum):
    """What the plan optimises."""

    MIN_LATENCY = "MinLatency"
    MIN_COST = "MinCost"
    TARGET_LATENCY = "TargetLatency"
    TARGET_COST = "TargetCost"


class Sharing(StrEnum):
    """Whether replicas may share devices with other intents of the namespace."""

    EXCLUSIVE = "Exclusive"
    SHARED = "Shared"


class Infeasible(StrEnum):
    """What happens when no option meets the objective."""

    SERVE_NEAREST = "ServeNearest"
    REFUSE = "Refuse"


class Precision(StrEnum):
    """Precision of weights; the names are the field's own."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


_PATH: Final = StringConstraints(pattern=r"^[^/\x00][^\x00]*$", min_length=1, max_length=1024)
RelativePath = Annotated[str, _PATH]


class PersistentVolumeClaimSource(ApiModel):
    """A folder or file on a claim of the intent's namespace, mounted read-only."""

    claim_name: DNSName
    """claimName is the PersistentVolumeClaim in the intent's namespace."""
    path: RelativePath | None = None
    """path is the model's folder or .gguf file below the claim's root; default: the root."""


class HostPathSource(ApiModel):
    """A folder or file of every node; opt-in per installation."""

    path: Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=1024)]
    """path is absolute and lies below one of sources.hostPath.allowedPrefixes."""


class ImageSource(ApiModel):
    """An OCI image or artifact mounted as a volume; opt-in per installation."""

    reference: Annotated[str, StringConstraints(pattern=r"^\S+$", min_length=1, max_length=512)]
    """reference is the image, as in a container."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """pullPolicy is the kubelet's, as in a container."""
    path: RelativePath | None = None
    """path is the model's folder or .gguf file in the image; default: its root."""


class SecretKeyRef(ApiModel):
    """A key of a Secret in the intent's namespace; Trimtab itself never reads it."""

    name: DNSName
    """name is the Secret's."""
    key: Annotated[
        str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)
    ]
    """key is the entry of the Secret that holds the token."""


class HuggingFaceSource(ApiModel):
    """A repository of the Hugging Face hub or a mirror; opt-in per installation."""

    repository: Annotated[
        str,
        StringConstraints(
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]{0,95}(/[A-Za-z0-9][-A-Za-z0-9._]{0,95})?$",
            max_length=193,
        ),
    ]
    """repository is `organisation/name`."""
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$", max_length=40)]
    """revision is the full commit hash: a branch may change under a running fleet."""
    token_secret_ref: SecretKeyRef | None = None
    """tokenSecretRef is where the download's pod finds the hub's token."""


class ModelSource(ApiModel):
    """Where the model's files are: exactly one of the four."""

    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """persistentVolumeClaim holds the model on a claim of the namespace."""
    host_path: HostPathSource | None = None
    """hostPath holds the model on every node."""
    image: ImageSource | None = None
    """image holds the model in an OCI image."""
    hugging_face: HuggingFaceSource | None = None
    """huggingFace holds the model in a repository of a hub."""


class ModelReference(ApiModel):
    """Which model is served and under which name."""

    name: (
        Annotated[
            str,
            StringConstraints(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$", max_length=63),
        ]
        | None
    ) = None
    """name is what clients put into OpenAI's `model` field; default: metadata.name."""
    source: ModelSource
    """source is where the model's files are."""


class Targets(ApiModel):
    """What the Target objectives have to meet, judged at the gateway."""

    time_to_first_token_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """timeToFirstTokenMilliseconds bounds the time from request to first token."""
    time_per_output_token_milliseconds: Annotated[int, Field(ge=1, le=600_000)] | None = None
    """timePerOutputTokenMilliseconds bounds the mean time between a request's tokens."""
    percentile: Annotated[int, Field(ge=50, le=99)] | None = None
    """percentile of requests that must meet the latency targets; default: 95."""
    cost_per_hour: Money | None = None
    """costPerHour bounds what the reserved devices cost, in the price book's currency."""
    cost_per_million_output_tokens: Money | None = None
    """costPerMillionOutputTokens bounds the cost at the planned load."""


class Load(ApiModel):
    """The load to plan for; what is declared is replaced by what is observed."""

    requests_per_second: Decimals
    """requestsPerSecond is the mean arrival rate; "0" plans for one request in flight."""
    prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """promptTokens is the mean length of a prompt; default: 1024."""
    output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """outputTokens is the mean length of an answer; default: 256."""


class Constraints(ApiModel):
    """Pins: whatever is given is respected, whatever is absent is decided."""

    gpu_products: (
        Annotated[tuple[Product, ...], Field(min_length=1, max_length=32, json_schema_extra=SET)]
        | None
    ) = None
    """gpuProducts allows only these products; `cpu` is a product too."""
    precisions: (
        Annotated[tuple[Precision, ...], Field(min_length=1, max_length=8, json_schema_extra=SET)]
        | None
    ) = None
    """precisions allows only these; default: the checkpoint's own, because precision costs accuracy."""
    max_accuracy_loss_percent: Percent | None = None
    """maxAccuracyLossPercent bounds the measured loss against the checkpoint's own precision."""
    tensor_parallel_sizes: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=64)], ...],
            Field(min_length=1, max_length=16, json_schema_extra=SET),
        ]
        | None
    ) = None
    """tensorParallelSizes allows only these sizes."""
    pipeline_parallel_sizes: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=16)], ...],
            Field(min_length=1, max_length=16, json_schema_extra=SET),
        ]
        | None
    ) = None
    """pipelineParallelSizes allows only these sizes."""
    min_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """minReplicas is the least number of replicas; default: 1."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """maxReplicas is the largest number of replicas; default: what the fleet has."""


class InferenceIntentSpec(ApiModel):
    """What the user wants."""

    model: ModelReference
    """model is what to serve."""
    objective: Objective
    """objective is what the plan optimises."""
    targets: Targets | None = None
    """targets are required by, and only allowed with, the Target objectives."""
    load: Load | None = None
    """load is what to expect until enough has been observed."""
    constraints: Constraints | None = None
    """constraints pin what must not be decided."""
    sharing: Annotated[Sharing, Field(json_schema_extra=VISIBLE)] = Sharing.EXCLUSIVE
    """sharing says whether replicas may share devices with other Shared intents of the namespace."""
    infeasible: Annotated[Infeasible, Field(json_schema_extra=VISIBLE)] = Infeasible.SERVE_NEAREST
    """infeasible says what to do when nothing meets the objective."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """priority decides who gets scarce devices; the higher wins."""


# Status


class Prediction(ApiModel):
    """Predicted or observed figures; milliseconds and rates as decimal strings, 2 or 3 digits."""

    percentile: Annotated[int, Field(ge=0, le=99)] | None = None
    """percentile that the latencies stand for; absent: means."""
    time_to_first_token_milliseconds: Decimals | None = None
    """timeToFirstTokenMilliseconds is the time from request to first token."""
    time_per_output_token_milliseconds: Decimals | None = None
    """timePerOutputTokenMilliseconds is the mean time between a request's tokens."""
    end_to_end_milliseconds: Decimals | None = None
    """endToEndMilliseconds is the time of a whole request."""
    capacity_requests_per_second: Decimals | None = None
    """capacityRequestsPerSecond is the largest rate that all replicas together sustain."""
    output_tokens_per_second: Decimals | None = None
    """outputTokensPerSecond is the rate of output tokens at the planned load."""
    cost_per_million_output_tokens: Money | None = None
    """costPerMillionOutputTokens is the cost at the planned load."""
    cost_per_million_output_tokens_at_capacity: Money | None = None
    """costPerMillionOutputTokensAtCapacity is the cost when fully used."""


class Margin(ApiModel):
    """How much a prediction may be wrong before a target is missed."""

    time_to_first_token_percent: Annotated[int, Field(ge=0, le=1000)] | None = None
    """timeToFirstTokenPercent is added to the predicted time to first token."""
    time_per_output_token_percent: Annotated[int, Field(ge=0, le=1000)] | None = None
    """timePerOutputTokenPercent is added to the predicted time per output token."""


class Confidence(ApiModel):
    """How sure the prediction is, and why."""

    level: Literal["High", "Medium", "Low"]
    """level is High, Medium or Low."""
    source: Literal["Measured", "Catalogue", "Roofline"] | None = None
    """source of the estimate."""
    reasons: Annotated[tuple[Text, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """reasons for the level, one sentence each."""
    fingerprint: DNSName | None = None
    """fingerprint is the ConfigMap of the system namespace that the estimate rests on."""


class Remap(ApiModel):
    """Whether weight memory is lent to the KV cache under pressure."""

    verdict: Literal["DoNotRemap", "IdleOnly", "IdleAndActive"]
    """verdict of the hidden-bound formula."""
    reasons: Annotated[tuple[Text, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """reasons for the verdict."""


class PlannedLoad(ApiModel):
    """The load that the plan was made for."""

    source: Literal["Declared", "Observed", "Assumed"]
    """source says where the load is from."""
    requests_per_second: Decimals | None = None
    """requestsPerSecond is the mean arrival rate."""
    prompt_tokens: Count | None = None
    """promptTokens is the mean length of a prompt."""
    output_tokens: Count | None = None
    """outputTokens is the mean length of an answer."""


class Configuration(ApiModel):
    """One deployment option."""

    product: Product
    """product is the device product, or cpu."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """tensorParallelSize is the number of devices that share each layer."""
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """pipelineParallelSize is the number of stages."""
    precision: Precision
    """precision of the weights."""
    threads_per_replica: Annotated[int, Field(ge=1, le=4096)] | None = None
    """threadsPerReplica is set on product cpu."""
    replicas: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """replicas is the number of groups that serve; absent where the option cannot run."""
    cost_per_hour: Money | None = None
    """costPerHour is the cost of the reserved devices; absent without a price."""
    predicted: Prediction | None = None
    """predicted figures at the planned load, without the margin."""
    margin: Margin | None = None
    """margin that the predictions were judged with."""
    confidence: Confidence | None = None
    """confidence in the prediction."""
    accuracy_loss_percent: Percent | None = None
    """accuracyLossPercent is the measured loss against the checkpoint's own precision."""
    reason: Word | None = None
    """reason why this option was chosen, or why it lost."""
    message: Sentence | None = None
    """message says the reason in a sentence."""


class PlanStatus(Configuration):
    """The chosen option."""

    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$", max_length=64)] | None = (
        None
    )
    """digest of what decides a roll-out; pods carry it."""
    group: Annotated[str, StringConstraints(max_length=128)] | None = None
    """group is the sharing group's id; absent when nothing is shared."""
    load: PlannedLoad | None = None
    """load that was planned for."""
    binding: Word | None = None
    """binding is what decided between this option and a cheaper or faster one."""
    notes: Annotated[tuple[Text, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = ()
    """notes are further sentences: dated prices, assumptions, extrapolation."""
    remap: Remap | None = None
    """remap is the verdict on lending weight memory."""


class Observed(Prediction):
    """What the gateway saw, two significant digits, written at most once a minute."""

    requests_per_second: Decimals | None = None
    """requestsPerSecond is the mean arrival rate."""
    prompt_tokens: Count | None = None
    """promptTokens is the mean length of a prompt."""
    output_tokens: Count | None = None
    """outputTokens is the mean length of an answer."""
    error_permille: PerMille | None = None
    """errorPermille is the share of requests that failed."""
    last_observation_time: Time | None = None
    """lastObservationTime is when these figures last changed."""


class InspectedModel(ApiModel):
    """What the inspection Job found."""

    name: Text | None = None
    """name under which the model is served: namespace/name."""
    family: Text | None = None
    """family of the architecture."""
    precision: Precision | None = None
    """precision is the checkpoint's own."""
    quantization: Text | None = None
    """quantization of the checkpoint's file, if any."""
    parameters: Bytes | None = None
    """parameters is their number."""
    weight_bytes: Bytes | None = None
    """weightBytes is the weights' size in the checkpoint's own precision."""
    context_length: Count | None = None
    """contextLength is the largest number of tokens."""
    depth: Count | None = None
    """depth is the number of hidden layers."""


class InferenceIntentStatus(ApiModel):
    """What was decided and seen."""

    conditions: Conditions = ()
    """conditions say what holds; Ready copies the first gating one that is not True."""
    observed_generation: ObservedGeneration | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    endpoint: Text | None = None
    """endpoint is the OpenAI base URL that serves the model."""
    model: InspectedModel | None = None
    """model is what the inspection found."""
    plan: PlanStatus | None = None
    """plan is the chosen option."""
    alternatives: Annotated[
        tuple[Configuration, ...], Field(max_length=8, json_schema_extra=ATOMIC)
    ] = ()
    """alternatives are the best others, and why each lost."""
    ready_replicas: Count | None = None
    """readyReplicas is the number of replicas that answer."""
    observed: Observed | None = None
    """observed is what the gateway saw."""


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
