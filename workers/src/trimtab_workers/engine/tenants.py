"""One model in the engine: its state, its memory, its scheduler and runner."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab_workers.engine.arena import UnitShape
from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.faults import without_frames
from trimtab_workers.engine.kv import KvLayout
from trimtab_workers.engine.models.llama import fixed_bytes, layer_bytes
from trimtab_workers.engine.windows import StepWindows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Thread

    from trimtab_workers.engine.backend import Runner
    from trimtab_workers.engine.config import ModelSpec
    from trimtab_workers.engine.errors import EngineError
    from trimtab_workers.engine.metrics import Lack, ModelMetrics
    from trimtab_workers.engine.models.llama import LlamaModel
    from trimtab_workers.engine.models.shape import LlamaShape
    from trimtab_workers.engine.ops import UnitState
    from trimtab_workers.engine.scheduler import Scheduler
    from trimtab_workers.engine.streaming import UnitGate
    from trimtab_workers.engine.tokenizer import Tokenizer
    from trimtab_workers.engine.transfer import HostBlocks, TransferEngine
    from trimtab_workers.engine.types import TenantState
    from trimtab_workers.engine.weights.checkpoint import Checkpoint
    from trimtab_workers.engine.weights.hostcopy import UnitSource

log = logging.getLogger(__name__)

FAILURES_UNTIL_FAILED = 3


@dataclass(slots=True, eq=False)
class Tenant:
    """A model of the set; `scheduler` and `runner` exist once it was loaded.

    Attributes:
        homes: Slabs of each unit.
        units: Where each unit's weights are.
        floor_slabs: Slabs that it can always get back; they hold its longest sequence.
        fixed_outside: Bytes of its fixed region that lie outside of the arena.
        alpha: Units whose homes are KV although it runs; they stream with `slots` others.
        slots: Units whose homes serve as slots.
        loader: Thread that loads it while others serve.
        wake_began_seconds: When its wake began; None while it does not wake.
        decode_steps: (end, seconds) of its last decode-only steps.
        lacks: What the policy promises and this model does not have, with the reason.
        failures: Failed batches in a row; three make the model Failed.
        served: Whether it was Resident once.
    """

    spec: ModelSpec
    metrics: ModelMetrics
    state: TenantState = "Loading"
    error: EngineError | None = None
    checkpoint: Checkpoint | None = None
    tokenizer: Tokenizer | None = None
    scheduler: Scheduler | None = None
    runner: Runner | None = None
    max_model_len: int = 0
    failures: int = 0
    served: bool = False
    drain_until_seconds: float | None = None
    model: LlamaModel | None = None
    windows: StepWindows = field(default_factory=StepWindows)
    homes: list[Sequence[int]] = field(default_factory=list)
    units: list[UnitState] = field(default_factory=list)
    layers_per_unit: int = 1
    copy: UnitSource | None = None
    host_blocks: HostBlocks | None = None
    lacks: dict[str, str] = field(default_factory=dict)
    floor_slabs: int = 0
    fixed_outside: int = 0
    alpha: int = 0
    slots: tuple[int, ...] = ()
    gate: UnitGate | None = None
    loader: Thread | None = None
    last_work_seconds: float = 0.0
    wake_began_seconds: float | None = None
    decode_steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=512))

    @property
    def usable(self) -> bool:
        """Whether new requests may come."""
        return self.state in {"Resident", "Lent", "Waking"}

    @property
    def steps(self) -> bool:
        """Whether it has work that a step could do now."""
        ready = self.state in {"Resident", "Draining"} and "lent" not in self.units
        if ready and self.state == "Draining" and "loading" in self.units:
            ready = self._coming()
        return ready and self.scheduler is not None and self.scheduler.has_work

    def _coming(self) -> bool:
        """Whether the gate waits for every unit that loads; a queued load has no ticket yet."""
        tickets = {} if self.gate is None else self.gate.tickets
        return all(u in tickets for u, state in enumerate(self.units) if state == "loading")

    def lack(self, what: Lack, *, reason: str) -> None:
        """Note, log and show that a part of the policy is off for this model, never silently."""
        self.lacks[what] = reason
        self.metrics.lacks(what)
        log.warning("policy_off", extra={"model": self.spec.name, "what": what, "reason": reason})

    def drop_surplus(self, transfer: TransferEngine) -> None:
        """Give the memory above its swap share back: models that joined count on it.

        Over a link a swap may still read or write a place that is free already, so nothing is
        given back there.
        """
        if transfer.link_rate is not None:
            return
        host = None if self.scheduler is None else self.scheduler.host
        if host is not None and self.host_blocks is not None:
            self.host_blocks.drop(host.take_surplus())

    def let_go(self) -> None:
        """Drop everything that holds memory, and all that it counted on."""
        self.scheduler = self.runner = self.model = None
        self.copy = self.host_blocks = self.gate = None
        self.homes, self.units, self.slots = [], [], ()
        self.floor_slabs = self.fixed_outside = self.alpha = 0
        self.wake_began_seconds = None

    @property
    def failed_serving(self) -> bool:
        """Whether it was Resident once and failed later; one that failed to load never was."""
        return self.state == "Failed" and self.served

    @property
    def shape(self) -> LlamaShape:
        """The opened checkpoint's shape."""
        return self.opened.shape

    @property
    def opened(self) -> Checkpoint:
        """The checkpoint; see `shape`."""
        if self.checkpoint is None:
            raise ValueError(
                f"Model {self.spec.name} is not opened; this is a bug, please report it."
            )
        return self.checkpoint

    @property
    def unit_bytes(self) -> int:
        """Bytes of weights in one home."""
        return self.layers_per_unit * self.unit.layer_bytes

    def layout(self, slab_bytes: int) -> KvLayout:
        """Return where its KV blocks lie in slabs."""
        shape = self.shape
        return KvLayout(
            slab_bytes=slab_bytes,
            block_bytes=self.unit.block_bytes,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )

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
        self.state = state
        self.error = None if error is None else without_frames(error)
        self.served |= state == "Resident"
        self.show_state()

    def show_state(self) -> None:
        """Bring the gauges of state and layers up to date."""
        layers = {"resident": 0, "streamed": 0, "lent": 0, "loading": 0}
        depth = 0 if self.checkpoint is None else self.shape.layers
        for layer in range(depth):
            if self.units:
                layers[self.units[layer // self.layers_per_unit]] += 1
            elif self.state == "Loading":
                layers["loading"] += 1
        self.metrics.state(self.state, layers=layers)
