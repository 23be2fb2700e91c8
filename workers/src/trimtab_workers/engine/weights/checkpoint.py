"""What every source of weights offers: a shape and tensors under HF names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from trimtab_workers.engine.models.shape import LlamaShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows (axis 0) or columns (axis 1) [start, stop) of a tensor."""

    axis: int
    start: int
    stop: int


class Checkpoint(Protocol):
    """An opened checkpoint.

    Attributes:
        where: What to call it in errors.
        directory: Where tokenizer files may lie; None for sources without files.
        gguf_metadata: Tokenizer and template of a GGUF file, None elsewhere.
    """

    where: str
    shape: LlamaShape
    hf_config: Mapping[str, Any]
    directory: Path | None
    gguf_metadata: Mapping[str, Any] | None

    def tensor(self, name: str, part: Part | None = None) -> torch.Tensor:
        """Read one tensor by its HF name (`model.layers.0.mlp.up_proj.weight`), in any float dtype.

        Args:
            name: HF name.
            part: Read only this; None reads all.

        Raises:
            ModelCorruptError: It is missing or cut.
        """
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...
