"""What one rank of a group holds: heads, columns, rows of the vocabulary, layers. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab_workers.engine.errors import ConfigError
from trimtab_workers.engine.models.shape import Share

if TYPE_CHECKING:
    from trimtab_workers.engine.models.shape import LlamaShape

# Where a size does not divide, a rank's part is rounded up to whole blocks of the packed layouts;
# the rest is zeros, which change no sum.
_VOCABULARY_BLOCK = 64
_INTERMEDIATE_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A rank's place in a group of `tensor` x `pipeline` ranks, stages outermost.

    Attributes:
        tensor: Ranks that share each layer.
        pipeline: Stages, each with a contiguous run of layers.
    """

    rank: int = 0
    tensor: int = 1
    pipeline: int = 1

    @property
    def size(self) -> int:
        """Ranks of the whole group."""
        return self.tensor * self.pipeline

    @property
    def stage(self) -> int:
        """Which run of layers; 0 has the embedding, the last one the head."""
        return self.rank // self.tensor

    @property
    def shard(self) -> int:
        """Which part of each layer."""
        return self.rank % self.tensor

    @property
    def last_stage(self) -> bool:
        """Whether the head is here."""
        return self.stage == self.pipeline - 1


def rank_shape(shape: LlamaShape, placement: Placement, *, model: str) -> LlamaShape:
    """Return the sizes of one rank's part of a model.

    Query heads, key heads and layers must divide; where there are fewer key heads than ranks, each
    is held by several. The MLP and the vocabulary are padded with zeros.

    Raises:
        ConfigError: Something does not divide; names the field, both numbers and what would do.
    """
    parts = placement.tensor
    if placement.size == 1:
        return shape
    few = parts % shape.kv_heads if shape.kv_heads < parts else shape.kv_heads % parts
    for name, count, uneven in (
        ("num_attention_heads", shape.heads, shape.heads % parts != 0),
        ("num_key_value_heads", shape.kv_heads, few != 0),
    ):
        if uneven:
            raise ConfigError(
                f"Model {model}: tensor_parallel_size is {parts}, which does not divide its {name} of "
                f"{count}. Set tensor_parallel_size to {_that_divide(shape)}."
            )
    if shape.layers % placement.pipeline:
        raise ConfigError(
            f"Model {model}: pipeline_parallel_size is {placement.pipeline}, which does not divide "
            f"its num_hidden_layers of {shape.layers}. Set pipeline_parallel_size to 1."
        )
    layers = shape.layers // placement.pipeline
    return dataclasses.replace(
        shape,
        layers=layers,
        heads=shape.heads // parts,
        kv_heads=max(1, shape.kv_heads // parts),
        intermediate=_padded(shape.intermediate, parts, _INTERMEDIATE_BLOCK),
        share=Share(
            vocabulary_rows=_padded(shape.vocab, parts, _VOCABULARY_BLOCK),
            embeds=placement.stage == 0,
            heads=placement.last_stage,
        ),
    )


def first_kv_head(shape: LlamaShape, placement: Placement) -> int:
    """Return a rank's first key head in the whole model, `shape`."""
    return placement.shard * shape.kv_heads // placement.tensor


def _padded(size: int, parts: int, block: int) -> int:
    if size % parts == 0:
        return size // parts
    return -(-size // (parts * block)) * block


def _that_divide(shape: LlamaShape) -> str:
    sizes = [
        n
        for n in range(1, shape.heads + 1)
        if shape.heads % n == 0 and (shape.kv_heads % n == 0 or n % shape.kv_heads == 0)
    ]
    return " or ".join(map(str, sizes[:4]))
