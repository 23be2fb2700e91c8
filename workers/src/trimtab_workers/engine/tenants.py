"""One model in the engine: its state, its memory, its scheduler and runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab_workers.engine.arena import UnitShape, slabs_for_weights
from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.errors import EngineError, OutOfMemoryError
from trimtab_workers.engine.kv import DeviceBlockManager, KvLayout
from trimtab_workers.engine.models.llama import LlamaModel, fixed_bytes, layer_bytes
from trimtab_workers.engine.scheduler import Scheduler
from trimtab_workers.engine.windows import StepWindows

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.config import EngineConfig, ModelSpec
    from trimtab_workers.engine.memory import ArenaMemory
    from trimtab_workers.engine.metrics import ModelMetrics
    from trimtab_workers.engine.models.shape import LlamaShape
    from trimtab_workers.engine.parallel.ranks import Ranks
    from trimtab_workers.engine.runner import ModelRunner
    from trimtab_workers.engine.tokenizer import Tokenizer
    from trimtab_workers.engine.types import TenantState
    from trimtab_workers.engine.weights.checkpoint import Checkpoint

FAILURES_UNTIL_FAILED = 3


@dataclass(slots=True, eq=False)
class Tenant:
    """A model of the set; `scheduler` and `runner` exist while it is Resident or Draining.

    Attributes:
        failures: Failed batches in a row; three make the model Failed.
    """

    spec: ModelSpec
    metrics: ModelMetrics
    state: TenantState = "Loading"
    error: EngineError | None = None
    checkpoint: Checkpoint | None = None
    tokenizer: Tokenizer | None = None
    scheduler: Scheduler | None = None
    runner: ModelRunner | None = None
    max_model_len: int = 0
    failures: int = 0
    drain_until_seconds: float | None = None
    model: LlamaModel | None = None
    windows: StepWindows = field(default_factory=StepWindows)

    @property
    def usable(self) -> bool:
        """Whether new requests may come."""
        return self.state in {"Resident", "Lent", "Waking"}

    @property
    def failed_serving(self) -> bool:
        """Whether it was Resident once and failed later; one that failed to load never was."""
        return self.state == "Failed" and self.scheduler is not None

    @property
    def shape(self) -> LlamaShape:
        """The opened checkpoint's shape."""
        if self.checkpoint is None:
            raise ValueError(
                f"Model {self.spec.name} is not opened; this is a bug, please report it."
            )
        return self.checkpoint.shape

    @property
    def unit(self) -> UnitShape:
        """What the model asks of a slab."""
        return UnitShape(
            layer_bytes=layer_bytes(self.shape, self.spec.dtype),
            layers=self.shape.layers,
            block_bytes=self.shape.kv_bytes_per_token_layer(self.spec.dtype) * BLOCK_TOKENS,
        )

    @property
    def fixed_bytes(self) -> int:
        """Bytes outside the arena."""
        return fixed_bytes(self.shape, self.spec.dtype)

    def set_state(self, state: TenantState, error: EngineError | None = None) -> None:
        """Change the state, with the reason if it is Failed."""
        self.state, self.error = state, error
        self.metrics.state(state, layers=0 if self.checkpoint is None else self.shape.layers)

    def claim(self, arena: Arena, memory: ArenaMemory) -> None:
        """Take slabs for the weights.

        Raises:
            OutOfMemoryError: They do not fit; names bytes needed and free.
        """
        unit = self.unit
        per_slab = max(1, arena.slab_bytes // unit.layer_bytes)
        spans = slabs_for_weights(unit, arena.slab_bytes)
        homes = -(-unit.layers // per_slab)
        starts = arena.claim_weights(
            self.spec.name, homes=homes, slabs_per_home=max(1, spans // homes)
        )
        self.model = LlamaModel(
            self.shape,
            precision=self.spec.dtype,
            homes=[
                _home(
                    memory,
                    slab=starts[layer // per_slab],
                    base_bytes=layer % per_slab * unit.layer_bytes,
                )
                for layer in range(unit.layers)
            ],
        )

    def open_cache(
        self,
        arena: Arena,
        memory: ArenaMemory,
        *,
        slabs: int,
        config: EngineConfig,
        ranks: Ranks,
    ) -> None:
        """Take slabs for the KV cache and build scheduler and runner on them.

        Raises:
            OutOfMemoryError: Not even two blocks fit; names bytes.
        """
        if self.model is None:
            raise ValueError(
                f"Model {self.spec.name} has no slabs; this is a bug, please report it."
            )
        shape, unit = self.shape, self.unit
        layout = KvLayout(
            slab_bytes=arena.slab_bytes,
            block_bytes=unit.block_bytes,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        taken = arena.claim_kv(self.spec.name, slabs=slabs)
        slots = [slot for slab in taken for slot in layout.slots(slab)]
        if len(slots) < 3:
            raise OutOfMemoryError(
                f"Model {self.spec.name}: its weights fit, but {len(taken)} slabs of "
                f"{arena.slab_bytes} bytes are left for its KV cache and 1 with 3 blocks of "
                f"{BLOCK_TOKENS} tokens is the least. Raise memory_bytes."
            )
        memory.zero(taken)
        # Padding reads this block and nobody writes it.
        zero_slot = slots.pop(0)
        blocks = DeviceBlockManager(slots, caching=config.prefix_caching)
        pool_tokens = len(slots) * BLOCK_TOKENS
        self.max_model_len = min(config.max_model_len or shape.max_positions, shape.max_positions)
        self.max_model_len = min(self.max_model_len, pool_tokens)
        self.scheduler = Scheduler(
            blocks,
            model=self.spec.name,
            max_batch_tokens=config.max_batch_tokens,
            max_seqs=config.max_seqs,
            watermark=config.watermark,
        )
        self.runner = ranks.runner(
            self.spec.name,
            model=self.model,
            layout=layout,
            arena=memory.flat(self.model.dtype),
            zero_slot=zero_slot,
            max_positions=self.max_model_len,
            threads=config.threads,
            native=config.native,
        )
        self.metrics.cache(
            blocks=blocks.capacity,
            block_tokens=BLOCK_TOKENS,
            slab_bytes=arena.slab_bytes,
            pressure=config.pressure,
        )


def _home(memory: ArenaMemory, *, slab: int, base_bytes: int) -> Callable[[int, int], torch.Tensor]:
    def give(offset_bytes: int, size_bytes: int) -> torch.Tensor:
        return memory.home(slab, offset_bytes=base_bytes + offset_bytes, size_bytes=size_bytes)

    return give
