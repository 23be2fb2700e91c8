"""`GPUProfile`: which GPUs to measure and how often; how fast each is, and how sure that is."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from trimtab.api.v1alpha1.base import (
    METADATA_RULES,
    SET,
    VISIBLE,
    ApiModel,
    Column,
    Conditions,
    Count,
    DNSName,
    Names,
    ObservedGeneration,
    PerMille,
    Resource,
    Rule,
    Text,
    Time,
    keyed,
)


class Kernel(StrEnum):
    """A measured piece of work."""

    GEMM = "Gemm"
    ATTENTION = "Attention"
    TRIAD = "Triad"
    GATHER = "Gather"
    GEMV = "Gemv"


class Outliers(StrEnum):
    """What is done about confirmed outliers."""

    REPORT = "Report"
    AVOID = "Avoid"
    TAINT = "Taint"


class WorkClass(StrEnum):
    """A class of work: Compute is prefill, Memory is decode."""

    COMPUTE = "Compute"
    MEMORY = "Memory"
    MIXED = "Mixed"


class Flag(StrEnum):
    """Why a GPU is slow."""

    SLOW_OUTLIER = "SlowOutlier"
    POWER_CAPPED = "PowerCapped"
    THERMAL_LIMITED = "ThermalLimited"
    STARVED = "Starved"
    NODE_COMMON_MODE = "NodeCommonMode"
    SUSPECTED = "Suspected"


GPUUuid = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", min_length=1, max_length=64)
]


class Override(ApiModel):
    """A person's verdict on one GPU."""

    uuid: GPUUuid
    """uuid of the GPU."""
    action: Literal["Exclude", "Include"]
    """action: Exclude keeps replicas off the GPU, Include clears its flags."""


class GPUProfileSpec(ApiModel):
    """What the user wants."""

    node_selector: Annotated[
        dict[
            str,
            Annotated[
                str,
                StringConstraints(
                    pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$", max_length=63
                ),
            ],
        ],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-map-type": "atomic"},
        ),
    ]
    """nodeSelector selects the nodes whose GPUs form the pool; it cannot be changed."""
    kernels: (
        Annotated[tuple[Kernel, ...], Field(min_length=1, max_length=8, json_schema_extra=SET)]
        | None
    ) = None
    """kernels to measure; default: all."""
    interval_hours: Annotated[int, Field(ge=1, le=8760)] | None = None
    """intervalHours between measurements of a GPU; default: 168."""
    max_concurrent_nodes: Annotated[int, Field(ge=1, le=1000)] | None = None
    """maxConcurrentNodes are measured at the same time; default: 2."""
    session_gap_seconds: Annotated[int, Field(ge=0, le=604_800)] | None = None
    """sessionGapSeconds between two sessions that judge one GPU; default: 3600."""
    overrides: Annotated[
        tuple[Override, ...], Field(max_length=256, json_schema_extra=keyed("uuid"))
    ] = ()
    """overrides are a person's verdicts, which win over measurements."""
    outliers: Annotated[Outliers, Field(json_schema_extra=VISIBLE)] = Outliers.AVOID
    """outliers says what is done about confirmed ones."""


class ClassSpread(ApiModel):
    """How much the pool's GPUs differ in one class of work."""

    runs_permille: PerMille | None = None
    """runsPermille is the fence range over runs, 4 IQR / mean."""
    medians_permille: PerMille | None = None
    """mediansPermille is the fence range over per-GPU medians."""
    reliability_permille: PerMille | None = None
    """reliabilityPermille is the core ICC; absent where it cannot be judged."""


class Spread(ApiModel):
    """Spread per class of work."""

    compute: ClassSpread | None = None
    """compute is prefill."""
    memory: ClassSpread | None = None
    """memory is decode."""
    mixed: ClassSpread | None = None
    """mixed is both."""


class Bins(ApiModel):
    """How many GPUs lie in each bin of the dominant class."""

    fast: Count | None = None
    """fast GPUs score below 985."""
    normal: Count | None = None
    """normal GPUs score from 985 to 1015."""
    slow: Count | None = None
    """slow GPUs score above 1015."""
    outlier: Count | None = None
    """outlier counts the flagged ones."""


class OutlierGPU(ApiModel):
    """One confirmed or suspected GPU."""

    uuid: GPUUuid
    """uuid of the GPU."""
    node: DNSName | None = None
    """node that holds it."""
    work_class: WorkClass | None = None
    """workClass in which it is slowest."""
    score_permille: PerMille | None = None
    """scorePermille of the cohort's median; above 1000 is slower."""
    flags: Annotated[tuple[Flag, ...], Field(max_length=8, json_schema_extra=SET)] = ()
    """flags say why."""
    sessions: Count | None = None
    """sessions that the verdict rests on."""
    message: Text | None = None
    """message explains the flags."""
    last_measured_time: Time | None = None
    """lastMeasuredTime is when it was last measured."""


class GPUProfileStatus(ApiModel):
    """What was measured."""

    conditions: Conditions = ()
    """conditions say what holds; OutliersFound and CommonCause are good when False."""
    observed_generation: ObservedGeneration | None = None
    """observedGeneration is the metadata.generation that this status is about."""
    gpus: Count | None = None
    """gpus of the pool."""
    scored: Count | None = None
    """scored GPUs."""
    spread: Spread | None = None
    """spread of the pool per class of work."""
    bins: Bins | None = None
    """bins of the scores."""
    outlier_count: Count | None = None
    """outlierCount is the number of outliers, also beyond those listed."""
    outliers: Annotated[
        tuple[OutlierGPU, ...], Field(max_length=64, json_schema_extra=keyed("uuid"))
    ] = ()
    """outliers, slowest first, at most 64."""


_LABEL_KEY: Final = "^([-a-z0-9.]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"

PROFILE_RULES: Final = (
    Rule(
        expression=f"self.nodeSelector.all(key, key.matches('{_LABEL_KEY}'))",
        message=(
            "every key of spec.nodeSelector must be a label's name, such as nvidia.com/gpu.product"
        ),
        reason="FieldValueInvalid",
        field_path=".nodeSelector",
        holds=lambda spec: all(re.fullmatch(_LABEL_KEY, key) for key in spec.node_selector),
    ),
    Rule(
        expression="self.nodeSelector == oldSelf.nodeSelector",
        message=(
            "spec.nodeSelector cannot be changed, because the scores belong to the GPUs it selects: "
            "create another GPUProfile"
        ),
        reason="FieldValueForbidden",
        field_path=".nodeSelector",
        holds=None,
    ),
)


class GPUProfile(Resource):
    """A pool of like GPUs to measure."""

    NAMES: ClassVar[Names] = Names(
        kind="GPUProfile",
        plural="gpuprofiles",
        singular="gpuprofile",
        short=("gpup",),
        scope="Cluster",
        description=(
            "GPUProfile selects a pool of like GPUs; Trimtab measures how fast each one is per class "
            "of work, how sure that is, and which are outliers."
        ),
    )
    RULES: ClassVar[tuple[Rule, ...]] = METADATA_RULES
    SPEC_RULES: ClassVar[tuple[Rule, ...]] = PROFILE_RULES
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column(
            name="Ready",
            json_path='.status.conditions[?(@.type=="Ready")].status',
            description="Whether the pool was measured.",
        ),
        Column(
            name="Reason",
            json_path='.status.conditions[?(@.type=="Ready")].reason',
            description="Why it is or is not ready.",
        ),
        Column(
            name="GPUs", json_path=".status.gpus", type="integer", description="GPUs of the pool."
        ),
        Column(
            name="Scored",
            json_path=".status.scored",
            type="integer",
            description="GPUs with a score.",
        ),
        Column(
            name="Outliers",
            json_path=".status.outlierCount",
            type="integer",
            description="Confirmed outliers.",
        ),
        Column(
            name="Age",
            json_path=".metadata.creationTimestamp",
            type="date",
            description="Time since creation.",
        ),
    )

    kind: Literal["GPUProfile"] = "GPUProfile"
    spec: GPUProfileSpec
    """spec is what the user wants."""
    status: GPUProfileStatus | None = None
    """status is what was measured."""
