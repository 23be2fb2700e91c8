"""Runs a step's rows on a GPU: fused kernels between matrix products, decode steps as graphs.

The same interface as `runner.ModelRunner`, which is for the CPU. One synchronisation per step: the
copy of the chosen tokens. Rows are *not* independent of the batch here: cuBLAS chooses its kernel
by shape and attention its splits by bucket, so bits are compared at fixed shapes only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from trimtab_workers.engine.attention_cuda import (
    SlotTables,
    StepBatch,
    StepInputs,
    layer_views,
    mixed_batch,
)
from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.device import upload
from trimtab_workers.engine.graphs import GraphCache, GraphKey, Segment, spans
from trimtab_workers.engine.kernels.decode import splits_for
from trimtab_workers.engine.kernels.norm import add_norm, silu_mul
from trimtab_workers.engine.kernels.rotate import rotate_and_store
from trimtab_workers.engine.models.llama import rotation_table
from trimtab_workers.engine.runner import StepResult
from trimtab_workers.engine.sampling import NanLogitsError, Sampled, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Items

    from trimtab_workers.engine.graphs import LayerGate
    from trimtab_workers.engine.kv import Block, KvLayout
    from trimtab_workers.engine.linear import Linear
    from trimtab_workers.engine.models.llama import Layer
    from trimtab_workers.engine.models.shape import LlamaShape
    from trimtab_workers.engine.scheduler import StepPlan
    from trimtab_workers.engine.sequence import Sequence


class Decoder(Protocol):
    """What of a model the runner reads: plain tensors and products on one device."""

    shape: LlamaShape
    dtype: str
    embedding: Linear
    head: Linear
    norm: torch.Tensor
    layers: list[Layer]


class _State:
    """What passes from layer to layer: the residual stream and what is still to be added to it.

    Between the parts of a cut graph it keeps their tensors alive, hence their addresses.
    """

    __slots__ = ("batch", "delta", "logits", "x")

    def __init__(self, batch: StepBatch) -> None:
        self.batch = batch
        self.x = self.logits = torch.empty(0)
        self.delta: torch.Tensor | None = None


class CudaRunner:
    """Executes step plans for one model.

    Args:
        model: Its weights lie on the arena's device.
        name: Under which graphs are kept.
        layout: Where its blocks lie.
        arena: The whole arena in the KV type.
        max_positions: Longest context; fixes the width of slot tables.
        max_seqs: Largest decode batch.
        processors: Of the device.
        graphs: None runs every step eagerly.
        version: See `SlotTables`.
        widen: See `decode_attention`.

    Attributes:
        layers: Layers to run; None runs all (fingerprints stop early).
        gate: What streamed layers wait for; None while all are resident.
        graphs: Where decode steps are recorded; None runs them eagerly.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        name: str,
        layout: KvLayout,
        arena: torch.Tensor,
        max_positions: int,
        max_seqs: int,
        processors: int,
        graphs: GraphCache | None = None,
        version: Callable[[], int] = lambda: 0,
        widen: bool = False,
    ) -> None:
        self.model = model
        self.layers: int | None = None
        self.gate: LayerGate | None = None
        self._name = name
        self._views = layer_views(layout, arena)
        self._place = arena.device
        self._table = rotation_table(model.shape, positions=max_positions, dtype=model.dtype).to(
            self._place
        )
        self._norms = [_head_norms(layer) for layer in model.layers]
        self._tables = SlotTables(version)
        self._columns = -(-max_positions // BLOCK_TOKENS)
        self._max_seqs = max_seqs
        self._processors = processors
        self.graphs = graphs
        self._inputs: dict[int, tuple[StepInputs, _State]] = {}
        self._widen = widen

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's rows and sample where a sequence's end is reached.

        Raises:
            NanLogitsError: The logits are NaN; nothing was committed.
        """
        logits, sequences = self.logits(plan)
        return choose(logits, sequences) if sequences else StepResult(())

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> tuple[torch.Tensor, list[Sequence]]:
        """Compute a plan's rows; return float32 logits of those that end a sequence, and whose.

        After a decode step the logits are a buffer that the next such step overwrites.
        """
        if len(self._tables) > 2 * self._max_seqs:
            self._tables.keep_only([row.sequence for row in plan.rows])
        if not plan.prefill and self.graphs is not None and self.layers is None:
            return self._replay(plan, self.graphs), [row.sequence for row in plan.decode]
        batch = mixed_batch(
            plan.decode,
            plan.prefill,
            tables=self._tables,
            splits=self._splits(len(plan.decode)),
            place=self._place,
            widen=self._widen,
        )
        ends: list[int] = []
        sequences: list[Sequence] = []
        at = 0
        for row in plan.rows:
            at += row.count
            if row.sample:
                ends.append(at - 1)
                sequences.append(row.sequence)
        # Before the layers are launched: their end is not waited for.
        wanted = upload(ends, self._place)
        state = _State(batch)
        self._run_gated(state, len(self.model.layers[: self.layers]))
        if ends:
            self._finish(state, wanted)
        return state.logits, sequences

    def _splits(self, rows: int) -> int:
        return splits_for(
            batch=max(1, rows),
            kv_heads=self.model.shape.kv_heads,
            processors=self._processors,
            max_tokens=self._columns * BLOCK_TOKENS,
        )

    def _replay(self, plan: StepPlan, graphs: GraphCache) -> torch.Tensor:
        bucket = graphs.bucket(len(plan.decode))
        if bucket not in self._inputs:
            inputs = StepInputs(bucket, columns=self._columns, place=self._place)
            self._inputs[bucket] = (inputs, _State(self._decode_batch(inputs, bucket)))
        inputs, state = self._inputs[bucket]
        inputs.fill(plan.decode, self._tables)
        gate, layers = self.gate, len(self.model.layers)
        streamed = () if gate is None else tuple(filter(gate.cuts, range(layers)))
        graphs.run(
            GraphKey(model=self._name, streamed=streamed, batch=bucket),
            lambda: self._segments(state, inputs, rows=bucket, streamed=streamed),
        )
        return state.logits[: len(plan.decode)]

    def _segments(
        self, state: _State, inputs: StepInputs, *, rows: int, streamed: tuple[int, ...]
    ) -> list[Segment]:
        """Cut a step at the layers that stream; the last part ends with the logits."""
        last = len(self.model.layers) - 1

        def part(span: range) -> Segment:
            def work() -> None:
                if 0 in span:
                    # In the graph: what it computes of the inputs is computed at every replay.
                    state.batch = self._decode_batch(inputs, rows)
                self._run(state, span)
                if last in span:
                    self._finish(state, None)

            gate = self.gate if span[0] in streamed else None
            if gate is None:
                return Segment(work)
            return Segment(work, partial(gate.enter, span[0]), partial(gate.leave, span[0]))

        return [part(span) for span in spans(last + 1, streamed)]

    def _decode_batch(self, inputs: StepInputs, rows: int) -> StepBatch:
        return StepBatch(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            writes=inputs.writes,
            decodes=rows,
            slots=inputs.slots,
            splits=self._splits(rows),
            widen=self._widen,
        )

    def _run(self, state: _State, layers: Iterable[int]) -> None:
        """Run layers in order; the first one reads the embedding."""
        for index in layers:
            if index == 0:
                state.x, state.delta = self.model.embedding.rows(state.batch.token_ids), None
            self._layer(state, index)

    def _run_gated(self, state: _State, layers: int) -> None:
        for index in range(layers):
            if self.gate is not None:
                self.gate.enter(index)
            self._run(state, (index,))
            if self.gate is not None:
                self.gate.leave(index)

    def _layer(self, state: _State, index: int) -> None:
        shape, layer, batch = self.model.shape, self.model.layers[index], state.batch
        hidden = add_norm(state.x, state.delta, layer.attention_norm, eps=shape.norm_eps)
        queries = rotate_and_store(
            layer.qkv(hidden),
            view=self._views[index],
            writes=batch.writes,
            positions=batch.positions,
            table=self._table,
            norms=self._norms[index],
            eps=shape.norm_eps,
            heads=shape.heads,
        )
        mixed = layer.out(batch.attend(queries, self._views[index]))
        hidden = add_norm(state.x, mixed, layer.mlp_norm, eps=shape.norm_eps)
        state.delta = layer.down(silu_mul(layer.gate_up(hidden)))

    def _finish(self, state: _State, rows: torch.Tensor | None) -> None:
        """Turn the last layer's output into float32 logits, of some rows or of all."""
        x, delta = state.x, state.delta
        if rows is not None:
            x, delta = x[rows], None if delta is None else delta[rows]
        hidden = add_norm(x, delta, self.model.norm, eps=self.model.shape.norm_eps)
        state.logits = self.model.head(hidden).float()

    def clear(self, blocks: Iterable[Block]) -> None:
        """Zero blocks whose contents may be NaN before others reuse them."""
        slots = upload([block.slot for block in blocks], self._place)
        for view in self._views:
            view.index_fill_(0, slots, 0.0)


def choose(logits: torch.Tensor, sequences: Items[Sequence]) -> StepResult:
    """Sample the next token of each sequence, with one copy from the device.

    Greedy rows alone: the arg-max is taken there, and 8 bytes per row come back (token ids below
    2^24 are exact in float32). Otherwise all logits come, 4 bytes · vocabulary per row.

    Raises:
        NanLogitsError: A row has NaN.
    """
    if not all(sequence.params.plain_greedy for sequence in sequences):
        chosen = sample(logits.cpu(), sequences)
        return StepResult(tuple(zip(sequences, chosen, strict=True)))
    best, ids = logits.max(dim=-1)
    values, tokens = torch.stack((best, ids.float())).tolist()
    if any(value != value for value in values):  # noqa: PLR0124 - NaN differs from itself
        raise NanLogitsError("the model's logits are NaN")
    return StepResult(
        tuple((s, Sampled(int(token))) for s, token in zip(sequences, tokens, strict=True))
    )


def _head_norms(layer: Layer) -> torch.Tensor | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    return torch.stack((layer.q_norm, layer.k_norm))
