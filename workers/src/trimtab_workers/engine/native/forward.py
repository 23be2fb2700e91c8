"""A model's step as one call into the C kernels, where they apply; the reference is torch."""

from __future__ import annotations

import ctypes
import logging
from array import array
from typing import TYPE_CHECKING

import torch

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.gate import pieces
from trimtab_workers.engine.models.llama import rotation_table
from trimtab_workers.engine.native.library import (
    KINDS,
    LANES,
    NAN_LOGITS,
    LayerTable,
    Matrix,
    Model,
    Step,
    library,
    pool,
)
from trimtab_workers.engine.quant import CodesLinear
from trimtab_workers.engine.sampling import NanLogitsError

if TYPE_CHECKING:
    from trimtab_workers.engine.gate import LayerGate
    from trimtab_workers.engine.kv import KvLayout
    from trimtab_workers.engine.linear import Linear
    from trimtab_workers.engine.models.llama import Layer, LlamaModel
    from trimtab_workers.engine.scheduler import StepPlan

log = logging.getLogger(__name__)

_KINDS = {torch.float32: KINDS["fp32"], torch.bfloat16: KINDS["bf16"]}
_UNKNOWN = -1  # no kernel reads it; tt_check_model says so


class NativeForward:
    """Runs step plans of one model on the addresses where its weights and KV cache lie.

    The KV cache's bytes are in the kernels' own order inside a block (forward.c), so a model runs
    either here or on torch for as long as its cache lives.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        layout: KvLayout,
        arena: torch.Tensor,
        positions: int,
        threads: int,
    ) -> None:
        shape = model.shape
        kernels, handle = library(), pool(threads)
        if kernels is None or handle is None:
            raise ValueError("NativeForward needs the compiled kernels; call `open` instead.")
        self._kernels, self._pool, self._threads = kernels, handle, threads
        self._source = model
        # The kernels hold addresses only; these keep what is behind them alive.
        self._alive: list[torch.Tensor] = [arena]
        self._layers = (LayerTable * shape.layers)()
        self.gate: LayerGate | None = None
        self._bound: list[Layer | None] = [None] * shape.layers
        self._behind: list[list[torch.Tensor]] = [[] for _ in range(shape.layers)]
        rotation = rotation_table(shape, positions=positions, dtype="fp32")
        self._model = Model(
            layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            intermediate=shape.intermediate,
            vocab=shape.vocab,
            positions=positions,
            kind=KINDS[model.dtype],
            eps=shape.norm_eps,
            kv_rows=arena.nbytes // layout.block_bytes,
            kv_layer_rows=layout.blocks_per_slab,
            kv=arena.data_ptr(),
            cosine=_address(rotation[0], self._alive),
            sine=_address(rotation[1], self._alive),
            norm=_address(model.norm.float(), self._alive),
            embedding=_matrix(model.embedding, self._alive),
            layer=self._layers,
        )
        head = _matrix(model.head, self._alive)
        self.has_head = head.block > 0
        if self.has_head:
            self._model.head = head
        for index in range(shape.layers):
            self._bind(index)

    @classmethod
    def open(
        cls,
        model: LlamaModel,
        *,
        layout: KvLayout,
        arena: torch.Tensor,
        positions: int,
        threads: int,
    ) -> NativeForward | None:
        """Return a forward for a loaded model; None where the kernels are absent or do not apply."""
        kernels = library()
        if kernels is None or pool(threads) is None or model.dtype not in KINDS or arena.is_cuda:
            return None
        made = cls(model, layout=layout, arena=arena, positions=positions, threads=threads)
        if kernels.tt_check_model(made._model):
            log.info(
                "native_not_used",
                extra={"reason": f"sizes are no multiples of {LANES}", "instead": "torch"},
            )
            return None
        return made

    def _bind(self, index: int) -> None:
        """Point the table at a layer's weights, which may have moved since the last step."""
        layer = self._source.layers[index]
        if self._bound[index] is layer:
            return
        behind: list[torch.Tensor] = []
        self._layers[index] = LayerTable(
            qkv=_matrix(layer.qkv, behind),
            out=_matrix(layer.out, behind),
            gate_up=_matrix(layer.gate_up, behind),
            down=_matrix(layer.down, behind),
            attention_norm=_address(layer.attention_norm.float(), behind),
            mlp_norm=_address(layer.mlp_norm.float(), behind),
            q_norm=None if layer.q_norm is None else _address(layer.q_norm.float(), behind),
            k_norm=None if layer.k_norm is None else _address(layer.k_norm.float(), behind),
        )
        self._bound[index], self._behind[index] = layer, behind

    def greedy(self, plan: StepPlan, ends: list[int], *, layers: int | None) -> list[int]:
        """Run a plan and return the most likely next token after each row of `ends`.

        Raises:
            NanLogitsError: Logits are NaN.
        """
        best = array("i", bytes(4 * len(ends)))
        self._run(plan, layers=layers, ends=ends, best=best)
        return best.tolist()

    def logits(self, plan: StepPlan, ends: list[int], *, layers: int | None) -> torch.Tensor:
        """Run a plan and return float32 logits, shape [len(ends), vocab]; NaN is not looked for."""
        logits = torch.empty(len(ends), self._source.shape.vocab)
        self._run(plan, layers=layers, ends=ends, logits=logits)
        return logits

    def hidden_states(self, plan: StepPlan, *, layers: int | None) -> torch.Tensor:
        """Run a plan and return float32 hidden states before the final norm, [rows, hidden]."""
        scratch, rows = self._run(plan, layers=layers, ends=[])
        hidden = self._source.shape.hidden
        # The residual stream comes first in the scratch memory, which torch aligns to 64 bytes.
        return scratch[: rows * hidden * 4].view(torch.float32).view(rows, hidden)

    def _piece(self, step: Step, waits_for: int | None) -> int:
        """Run the step's layers; returns tt_step's status."""
        if self.gate is not None and waits_for is not None:
            self.gate.enter(waits_for)
        status: int = self._kernels.tt_step(
            self._pool, ctypes.byref(self._model), ctypes.byref(step)
        )
        if self.gate is not None and waits_for is not None:
            self.gate.leave(waits_for)
        return status

    def _run(
        self,
        plan: StepPlan,
        *,
        layers: int | None,
        ends: list[int],
        best: array[int] | None = None,
        logits: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, int]:
        tokens, segments, tables = array("i"), array("i"), array("i")
        longest = 0
        for row in plan.rows:
            sequence, end = row.sequence, row.start + row.count
            used = -(-end // BLOCK_TOKENS)
            segments.extend((len(tokens), row.count, row.start, len(tables)))
            if row.count == 1:
                tokens.append(sequence.tokens[row.start])
            else:
                tokens.extend(sequence.tokens[row.start : end])
            tables.extend([block.slot for block in sequence.blocks[:used]])
            longest = max(longest, end)
        sample = array("i", ends)
        size = self._kernels.tt_scratch_bytes(
            self._model, len(tokens), len(ends), len(plan.rows), longest, self._threads
        )
        scratch = torch.empty(size, dtype=torch.uint8)
        depth = self._source.shape.layers
        depth = depth if layers is None else min(layers, depth)
        step = Step(
            rows=len(tokens),
            segments=len(plan.rows),
            table_length=len(tables),
            tokens=tokens.buffer_info()[0],
            segment=segments.buffer_info()[0],
            tables=tables.buffer_info()[0],
            sample=sample.buffer_info()[0],
            scratch=scratch.data_ptr(),
            scratch_bytes=size,
            logits=None if logits is None else logits.data_ptr(),
            best=None if best is None else best.buffer_info()[0],
        )
        for index in range(depth):
            self._bind(index)
        status = 0
        for first, last, waits in pieces(depth, self.gate):
            step.first, step.last, step.samples = first, last, len(ends) if last == depth else 0
            status = self._piece(step, first if waits else None)
            if status:
                break
        if status == NAN_LOGITS:
            raise NanLogitsError("the model's logits are NaN")
        if status:
            raise RuntimeError(
                f"The native forward refused a step with status {status}; this is a bug, please "
                "report it with your model set."
            )
        return scratch, len(tokens)


def _address(tensor: torch.Tensor, alive: list[torch.Tensor]) -> int:
    tensor = tensor.contiguous()
    alive.append(tensor)
    return tensor.data_ptr()


def _matrix(linear: Linear, alive: list[torch.Tensor]) -> Matrix:
    if isinstance(linear, CodesLinear):
        return linear.described(alive)
    memory, block = linear.memory
    alive.append(memory)
    if block:
        out, inner = memory.shape[0] * block, memory.shape[1] * memory.shape[3]
    else:
        out, inner = memory.shape
    return Matrix(
        data=memory.data_ptr(),
        bias=None if linear.bias is None else _address(linear.bias.float(), alive),
        out=out,
        inner=inner,
        block=block,
        kind=_KINDS.get(memory.dtype, _UNKNOWN),
    )
