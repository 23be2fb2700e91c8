"""A fleet of GPUs for the planner's own speed, and anchors of live replicas: drawn with a fixed seed.

Six products on nodes of eight, models of 8, 32 and 70 billion parameters, TP 1 to 8 in bf16 and fp8.
Step times are estimates from data sheets that pass for measurements: nobody's machines.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trimtab.planning.architecture import Architecture
from trimtab.planning.prices import parse_price_book
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.snapshot import (
    Anchor,
    Config,
    Constraints,
    EngineCapabilities,
    FleetSnapshot,
    GpuPool,
    IntentView,
    Load,
    ModelView,
    Objective,
    Targets,
)
from trimtab.planning.sources import key_for
from trimtab.planning.step_model import StepWork, fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trimtab.bench.synthetic_fleet import Ask
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.policy import PlannerPolicy

_GIB: Final = 2**30
_PER_NODE: Final = 8
# Product, USD per GPU-hour (planner.md §8), GiB of each GPU.
_PRODUCTS: Final = (
    ("NVIDIA-L4", "0.80", 24),
    ("NVIDIA-A10G", "1.30", 24),
    ("NVIDIA-A100-SXM4-40GB", "3.00", 40),
    ("NVIDIA-A100-SXM4-80GB", "3.50", 80),
    ("NVIDIA-H100-80GB-HBM3", "4.50", 80),
    ("NVIDIA-H200", "5.75", 141),
)
# Hidden and intermediate size, heads, KV heads, layers, vocabulary; how often each is drawn.
_MODELS: Final = (
    (4096, 14336, 32, 8, 32, 128256),
    (5120, 27648, 40, 8, 64, 152064),
    (8192, 28672, 64, 8, 80, 128256),
)
_SHARES: Final = (6, 3, 1)
_RANKS: Final = (1, 2, 4, 8)
_CAPABILITIES: Final = EngineCapabilities(
    engine="trimtab",
    version="0.1.0",
    families=("llama",),
    precisions=("bf16", "fp8"),
    tensor_parallel_sizes=_RANKS,
)


def gpu_snapshot(ask: Ask, *, policy: PlannerPolicy) -> FleetSnapshot:
    """Return intents and nodes of eight GPUs, the six products in turn, all of them fingerprinted."""
    draw = random.Random(ask.seed)  # noqa: S311 - a benchmark's fixed draw
    models = [_model(size) for size in _MODELS]
    products = {name: size for name, _, size in _PRODUCTS}
    names = list(products)
    pools = tuple(
        GpuPool(
            node=f"node-{n:04d}",
            product=(product := names[n % len(names)]),
            gpus=_PER_NODE,
            gpu_memory_bytes=products[product] * _GIB,
            memory_bytes=2048 * _GIB,
        )
        for n in range(max(len(names), ask.devices // _PER_NODE))
    )
    fingerprints = tuple(_fingerprints(models, policy))
    return FleetSnapshot(
        intents=tuple(_intent(n, draw, models, load=ask.load) for n in range(ask.intents)),
        pools=(),
        gpu_pools=pools,
        capabilities=_CAPABILITIES,
        fingerprints=fingerprints,
        anchors=anchors(fingerprints, [model.depth for model in models], count=ask.anchors),
        prices=parse_price_book({"gpuHour": {name: price for name, price, _ in _PRODUCTS}}),
    )


def anchors(
    fingerprints: Iterable[Fingerprint], depths: Iterable[int], *, count: int
) -> tuple[Anchor, ...]:
    """Return ``count`` anchors per key, steps a few percent slower than predicted, of all depths in turn."""
    draw = random.Random(1)  # noqa: S311 - a benchmark's fixed draw
    every = tuple(depths)
    found: list[Anchor] = []
    for fingerprint in fingerprints if count else ():
        models = {depth: fit(fingerprint, depth=depth) for depth in every}
        for n in range(count):
            depth, batch = every[n % len(every)], draw.uniform(1, 32)
            work = StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=512 * batch)
            slower = math.exp(draw.gauss(0.05, 0.02))
            found.append(
                Anchor(
                    key=fingerprint.key.digest(),
                    depth=depth,
                    tensor_parallel_size=fingerprint.key.tensor_parallel_size,
                    batch=batch,
                    kv_tokens=512 * batch,
                    step_us=max(1, round(models[depth].step_us(work) * slower)),
                    steps=1000,
                )
            )
    return tuple(found)


def _model(size: tuple[int, int, int, int, int, int]) -> ModelView:
    hidden, intermediate, heads, kv_heads, depth, vocabulary = size
    architecture = Architecture(
        family="llama",
        hidden_size=hidden,
        intermediate_size=intermediate,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        vocab_size=vocabulary,
        tied_embeddings=False,
    )
    return ModelView(
        architecture=architecture,
        depth=depth,
        precision="bf16",
        weight_bytes=2
        * (architecture.fixed_parameters() + depth * architecture.layer_parameters()),
        context_length=16384,
    )


def _intent(n: int, draw: random.Random, models: list[ModelView], *, load: float) -> IntentView:
    objectives: tuple[Objective, ...] = ("MinLatency", "MinCost", "TargetLatency", "TargetCost")
    objective = objectives[n % len(objectives)]
    number = draw.choices(range(len(models)), _SHARES)[0]
    rate = load * 4 * math.exp(draw.gauss(0, 0.8)) / (1 + 2 * number)
    tpot, dollars = round(1000 * draw.uniform(10, 80)), draw.uniform(10, 80)
    targets = {
        "TargetLatency": Targets(tpot_us=tpot),
        "TargetCost": Targets(cost_per_hour_micro_usd=round(1e6 * dollars)),
    }
    return IntentView(
        uid=f"intent-{n:04d}",
        namespace=f"team-{n % 10}",
        name=f"chat-{n:04d}",
        generation=1,
        created_seconds=1_800_000_000 + n,
        model=models[number],
        objective=objective,
        targets=targets.get(objective, Targets()),
        load=Load(
            requests_per_second=rate,
            prompt_tokens=draw.randrange(128, 2048),
            output_tokens=draw.randrange(64, 512),
        ),
        constraints=Constraints(
            precisions=("bf16", "fp8") if n % 2 else None,
            max_replicas=8 if objective == "MinLatency" else None,
        ),
    )


def _fingerprints(models: list[ModelView], policy: PlannerPolicy) -> Iterator[Fingerprint]:
    """Yield estimates that pass for measurements, of every product, precision and TP."""
    for model in models:
        for product, _, _ in _PRODUCTS:
            for precision in _CAPABILITIES.precisions:
                for ranks in _RANKS:
                    config = Config(
                        product=product,
                        cpu_model="",
                        precision=precision,
                        threads=0,
                        tensor_parallel_size=ranks,
                    )
                    key = key_for(model, config, capabilities=_CAPABILITIES)
                    found = gpu_roofline(
                        model.architecture, key=key, peak=PEAKS[product], policy=policy
                    )
                    yield replace(found, source="Measured")
