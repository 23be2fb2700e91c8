"""Runs a step's rows through one model: one forward pass for all sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trimtab_workers.engine.attention import AttentionPlan
from trimtab_workers.engine.models.llama import MIN_ROWS, rotation_table
from trimtab_workers.engine.native.forward import NativeForward
from trimtab_workers.engine.sampling import Sampled, sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab_workers.engine.gate import LayerGate
    from trimtab_workers.engine.kv import Block, KvLayout
    from trimtab_workers.engine.models.llama import LlamaModel
    from trimtab_workers.engine.scheduler import StepPlan
    from trimtab_workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepResult:
    """Next tokens of the sequences whose rows reached their end."""

    sampled: tuple[tuple[Sequence, Sampled], ...]


class ModelRunner:
    """Executes step plans for one model.

    Attributes:
        layers: Layers to run; None runs all (fingerprints stop early).
        gate: What layers wait for whose weights are on their way; None if none are.
        zero_block: A block of zeros, which padding reads; its slot may change between steps.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        layout: KvLayout,
        arena: torch.Tensor,
        zero_block: Block,
        max_positions: int,
        threads: int = 1,
        native: bool = True,
    ) -> None:
        self.model = model
        self.layers: int | None = None
        self._layout = layout
        self._arena = arena
        self.zero_block = zero_block
        self.gate: LayerGate | None = None
        self._native = (
            NativeForward.open(
                model, layout=layout, arena=arena, positions=max_positions, threads=threads
            )
            if native
            else None
        )
        self._rotation = (
            rotation_table(model.shape, positions=max_positions, dtype=model.dtype)
            if self._native is None
            else torch.empty(0)
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's rows and sample where a sequence's end is reached.

        Raises:
            NanLogitsError: The logits are NaN; nothing was committed.
        """
        ends, sequences = ends_of(plan)
        if self._native is not None and self._native.has_head and ends:
            return self._execute_native(self._native, plan, ends, sequences)
        hidden = self.hidden_states(plan)
        if not ends:
            return StepResult(())
        padding = [ends[-1]] * max(0, MIN_ROWS - len(ends))
        logits = self.model.logits(hidden[torch.tensor(ends + padding)])[: len(ends)]
        return StepResult(tuple(zip(sequences, sample(logits, sequences), strict=True)))

    def _execute_native(
        self, native: NativeForward, plan: StepPlan, ends: list[int], sequences: list[Sequence]
    ) -> StepResult:
        native.gate = self.gate
        if all(sequence.params.plain_greedy for sequence in sequences):
            tokens = native.greedy(plan, ends, layers=self.layers)
            return StepResult(tuple(zip(sequences, map(Sampled, tokens), strict=True)))
        logits = native.logits(plan, ends, layers=self.layers)
        return StepResult(tuple(zip(sequences, sample(logits, sequences), strict=True)))

    @torch.inference_mode()
    def hidden_states(self, plan: StepPlan) -> torch.Tensor:
        """Compute and store keys and values, return hidden states [rows (padded), hidden]."""
        if self._native is not None:
            self._native.gate = self.gate
            states = self._native.hidden_states(plan, layers=self.layers)
            return states.to(self.model.norm.dtype)
        token_ids: list[int] = []
        positions: list[int] = []
        for row in plan.rows:
            end = row.start + row.count
            token_ids += row.sequence.tokens[row.start : end]
            positions += range(row.start, end)
        padding = [0] * max(0, MIN_ROWS - len(token_ids))
        cos, sin = self._rotation[:, torch.tensor(positions + padding)]
        attention = AttentionPlan(
            decode=plan.decode,
            prefill=plan.prefill,
            layout=self._layout,
            arena=self._arena,
            zero_slot=self.zero_block.slot,
            heads=self.model.shape.heads,
        )
        return self.model.forward(
            torch.tensor(token_ids + padding),
            rotation=(cos, sin),
            attention=attention,
            layers=self.layers,
            gate=self.gate,
        )

    def clear(self, blocks: Iterable[Block]) -> None:
        """Zero blocks whose contents may be NaN before others reuse them."""
        slots = torch.tensor([block.slot for block in blocks], dtype=torch.int64)
        for layer in range(self._layout.layers):
            self._layout.view(self._arena, layer).index_fill_(0, slots, 0.0)


def ends_of(plan: StepPlan) -> tuple[list[int], list[Sequence]]:
    """Return the rows of a batch after which a token is sampled, and their sequences."""
    ends: list[int] = []
    sequences: list[Sequence] = []
    at = 0
    for row in plan.rows:
        at += row.count
        if row.sample:
            ends.append(at - 1)
            sequences.append(row.sequence)
    return ends, sequences
