"""`ServerlessFunction`: an HTTP function and its deadline; vCPU and memory are decided per invocation."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

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


_SUFFIXES: Final = {
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
}


def amount(quantity: int | str) -> Decimal:
    """Return a quantity as a number: cores or bytes.

    Raises:
        decimal.InvalidOperation: The text is no quantity.
    """
    text = str(quantity)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * _SUFFIXES[suffix]
    return Decimal(text)


def _ladder_in_order(ladder: CPULadder | MemoryLadder) -> bool:
    return 0 < amount(ladder.min) <= amount(ladder.max)


def _default_inside(ladder: CPULadder | MemoryLadder) -> bool:
    return ladder.default is None or (
        amount(ladder.min) <= amount(ladder.default) <= amount(ladder.max)
    )


def _rungs(ladder: CPULadder | MemoryLadder, *, least_step: str) -> bool:
    step = amount(ladder.step if ladder.step is not None else least_step)
    if step < amount(least_step):
        return False
    return amount(ladder.max) - amount(ladder.min) <= step * 31


def _order_rule(resource: Literal["cpu", "memory"]) -> Rule:
    at = f"self.resources.{resource}"
    return Rule(
        expression=(
            f"quantity(string({at}.min)).isGreaterThan(quantity('0')) && "
            f"quantity(string({at}.min)).compareTo(quantity(string({at}.max))) <= 0"
        ),
        message=f"spec.resources.{resource}.min must be above 0 and must not exceed its max",
        reason="FieldValueInvalid",
        field_path=f".resources.{resource}.min",
        holds=lambda spec: _ladder_in_order(getattr(spec.resources, resource)),
    )


def _default_rule(resource: Literal["cpu", "memory"]) -> Rule:
    at = f"self.resources.{resource}"
    return Rule(
        expression=(
            f"!has({at}.default) || "
            f"(quantity(string({at}.min)).compareTo(quantity(string({at}.default))) <= 0 && "
            f"quantity(string({at}.default)).compareTo(quantity(string({at}.max))) <= 0)"
        ),
        message=f"spec.resources.{resource}.default must lie between its min and its max",
        reason="FieldValueInvalid",
        field_path=f".resources.{resource}.default",
        holds=lambda spec: _default_inside(getattr(spec.resources, resource)),
    )


def _rungs_rule(resource: Literal["cpu", "memory"], *, least_step: str) -> Rule:
    at = f"self.resources.{resource}"
    step = f"(has({at}.step) ? quantity(string({at}.step)) : quantity('{least_step}'))"
    span = f"quantity(string({at}.max)).sub(quantity(string({at}.min)))"
    return Rule(
        expression=(
            f"{step}.compareTo(quantity('{least_step}')) >= 0 && "
            f"{span}.asApproximateFloat() <= 31.0 * {step}.asApproximateFloat()"
        ),
        message=(
            f"spec.resources.{resource}.step must be at least {least_step} and must give at most 32 "
            "sizes from min to max: raise it, or bring min and max closer"
        ),
        reason="FieldValueInvalid",
        field_path=f".resources.{resource}.step",
        holds=lambda spec: _rungs(getattr(spec.resources, resource), least_step=least_step),
    )


_KEYED: Final = frozenset({FeatureOrigin.HEADER, FeatureOrigin.QUERY, FeatureOrigin.JSON_POINTER})

FUNCTION_RULES: Final = (
    Rule(
        expression="has(self.image) != has(self.source)",
        message="spec needs exactly one of image and source",
        reason="FieldValueInvalid",
        field_path=".image",
        holds=lambda spec: (spec.image is None) != (spec.source is None),
    ),
    Rule(
        expression="!has(self.signature) || has(self.source)",
        message="spec.signature is only allowed with spec.source: an image serves HTTP by itself",
        reason="FieldValueForbidden",
        field_path=".signature",
        holds=lambda spec: spec.signature is None or spec.source is not None,
    ),
    Rule(
        expression=(
            "self.deadlineMilliseconds <= "
            "(has(self.timeoutMilliseconds) ? self.timeoutMilliseconds : 300000)"
        ),
        message=(
            "spec.deadlineMilliseconds must not exceed spec.timeoutMilliseconds (300000 if not given)"
        ),
        reason="FieldValueInvalid",
        field_path=".deadlineMilliseconds",
        holds=lambda spec: (
            spec.deadline_milliseconds
            <= (300_000 if spec.timeout_milliseconds is None else spec.timeout_milliseconds)
        ),
    ),
    _order_rule("cpu"),
    _order_rule("memory"),
    _default_rule("cpu"),
    _default_rule("memory"),
    _rungs_rule("cpu", least_step="100m"),
    _rungs_rule("memory", least_step="128Mi"),
    Rule(
        expression=(
            "!has(self.features) || self.features.all(f, "
            "has(f.key) == (f.from in ['Header', 'Query', 'JSONPointer']))"
        ),
        message=(
            "an entry of spec.features needs a key where from is Header, Query or JSONPointer, and "
            "must have none where it is Size or ContentType"
        ),
        reason="FieldValueInvalid",
        field_path=".features",
        holds=lambda spec: all(
            (feature.key is not None) == (feature.from_ in _KEYED) for feature in spec.features
        ),
    ),
)


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
