"""Tensors between ranks: gloo on CPU, NCCL on CUDA; and the matrices of one rank's part of a model.

Row- and column-parallel products (Megatron-LM, arXiv 1909.08053): qkv and gate-up need no exchange,
`o_proj` and `down_proj` are summed over the ranks of a stage, the vocabulary is looked up in parts
and its logits are gathered on the stage's first rank.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from trimtab_workers.engine.linear import Linear
from trimtab_workers.engine.memory import TORCH_DTYPES

if TYPE_CHECKING:
    from trimtab_workers.engine.models.llama import LlamaModel
    from trimtab_workers.engine.parallel.placement import Placement

JOIN_SECONDS = 60.0


class Collectives:
    """This process's membership in `torch.distributed`'s default group; one at a time.

    Args:
        placement: Of this rank.
        store: A file that does not exist, which all ranks can reach.
        device: `cpu` takes gloo, others NCCL.
    """

    def __init__(self, placement: Placement, *, store: str, device: str) -> None:
        # All ranks are in one pod: no address of the pod's network is used.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._place = placement
        dist.init_process_group(
            "gloo" if device == "cpu" else "nccl",
            store=FileStore(store, placement.size),
            rank=placement.rank,
            world_size=placement.size,
            timeout=timedelta(seconds=JOIN_SECONDS),
        )
        width = placement.tensor
        # Every rank takes part in making every group, also of stages that it is not in.
        for stage in range(placement.pipeline):
            group = dist.new_group(list(range(stage * width, (stage + 1) * width)))
            if stage == placement.stage and isinstance(group, dist.ProcessGroup):
                self._stage = group

    def sum(self, tensor: torch.Tensor) -> None:
        """Add a tensor over the ranks of this stage, in place."""
        if self._place.tensor > 1:
            dist.all_reduce(tensor, group=self._stage)

    def gather_columns(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the columns of all ranks of this stage on its first rank, None on others."""
        if self._place.tensor == 1:
            return tensor
        tensor = tensor.contiguous()
        first = self._place.shard == 0
        parts = [torch.empty_like(tensor) for _ in range(self._place.tensor)] if first else None
        dist.gather(tensor, parts, dst=self._place.stage * self._place.tensor, group=self._stage)
        return None if parts is None else torch.cat(parts, dim=-1)

    def to_next_stage(self, tensor: torch.Tensor) -> None:
        """Send rows to the rank with the same part in the next stage."""
        dist.send(tensor.contiguous(), self._place.rank + self._place.tensor)

    def from_previous_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill a tensor from the previous stage and return it."""
        dist.recv(tensor, self._place.rank - self._place.tensor)
        return tensor

    def to_first(self, tensor: torch.Tensor) -> None:
        """Send logits to rank 0."""
        dist.send(tensor.contiguous(), 0)

    def from_last_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fill a tensor with the last stage's logits and return it."""
        dist.recv(tensor, (self._place.pipeline - 1) * self._place.tensor)
        return tensor

    def leave(self) -> None:
        """End the membership; never waits for ranks that have gone."""
        if dist.is_initialized():
            dist.destroy_process_group()


class SummedLinear(Linear):
    """A product over this rank's columns, summed over the ranks of the stage."""

    __slots__ = ("_inner", "_ranks")

    def __init__(self, inner: Linear, ranks: Collectives) -> None:
        super().__init__(torch.empty(0))
        self._inner, self._ranks = inner, ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply rows; every rank of the stage has the same result."""
        result = self._inner(x)
        self._ranks.sum(result)
        return result


class SplitEmbedding(Linear):
    """Rows of a vocabulary whose parts lie on the ranks of the stage."""

    __slots__ = ("_first", "_held", "_inner", "_ranks")

    def __init__(self, inner: Linear, ranks: Collectives, *, first: int, held: int) -> None:
        super().__init__(torch.empty(0))
        self._inner, self._ranks, self._first, self._held = inner, ranks, first, held

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return the rows of token ids; exactly one rank adds what is not zero."""
        local = index - self._first
        elsewhere = (local < 0) | (local >= self._held)
        found = self._inner.rows(local.clamp(0, self._held - 1))
        found = found.masked_fill(elsewhere[:, None], 0.0)
        self._ranks.sum(found)
        return found


class GatheredHead(Linear):
    """Logits of all ranks on the stage's first one, padding cut off; a rank's own on others."""

    __slots__ = ("_inner", "_ranks", "_vocabulary")

    def __init__(self, inner: Linear, ranks: Collectives, *, vocabulary: int) -> None:
        super().__init__(torch.empty(0))
        self._inner, self._ranks, self._vocabulary = inner, ranks, vocabulary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply rows."""
        own = self._inner(x)
        gathered = self._ranks.gather_columns(own)
        return own if gathered is None else gathered[:, : self._vocabulary]


class FromPreviousStage(Linear):
    """Hidden states of the stage before, where the first stage looks up an embedding."""

    __slots__ = ("_kind", "_ranks", "_width")

    def __init__(self, ranks: Collectives, *, width: int, kind: torch.dtype) -> None:
        super().__init__(torch.empty(0))
        self._ranks, self._width, self._kind = ranks, width, kind

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return as many rows as there are token ids, which the first stage has looked at."""
        return self._ranks.from_previous_stage(
            torch.empty(len(index), self._width, dtype=self._kind)
        )


def connect(model: LlamaModel, ranks: Collectives, placement: Placement) -> None:
    """Let a loaded model's products exchange what its forward pass needs of other ranks."""
    if placement.stage > 0:
        kind = TORCH_DTYPES[model.dtype]
        model.embedding = FromPreviousStage(ranks, width=model.shape.hidden, kind=kind)
    if placement.tensor == 1:
        return
    held = model.shape.vocabulary_rows
    first = placement.shard * held
    if placement.stage == 0:
        model.embedding = SplitEmbedding(model.embedding, ranks, first=first, held=held)
    model.head = GatheredHead(model.head, ranks, vocabulary=model.shape.vocab)
    for layer in model.layers:
        layer.out = SummedLinear(layer.out, ranks)
        layer.down = SummedLinear(layer.down, ranks)
