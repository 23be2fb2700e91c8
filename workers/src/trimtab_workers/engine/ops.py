"""What the remap controller sees and what it orders (docs/design/20261123-remap.md §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trimtab_workers.engine.kv import KvSlab
    from trimtab_workers.engine.types import TenantState

UnitState = Literal["resident", "lent", "loading", "streamed"]


@dataclass(frozen=True, slots=True)
class Grow:
    """A free slab becomes KV cache of a model."""

    model: str
    slab: int


@dataclass(frozen=True, slots=True)
class Lend:
    """An idle model's unit becomes KV cache of another; nothing is copied."""

    owner: str
    unit: int
    borrower: str


@dataclass(frozen=True, slots=True)
class Compact:
    """A model gives a KV slab up; what is live in it moves into its other slabs first."""

    model: str
    slab: int


@dataclass(frozen=True, slots=True)
class Preempt:
    """A model's youngest running sequence leaves, for host memory if there is room."""

    model: str
    to_host: bool


@dataclass(frozen=True, slots=True)
class Load:
    """A unit comes back to its home."""

    owner: str
    unit: int
    reason: Literal["wake", "revert"]


@dataclass(frozen=True, slots=True)
class SetAlpha:
    """A running model streams alpha + slots units, so that alpha homes are KV cache."""

    model: str
    alpha: int
    slots: int


Op = Grow | Lend | Compact | Preempt | Load | SetAlpha


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model as the controller sees it; blocks are all-layer blocks.

    Attributes:
        last_work_seconds: When it last had a request.
        units: State of each unit.
        homes: Slabs of each unit.
        lendable: Whether it has a host copy.
        floor_slabs: Slabs that it can always get back.
        blocks_per_slab: Blocks in one KV slab.
        kv: Its KV slabs; `used` counts the block of zeros.
        held: Blocks with holders, the one of zeros included.
        missing_running: Blocks that its next decodes lack.
        missing_waiting: Blocks that admitting its next requests lacks.
        victims: Blocks of its running sequences, youngest first, without the oldest; asked late,
            because counting takes time.
        alpha: Its streaming level.
    """

    name: str
    state: TenantState
    has_work: bool
    running: int
    waiting: int
    last_work_seconds: float
    units: Sequence[UnitState]
    homes: Sequence[Sequence[int]]
    lendable: bool
    floor_slabs: int
    blocks_per_slab: int
    kv: Mapping[int, KvSlab]
    held: int
    missing_running: int
    missing_waiting: int
    victims: Callable[[], Sequence[int]]
    alpha: int = 0
    unit_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaView:
    """The arena between two steps.

    Attributes:
        free: Free slabs of the pool.
        free_homes: Free slabs that are homes of lent units.
        home_of: Owner and unit of every slab that is a home.
    """

    free: Sequence[int]
    free_homes: Sequence[int]
    home_of: Mapping[int, tuple[str, int]]
    models: Mapping[str, ModelView]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What was measured.

    Attributes:
        decode_seconds: Per model, the 20th percentile of its decode-only steps of the last 2 s.
        link_rate: Bytes per second beside compute; None where there is no such link.
        switch_seconds: Mean of the last wakes; 0 before the first.
    """

    decode_seconds: Mapping[str, float]
    link_rate: float | None
    latency_seconds: float
    switch_seconds: float
