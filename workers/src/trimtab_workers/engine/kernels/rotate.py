"""One kernel between the qkv product and attention: q/k norm, rotation, write of keys and values.

Per layer a decode step of a small batch is bound by launches, not bytes, so these three share one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton.language as tl

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.kernels.jit import kernel, power_of_two

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@kernel
def _rotate_and_store(
    qkv: tl.tensor,
    queries: tl.tensor,
    cache: tl.tensor,
    writes: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    norms: tl.tensor,
    sines: tl.tensor,
    eps: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    normed: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    head = tl.program_id(1)
    source = qkv + (row.to(tl.int64) * (heads + 2 * kv_heads) + head) * head_dim
    d = tl.arange(0, block)
    inside = d < head_dim
    # roll(x, head_dim / 2); the table's sine carries the sign.
    partner = tl.where(d < head_dim // 2, d + head_dim // 2, d - head_dim // 2)
    x = tl.load(source + d, mask=inside, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        y = tl.load(source + partner, mask=inside, other=0.0).to(tl.float32)
        if normed:
            scale = tl.rsqrt(tl.sum(x * x, axis=0) / head_dim + eps)
            weights = norms + tl.where(head < heads, 0, head_dim)
            x = x * scale * tl.load(weights + d, mask=inside, other=0.0).to(tl.float32)
            y = y * scale * tl.load(weights + partner, mask=inside, other=0.0).to(tl.float32)
        # Padding rows have no position, and the table no row before its first.
        position = tl.maximum(tl.load(positions + row).to(tl.int64), 0)
        angle = table + position * head_dim + d
        cos = tl.load(angle, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(angle + sines, mask=inside, other=0.0).to(tl.float32)
        x = x * cos + y * sin
    if head < heads:
        target = queries + (row.to(tl.int64) * heads + head) * head_dim
        tl.store(target + d, x.to(queries.dtype.element_ty), mask=inside)
    else:
        token = tl.load(writes + row).to(tl.int64)
        is_value = head >= heads + kv_heads
        kv_head = tl.where(is_value, head - heads - kv_heads, head - heads)
        # A negative token row is padding, which nobody may write.
        if token >= 0:
            token += tl.where(is_value, block_tokens, 0)
            target = cache + (token * kv_heads + kv_head) * head_dim
            tl.store(target + d, x.to(cache.dtype.element_ty), mask=inside)


def rotate_and_store(
    qkv: torch.Tensor,
    *,
    view: torch.Tensor,
    writes: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    norms: torch.Tensor | None,
    eps: float,
    heads: int,
) -> torch.Tensor:
    """Rotate queries and keys, put keys and values into the cache, return the queries.

    Args:
        qkv: Shape [rows, (heads + 2·kv_heads)·head_dim], contiguous; not changed.
        view: One layer's cache, shape [blocks, 2, 16, kv_heads, head_dim] (engine.md §4).
        writes: Token row of each row's key in the view, slot·32 + offset in block, int64, shape
            [rows]; its value lies 16 token rows behind. Negative rows are not written.
        positions: Position of each row, int64, shape [rows]; negative in padding.
        table: Cosines and signed sines, shape [2, positions, 1, head_dim] (`rotation_table`).
        norms: Norm weights of queries and keys per head, shape [2, head_dim], or None.
        eps: Of the norms.
        heads: Query heads.

    Returns:
        Shape [rows, heads, head_dim], of qkv's type; numerics: float32 inside, one rounding.
    """
    kv_heads, head_dim = view.shape[-2:]
    rows = qkv.shape[0]
    if qkv.shape[1] != (heads + 2 * kv_heads) * head_dim or not qkv.is_contiguous():
        raise ValueError(
            f"rotate_and_store: qkv has shape {tuple(qkv.shape)}, but {heads} query heads and "
            f"{kv_heads} key heads of {head_dim} ask for contiguous rows of "
            f"{(heads + 2 * kv_heads) * head_dim}. This is a bug in the caller, please report it."
        )
    queries = qkv.new_empty(rows, heads, head_dim)
    if not rows:
        return queries
    launch: Callable[..., None] = _rotate_and_store[(rows, heads + 2 * kv_heads)]
    launch(
        qkv,
        queries,
        view,
        writes,
        positions,
        table,
        qkv if norms is None else norms,
        table.stride(0),
        eps,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_tokens=BLOCK_TOKENS,
        normed=norms is not None,
        block=power_of_two(head_dim),
        num_warps=1,
        enable_fp_fusion=True,
    )
    return queries
