"""What planning returns: per intent the chosen option, why, what else was possible, what to measure."""

from dataclasses import dataclass
from typing import Any, Literal

from trimtab.planning.accuracy import AccuracyLoss
from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Source as FingerprintSource
from trimtab.planning.remap import RemapAdvice
from trimtab.planning.snapshot import Config

Level = Literal["High", "Medium", "Low"]
Remapping = Literal["DoNotRemap", "IdleOnly", "IdleAndActive"]
Verdict = Literal["Planned", "PlannedNearest", "Unplanned"]
Reason = Literal[
    # The good end, then what blocks a plan, in the order in which it is looked for (planner.md §8).
    "Chosen",
    "ConstraintsExcludeAll",
    "NoEstimate",
    "NoFit",
    "PriceUnknown",
    "TargetBelowFloor",
    "BudgetTooSmall",
    "TargetNeedsMoreGPUs",
    "NoCapacity",
]
Solver = Literal["Direct", "HiGHS", "HiGHSTimeLimit", "Greedy"]
Lost = Literal[
    "Costlier",
    "Slower",
    "MissesTarget",
    "OverBudget",
    "Overloaded",
    "NoFit",
    "NoEstimate",
    "NoCapacity",
    "SwitchingCost",
    "NotSimulated",
    "Uncalibrated",
    "PriceUnknown",
    "PrecisionUnsupported",
    "AccuracyLoss",
    "ParallelismUnsupported",
]
Binding = Literal[
    "Latency", "Cost", "TimeToFirstToken", "TimePerOutputToken", "Capacity", "Memory", "Pins"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A latency in µs: mean, fixed percentiles, and the one the intent names."""

    mean_us: int
    p50_us: int
    p95_us: int
    p99_us: int
    percentile: int
    percentile_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a replica set delivers at the planned load.

    Attributes:
        ttft: Time to first token, the gateway's overhead included.
        tpot: Time per output token, (E2E - TTFT)/(n_out - 1).
        e2e: First byte in to last token out, mean prompt and output lengths.
        unloaded_e2e_us: Mean end-to-end time of a request that is alone.
        capacity_milli_rps: Largest sustainable rate of all replicas, thousandths of a request/s.
        utilisation_permille: Planned rate ÷ capacity.
        mean_batch_milli: Sequences decoding at once in one replica, thousandths.
        overloaded: The planned rate exceeds the capacity; latencies are those of a full replica.
    """

    ttft: Latency
    tpot: Latency
    e2e: Latency
    unloaded_e2e_us: int
    capacity_milli_rps: int
    utilisation_permille: int
    mean_batch_milli: int
    overloaded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """How far a prediction can be trusted, and why not further.

    ``source`` is that of the step times; ``points`` is the level before it was cut to the three
    that there are, 2 is High.
    """

    level: Level
    reasons: tuple[str, ...]
    source: FingerprintSource = "Roofline"
    points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchoring:
    """What live replicas made of a prediction (planner.md §7).

    Attributes:
        count: Anchors of the fingerprint's family.
        good: They are many, spread, and foretell each other.
        suspect: They are off by more than a factor of two, and are not applied.
        factor_permille: By which step times are multiplied, at the option's batch.
        seen_permille: Measured over predicted there, as the anchors saw it.
    """

    count: int
    good: bool
    suspect: bool
    factor_permille: int
    seen_permille: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to serve an intent.

    Attributes:
        config: How each replica runs.
        replicas: How many.
        memory_bytes: Memory request of one replica, host copy of the weights included.
        arena_bytes: The engine's ``memory_bytes``: weights and KV.
        kv_tokens: Tokens that one replica's KV cache holds.
        max_model_len: Longest prompt + output served, tokens.
        max_seqs: Most sequences decoding at once.
        max_batch_tokens: Token budget of a step.
        predicted: At the planned load.
        margin_permille: Added to TPOT predictions before comparing with a target.
        ttft_margin_permille: The same for TTFT.
        confidence: Level and reasons.
        cost_per_hour_micro_usd: Of all replicas; None without a price.
        cost_per_million_output_tokens_micro_usd: At the planned load; None without a price.
        cost_per_million_at_capacity_micro_usd: The same at capacity.
        fingerprint: Digest of the fingerprint it was predicted from, or ``Roofline``.
        simulated: Latencies are those of simulated requests, not of the closed form.
        anchoring: What live replicas made of it; None if they say nothing.
    """

    config: Config
    replicas: int
    memory_bytes: int
    arena_bytes: int
    kv_tokens: int
    max_model_len: int
    max_seqs: int
    max_batch_tokens: int
    predicted: Prediction
    margin_permille: int
    ttft_margin_permille: int
    confidence: Confidence
    cost_per_hour_micro_usd: int | None
    cost_per_million_output_tokens_micro_usd: int | None
    cost_per_million_at_capacity_micro_usd: int | None
    fingerprint: str
    simulated: bool = False
    anchoring: Anchoring | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """An option that lost, and the sentence that says why.

    ``option`` is None if it cannot run. ``config`` names it either way.
    """

    config: Config
    option: Option | None
    reason: Lost
    why_not: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintNeed:
    """A fingerprint worth measuring; the spec of its Job (contracts §4).

    ``priority`` 0 is measured first. ``again``: there is one, and live replicas say that it is wrong.
    """

    key: str
    architecture: Architecture
    product: str
    cpu_model: str
    threads: int
    precision: str
    kv_precision: str
    tensor_parallel_size: int
    priority: int
    again: bool = False

    def spec(self, *, grid: str, max_seconds: int) -> dict[str, Any]:
        """Return the Job's specification."""
        return {
            "v": 1,
            "architecture": self.architecture.to_dict(),
            "precision": self.precision,
            "kvPrecision": self.kv_precision,
            "threads": self.threads,
            "product": self.product,
            "tensorParallelSize": self.tensor_parallel_size,
            "grid": grid,
            "maxSeconds": max_seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """One worker for the Shared intents of a namespace that fit together (planner.md §9).

    Attributes:
        id: Of the group; kept when the intent that founded it leaves.
        members: Uids of the intents, oldest first.
        config: How the worker runs. Its precision is the oldest member's; each has its own.
        memory_bytes: Memory request, with room for models that join later.
        arena_bytes: The engine's ``memory_bytes``, with that room.
        least_memory_bytes: The request that these members need.
        least_arena_bytes: The arena that these members need.
        max_model_len: Longest prompt + output of any member, tokens.
        max_seqs: Most sequences decoding at once, of any member.
        max_batch_tokens: Token budget of a step.
        slowest_tpot_us: Longest predicted time per output token.
        advice: Whether idle members lend their weights; keys of ``lend_units`` are uids.
        host_bytes: Host copies of weights, files on the node's disk, with room for models that join.
        least_host_bytes: Host copies of these members.
    """

    id: str
    members: tuple[str, ...]
    config: Config
    memory_bytes: int
    arena_bytes: int
    least_memory_bytes: int
    least_arena_bytes: int
    max_model_len: int
    max_seqs: int
    max_batch_tokens: int
    slowest_tpot_us: int
    advice: RemapAdvice
    host_bytes: int = 0
    least_host_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentPlan:
    """The decision for one intent.

    Attributes:
        uid: Of the intent; ``namespace``, ``name``, ``generation`` as planned.
        verdict: ``Planned``; ``PlannedNearest`` if served though something is missed; ``Unplanned``.
        reason: For the condition ``Planned``.
        message: Full sentences: what was chosen or what blocks, what is achievable, the remedy.
        option: What to run; None if ``Unplanned``. A serving pod is not to be removed for that.
        nodes: Replicas by node.
        alternatives: The best few others.
        binding: What decided between the chosen option and a cheaper or faster one.
        load_assumed: No load was declared or observed (``LoadAssumed``).
        keeps_assignment: The option equals what runs now.
        needs: Fingerprints to measure next.
        notes: Further sentences for ``why``: dated prices, extrapolation, stickiness.
        group: The worker that it shares or offers to share; None for one of its own.
        remap_verdict: Whether weights are lent to the KV cache under pressure.
        remap_reasons: Why, and why it shares with nobody, a sentence each.
        losses: What precisions of the model were measured to lose.
        fixed: What runs was no question of this plan: its intent was paused or refused.
        unmeasured: Precisions that the spec lets be considered, and whose loss is not measured.
    """

    uid: str
    namespace: str
    name: str
    generation: int
    verdict: Verdict
    reason: Reason
    message: str
    option: Option | None
    nodes: tuple[tuple[str, int], ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    binding: Binding | None = None
    load_assumed: bool = False
    keeps_assignment: bool = False
    needs: tuple[FingerprintNeed, ...] = ()
    notes: tuple[str, ...] = ()
    group: GroupPlan | None = None
    remap_verdict: Remapping = "DoNotRemap"
    remap_reasons: tuple[str, ...] = ()
    losses: tuple[AccuracyLoss, ...] = ()
    unmeasured: tuple[str, ...] = ()
    fixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found about one intent that runs, for the way to its plan.

    Attributes:
        uid: Of the intent.
        meets: The wanted option meets the objective.
        running_meets: So does what runs, at the planned load.
        fewest: Replicas of the running configuration, at most one step fewer than there are, that meet
            the target with margin + 10 points at the busy load.
        lasts: The wanted option meets the target at the busy load, or what runs does not either.
        problem: Why nothing could be found out; then the rest says that all of it is needed.
        waits: The plan's budget was used up before ``fewest`` was found.
    """

    uid: str
    meets: bool
    running_meets: bool
    fewest: int
    lasts: bool = True
    problem: str = ""
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """One decision per intent, sorted by namespace and name.

    Attributes:
        intents: The decisions.
        policy: Digest of the constants.
        solver: ``Direct`` if everybody has what it would take alone; else who shared the fleet
            out: ``HiGHSTimeLimit`` if the time ran out before the choice was proven best,
            ``Greedy`` if HiGHS is missing or failed.
        findings: About what runs; added where steps are made from them.
        waiting: Intents whose queues were not simulated because the plan's budget of events was used
            up; planned again with what is remembered of this plan, they are.
    """

    intents: tuple[IntentPlan, ...]
    policy: str
    solver: Solver = "Direct"
    findings: tuple[Findings, ...] = ()
    waiting: int = 0
