"""One step's inputs on a GPU, and attention over them: decodes by the paged kernel, chunks by SDPA.

Nothing needs to be cleared when memory becomes KV: the kernel loads no token beyond a length, and
a chunk gathers whole blocks but multiplies exactly its own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.device import upload
from trimtab_workers.engine.kernels.decode import decode_attention

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

    from trimtab_workers.engine.kv import Block, KvLayout
    from trimtab_workers.engine.scheduler import Row
    from trimtab_workers.engine.sequence import Sequence

_TOKEN_ROWS = 2 * BLOCK_TOKENS
_FIELDS = 3


@dataclass(frozen=True, slots=True)
class _Known:
    """Slots of a sequence's blocks as they were at `version`; `blocks` tells lists apart."""

    blocks: list[Block]
    slots: list[int]
    version: int


class SlotTables:
    """Slots of each sequence's blocks, extended as blocks are added instead of rebuilt.

    Args:
        version: Changes whenever a block that is held moved (docs/design/20261123-remap.md §2).
    """

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._known: dict[int, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def slots(self, sequence: Sequence) -> list[int]:
        """Return a sequence's slots, in order of position."""
        version = self._version()
        known = self._known.get(id(sequence))
        if known is None or known.blocks is not sequence.blocks or known.version != version:
            known = _Known(sequence.blocks, [], version)
            self._known[id(sequence)] = known
        slots = known.slots
        del slots[len(sequence.blocks) :]
        slots += [block.slot for block in sequence.blocks[len(slots) :]]
        return slots

    def keep_only(self, sequences: Items[Sequence]) -> None:
        """Forget sequences that are not among these."""
        live = {id(sequence) for sequence in sequences}
        self._known = {key: known for key, known in self._known.items() if key in live}


class StepInputs:
    """Static buffers of a decode batch: one on the host, one on the device, one copy between.

    A padding row has position -1, so that its length is 0; it writes nothing (token row -1) and
    reads nothing.

    Attributes:
        token_ids: Shape [rows]; 0 where padded.
        positions: Shape [rows].
        writes: Token row of each row's key, shape [rows] (see `rotate_and_store`).
        slots: Shape [rows, columns]; what lies beyond a length is stale.
    """

    def __init__(self, rows: int, *, columns: int, place: torch.device) -> None:
        size = rows * (_FIELDS + columns)
        # Pinned, so that the copy runs by itself.
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=place.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.int64, device=place)
        split = _FIELDS * rows
        self._fields = self._host[:split].view(_FIELDS, rows).numpy()
        self._slots = self._host[split:].view(rows, columns).numpy()
        self.token_ids, self.positions, self.writes = self._device[:split].view(_FIELDS, rows)
        self.slots = self._device[split:].view(rows, columns)

    def fill(self, rows: Items[Row], tables: SlotTables) -> None:
        """Write a batch, pad the rest, and start the copy.

        The previous copy has ended: every decode step waits for its tokens.
        """
        fields = self._fields
        fields[0, len(rows) :] = 0
        fields[1:, len(rows) :] = -1
        for index, row in enumerate(rows):
            slots = tables.slots(row.sequence)
            used = row.start // BLOCK_TOKENS + 1
            self._slots[index, :used] = slots[:used]
            fields[:, index] = (
                row.sequence.tokens[row.start],
                row.start,
                slots[used - 1] * _TOKEN_ROWS + row.start % BLOCK_TOKENS,
            )
        self._device.copy_(self._host, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A prompt chunk: its rows in the step, its tokens' end, and its blocks on the device."""

    first: int
    count: int
    end: int
    slots: torch.Tensor


class StepBatch:
    """What the layers of one step need besides weights: positions, writes, and who reads what.

    Attributes:
        decodes: Rows that decode; chunks follow them.
    """

    def __init__(
        self,
        *,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        writes: torch.Tensor,
        decodes: int,
        slots: torch.Tensor,
        splits: int,
        chunks: tuple[Chunk, ...] = (),
        widen: bool = False,
    ) -> None:
        self.token_ids, self.positions, self.writes = token_ids, positions, writes
        self.decodes = decodes
        self._slots, self._splits, self._chunks = slots, splits, chunks
        self._lengths = (positions[:decodes] + 1).to(torch.int32)
        self._widen = widen

    def attend(self, queries: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        """Attend to keys and values that are in place.

        Args:
            queries: Shape [rows, heads, head_dim], rotated.
            view: The layer's cache, shape [blocks, 2, 16, kv_heads, head_dim].

        Returns:
            Shape [rows, heads · head_dim].
        """
        parts = []
        if self.decodes:
            parts.append(
                decode_attention(
                    queries[: self.decodes],
                    view=view,
                    slots=self._slots,
                    lengths=self._lengths,
                    splits=self._splits,
                    widen=self._widen,
                )
            )
        parts += [attend_chunk(queries, view, chunk) for chunk in self._chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_chunk(queries: torch.Tensor, view: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """Attend from a chunk's queries to its sequence, each to what lies before it.

    Returns:
        Shape [count, heads · head_dim].
    """
    kv_heads, head_dim = view.shape[-2:]
    pair = view.index_select(0, chunk.slots).transpose(0, 1)
    k, v = pair.reshape(2, 1, -1, kv_heads, head_dim)[:, :, : chunk.end].transpose(2, 3)
    q = queries[chunk.first : chunk.first + chunk.count].transpose(0, 1).unsqueeze(0)
    group = q.shape[1] // kv_heads
    if group > 1:
        # torch's lower-right path ignores enable_gqa; one chunk's keys repeated are small beside it.
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    mask = causal_lower_right(chunk.count, chunk.end)
    mixed: torch.Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.squeeze(0).transpose(0, 1).reshape(chunk.count, -1)


def mixed_batch(
    decode: Items[Row],
    prefill: Items[Row],
    *,
    tables: SlotTables,
    splits: int,
    place: torch.device,
    widen: bool = False,
) -> StepBatch:
    """Build the batch of a step with prompt chunks; its shapes are its own, so nothing is static."""
    inputs = StepInputs(
        len(decode),
        columns=max((row.start // BLOCK_TOKENS + 1 for row in decode), default=0),
        place=place,
    )
    inputs.fill(decode, tables)
    ids, positions, writes = [inputs.token_ids], [inputs.positions], [inputs.writes]
    chunks = []
    first = len(decode)
    for row in prefill:
        end = row.start + row.count
        slots = tables.slots(row.sequence)[: -(-end // BLOCK_TOKENS)]
        at = np.arange(row.start, end)
        written = np.asarray(slots)[at // BLOCK_TOKENS] * _TOKEN_ROWS + at % BLOCK_TOKENS
        on_device = upload(
            [*row.sequence.tokens[row.start : end], *at.tolist(), *written.tolist(), *slots], place
        )
        fields, slots_there = on_device[: _FIELDS * row.count], on_device[_FIELDS * row.count :]
        for parts, part in zip((ids, positions, writes), fields.view(_FIELDS, -1), strict=True):
            parts.append(part)
        chunks.append(Chunk(first, row.count, end, slots_there))
        first += row.count
    return StepBatch(
        token_ids=torch.cat(ids),
        positions=torch.cat(positions),
        writes=torch.cat(writes),
        decodes=len(decode),
        slots=inputs.slots,
        splits=splits,
        chunks=tuple(chunks),
        widen=widen,
    )


def layer_views(layout: KvLayout, arena: torch.Tensor) -> list[torch.Tensor]:
    """Return each layer's view of the arena; addresses never change, so graphs keep them."""
    return [layout.view(arena, layer) for layer in range(layout.layers)]
