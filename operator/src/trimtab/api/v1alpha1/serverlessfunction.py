"""`ServerlessFunction`: an HTTP function and its deadline; vCPU and memory are decided per invocation."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from trimtab.api.v1alpha1.base import (
    METADATA_RULES,
    VISIBLE,
    ApiModel,
    Column,
    Conditions,
    Count,
    DNSName,
    Names,
    ObservedGeneration,
    PerMille,
    Quantity,
    QuantityText,
    Resource,
    Rule,
    Text,
    Time,
    keyed,
)
from trimtab.api.v1alpha1.serverlessfunction_rules import FUNCTION_RULES


class Mode(StrEnum):
    """What the right-sizer does."""

    OFF = "Off"
    RECOMMEND = "Recommend"
    ENFORCE = "Enforce"


class Signature(StrEnum):
    """How the stock runner calls a module."""

    FUNCTIONS_FRAMEWORK = "FunctionsFramework"
    ASGI = "ASGI"
    PARLIAMENT = "Parliament"
    OPEN_WHISK = "OpenWhisk"
    LAMBDA = "Lambda"
    NUCLIO = "Nuclio"
    SEBS = "SeBS"
    OPEN_FAAS = "OpenFaaS"


class FeatureOrigin(StrEnum):
    """Where a feature of the input is read."""

    SIZE = "Size"
    CONTENT_TYPE = "ContentType"
    HEADER = "Header"
    QUERY = "Query"
    JSON_POINTER = "JSONPointer"


class ConfigMapRef(ApiModel):
    """A ConfigMap of the function's namespace."""

    name: DNSName
    """name is the ConfigMap's; each of its keys is a file."""


class FunctionSource(ApiModel):
    """Python source that runs on the stock runner."""

    config_map_ref: ConfigMapRef
    """configMapRef is where the Python files are."""
    module: (
        Annotated[
            str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", min_length=1, max_length=63)
        ]
        | None
    ) = None
    """module is the file, without .py, that holds the handler; default: main."""


class CPULadder(ApiModel):
    """The CPU sizes to choose from: at most 32."""

    min: Quantity
    """min is the smallest size."""
    max: Quantity
    """max is the largest size."""
    step: Quantity | None = None
    """step between sizes; default: 100m, which is also the smallest."""
    default: Quantity | None = None
    """default is used until enough has been learned; default: max."""


class MemoryLadder(ApiModel):
    """The memory sizes to choose from: at most 32."""

    min: Quantity
    """min is the smallest size."""
    max: Quantity
    """max is the largest size."""
    step: Quantity | None = None
    """step between sizes; default: 128Mi."""
    default: Quantity | None = None
    """default is used until enough has been learned; default: max."""


class FunctionResources(ApiModel):
    """Bounds of the decision."""

    cpu: CPULadder
    """cpu sizes, in cores."""
    memory: MemoryLadder
    """memory sizes, in bytes."""


class Feature(ApiModel):
    """One property of the input that explains its need."""

    name: Annotated[
        str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9_]*$", min_length=1, max_length=63)
    ]
    """name of the feature, used in explanations."""
    from_: Annotated[FeatureOrigin, Field(alias="from")]
    """from is where the feature is read."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """key is the header's or parameter's name, or the JSON pointer."""


class Warm(ApiModel):
    """Pods that are kept for the next invocation."""

    max_pods: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """maxPods is the most pods of all sizes; default: 8."""
    idle_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """idleSeconds until an unused pod is removed; default: 600."""
    max_memory: Quantity | None = None
    """maxMemory bounds what all idle pods hold together; default: no bound."""


class ServerlessFunctionSpec(ApiModel):
    """What the user wants."""

    image: (
        Annotated[str, StringConstraints(pattern=r"^\S+$", min_length=1, max_length=512)] | None
    ) = None
    """image is any container that serves HTTP on $PORT."""
    source: FunctionSource | None = None
    """source is Python code for the stock runner, instead of an image."""
    signature: Signature | None = None
    """signature of the handler in source; default: detected, refused where several fit."""
    deadline_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)]
    """deadlineMilliseconds covers queueing, cold start and execution."""
    timeout_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """timeoutMilliseconds ends an invocation; default: 300000."""
    resources: FunctionResources
    """resources bound what is decided per invocation."""
    features: Annotated[
        tuple[Feature, ...], Field(max_length=8, json_schema_extra=keyed("name"))
    ] = ()
    """features of the input beyond content type, length and media header, which are always read."""
    mode: Annotated[Mode, Field(json_schema_extra=VISIBLE)] = Mode.ENFORCE
    """mode says whether sizes are decided, only recommended, or fixed."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = None
    """concurrency is the number of requests in a pod at once; default: 1; above it nothing is learned."""
    retry_on_out_of_memory: bool | None = None
    """retryOnOutOfMemory repeats an invocation once at the largest size; default: true."""
    warm: Warm | None = None
    """warm bounds the pods that wait for work."""


class SizingModel(ApiModel):
    """What was learned."""

    observations: Count | None = None
    """observations that were learned from, two significant digits."""
    confidence: Literal["High", "Medium", "Low"] | None = None
    """confidence in the learned sizes."""
    last_observation_time: Time | None = None
    """lastObservationTime is when the model last learned."""


class PoolSize(ApiModel):
    """One size in use."""

    cpu: QuantityText
    """cpu of each pod."""
    memory: QuantityText
    """memory of each pod."""
    pods: Count | None = None
    """pods of this size."""
    share_permille: PerMille | None = None
    """sharePermille is the share of invocations that this size served."""


class Violations(ApiModel):
    """Missed deadlines of the last hour by cause, two significant digits."""

    total: Count | None = None
    """total of all causes."""
    queue: Count | None = None
    """queue counts those that waited too long."""
    cold: Count | None = None
    """cold counts those that waited for a pod to start."""
    undersize: Count | None = None
    """undersize counts those that were given too little."""
    out_of_memory: Count | None = None
    """outOfMemory counts those that were killed."""
    infeasible: Count | None = None
    """infeasible counts those that no size could have saved."""


class Saving(ApiModel):
    """What was saved against the default size."""

    cpu_permille: PerMille | None = None
    """cpuPermille of CPU time reserved that was saved."""
    memory_permille: PerMille | None = None
    """memoryPermille of memory time reserved that was saved."""


class ServerlessFunctionStatus(ApiModel):
    """What was decided and seen."""

    conditions: Conditions = ()
    """conditions say what holds; Ready copies the first gating one that is not True."""
    observed_generation: ObservedGeneration | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    endpoint: Text | None = None
    """endpoint is the URL that invokes the function."""
    model: SizingModel | None = None
    """model is what was learned."""
    pods: Count | None = None
    """pods of all sizes."""
    sizes: Annotated[
        tuple[PoolSize, ...], Field(max_length=8, json_schema_extra=keyed("cpu", "memory"))
    ] = ()
    """sizes in use."""
    violations: Violations | None = None
    """violations of the deadline by cause."""
    cold_start_permille: PerMille | None = None
    """coldStartPermille is the share of invocations that waited for a pod to start."""
    last_out_of_memory_time: Time | None = None
    """lastOutOfMemoryTime is when an invocation was last killed for its memory."""
    saving: Saving | None = None
    """saving against the default size."""


class ServerlessFunction(Resource):
    """An HTTP function and its deadline."""

    NAMES: ClassVar[Names] = Names(
        kind="ServerlessFunction",
        plural="serverlessfunctions",
        singular="serverlessfunction",
        short=("sfn",),
        scope="Namespaced",
        description=(
            "ServerlessFunction is an HTTP function with a deadline; Trimtab decides vCPU and memory "
            "of each invocation from its input, and which warm pod serves it."
        ),
    )
    RULES: ClassVar[tuple[Rule, ...]] = METADATA_RULES
    SPEC_RULES: ClassVar[tuple[Rule, ...]] = FUNCTION_RULES
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column(
            name="Ready",
            json_path='.status.conditions[?(@.type=="Ready")].status',
            description="Whether the function can be invoked.",
        ),
        Column(
            name="Reason",
            json_path='.status.conditions[?(@.type=="Ready")].reason',
            description="Why it is or is not ready.",
        ),
        Column(name="Mode", json_path=".spec.mode", description="What the right-sizer does."),
        Column(
            name="Pods",
            json_path=".status.pods",
            type="integer",
            description="Pods of all sizes.",
        ),
        Column(
            name="Violations",
            json_path=".status.violations.total",
            type="integer",
            description="Missed deadlines of the last hour.",
        ),
        Column(
            name="Age",
            json_path=".metadata.creationTimestamp",
            type="date",
            description="Time since creation.",
        ),
    )

    kind: Literal["ServerlessFunction"] = "ServerlessFunction"
    spec: ServerlessFunctionSpec
    """spec is what the user wants."""
    status: ServerlessFunctionStatus | None = None
    """status is what was decided and seen."""
