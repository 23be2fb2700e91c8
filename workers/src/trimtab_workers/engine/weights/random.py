"""Weights drawn instead of read: fingerprints measure shapes, not knowledge (planner.md §4)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.models.shape import LlamaShape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trimtab_workers.engine.weights.checkpoint import Part

STANDARD_DEVIATION = 0.02


class RandomCheckpoint:
    """Normal weights, standard deviation 0.02; norms are ones. Zeros would run faster."""

    def __init__(self, hf_config: Mapping[str, Any], *, seed: int) -> None:
        self.where = "random weights"
        self.hf_config: Mapping[str, Any] = hf_config
        self.shape = LlamaShape.from_hf_config(hf_config, where=self.where)
        self.directory: Path | None = None
        self.gguf_metadata: Mapping[str, Any] | None = None
        self._shapes = tensor_shapes(self.shape)
        self._seed = seed

    def tensor(self, name: str, part: Part | None = None) -> torch.Tensor:
        """Draw a tensor; the same name and seed give the same values, in every part of it."""
        if part is not None:
            return self.tensor(name).narrow(part.axis, part.start, part.stop - part.start)
        shape = self._shapes[name]
        if len(shape) == 1 and not name.endswith("bias"):
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ self._seed)
        return torch.empty(shape).normal_(0.0, STANDARD_DEVIATION, generator=generator)

    def close(self) -> None:
        """Do nothing; there are no files."""
