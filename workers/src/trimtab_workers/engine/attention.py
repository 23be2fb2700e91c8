"""Attention over paged keys and values on CPU: one gather and one SDPA per layer for all decodes.

Bits of a row must not depend on the batch. Two properties of the kernels behind SDPA matter and
were measured (docs/benchmarks/engine-exactness.md): blocks of fewer than 4 query rows take another
kernel, and a product over 193 to 383 keys is split differently; so queries are padded to multiples
of 4 rows and such key counts to 384.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from trimtab_workers.engine.config import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from trimtab_workers.engine.kv import KvLayout
    from trimtab_workers.engine.scheduler import Row

ROW_MULTIPLE = 4
_KEY_SPLIT = 512
_UNSPLIT_UP_TO = 192
_SPLIT_FROM = 384


def padded_keys(tokens: int) -> int:
    """Return how many keys attention reads for a context: whole blocks, no unsafe remainder."""
    keys = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    remainder = keys % _KEY_SPLIT
    return keys - remainder + _SPLIT_FROM if _UNSPLIT_UP_TO < remainder < _SPLIT_FROM else keys


class AttentionPlan:
    """Where one step's rows write their keys and values, and what they read.

    Build once per step, use in every layer: indices are relative to a layer's view.
    """

    def __init__(
        self,
        *,
        decode: Items[Row],
        prefill: Items[Row],
        layout: KvLayout,
        arena: torch.Tensor,
        zero_slot: int,
        heads: int,
    ) -> None:
        self._layout, self._heads = layout, heads
        self._views = [layout.view(arena, layer) for layer in range(layout.layers)]
        self._dtype = arena.dtype
        self._zero_slot = zero_slot
        self._decodes = len(decode)
        self._prefill = [(row.count, *self._chunk(row)) for row in prefill]
        self._tokens = len(decode) + sum(row.count for row in prefill)
        self._writes = self._write_index([*decode, *prefill])
        if decode:
            self._decode_index, self._decode_mask = self._decode_plan(decode)

    def _write_index(self, rows: Items[Row]) -> torch.Tensor:
        """Token rows of keys and values in a layer's view, interleaved k, v per token."""
        index: list[int] = []
        for row in rows:
            blocks = row.sequence.blocks
            for position in range(row.start, row.start + row.count):
                slot = blocks[position // BLOCK_TOKENS].slot
                key = slot * 2 * BLOCK_TOKENS + position % BLOCK_TOKENS
                index += (key, key + BLOCK_TOKENS)
        return torch.tensor(index)

    def _reads(self, row: Row, keys: int) -> list[int]:
        end = row.start + row.count
        used = -(-end // BLOCK_TOKENS)
        slots = [block.slot for block in row.sequence.blocks[:used]]
        return slots + [self._zero_slot] * (keys // BLOCK_TOKENS - used)

    def _halves(self, slots: torch.Tensor) -> torch.Tensor:
        """Index keys and values apart in a view of half blocks, shape [2, …]."""
        return torch.stack((slots * 2, slots * 2 + 1))

    def _decode_plan(self, rows: Items[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        ends = [row.start + 1 for row in rows]
        keys = padded_keys(max(ends))
        slots = torch.tensor([self._reads(row, keys) for row in rows])
        beyond = torch.arange(keys)[None, :] >= torch.tensor(ends)[:, None]
        return self._halves(slots).flatten(), self._mask(beyond)[:, None, None, :]

    def _chunk(self, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
        keys = padded_keys(row.start + row.count)
        slots = torch.tensor(self._reads(row, keys))
        queries = -(-row.count // ROW_MULTIPLE) * ROW_MULTIPLE
        beyond = torch.arange(keys)[None, :] > torch.arange(row.start, row.start + queries)[:, None]
        return self._halves(slots).flatten(), self._mask(beyond)

    def _mask(self, beyond: torch.Tensor) -> torch.Tensor:
        return torch.zeros(beyond.shape, dtype=self._dtype).masked_fill_(beyond, float("-inf"))

    def attend(self, layer: int, queries: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store this step's keys and values, then attend.

        Args:
            layer: Index of the layer.
            queries: Shape [rows, heads, head_dim], rotated; rows beyond the plan are padding.
            kv: Shape [rows, 2, kv_heads, head_dim], keys rotated.

        Returns:
            Shape [rows, heads · head_dim]; zero where padded.
        """
        view = self._views[layer]
        layout = self._layout
        new = kv[: self._tokens].reshape(-1, layout.kv_heads, layout.head_dim)
        view.view(-1, layout.kv_heads, layout.head_dim).index_copy_(0, self._writes, new)
        halves = view.view(-1, BLOCK_TOKENS, layout.kv_heads, layout.head_dim)
        out = queries.new_zeros(queries.shape[0], self._heads * layout.head_dim)
        at = self._decodes
        if at:
            out[:at] = self._attend_decodes(halves, queries[:at])
        for count, index, mask in self._prefill:
            out[at : at + count] = self._attend_chunk(halves, queries[at : at + count], index, mask)
            at += count
        return out

    def _attend_decodes(self, halves: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        layout, batch = self._layout, self._decodes
        gathered = halves.index_select(0, self._decode_index)
        k, v = gathered.view(2, batch, -1, layout.kv_heads, layout.head_dim).transpose(2, 3)
        group = self._heads // layout.kv_heads
        q = queries.reshape(batch, layout.kv_heads, group, layout.head_dim)
        if group < ROW_MULTIPLE:
            q = functional.pad(q, (0, 0, 0, ROW_MULTIPLE - group))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self._decode_mask)
        return mixed[:, :, :group].reshape(batch, -1)

    def _attend_chunk(
        self, halves: torch.Tensor, queries: torch.Tensor, index: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        layout = self._layout
        count, group = queries.shape[0], self._heads // layout.kv_heads
        gathered = halves.index_select(0, index)
        # Key heads are the batch and a group's queries the heads, so that keys are not repeated.
        k, v = (
            gathered.view(2, -1, layout.kv_heads, layout.head_dim)
            .transpose(1, 2)
            .unsqueeze(2)
            .expand(-1, -1, group, -1, -1)
        )
        q = queries.view(count, layout.kv_heads, group, layout.head_dim).permute(1, 2, 0, 3)
        if mask.shape[0] > count:
            q = functional.pad(q, (0, 0, 0, mask.shape[0] - count))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed[:, :, :count].permute(2, 0, 1, 3).reshape(count, -1)
