"""Builders of GPU fleets: name only what a test is about."""

from dataclasses import replace

from tests.unit.planning.builders import CAPABILITIES, GIB, LLAMA_8B, a_fleet, a_model, an_intent
from trimtab.planning.prices import parse_price_book
from trimtab.planning.snapshot import DeviceScore, GpuPool

H100, L40S, A100 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L40S", "NVIDIA-A100-SXM4-80GB"
SIZES = {H100: 81559 * 2**20, L40S: 46068 * 2**20, A100: 81920 * 2**20}
PARALLEL = replace(CAPABILITIES, tensor_parallel_sizes=(1, 2, 4), pipeline_parallel_sizes=(1, 2))
GPU_PRICES = parse_price_book({"gpuHour": {"*H100*": "4.50", "*A100*": "3.50", "*L40S*": "1.20"}})
LLAMA_70B = replace(
    LLAMA_8B, hidden_size=8192, intermediate_size=28672, attention_heads=64, kv_heads=8
)


def gpus(node="g0", *, product=H100, count=8, gib=1024):
    return GpuPool(
        node=node,
        product=product,
        gpus=count,
        gpu_memory_bytes=SIZES[product],
        memory_bytes=gib * GIB,
    )


def an_8b(**fields):
    return an_intent(model=a_model(LLAMA_8B, depth=32, context=8192), **fields)


def a_70b(**fields):
    return an_intent(model=a_model(LLAMA_70B, depth=80, context=8192), **fields)


def a_105b(**fields):
    """Return an intent of a model that fits four H100 and no four L40S."""
    return an_intent(model=a_model(LLAMA_70B, depth=120, context=8192), **fields)


def on_gpus(*intents, pools=None, prices=GPU_PRICES, **fields):
    return a_fleet(
        *intents,
        pools=(),
        gpu_pools=(gpus(),) if pools is None else pools,
        prices=prices,
        capabilities=PARALLEL,
        **fields,
    )


def scored(node, *factors, product=H100):
    """Return scores of a node's GPUs: equally slow at everything."""
    return tuple(
        DeviceScore(
            device=f"{node}-{n}",
            node=node,
            product=product,
            compute_permille=factor,
            memory_permille=factor,
        )
        for n, factor in enumerate(factors)
    )
