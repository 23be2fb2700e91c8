"""Paged attention of one query per sequence: blocks are read where they lie.

Flash decoding: programs share a sequence's context out among `splits`, and a second kernel combines
their results. It pays while sequences times key heads are fewer than the processors (8 programs
for 132 of them at batch 1 of Llama-3-8B), so large batches run one split and no second kernel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton.language as tl

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.kernels.jit import kernel, power_of_two

if TYPE_CHECKING:
    from collections.abc import Callable

TILE_TOKENS = 64
MAX_SPLITS = 32
# Rows of a matrix instruction; groups of fewer query heads are padded to it.
_DOT_ROWS = 16
_PROGRAMS_PER_PROCESSOR = 2


@kernel
def _decode(
    queries: tl.tensor,
    cache: tl.tensor,
    slots: tl.tensor,
    lengths: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    peaks: tl.tensor,
    slot_stride: tl.tensor,
    scale: tl.tensor,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    splits: tl.constexpr,
    tile: tl.constexpr,
    block_g: tl.constexpr,
    block_d: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + sequence)
    share = tl.cdiv(tl.cdiv(length, splits), tile) * tile
    first = split * share
    last = tl.minimum(first + share, length)

    g = tl.arange(0, block_g)
    d = tl.arange(0, block_d)
    t = tl.arange(0, tile)
    in_dim = d < head_dim
    wanted = (g < group)[:, None] & in_dim[None, :]
    heads = (sequence * kv_heads + kv_head) * group + g
    query = tl.load(queries + heads[:, None] * head_dim + d[None, :], mask=wanted, other=0.0)
    if widen:
        query = query.to(tl.float32)
    peak = tl.full([block_g], float("-inf"), tl.float32)
    total = tl.zeros([block_g], tl.float32)
    mixed = tl.zeros([block_g, block_d], tl.float32)
    for start in range(first, last, tile):
        at = start + t
        # Stale bytes beyond the length may be NaN, and 0·NaN = NaN: they are never loaded.
        live = at < last
        slot = tl.load(slots + sequence * slot_stride + at // block_tokens, mask=live, other=0)
        token = slot.to(tl.int64) * (2 * block_tokens) + at % block_tokens
        key = cache + (token * kv_heads + kv_head) * head_dim
        keys = tl.load(key[None, :] + d[:, None], mask=live[None, :] & in_dim[:, None], other=0.0)
        values = tl.load(
            key[:, None] + block_tokens * kv_heads * head_dim + d[None, :],
            mask=live[:, None] & in_dim[None, :],
            other=0.0,
        )
        if widen:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        score = tl.dot(query, keys, input_precision="ieee") * scale
        score = tl.where(live[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weight, axis=1)
        mixed = mixed * fade[:, None] + tl.dot(
            weight.to(values.dtype), values, input_precision="ieee"
        )
        peak = higher
    if splits == 1:
        # An empty sequence (padding) gives zero; otherwise the total is at least one.
        mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        target = out + heads[:, None] * head_dim + d[None, :]
        tl.store(target, mixed.to(out.dtype.element_ty), mask=wanted)
    else:
        part = heads * splits + split
        tl.store(partial + part[:, None] * head_dim + d[None, :], mixed, mask=wanted)
        tl.store(peaks + part * 2, peak, mask=g < group)
        tl.store(peaks + part * 2 + 1, total, mask=g < group)


@kernel
def _combine(
    partial: tl.tensor,
    peaks: tl.tensor,
    out: tl.tensor,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
    block_s: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    head = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, block_s)
    d = tl.arange(0, block_d)
    present = s < splits
    inside = present[:, None] & (d < head_dim)[None, :]
    part = head * splits + s
    peak = tl.load(peaks + part * 2, mask=present, other=float("-inf"))
    total = tl.load(peaks + part * 2 + 1, mask=present, other=0.0)
    mixed = tl.load(partial + part[:, None] * head_dim + d[None, :], mask=inside, other=0.0)
    highest = tl.max(peak, axis=0)
    # Splits past the end of a short context have no peak, nor has any of an empty sequence.
    weight = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    whole = tl.sum(weight * total, axis=0)
    result = tl.sum(weight[:, None] * mixed, axis=0) / tl.where(whole == 0.0, 1.0, whole)
    tl.store(out + head * head_dim + d, result.to(out.dtype.element_ty), mask=d < head_dim)


def splits_for(*, batch: int, kv_heads: int, processors: int, max_tokens: int) -> int:
    """Return among how many programs a context is shared out; a power of two, at most 32.

    Enough for two programs per processor, never more than the context has tiles. Depends on the
    batch's bucket and the longest context alone, so a captured graph keeps it.
    """
    wanted = -(-_PROGRAMS_PER_PROCESSOR * processors // (batch * kv_heads))
    tiles = -(-max_tokens // TILE_TOKENS)
    most = max(1, min(wanted, tiles, MAX_SPLITS))
    return 1 << (most.bit_length() - 1)


def decode_attention(
    queries: torch.Tensor,
    *,
    view: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    splits: int,
    widen: bool = False,
) -> torch.Tensor:
    """Attend from one query per sequence to its whole context.

    Bytes: every key and value once. Numerics: scores, softmax and sums in float32; weights are
    rounded to the values' type before the second product, as flash attention does.

    Args:
        queries: Shape [batch, heads, head_dim], rotated, contiguous.
        view: One layer's cache, shape [blocks, 2, 16, kv_heads, head_dim]; heads are grouped:
            query heads [i·group, (i+1)·group) read key head i.
        slots: Block slots in order of position, int32 or int64, shape [batch, columns]; entries
            beyond a sequence's length are not read.
        lengths: Tokens of each context, this step's included, int32, shape [batch]; 0 is padding
            and gives zeros.
        splits: See `splits_for`; more than a context has tiles is allowed, and wasted.
        widen: Multiply in float32: Triton's interpreter has no bfloat16 product.

    Returns:
        Shape [batch, heads · head_dim], of the queries' type.
    """
    batch, heads, head_dim = queries.shape
    kv_heads = view.shape[-2]
    if heads % kv_heads or view.shape[-1] != head_dim or not queries.is_contiguous():
        raise ValueError(
            f"decode_attention: queries have shape {tuple(queries.shape)} and the cache "
            f"{tuple(view.shape)}. Give contiguous queries whose heads are a multiple of the key "
            "heads; this is a bug in the caller, please report it."
        )
    out = queries.new_empty(batch, heads * head_dim)
    if not batch:
        return out
    group, block_d = heads // kv_heads, power_of_two(head_dim)
    partial = queries.new_empty(batch, heads, splits, head_dim, dtype=torch.float32)
    peaks = queries.new_empty(batch, heads, splits, 2, dtype=torch.float32)
    launch: Callable[..., None] = _decode[(batch, kv_heads, splits)]
    launch(
        queries,
        view,
        slots,
        lengths,
        out,
        partial,
        peaks,
        slots.stride(0),
        math.log2(math.e) / math.sqrt(head_dim),
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        block_tokens=BLOCK_TOKENS,
        splits=splits,
        tile=TILE_TOKENS,
        block_g=max(_DOT_ROWS, power_of_two(group)),
        block_d=block_d,
        widen=widen,
        num_warps=4,
        enable_fp_fusion=True,
        num_stages=2,
    )
    if splits > 1:
        combine: Callable[..., None] = _combine[(batch * heads,)]
        combine(
            partial,
            peaks,
            out,
            head_dim=head_dim,
            splits=splits,
            block_s=power_of_two(splits),
            block_d=block_d,
            num_warps=1,
            enable_fp_fusion=True,
        )
    return out
