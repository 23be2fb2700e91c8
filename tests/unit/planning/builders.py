"""Builders of planning's values: name only what a test is about."""

import math
from dataclasses import replace

from trimtab.planning.accuracy import TEXT_DIGEST, AccuracyKey, AccuracyLoss
from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.fingerprint import Fingerprint, FingerprintKey, StepPoint
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.prices import PriceBook, parse_price_book
from trimtab.planning.snapshot import (
    CpuPool,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    Load,
    ModelView,
)

GIB = 2**30
CPU = "AMD EPYC"
POLICY = PlannerPolicy()
LOAD = Load(requests_per_second=0.2, prompt_tokens=128, output_tokens=64)
PRICES = parse_price_book(
    {"dated": "2026-11-01", "cpuHour": {"*": "0.04"}, "memoryGiBHour": "0.005"}
)
CAPABILITIES = EngineCapabilities(
    engine="trimtab", version="0.1.0", families=("llama",), precisions=("bf16", "fp32")
)
SMOLLM2 = Architecture(
    family="llama",
    hidden_size=576,
    intermediate_size=1536,
    attention_heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    tied_embeddings=True,
)
LLAMA_8B = Architecture(
    family="llama",
    hidden_size=4096,
    intermediate_size=14336,
    attention_heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    tied_embeddings=False,
)


def a_loss(precision, *, percent, error_percent=0.1, own=3.0, text=TEXT_DIGEST):
    """Return a measured loss: perplexity e^own at the checkpoint's own precision."""
    ratio = 1 + percent / 100
    return AccuracyLoss(
        key=AccuracyKey(
            model="abc", own="bf16", engine="trimtab", engine_version="0.1.0", text=text
        ),
        precision=precision,
        tokens=2000,
        own_micronats=round(own * 1e6),
        difference_micronats=round(1e6 * math.log(ratio)),
        error_micronats=round(1e6 * error_percent / 100 / ratio),
        agreement_permille=900,
    )


def a_model(architecture=SMOLLM2, *, depth=30, precision="bf16", context=2048):
    return ModelView(
        architecture=architecture,
        depth=depth,
        precision=precision,
        weight_bytes=269030016,
        context_length=context,
    )


def an_intent(name="chat", **fields):
    base = IntentView(
        uid=f"uid-{name}",
        namespace="team-a",
        name=name,
        generation=1,
        created_seconds=1_700_000_000,
        model=a_model(),
        load=LOAD,
    )
    return replace(base, **fields)


def a_pool(node="n0", *, threads=2, gib=8, cpu_model=CPU):
    return CpuPool(
        node=node, cpu_model=cpu_model, millicores=threads * 1000, memory_bytes=gib * GIB
    )


def a_fleet(*intents, pools=None, prices=PRICES, **fields):
    return FleetSnapshot(
        intents=intents or (an_intent(),),
        pools=(a_pool(),) if pools is None else pools,
        capabilities=fields.pop("capabilities", CAPABILITIES),
        prices=PriceBook() if prices is None else prices,
        **fields,
    )


def plan(*intents, **fields):
    return plan_fleet(a_fleet(*intents, **fields), POLICY)


def plan_one(intent=None, **fields):
    return plan(intent or an_intent(), **fields).intents[0]


def a_key(architecture=SMOLLM2, *, threads=1, precision="bf16", **fields):
    return FingerprintKey(
        architecture=architecture_hash(architecture),
        product="cpu",
        cpu_model=CPU,
        threads=threads,
        precision=precision,
        kv_precision=precision,
        engine_version="0.1.0",
        **fields,
    )


def a_fingerprint(
    *,
    key=None,
    fixed_us=5000.0,
    layer_us=700.0,
    us_per_token=20.0,
    us_per_kv_token=0.1,
    us_per_work=0.02,
    distance=1,
    noise=lambda: 1.0,
    repeats=50,
    **fields,
):
    """Return a measurement of a model whose true times are the given constants."""

    def point(batch=0, context=0, chunk=0, cached=0):
        tokens = batch + chunk
        work = chunk * (cached + chunk / 2)
        layer = (
            layer_us
            + us_per_token * tokens
            + us_per_kv_token * batch * context
            + us_per_work * work
        )
        fixed = fixed_us + 100 * (batch + (1 if chunk else 0))
        shallow = (fixed + layer) * noise()
        deep = (fixed + (1 + distance) * layer) * noise()
        return StepPoint(
            batch=batch,
            context=context,
            chunk=chunk,
            cached=cached,
            t1_us=round(shallow),
            mad1_us=round(shallow * 0.01),
            t2_us=round(deep),
            mad2_us=round(deep * 0.01),
            repeats=repeats,
        )

    return Fingerprint(
        key=key or a_key(),
        source=fields.pop("source", "Measured"),
        depths=(1, 1 + distance),
        decode=tuple(point(batch=b, context=c) for b in (1, 2, 4, 8) for c in (64, 256, 1024)),
        prefill=tuple(
            point(chunk=n, cached=c)
            for n, c in ((32, 0), (128, 0), (256, 0), (512, 0), (128, 512), (512, 1024))
        ),
        mixed=(point(batch=4, context=256, chunk=128),),
        **fields,
    )
