"""One model with random weights on a device, without the engine around it.

Weights are drawn where they will lie: drawing 16 GB on the host would take longer than the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.kv import DeviceBlockManager, KvLayout
from trimtab_workers.engine.linear import Linear
from trimtab_workers.engine.memory import TORCH_DTYPES
from trimtab_workers.engine.models.llama import Layer
from trimtab_workers.engine.runner_cuda import CudaRunner
from trimtab_workers.engine.scheduler import Row, StepPlan
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.transfer_cuda import CudaTransfer
from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from trimtab_workers.engine.device import Device
    from trimtab_workers.engine.graphs import GraphCache
    from trimtab_workers.engine.models.shape import LlamaShape

_ALIGN_BYTES = 2 << 20
_STANDARD_DEVIATION = 0.02


@dataclass(slots=True)
class RandomDecoder:
    """What `CudaRunner` reads of a model."""

    shape: LlamaShape
    dtype: str
    embedding: Linear
    head: Linear
    norm: torch.Tensor
    layers: list[Layer]


class Rig:
    """A model, its KV cache and its runner; one layer per slab.

    Args:
        device: Where everything lies.
        kv_tokens: Least capacity of the KV cache.
        spare_slabs: Slabs beyond weights and KV, for slots of streamed layers.
        max_context: Longest sequence.
        seed: Of the weights.
        widen: Interpreted kernels need it.

    Attributes:
        slots: First slabs that belong to nobody.
    """

    def __init__(
        self,
        device: Device,
        shape: LlamaShape,
        *,
        kv_tokens: int,
        dtype: str = "bf16",
        spare_slabs: int = 0,
        max_context: int = 8192,
        max_seqs: int = 64,
        graphs: GraphCache | None = None,
        assumed_link_rate: float = 50e9,
        align_bytes: int = _ALIGN_BYTES,
        seed: int = 0,
        widen: bool = False,
    ) -> None:
        self.device, self.shape = device, shape
        self._kind = TORCH_DTYPES[dtype]
        block_bytes = 2 * BLOCK_TOKENS * shape.kv_heads * shape.head_dim * self._kind.itemsize
        align = math.lcm(align_bytes, block_bytes)
        layer_bytes = shape.layer_elements * self._kind.itemsize
        self.slab_bytes = -(-max(layer_bytes, shape.layers * block_bytes) // align) * align
        self.layout = KvLayout(
            slab_bytes=self.slab_bytes,
            block_bytes=block_bytes,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        per_slab = self.layout.blocks_per_slab * BLOCK_TOKENS
        first_kv, kv_slabs = shape.layers, -(-(kv_tokens + 16) // per_slab)
        self.slots = list(range(first_kv + kv_slabs, first_kv + kv_slabs + spare_slabs))
        slabs = first_kv + kv_slabs + spare_slabs
        self.arena = torch.empty(slabs * self.slab_bytes, dtype=torch.uint8, device=device.place)
        self._generator = torch.Generator(device.place).manual_seed(seed)
        self._flat = self.arena.view(self._kind)
        self._fill_cache(first_kv, kv_slabs)
        self.model = self._draw(dtype)
        self.runner = CudaRunner(
            self.model,
            name="rig",
            layout=self.layout,
            arena=self._flat,
            max_positions=max_context,
            max_seqs=max_seqs,
            processors=device.processors,
            graphs=graphs,
            widen=widen,
        )
        self.transfer = CudaTransfer(
            device,
            arena=self.arena,
            slab_bytes=self.slab_bytes,
            assumed_link_rate=assumed_link_rate,
        )
        kv = range(first_kv, first_kv + kv_slabs)
        self.blocks = DeviceBlockManager(caching=False)
        for slab in kv:
            self.blocks.grow(slab, self.layout.slots(slab))

    def _fill_cache(self, first: int, slabs: int) -> None:
        """Give sequences a past without computing it; zeros would read as fast, and hide errors."""
        per_slab = self.slab_bytes // self._kind.itemsize
        self._flat[first * per_slab : (first + slabs) * per_slab].normal_(generator=self._generator)

    def _random(self, *shape: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=self._kind, device=self.device.place)
        return tensor.normal_(0.0, _STANDARD_DEVIATION, generator=self._generator)

    def _draw(self, dtype: str) -> RandomDecoder:
        shape = self.shape
        for index in range(shape.layers):
            self.home(index).normal_(0.0, _STANDARD_DEVIATION, generator=self._generator)
        ones = torch.ones(shape.hidden, dtype=self._kind, device=self.device.place)
        embedding = Linear(self._random(shape.vocab, shape.hidden))
        return RandomDecoder(
            shape=shape,
            dtype=dtype,
            embedding=embedding,
            head=embedding if shape.tied else Linear(self._random(shape.vocab, shape.hidden)),
            norm=ones,
            layers=[self.layer_at(index) for index in range(shape.layers)],
        )

    def home(self, slab: int) -> torch.Tensor:
        """Return a slab's weights as one dimension."""
        start = slab * self.slab_bytes // self._kind.itemsize
        return self._flat[start : start + self.shape.layer_elements]

    def layer_at(self, slab: int) -> Layer:
        """Return a layer whose matrices lie in a slab, whatever it holds."""
        shape, home = self.shape, self.home(slab)
        views: list[Linear] = []
        at = 0
        for rows, columns in (
            (shape.qkv_rows, shape.hidden),
            (shape.hidden, shape.heads * shape.head_dim),
            (2 * shape.intermediate, shape.hidden),
            (shape.hidden, shape.intermediate),
        ):
            views.append(Linear(home[at : at + rows * columns].view(rows, columns)))
            at += rows * columns
        qkv, out, gate_up, down = views
        ones = torch.ones(shape.hidden, dtype=self._kind, device=self.device.place)
        return Layer(
            qkv=qkv, out=out, gate_up=gate_up, down=down, attention_norm=ones, mlp_norm=ones
        )

    def host_copy(
        self, layers: tuple[int, ...], *, place: torch.device | None = None
    ) -> torch.Tensor:
        """Return some layers' bytes, shape [layers, layer bytes], on the host and not pinned."""
        host = torch.empty(
            len(layers),
            self.shape.layer_elements * self._kind.itemsize,
            dtype=torch.uint8,
            device=place,
        )
        for row, layer in zip(host, layers, strict=True):
            row.copy_(self.home(layer).view(torch.uint8))
        return host

    def sequence(self, tokens: list[int], *, computed: int = 0) -> Sequence:
        """Return a sequence with blocks for one more token than it has.

        Raises:
            ValueError: The cache is full.
        """
        sequence = Sequence(
            request=Request(
                request_id="rig",
                model="rig",
                prompt_token_ids=(0,),
                params=SamplingParams(temperature=0.0, ignore_eos=True),
            ),
            sink=lambda _: None,
            tokens=tokens,
            prompt_length=len(tokens),
            limit=1 << 30,
            seed=0,
            arrival_seconds=0.0,
        )
        taken = self.blocks.allocate(sequence.blocks_for(len(tokens) + 1))
        if taken is None:
            raise ValueError(
                f"Rig: {len(tokens) + 1} tokens do not fit into {self.blocks.available} free blocks "
                f"of {BLOCK_TOKENS}. Raise kv_tokens."
            )
        sequence.blocks, sequence.computed = taken, computed
        return sequence

    def release(self, sequences: list[Sequence]) -> None:
        """Give sequences' blocks back."""
        for sequence in sequences:
            self.blocks.release(sequence.blocks)
            sequence.blocks = []


def decode_plan(sequences: list[Sequence]) -> StepPlan:
    """Return a step that computes every sequence's last token."""
    return StepPlan(decode=tuple(Row(s, len(s.tokens) - 1, 1) for s in sequences))


def prefill_plan(sequence: Sequence, *, first: int, count: int) -> StepPlan:
    """Return a step that computes one chunk."""
    return StepPlan(prefill=(Row(sequence, first, count),))
