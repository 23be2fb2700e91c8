"""Everything of an engine that touches bytes, so that the rest runs without (engine.md §9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trimtab_workers.engine.memory import ArenaMemory
from trimtab_workers.engine.models.llama import LlamaModel
from trimtab_workers.engine.transfer import CpuTransfer, HostBlocks
from trimtab_workers.engine.weights.hostcopy import HostCopy, UnitSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.config import EngineConfig
    from trimtab_workers.engine.gate import LayerGate
    from trimtab_workers.engine.kv import Block, KvLayout
    from trimtab_workers.engine.parallel.ranks import Ranks
    from trimtab_workers.engine.runner import StepResult
    from trimtab_workers.engine.scheduler import StepPlan
    from trimtab_workers.engine.tenants import Tenant
    from trimtab_workers.engine.transfer import TransferEngine

_ALIGN = 64


class Runner(Protocol):
    """Computes one model's steps.

    Attributes:
        gate: What layers wait for whose weights are on their way; None if none are.
        layers: Layers to run; None runs all.
        zero_block: A block of zeros, which padding may read.
    """

    layers: int | None
    gate: LayerGate | None
    zero_block: Block

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan's rows and sample where a sequence's end is reached."""
        ...

    def clear(self, blocks: Iterable[Block]) -> None:
        """Zero blocks whose contents may be NaN before others reuse them."""
        ...


class Backend(Protocol):
    """Memory, weights, forward passes and copies of one device.

    Attributes:
        transfer: Exists once the arena does.
    """

    transfer: TransferEngine

    def allocate(self, *, slab_bytes: int, slabs: int, clock: Clock) -> None:
        """Take the arena's memory."""
        ...

    def load(self, tenant: Tenant, *, fixed_slab: int | None) -> None:
        """Read a model's weights into its homes.

        Args:
            tenant: Its homes are its own.
            fixed_slab: Where embedding, head and norms go; None outside of the arena.
        """
        ...

    def keep(self, tenant: Tenant) -> UnitSource:
        """Copy a loaded model's homes into host memory.

        Raises:
            HostCopyError: There is no room.
        """
        ...

    def runner(
        self,
        tenant: Tenant,
        *,
        layout: KvLayout,
        zero_block: Block,
        config: EngineConfig,
        ranks: Ranks,
    ) -> Runner:
        """Return what computes a loaded model's steps."""
        ...

    def host_blocks(self, *, places: int, layout: KvLayout) -> HostBlocks:
        """Return host memory for swapped blocks, taken from the system as it is used.

        Raises:
            HostCopyError: The system refuses so much.
        """
        ...

    def move_unit(self, tenant: Tenant, unit: int, *, slab: int) -> None:
        """Let a unit's layers be read from another slab from now on."""
        ...


class CpuBackend:
    """Serves on the CPU.

    Args:
        link_rate: Bytes per second of a modelled link between host copy and arena; None for the
            CPU's own memory.
        latency_seconds: Of each copy over that link.
        poison: Fill every slab with NaN before a unit is loaded into it (tests).
        suppress_copies: Count copies but make none (tests that a test would notice).

    Attributes:
        memory: The arena's bytes, once allocated.
    """

    def __init__(
        self,
        *,
        link_rate: float | None = None,
        latency_seconds: float = 0.0,
        poison: bool = False,
        suppress_copies: bool = False,
    ) -> None:
        self._link = link_rate, latency_seconds
        self._poison, self._suppress = poison, suppress_copies
        self.memory: ArenaMemory
        self.transfer: TransferEngine

    def allocate(self, *, slab_bytes: int, slabs: int, clock: Clock) -> None:
        """See `Backend.allocate`."""
        self.memory = ArenaMemory(slab_bytes=slab_bytes, slabs=slabs)
        rate, latency = self._link
        self.transfer = CpuTransfer(
            self.memory,
            clock,
            link_rate=rate,
            latency_seconds=latency,
            poison=self._poison,
            suppress=self._suppress,
        )

    def load(self, tenant: Tenant, *, fixed_slab: int | None) -> None:
        """See `Backend.load`."""
        checkpoint = tenant.opened
        tenant.model = LlamaModel(
            checkpoint.shape,
            precision=tenant.spec.dtype,
            homes=[
                self._layer_home(tenant, layer, tenant.homes[layer // tenant.layers_per_unit][0])
                for layer in range(checkpoint.shape.layers)
            ],
            fixed=None if fixed_slab is None else self._bump(fixed_slab),
        )
        tenant.model.load(checkpoint)
        checkpoint.close()

    def _layer_home(
        self, tenant: Tenant, layer: int, slab: int
    ) -> Callable[[int, int], torch.Tensor]:
        base = layer % tenant.layers_per_unit * tenant.unit.layer_bytes

        def give(offset_bytes: int, size_bytes: int) -> torch.Tensor:
            return self.memory.home(slab, offset_bytes=base + offset_bytes, size_bytes=size_bytes)

        return give

    def _bump(self, slab: int) -> Callable[[int], torch.Tensor]:
        """Hand out memory from a slab on, piece after piece."""
        at = 0

        def give(size_bytes: int) -> torch.Tensor:
            nonlocal at
            piece = self.memory.home(slab, offset_bytes=at, size_bytes=size_bytes)
            at += -(-size_bytes // _ALIGN) * _ALIGN
            return piece

        return give

    def keep(self, tenant: Tenant) -> HostCopy:
        """See `Backend.keep`."""
        copy = HostCopy(
            model=tenant.spec.name, unit_bytes=tenant.unit_bytes, units=len(tenant.homes)
        )
        for unit, home in enumerate(tenant.homes):
            copy.write(unit, self.memory.bytes_from(home[0], tenant.unit_bytes))
        copy.seal()
        return copy

    def runner(
        self,
        tenant: Tenant,
        *,
        layout: KvLayout,
        zero_block: Block,
        config: EngineConfig,
        ranks: Ranks,
    ) -> Runner:
        """See `Backend.runner`."""
        if tenant.model is None:
            raise ValueError(
                f"Model {tenant.spec.name} is not loaded; this is a bug, please report it."
            )
        return ranks.runner(
            tenant.spec.name,
            model=tenant.model,
            layout=layout,
            arena=self.memory.flat(tenant.model.dtype),
            zero_block=zero_block,
            max_positions=tenant.max_model_len,
            threads=config.threads,
            native=config.native,
        )

    def host_blocks(self, *, places: int, layout: KvLayout) -> HostBlocks:
        """See `Backend.host_blocks`."""
        blocks = HostBlocks(places=places, layers=layout.layers, block_bytes=layout.block_bytes)
        blocks.reserve()
        return blocks

    def move_unit(self, tenant: Tenant, unit: int, *, slab: int) -> None:
        """See `Backend.move_unit`."""
        if tenant.model is None:
            return
        first = unit * tenant.layers_per_unit
        for layer in range(first, min(first + tenant.layers_per_unit, tenant.unit.layers)):
            tenant.model.move_layer(layer, self._layer_home(tenant, layer, slab))
