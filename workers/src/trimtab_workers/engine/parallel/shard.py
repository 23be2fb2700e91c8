"""One rank's part of a checkpoint, read part by part: no rank ever holds a whole model.

Query, key, value, gate and up are split by output rows, `o_proj` and `down_proj` by input columns,
embedding and head by vocabulary rows; norms are on every rank. The most that is held beyond the
part itself is one tensor, where a format cannot be read by columns.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.parallel.placement import Placement, first_kv_head, rank_shape
from trimtab_workers.engine.weights.checkpoint import Part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trimtab_workers.engine.weights.checkpoint import Checkpoint

_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")


class ShardedCheckpoint:
    """A rank's view of a checkpoint: its own shape, its own layers numbered from 0.

    Raises:
        ConfigError: The model does not divide over these ranks.
    """

    def __init__(self, whole: Checkpoint, placement: Placement, *, model: str) -> None:
        self.where = whole.where
        self.hf_config: Mapping[str, Any] = whole.hf_config
        self.directory: Path | None = whole.directory
        self.gguf_metadata: Mapping[str, Any] | None = whole.gguf_metadata
        self.shape = rank_shape(whole.shape, placement, model=model)
        self._whole = whole
        self._placement = placement
        self._sizes = tensor_shapes(whole.shape)

    def tensor(self, name: str, part: Part | None = None) -> torch.Tensor:
        """Read this rank's part of a tensor, padded with zeros to the rank's shape."""
        if part is not None:
            raise ValueError("A shard is not split again; this is a bug, please report it.")
        name = self._whole_name(name)
        wanted = self._part(name)
        if wanted is None:
            return self._whole.tensor(name)
        axis, start, length = wanted
        size = self._sizes[name][axis]
        stop = min(size, start + length)
        if start >= stop:
            rest = list(self._sizes[name])
            rest[axis] = length
            return torch.zeros(rest)
        tensor = self._whole.tensor(name, Part(axis=axis, start=start, stop=stop))
        missing = length - (stop - start)
        if missing:
            rest = list(tensor.shape)
            rest[axis] = missing
            tensor = torch.cat((tensor, tensor.new_zeros(rest)), dim=axis)
        return tensor

    def close(self) -> None:
        """Let go of the files."""
        self._whole.close()

    def _whole_name(self, name: str) -> str:
        match = _LAYER.fullmatch(name)
        if match is None:
            return name
        before, layer, after = match.groups()
        return f"{before}{int(layer) + self._placement.stage * self.shape.layers}{after}"

    def _part(self, name: str) -> tuple[int, int, int] | None:
        """Return axis, start and length of this rank's part; None for the whole tensor."""
        whole, own, shard = self._whole.shape, self.shape, self._placement.shard
        if self._placement.tensor == 1:
            return None
        queries, neurons = own.heads * own.head_dim, own.intermediate
        keys = first_kv_head(whole, self._placement) * own.head_dim, own.kv_heads * own.head_dim
        parts = {
            "embed_tokens": (0, shard * own.vocabulary_rows, own.vocabulary_rows),
            "lm_head": (0, shard * own.vocabulary_rows, own.vocabulary_rows),
            "q_proj": (0, shard * queries, queries),
            "k_proj": (0, *keys),
            "v_proj": (0, *keys),
            "o_proj": (1, shard * queries, queries),
            "gate_proj": (0, shard * neurons, neurons),
            "up_proj": (0, shard * neurons, neurons),
            "down_proj": (1, shard * neurons, neurons),
        }
        return parts.get(name.split(".")[-2])
