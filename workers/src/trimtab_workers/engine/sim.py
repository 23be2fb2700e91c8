"""An engine without tensors: real scheduler, controller and allocator on a virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab_workers.engine.runner import StepResult
from trimtab_workers.engine.sampling import Sampled
from trimtab_workers.engine.transfer import HostBlocks, SimTransfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trimtab_workers.engine.clock import Clock, VirtualClock
    from trimtab_workers.engine.config import EngineConfig, ModelSpec
    from trimtab_workers.engine.gate import LayerGate
    from trimtab_workers.engine.kv import Block, KvLayout
    from trimtab_workers.engine.parallel.ranks import Ranks
    from trimtab_workers.engine.scheduler import StepPlan
    from trimtab_workers.engine.tenants import Tenant
    from trimtab_workers.engine.transfer import TransferEngine
    from trimtab_workers.engine.weights.hostcopy import UnitSource

    Price = Callable[[ModelSpec, StepPlan], float]


class _SimCopy:
    """A host copy that holds nothing."""

    def __init__(self, *, unit_bytes: int, units: int) -> None:
        self.unit_bytes, self.units = unit_bytes, units


class SimRunner:
    """Lets a step's seconds pass layer by layer, so that streamed layers stall where they would."""

    def __init__(
        self, tenant: Tenant, *, clock: VirtualClock, price: Price, zero_block: Block
    ) -> None:
        self.gate: LayerGate | None = None
        self.layers: int | None = None
        self.zero_block = zero_block
        self._tenant = tenant
        self._clock = clock
        self._price = price

    def execute(self, plan: StepPlan) -> StepResult:
        """Advance the clock by the step's price; every sampled token is 0."""
        seconds, layers = self._price(self._tenant.spec, plan), self._tenant.unit.layers
        if self.gate is None:
            self._clock.advance(seconds)
        else:
            for layer in range(layers):
                self.gate.enter(layer)
                self._clock.advance(seconds / layers)
                self.gate.leave(layer)
        ends = [row.sequence for row in plan.rows if row.sample]
        return StepResult(tuple((sequence, Sampled(0)) for sequence in ends))

    def clear(self, blocks: Iterable[Block]) -> None:
        """Nothing to clear."""


class SimBackend:
    """Prices steps and copies.

    Args:
        clock: The engine's own.
        price: Seconds of one step of a model, without stalls for weights.
        link_rate: Bytes per second between host and device, each way.
        latency_seconds: Of each copy.
    """

    def __init__(
        self,
        clock: VirtualClock,
        *,
        price: Price,
        link_rate: float | None,
        latency_seconds: float = 0.0,
    ) -> None:
        self._clock = clock
        self._price = price
        self.transfer: TransferEngine = SimTransfer(
            clock, link_rate=link_rate, latency_seconds=latency_seconds
        )

    def allocate(self, *, slab_bytes: int, slabs: int, clock: Clock) -> None:
        """See `Backend.allocate`; takes nothing."""

    def load(self, tenant: Tenant, *, fixed_slab: int | None) -> None:
        """See `Backend.load`; reads nothing."""

    def keep(self, tenant: Tenant) -> UnitSource:
        """See `Backend.keep`; keeps nothing."""
        return _SimCopy(unit_bytes=tenant.unit_bytes, units=len(tenant.homes))

    def runner(
        self,
        tenant: Tenant,
        *,
        layout: KvLayout,
        zero_block: Block,
        config: EngineConfig,
        ranks: Ranks,
    ) -> SimRunner:
        """See `Backend.runner`."""
        del layout, config, ranks
        return SimRunner(tenant, clock=self._clock, price=self._price, zero_block=zero_block)

    def host_blocks(self, *, places: int, layout: KvLayout) -> HostBlocks:
        """See `Backend.host_blocks`."""
        return HostBlocks(places=places, layers=layout.layers, block_bytes=layout.block_bytes)

    def move_unit(self, tenant: Tenant, unit: int, *, slab: int) -> None:
        """See `Backend.move_unit`."""
