"""Small models and engines for tests."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.types import Output, Request, SamplingParams

TINY: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def an_engine(path: Path | None = None, **settings: Any) -> Engine:
    """Return a loaded engine without a thread, serving model `m`; random tiny weights by default."""
    dtype = settings.pop("dtype", "fp32")
    hf_config = settings.pop("hf_config", TINY)
    clock = settings.pop("clock", None)
    spec = ModelSpec(
        name="m",
        path=path or Path(),
        dtype=dtype,
        random=None if path else RandomWeights(hf_config=hf_config, seed=3),
    )
    engine = Engine(EngineConfig(models=(spec,), **settings), clock=clock or VirtualClock())
    engine.load()
    tenant = engine.tenant("m")
    if tenant.error is not None:
        raise tenant.error
    return engine


def kv_memory(blocks: int, *, dtype: str = "fp32", hf_config: dict[str, Any] = TINY) -> int:
    """Return memory_bytes that leaves about so many KV blocks beside the weights."""
    engine = an_engine(dtype=dtype, hf_config=hf_config, max_seqs=1, max_model_len=16)
    tenant = engine.tenant("m")
    unit, slab = tenant.unit, engine.arena_bytes // sum(engine.state()["slabs"].values())
    per_slab = slab // (unit.block_bytes * unit.layers)
    weights = engine.state()["slabs"]["weights"]
    return tenant.fixed_bytes + (weights + -(-(blocks + 1) // per_slab)) * slab


def a_request(name: str = "r", prompt: Any = (1, 2, 3), **params: Any) -> Request:
    """Return a greedy request for 8 tokens that ignores the end of text."""
    settings = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | params
    return Request(
        request_id=name,
        model="m",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**settings),
    )


class Collected(list[Output]):
    """The outputs of one request."""

    @property
    def tokens(self) -> list[int]:
        return [token for output in self for token in output.token_ids]

    @property
    def text(self) -> str:
        return "".join(output.text_delta for output in self)


def submit(engine: Engine, request: Request) -> Collected:
    """Submit and return the list that outputs arrive in."""
    collected = Collected()
    engine.submit(request, collected.append)
    return collected


def run(engine: Engine, *requests: Request, steps: int = 5_000) -> list[Collected]:
    """Submit requests and step until all are done."""
    collected = [submit(engine, request) for request in requests]
    for _ in range(steps):
        if not engine.step():
            break
    assert engine.idle, f"not done after {steps} steps: {engine.state()['models']}"
    return collected


def spy_on_logits(monkeypatch: Any, spy: Any) -> None:
    """Put a spy in the sampler's place, and have greedy rows' logits computed in full for it."""
    monkeypatch.setattr(SamplingParams, "plain_greedy", property(lambda _: False))
    monkeypatch.setattr("trimtab_workers.engine.runner.sample", spy)


def glass_directory(folder: Path, language: str) -> Path:
    """Write a glassllm model as a Hugging Face directory."""
    from glassllm import load_pretrained

    model, tokenizer = load_pretrained(language)
    cfg = model.cfg
    folder.mkdir(parents=True, exist_ok=True)
    head_dim = cfg.d_model // cfg.n_heads

    def rows(matrix: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(matrix.data.T))

    def halves(matrix: Any, heads: int) -> torch.Tensor:
        pairs = rows(matrix).view(heads, head_dim // 2, 2, cfg.d_model)
        return pairs.transpose(1, 2).reshape(heads * head_dim, cfg.d_model).contiguous()

    tensors = {
        "model.embed_tokens.weight": torch.from_numpy(model.E.data.copy()),
        "model.norm.weight": torch.from_numpy(model.norm_f.gamma.data.copy()),
    }
    for index, block in enumerate(model.blocks):
        prefix = f"model.layers.{index}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": halves(block.attn.W_Q, cfg.n_heads),
            f"{prefix}.self_attn.k_proj.weight": halves(block.attn.W_K, cfg.n_kv_heads),
            f"{prefix}.self_attn.v_proj.weight": rows(block.attn.W_V),
            f"{prefix}.self_attn.o_proj.weight": rows(block.attn.W_O),
            f"{prefix}.mlp.gate_proj.weight": rows(block.ffn.W1),
            f"{prefix}.mlp.up_proj.weight": rows(block.ffn.W3),
            f"{prefix}.mlp.down_proj.weight": rows(block.ffn.W2),
            f"{prefix}.input_layernorm.weight": torch.from_numpy(block.norm1.gamma.data.copy()),
            f"{prefix}.post_attention_layernorm.weight": torch.from_numpy(
                block.norm2.gamma.data.copy()
            ),
        }
    save_file(tensors, str(folder / "model.safetensors"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": cfg.n_layers,
        "hidden_size": cfg.d_model,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": int(8 * cfg.d_model / 3),
        "vocab_size": cfg.vocab_size,
        "rms_norm_eps": cfg.eps,
        "rope_theta": cfg.rope_base,
        "max_position_embeddings": cfg.max_len,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _glass_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return folder


def _glass_tokenizer(tokenizer: Any) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    backend = Tokenizer(
        models.BPE(
            vocab=tokenizer.token_to_id,
            merges=[tuple(m) for m in tokenizer.merges],
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(" ", "\u2581")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex("\n|\u2581*[^\u2581\n]+|\u2581+"), "isolated"
    )
    backend.decoder = decoders.Replace("\u2581", " ")
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<bos>", "<eos>")]
    )
    return backend


def a_gguf(
    path: Path, *, metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> Path:
    """Write a GGUF file by hand: values are texts or unsigned integers, tensors are F32 arrays."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    meta = {"general.architecture": "llama"} if metadata is None else metadata
    arrays = tensors or {}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(meta))
    for key, value in meta.items():
        body = (
            struct.pack("<I", 8) + text(value)
            if isinstance(value, str)
            else struct.pack("<II", 4, value)
        )
        head += text(key) + body
    data = b""
    for name, array in arrays.items():
        shape = tuple(reversed(array.shape))
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", 0, len(data))
        data += array.astype(np.float32).tobytes()
        data += bytes(-len(data) % 32)
    head += bytes(-len(head) % 32)
    path.write_bytes(head + data)
    return path
