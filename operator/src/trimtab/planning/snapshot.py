"""What a plan is made from: one frozen picture of intents, machines, measurements and prices."""

from dataclasses import dataclass, field
from typing import Literal

from trimtab.planning.accuracy import AccuracyLoss
from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Fingerprint
from trimtab.planning.prices import PriceBook
from trimtab.planning.variation import POISSON, Variation

Objective = Literal["MinLatency", "MinCost", "TargetLatency", "TargetCost"]
Infeasible = Literal["ServeNearest", "Refuse"]
Sharing = Literal["Exclusive", "Shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model as the inspection Job read it.

    Attributes:
        architecture: Sizes, without depth.
        depth: Hidden layers.
        precision: The checkpoint's own, after import (``bf16`` for quantised GGUF).
        weight_bytes: At that precision.
        context_length: Longest prompt + output the model was made for, tokens.
        source: Digest of the files.
        losses: What precisions of fewer bits were measured to lose, one of each at most.
        identity: What those losses are kept under; empty where nothing measures them.
    """

    architecture: Architecture
    depth: int
    precision: str
    weight_bytes: int
    context_length: int
    source: str = ""
    losses: tuple[AccuracyLoss, ...] = ()
    identity: str = ""

    def loss_at(self, precision: str) -> AccuracyLoss | None:
        """Return what a precision was measured to lose, None if it was not measured."""
        return next((loss for loss in self.losses if loss.precision == precision), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a Target* objective must meet; None where the intent says nothing."""

    ttft_us: int | None = None
    tpot_us: int | None = None
    percentile: int = 95
    cost_per_hour_micro_usd: int | None = None
    cost_per_million_output_tokens_micro_usd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests as declared or observed; lengths are means in tokens.

    How much gaps and lengths vary is never declared: it is assumed until it is observed.
    """

    requests_per_second: float
    prompt_tokens: int
    output_tokens: int
    variation: Variation = POISSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the intent pins; None allows everything.

    ``counted`` tells that both counts are the one that somebody else set, not pins of the spec.
    """

    gpu_products: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    max_accuracy_loss_percent: str | None = None
    tensor_parallel_sizes: tuple[int, ...] | None = None
    pipeline_parallel_sizes: tuple[int, ...] | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    counted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentView:
    """One InferenceIntent, as far as planning reads it.

    ``model`` is None until it was inspected. ``load`` is None where none is declared or observed.
    ``created_seconds`` is Unix time. ``group_id`` is the id of a sharing group that it would found.
    ``volume_nodes`` are the nodes that can mount the model's files; None where all can.
    ``busy_load`` is what fewer replicas would have to carry: the p95 of the last 30 min; None means
    the planned load.
    """

    uid: str
    namespace: str
    name: str
    generation: int
    created_seconds: int
    model: ModelView | None
    objective: Objective = "MinLatency"
    targets: Targets = Targets()
    load: Load | None = None
    constraints: Constraints = Constraints()
    sharing: Sharing = "Exclusive"
    infeasible: Infeasible = "ServeNearest"
    priority: int = 0
    group_id: str = ""
    volume_nodes: tuple[str, ...] | None = None
    busy_load: Load | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPool:
    """One node's CPU that plans may use: allocatable minus reserve minus what others use.

    Our own workers are not subtracted: the plan decides about them anew.
    """

    node: str
    cpu_model: str
    millicores: int
    memory_bytes: int
    product: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPool:
    """One node's GPUs that plans may use: healthy and whole, minus what others' pods request.

    A node is here or among the CPU pools, never in both: its CPUs and memory feed its GPUs.

    Attributes:
        node: Its name.
        product: As labelled, such as ``NVIDIA-H100-80GB-HBM3``.
        gpus: How many.
        gpu_memory_bytes: Of each.
        memory_bytes: Host memory that others leave.
        others: GPUs that others' pods request, which are not among ``gpus``.
    """

    node: str
    product: str
    gpus: int
    gpu_memory_bytes: int
    memory_bytes: int
    others: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A node whose GPUs no plan uses, and why, as the end of "… are left out because"."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceScore:
    """How slow one GPU is beside the median of its product, per mille (placement.md §2).

    Attributes:
        device: Unique in the fleet.
        node: Where it is.
        product: As in `GpuPool`.
        compute_permille: On work bound by compute, as prompts are.
        memory_permille: On work bound by memory, as decoding is.
    """

    device: str
    node: str
    product: str
    compute_permille: int = 1000
    memory_permille: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCapabilities:
    """What the engine can run, as it publishes it; an option beyond it is never chosen."""

    engine: str
    version: str
    families: tuple[str, ...]
    precisions: tuple[str, ...]
    tensor_parallel_sizes: tuple[int, ...] = (1,)
    pipeline_parallel_sizes: tuple[int, ...] = (1,)
    products: tuple[str, ...] = ("cpu",)
    block_tokens: int = 16
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """60 s of decode-only steps of a live replica (planner.md §7).

    Attributes:
        key: Digest of the key of the fingerprint that predicts what runs.
        depth: Hidden layers of the model that ran: models of several depths share a key.
        tensor_parallel_size: Of that key: anchors of one size correct the others with care.
        batch: Mean sequences.
        kv_tokens: Mean KV tokens of all sequences together.
        step_us: Mean time of a step.
        steps: How many there were.
    """

    key: str
    depth: int = 1
    tensor_parallel_size: int = 1
    batch: float
    kv_tokens: float
    step_us: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How one replica runs. ``cpu_model`` and ``threads`` are set on product ``cpu`` only."""

    product: str
    cpu_model: str
    precision: str
    threads: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1

    @property
    def devices(self) -> int:
        """Devices of one replica: GPUs, on ``cpu`` threads."""
        if self.product == "cpu":
            return self.threads
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def pool(self) -> str:
        """What its nodes have in common: the product, on ``cpu`` the CPU model."""
        return self.cpu_model if self.product == "cpu" else self.product


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What an intent runs now: the configuration in force, replicas by node.

    ``generation`` is the intent's generation that this plan was made for; ``age_seconds`` is how
    long it has been in force; ``memory_bytes`` is what each replica requests; ``ready`` is how many
    replicas serve, None where that is not known: then all of them do. Members of a sharing group
    have one assignment each, with equal ``group``: together they hold the place of one. One that is
    ``fixed`` is not changed by anybody now, as its intent is paused or refused: its place is its own.
    Of one that is ``counted`` somebody else sets the replicas.
    """

    intent_uid: str
    config: Config
    replicas: int
    nodes: tuple[tuple[str, int], ...] = ()
    generation: int
    age_seconds: int = 0
    memory_bytes: int = 0
    group: str = ""
    ready: int | None = None
    fixed: bool = False
    counted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """Everything ``plan_fleet`` reads. The order of the tuples does not matter.

    ``headroom_models`` is for how many more models a sharing group's worker reserves memory.
    ``left_out`` are nodes whose GPUs are not planned on; ``scores`` are those that can be trusted.
    """

    intents: tuple[IntentView, ...]
    pools: tuple[CpuPool, ...]
    capabilities: EngineCapabilities
    fingerprints: tuple[Fingerprint, ...] = ()
    anchors: tuple[Anchor, ...] = ()
    prices: PriceBook = field(default_factory=PriceBook)
    assignments: tuple[Assignment, ...] = ()
    gateway_overhead_us: int = 0
    headroom_models: int = 1
    gpu_pools: tuple[GpuPool, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    scores: tuple[DeviceScore, ...] = ()
