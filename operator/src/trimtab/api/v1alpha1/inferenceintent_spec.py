"""What an `InferenceIntent` asks for."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from trimtab.api.v1alpha1.base import (
    SET,
    VISIBLE,
    ApiModel,
    Decimals,
    DNSName,
    Money,
    Percent,
    Product,
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
    """maxAccuracyLossPercent bounds the measured loss: by how much the perplexity of a fixed text is higher than at the checkpoint's own precision. What is not measured yet is excluded until it is. Without precisions, it lets every precision be considered that the engine runs."""
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
