"""The models and the device of engine.md §1."""

from trimtab.planning.remap import Hardware, ModelShape, Traffic

GB = 10**9


def _llama(*, layers, hidden, intermediate, heads, kv_heads, vocab):
    head = hidden // heads
    matrices = 2 * hidden * hidden + 2 * hidden * head * kv_heads + 3 * hidden * intermediate
    table = 2 * vocab * hidden
    return ModelShape(
        layers=layers,
        layer_bytes=2 * matrices,
        fixed_bytes=2 * table,
        read_outside_bytes=table,
        kv_bytes_per_token=layers * 2 * kv_heads * head * 2,
    )


LLAMA_8B = _llama(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, vocab=128_256)
LLAMA_7B = _llama(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32_000)
LLAMA_13B = _llama(layers=40, hidden=5120, intermediate=13824, heads=40, kv_heads=40, vocab=32_000)


def hardware(**changes):
    """Return engine.md §1's H100 behind PCIe, with changes."""
    settings = {
        "memory_bytes": 76 * GB,
        "memory_rate": 3e12,
        "link_rate": 50e9,
        "link_latency_s": 0.0,
        "flops_rate": 600e12,
        "host_bytes": 200 * GB,
    }
    return Hardware(**settings | changes)


H100 = hardware()


def traffic(**changes):
    """Return decoding at 1,000 tokens per sequence, models that stay idle, no measured step."""
    settings = {
        "sequence_tokens": 1000,
        "prefill_tokens_per_step": 0,
        "switch_interval_s": None,
        "step_s": None,
    }
    return Traffic(**settings | changes)
