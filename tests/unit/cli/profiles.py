"""Builder of one-layer profiles on disk, in LLMServingSim's format, with known times."""

import yaml

IN_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
META = {
    "vllm_version": "0.19.0",
    "gpu": "NVIDIA Example 9000",
    "architecture": "llama",
    "variant": "bf16",
    "measurement_iterations": 3,
    "profiled_at": "2026-04-24T12:44:27+00:00",
    "engine_effective": {"enforce_eager": True},
}
TOKENS = (1, 8, 32, 100, 128, 300, 512)
CHUNKS = (16, 128, 512)
BATCHES = (1, 2, 8, 32)
KVS = (64, 128, 256, 512, 1024, 2048)


def operator_us(tokens):
    """One dense operator: a floor, then growing with the tokens."""
    return 20.0 + 0.25 * tokens


def attention_us(chunk, cached, batch, context):
    """Decoding beside a chunk costs half as much again: no sum of the two alone gives that."""
    alone = chunk * (cached + chunk / 2) / 2000 + batch * context / 400 + 5
    return alone * (1.5 if chunk and batch else 1.0)


def layer_us(chunk, cached, batch, context):
    dense = sum(IN_LAYER.values()) * operator_us(chunk + batch)
    return dense + attention_us(chunk, cached, batch, context)


def fixed_us(tokens, sampled):
    return 2 * operator_us(tokens) + 2 * (100.0 + sampled)


def a_profile(folder, *, degree=1, nested=False, meta=None, **tables):
    """Write a profile; ``dense``, ``per_sequence`` and ``attention`` replace a table's lines."""
    folder.mkdir(exist_ok=True)
    (folder / "meta.yaml").write_text(yaml.safe_dump(META | (meta or {})))
    names = [*IN_LAYER, "embedding", "final_layernorm"]
    lines = {
        "dense": ["layer,tokens,time_us"]
        + [f"{name},{x},{operator_us(x)}" for name in names for x in TOKENS],
        "per_sequence": ["layer,sequences,time_us"]
        + [f"{name},{x},{100.0 + x}" for name in ("lm_head", "sampler") for x in (1, 33)],
        "attention": ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
        + [
            f"{c},{p},{n},{k},{attention_us(c, p, n, k)}"
            for c, p in ((0, 0), *((c, p) for c in CHUNKS for p in (0, 512)))
            for n, k in ((0, 0), *((n, k) for n in BATCHES for k in KVS))
            if c or n
        ],
    } | tables
    for kind, rows in lines.items():
        path = (
            folder / f"tp{degree}" / f"{kind}.csv" if nested else folder / f"tp{degree}-{kind}.csv"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
    return folder
