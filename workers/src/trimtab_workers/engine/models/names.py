"""HF names and shapes of every tensor of a decoder; imports no torch, so that headers are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab_workers.engine.models.shape import LlamaShape


def tensor_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Return the HF name and shape of every tensor of a model, or of a rank's part of one."""
    d, hd = shape.hidden, shape.head_dim
    q, kv, ff = shape.heads * hd, shape.kv_heads * hd, shape.intermediate
    table = shape.vocabulary_rows, d
    result: dict[str, tuple[int, ...]] = {}
    if shape.embeds or shape.tied:
        result["model.embed_tokens.weight"] = table
    if shape.has_head:
        result["model.norm.weight"] = (d,)
        if not shape.tied:
            result["lm_head.weight"] = table
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        result |= {
            f"{prefix}.self_attn.q_proj.weight": (q, d),
            f"{prefix}.self_attn.k_proj.weight": (kv, d),
            f"{prefix}.self_attn.v_proj.weight": (kv, d),
            f"{prefix}.self_attn.o_proj.weight": (d, q),
            f"{prefix}.mlp.gate_proj.weight": (ff, d),
            f"{prefix}.mlp.up_proj.weight": (ff, d),
            f"{prefix}.mlp.down_proj.weight": (d, ff),
            f"{prefix}.input_layernorm.weight": (d,),
            f"{prefix}.post_attention_layernorm.weight": (d,),
        }
        if shape.qkv_bias:
            result |= {
                f"{prefix}.self_attn.q_proj.bias": (q,),
                f"{prefix}.self_attn.k_proj.bias": (kv,),
                f"{prefix}.self_attn.v_proj.bias": (kv,),
            }
        if shape.qk_norm:
            result |= {
                f"{prefix}.self_attn.q_norm.weight": (hd,),
                f"{prefix}.self_attn.k_norm.weight": (hd,),
            }
    return result
