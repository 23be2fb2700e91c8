"""A fleet to measure the planner's own speed on: drawn with a fixed seed, nobody's machines.

Two sizes of the question. `gpu_columns` draws what a fleet of GPUs would be asked for, option by option,
for the joint choice alone. `cpu_snapshot` draws intents, nodes and fingerprints for the whole planner, on
product ``cpu``, whose slots are sets of threads.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.bench.synthetic_gpus import anchors
from trimtab.planning.architecture import Architecture
from trimtab.planning.columns import Column, Member
from trimtab.planning.prices import parse_price_book
from trimtab.planning.roofline import roofline
from trimtab.planning.slots import Need, Node
from trimtab.planning.snapshot import (
    Config,
    Constraints,
    CpuPool,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    Load,
    ModelView,
    Objective,
    Targets,
)
from trimtab.planning.sources import key_for

if TYPE_CHECKING:
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.policy import PlannerPolicy

_GIB: Final = 2**30
_OPTIONS: Final = 12
_PER_NODE: Final = 8
# Product, USD per GPU-hour (planner.md §8), memory in GB, speed beside an A100-80.
_GPUS: Final = (
    ("L4", 0.80, 24, 0.2),
    ("A10G", 1.30, 24, 0.35),
    ("A100-40", 3.00, 40, 0.8),
    ("A100-80", 3.50, 80, 1.0),
    ("H100", 4.50, 80, 1.9),
    ("H200", 5.75, 141, 2.3),
)
# Weights in GB of models of 8, 14, 32 and 70 billion parameters in 16 bits, and how often they are drawn.
_WEIGHTS: Final = (16.0, 28.0, 64.0, 140.0)
_SHARES: Final = (8, 4, 2, 1)
_TP_LOSS: Final = 0.85
_CPU_SPEEDS: Final = (0.7, 0.85, 1.0, 1.1, 1.3, 1.6)
_THREADS: Final = (1, 2, 4, 8)
_SIZES: Final = ((576, 1536, 9, 3, 30), (960, 2560, 15, 5, 32), (2048, 8192, 32, 8, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How large a fleet is drawn, how much load is put on it, and how many anchors each key has."""

    intents: int
    devices: int
    load: float
    seed: int = 0
    anchors: int = 0


def gpu_nodes(devices: int) -> tuple[Node, ...]:
    """Return nodes of eight GPUs, the six products in turn."""
    return tuple(
        Node(name=f"node-{n:04d}", pool=_GPUS[n % len(_GPUS)][0], devices=_PER_NODE)
        for n in range(devices // _PER_NODE)
    )


def gpu_columns(ask: Ask) -> list[Column]:
    """Return at most twelve options per intent over six products and TP 1, 2, 4, 8."""
    draw = random.Random(ask.seed)  # noqa: S311 - a benchmark's fixed draw
    found: list[Column] = []
    for n in range(ask.intents):
        weights = draw.choices(_WEIGHTS, _SHARES)[0]
        # Work in A100-80s: median 3, now and then ten times that.
        work = ask.load * 3 * math.exp(draw.gauss(0, 0.8)) * weights / _WEIGHTS[0] / 2
        # A target that between half and nearly all of the options meet.
        target = draw.uniform(0.5, 4.0) * weights / _WEIGHTS[0]
        found.extend(_options(n, weights, work, target))
    return found


def _options(n: int, weights: float, work: float, target: float) -> list[Column]:
    member = Member(uid=f"intent-{n:04d}", created_seconds=n)
    drafts: list[tuple[float, float, Need]] = []
    for product, price, memory, speed in _GPUS:
        for ranks in (1, 2, 4, 8):
            if ranks * memory * 0.9 < 1.15 * weights:
                continue
            rate = speed * ranks * _TP_LOSS ** math.log2(ranks)
            replicas = max(1, math.ceil(work / rate))
            missed = weights / _WEIGHTS[0] / rate / target
            cost = replicas * ranks * price
            need = Need(pool=product, group=ranks, count=replicas)
            drafts.append((missed if missed > 1 else 0.0, cost, need))
    drafts.sort(key=lambda d: (d[0] > 0, d[0], d[1], d[2].devices, d[2].pool))
    smallest = min(drafts, key=lambda d: (d[2].devices, d[1]))
    kept = [d for d in drafts if d is not smallest][: _OPTIONS - 1]
    kept.append(smallest)
    meeting = [cost for missed, cost, _ in kept if not missed]
    cheapest = min(meeting or [cost for _, cost, _ in kept])
    return [
        Column(
            id=f"{member.uid}/{k:02d}",
            members=(member,),
            need=need,
            loss=5.0 if missed else min(5.0, cost / cheapest - 1),
            missed=missed,
            largest=max(d[2].devices for d in kept),
        )
        for k, (missed, cost, need) in enumerate(kept)
    ]


def cpu_snapshot(ask: Ask, *, policy: PlannerPolicy) -> FleetSnapshot:
    """Return intents and nodes of eight threads, six CPU models in turn, all of them fingerprinted."""
    draw = random.Random(ask.seed)  # noqa: S311 - a benchmark's fixed draw
    models = [_model(size) for size in _SIZES]
    capabilities = EngineCapabilities(
        engine="trimtab", version="0.1.0", families=("llama",), precisions=("bf16", "fp32")
    )
    pools = tuple(
        CpuPool(
            node=f"node-{n:04d}",
            cpu_model=f"cpu-{n % len(_CPU_SPEEDS)}",
            millicores=1000 * _PER_NODE,
            memory_bytes=64 * _GIB,
        )
        for n in range(max(len(_CPU_SPEEDS), ask.devices // _PER_NODE))
    )
    fingerprints = _fingerprints(models, capabilities, policy)
    return FleetSnapshot(
        intents=tuple(_intent(n, draw, models, load=ask.load) for n in range(ask.intents)),
        pools=pools,
        capabilities=capabilities,
        fingerprints=fingerprints,
        anchors=anchors(fingerprints, [model.depth for model in models], count=ask.anchors),
        prices=parse_price_book({"cpuHour": {"*": "0.04"}, "memoryGiBHour": "0.005"}),
    )


def _model(size: tuple[int, int, int, int, int]) -> ModelView:
    hidden, intermediate, heads, kv_heads, depth = size
    architecture = Architecture(
        family="llama",
        hidden_size=hidden,
        intermediate_size=intermediate,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        vocab_size=49152,
        tied_embeddings=True,
    )
    return ModelView(
        architecture=architecture,
        depth=depth,
        precision="bf16",
        weight_bytes=2
        * (architecture.fixed_parameters() + depth * architecture.layer_parameters()),
        context_length=4096,
    )


def _intent(n: int, draw: random.Random, models: list[ModelView], *, load: float) -> IntentView:
    objectives: tuple[Objective, ...] = ("MinLatency", "MinCost", "TargetLatency")
    objective = objectives[n % len(objectives)]
    model = models[draw.choices(range(len(models)), (6, 3, 1))[0]]
    rate = load * 0.5 * math.exp(draw.gauss(0, 0.8))
    targets = Targets()
    if objective == "TargetLatency":
        targets = Targets(tpot_us=round(1000 * draw.uniform(40, 200)))
    return IntentView(
        uid=f"intent-{n:04d}",
        namespace=f"team-{n % 10}",
        name=f"chat-{n:04d}",
        generation=1,
        created_seconds=1_800_000_000 + n,
        model=model,
        objective=objective,
        targets=targets,
        load=Load(
            requests_per_second=rate,
            prompt_tokens=draw.randrange(64, 512),
            output_tokens=draw.randrange(32, 256),
        ),
        constraints=Constraints(max_replicas=4) if objective == "MinLatency" else Constraints(),
    )


def _fingerprints(
    models: list[ModelView], capabilities: EngineCapabilities, policy: PlannerPolicy
) -> tuple[Fingerprint, ...]:
    """Return estimates that pass for measurements: so each CPU model has a speed of its own."""
    found: list[Fingerprint] = []
    for model in models:
        for n, speed in enumerate(_CPU_SPEEDS):
            faster = replace(
                policy,
                roofline_thread_mflops=round(policy.roofline_thread_mflops * speed),
                roofline_thread_bytes_per_us=round(policy.roofline_thread_bytes_per_us * speed),
            )
            for threads in _THREADS:
                config = Config(
                    product="cpu", cpu_model=f"cpu-{n}", precision="bf16", threads=threads
                )
                key = key_for(model, config, capabilities=capabilities)
                estimate = roofline(model.architecture, key=key, policy=faster)
                found.append(replace(estimate, source="Measured"))
    return tuple(found)
