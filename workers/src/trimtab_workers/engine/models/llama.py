"""Llama-like decoders (Llama, SmolLM2, Mistral, Qwen2, Qwen3) over views into slabs.

No nn.Module: a layer is a handful of tensors that `bind` points into the arena. Projections are
fused (qkv, gate-up), so a layer is four matrix products.

Rows do not depend on their neighbours: the CPU kernels behind `linear` and attention give every
row the same bits for any number of rows of at least MIN_ROWS, so callers pad up to that
(docs/benchmarks/engine-exactness.md has what was measured).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from trimtab.planning.precision import compute_precision, matrix_bytes, value_bytes
from trimtab_workers.engine.errors import ModelCorruptError
from trimtab_workers.engine.linear import Linear, pack_in_place
from trimtab_workers.engine.memory import TORCH_DTYPES, allocate
from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.quant import store

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.engine.attention import AttentionPlan
    from trimtab_workers.engine.gate import LayerGate
    from trimtab_workers.engine.models.shape import LlamaShape
    from trimtab_workers.engine.weights.checkpoint import Checkpoint

MIN_ROWS = 4


def layer_bytes(shape: LlamaShape, precision: str) -> int:
    """Bytes that one layer's matrices take in its home, scales included."""
    return sum(matrix_bytes(rows, cols, precision=precision) for rows, cols in _pieces(shape))


def fixed_bytes(shape: LlamaShape, precision: str) -> int:
    """Bytes outside slabs: embedding, head, norms, biases; bf16 where layers are quantised."""
    return shape.fixed_elements * value_bytes(precision)


def _pieces(shape: LlamaShape) -> list[tuple[int, int]]:
    """Shapes of qkv, o, gate-up, down, in the order they lie in a home."""
    d, ff = shape.hidden, shape.intermediate
    return [(shape.qkv_rows, d), (d, shape.heads * shape.head_dim), (2 * ff, d), (d, ff)]


@dataclass(slots=True)
class Layer:
    """One layer's weights; the four matrices are views into its home."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


class LlamaModel:
    """A decoder whose layers live in slabs.

    `home(offset_bytes, size_bytes)` callables, one per layer, give the bytes to live in;
    `fixed(size_bytes)` gives those of everything else, new memory if it is None.

    Attributes:
        precision: Of the layers' matrices, as configured.
        dtype: Of everything else: embedding, head, norms, activations, KV cache.
    """

    def __init__(
        self,
        shape: LlamaShape,
        *,
        precision: str,
        homes: list[Callable[[int, int], torch.Tensor]],
        fixed: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        self.shape = shape
        self._fixed = fixed
        self.precision = precision
        self.dtype = compute_precision(precision)
        self._homes = homes
        self.layers: list[Layer] = []
        self.embedding = Linear(torch.empty(0))
        self.head = self.embedding
        self.norm = torch.empty(0)

    def load(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint into the homes and the fixed region, one tensor at a time."""
        shapes = tensor_shapes(self.shape)
        kind = TORCH_DTYPES[self.dtype]

        def read(name: str) -> torch.Tensor:
            tensor = checkpoint.tensor(name)
            if tuple(tensor.shape) != shapes[name]:
                raise ModelCorruptError(
                    f"{checkpoint.where}: tensor {name} has shape {tuple(tensor.shape)}, but the "
                    f"configuration asks for {shapes[name]}. Fetch the checkpoint again."
                )
            return tensor

        take = self._fixed or allocate

        def fixed(*names: str) -> torch.Tensor:
            tensor = read(names[0]) if len(names) == 1 else torch.cat([read(n) for n in names])
            copy = take(tensor.numel() * kind.itemsize).view(kind).view(tensor.shape)
            return copy.copy_(tensor)

        if self.shape.tied:
            embedding = fixed("model.embed_tokens.weight")
            self.embedding = self.head = pack_in_place(embedding)
        if self.shape.embeds and not self.shape.tied:
            self.embedding = Linear(fixed("model.embed_tokens.weight"))
        if self.shape.has_head:
            if not self.shape.tied:
                self.head = pack_in_place(fixed("lm_head.weight"))
            self.norm = fixed("model.norm.weight")
        self.layers = [self._load_layer(index, read, fixed) for index in range(self.shape.layers)]

    def _load_layer(
        self,
        index: int,
        read: Callable[[str], torch.Tensor],
        fixed: Callable[..., torch.Tensor],
    ) -> Layer:
        prefix = f"model.layers.{index}"
        sources = (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        )
        bias = None
        if self.shape.qkv_bias:
            names = tuple(f"{prefix}.self_attn.{x}_proj.bias" for x in "qkv")
            bias = fixed(*names)
        linears: list[Linear] = []
        offset = 0
        for matrix, names in zip(_pieces(self.shape), sources, strict=True):
            size = matrix_bytes(*matrix, precision=self.precision)
            linears.append(
                store(
                    self._homes[index](offset, size),
                    (read(f"{prefix}.{name}.weight") for name in names),
                    shape=matrix,
                    precision=self.precision,
                    bias=None if linears else bias,
                )
            )
            offset += size
        qkv, out, gate_up, down = linears
        layer = Layer(
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            attention_norm=fixed(f"{prefix}.input_layernorm.weight"),
            mlp_norm=fixed(f"{prefix}.post_attention_layernorm.weight"),
        )
        if self.shape.qk_norm:
            layer.q_norm = fixed(f"{prefix}.self_attn.q_norm.weight")
            layer.k_norm = fixed(f"{prefix}.self_attn.k_norm.weight")
        return layer

    def move_layer(self, index: int, home: Callable[[int, int], torch.Tensor]) -> None:
        """Read a layer's matrices elsewhere from now on; the bytes there are the caller's care."""
        layer = self.layers[index]
        moved: list[Linear] = []
        offset = 0
        linears = (layer.qkv, layer.out, layer.gate_up, layer.down)
        for linear, matrix in zip(linears, _pieces(self.shape), strict=True):
            size = matrix_bytes(*matrix, precision=self.precision)
            moved.append(linear.at(home(offset, size)))
            offset += size
        qkv, out, gate_up, down = moved
        self.layers[index] = dataclasses.replace(
            layer, qkv=qkv, out=out, gate_up=gate_up, down=down
        )

    def forward(
        self,
        token_ids: torch.Tensor,
        *,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attention: AttentionPlan,
        layers: int | None = None,
        gate: LayerGate | None = None,
    ) -> torch.Tensor:
        """Compute hidden states after the last layer, before the final norm.

        Args:
            token_ids: int64, shape [rows], rows ≥ MIN_ROWS.
            rotation: Cosines and signed sines, shape [rows, 1, head_dim].
            attention: What each row attends to.
            layers: Stop after this many, for fingerprints; None runs all.
            gate: What layers wait for whose weights are on their way; None if none are.

        Returns:
            Shape [rows, hidden].
        """
        x = self.embedding.rows(token_ids)
        for index, layer in enumerate(self.layers[:layers]):
            if gate is not None:
                gate.enter(index)
            x = self._run_layer(x, layer, index=index, rotation=rotation, attention=attention)
            if gate is not None:
                gate.leave(index)
        return x

    def _run_layer(
        self,
        x: torch.Tensor,
        layer: Layer,
        *,
        index: int,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attention: AttentionPlan,
    ) -> torch.Tensor:
        """Compute one layer; its temporaries die here, so that peak memory knows no depth."""
        shape, (cos, sin) = self.shape, rotation
        q_cols = shape.heads * shape.head_dim
        rotated = (shape.heads + shape.kv_heads) * shape.head_dim
        hidden = self._normed(x, layer.attention_norm)
        qkv = layer.qkv(hidden)
        heads = qkv[:, :rotated].view(len(x), -1, shape.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            self._norm_heads(heads, layer.q_norm, layer.k_norm)
        swapped = heads.roll(shape.head_dim // 2, dims=-1)
        heads.mul_(cos).add_(swapped.mul_(sin))
        mixed = attention.attend(
            index,
            qkv[:, :q_cols].view(len(x), shape.heads, shape.head_dim),
            qkv[:, q_cols:].view(len(x), 2, shape.kv_heads, shape.head_dim),
        )
        x = x + layer.out(mixed)
        hidden = self._normed(x, layer.mlp_norm)
        gate, up = layer.gate_up(hidden).chunk(2, dim=-1)
        return x + layer.down(functional.silu(gate).mul_(up))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn hidden states, shape [rows, hidden], into float32 logits [rows, vocab]."""
        return self.head(self._normed(hidden, self.norm)).float()

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.shape.norm_eps)

    def _norm_heads(self, heads: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> None:
        for part, weight in ((heads[:, : self.shape.heads], q), (heads[:, self.shape.heads :], k)):
            part.copy_(self._normed(part, weight))


def rotation_table(shape: LlamaShape, *, positions: int, dtype: str) -> torch.Tensor:
    """Return rotary cosines and signed sines, shape [2, positions, 1, head_dim].

    The sine's first half is negated, so that a rotation is x·cos + roll(x, d/2)·sin.
    """
    inverse = shape.rope_theta ** -(
        torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    )
    if shape.rope_scaling is not None:
        inverse = _llama3_frequencies(shape, inverse)
    angles = torch.outer(torch.arange(positions).float(), inverse)
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
    return table.unsqueeze(2).to(TORCH_DTYPES[dtype])


def _llama3_frequencies(shape: LlamaShape, inverse: torch.Tensor) -> torch.Tensor:
    scaling = shape.rope_scaling
    if scaling is None:
        return inverse
    wavelength = 2 * math.pi / inverse
    ratio = scaling.original_max_positions / wavelength
    spread = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = ((ratio - scaling.low_freq_factor) / spread).clamp(0.0, 1.0)
    return inverse / scaling.factor * (1 - smooth) + inverse * smooth
