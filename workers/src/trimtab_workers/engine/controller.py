"""Which slab is whose: decided between steps, from figures alone (engine.md §5).

A model that lacks blocks gets, in this order: free slabs, slabs of models without work (their
cached prefixes go), units of idle models, and, below its floor, slabs of models above theirs.
Then a running model's units stream, if the policy says so and that stays hidden. What is left is
the scheduler's: swap, recompute.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.planning.remap import hidden_bound, slots_for
from trimtab_workers.engine.ops import Compact, Grow, Lend, Load, Preempt, SetAlpha

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab_workers.engine.config import LendOrder, Policy
    from trimtab_workers.engine.ops import ArenaView, ModelView, Op, StepStats

DWELL_SECONDS = 2.0
LOW_USE = 0.75
THRASH_WINDOW = 8
THRASH_MULTIPLE = 4.0
THRASH_WAIT_SECONDS = 1.0
THRASH_HOLD_SECONDS = 30.0
LEVELS = (0, 1, 2, 4, 8)


@dataclass(slots=True)
class _Books:
    """A model's slabs and blocks as they will be after the orders given so far."""

    view: ModelView
    kv: dict[int, int]
    total: int
    held: int
    resident: list[int]
    victims: list[int] | None = None

    @classmethod
    def of(cls, view: ModelView) -> _Books:
        return cls(
            view=view,
            kv={index: slab.used for index, slab in view.kv.items()},
            total=view.blocks_per_slab * len(view.kv),
            held=view.held,
            resident=[u for u, state in enumerate(view.units) if state == "resident"],
        )

    @property
    def idle(self) -> bool:
        return not self.view.has_work

    def fits_without(self, slab: int) -> bool:
        """Whether what is held fits into the other slabs; the block of zeros goes with the last."""
        if len(self.kv) == 1:
            return self.held <= 1
        del slab
        return self.held <= self.total - self.view.blocks_per_slab

    def give(self, slab: int) -> None:
        del self.kv[slab]
        self.total -= self.view.blocks_per_slab
        if not self.kv:
            self.held = 0

    def take(self, slab: int) -> None:
        if not self.kv:
            self.held = 1
        self.kv[slab] = 0
        self.total += self.view.blocks_per_slab

    def next_victim(self) -> int | None:
        if self.victims is None:
            self.victims = list(self.view.victims())
        return self.victims.pop(0) if self.victims else None


@dataclass(slots=True)
class _Draft:
    arena: ArenaView
    books: dict[str, _Books]
    free: list[int]
    free_homes: list[int]
    ops: list[Op] = field(default_factory=list)
    wanted: set[int] = field(default_factory=set)


class RemapController:
    """Turns what a step lacks into orders.

    Attributes:
        thrash_holds: Wakes that were held back because models alternate too fast.
    """

    def __init__(
        self, *, policy: Policy, lend_order: LendOrder, min_resident_units: int, active_cap: float
    ) -> None:
        self._policy = policy
        self._order = lend_order
        self._min_resident = min_resident_units
        self._active_cap = active_cap
        self._switches: deque[float] = deque(maxlen=THRASH_WINDOW)
        self._wait_until: dict[str, float] = {}
        self._hold_until: dict[str, float] = {}
        self._low_since: dict[str, float] = {}
        self._last_grow = float("-inf")
        self.thrash_holds = 0

    def decide(self, view: ArenaView, stats: StepStats, now: float) -> list[Op]:
        """Return what to do before the next step, in order.

        Args:
            view: The arena and every model.
            stats: What was measured.
            now: Seconds on the engine's clock.
        """
        draft = _Draft(
            arena=view,
            books={name: _Books.of(model) for name, model in view.models.items()},
            free=list(view.free),
            free_homes=list(view.free_homes),
        )
        waking = [m for m in view.models.values() if self._wakes(m, stats, now)]
        for model in waking:
            self._reclaim(draft, model)
        for model in waking:
            self._load(draft, model)
        serving = [
            draft.books[m.name]
            for m in view.models.values()
            if m.state in {"Resident", "Waking", "Draining"} or m in waking
        ]
        for books in serving:
            self._supply(draft, books, books.view.missing_running, must=True, stats=stats, now=now)
        for books in serving:
            must = books.view.running == 0
            self._supply(draft, books, books.view.missing_waiting, must=must, stats=stats, now=now)
        if any(isinstance(op, Grow | Lend | SetAlpha) for op in draft.ops):
            self._last_grow = now
        elif not draft.ops:
            self._revert(draft, now)
        return draft.ops

    def clear(self, view: ArenaView, slabs: Iterable[int]) -> list[Op]:
        """Return what to do so that KV slabs of the pool become free, for a model that joins."""
        draft = _Draft(
            arena=view,
            books={name: _Books.of(model) for name, model in view.models.items()},
            free=[slab for slab in view.free if slab not in set(slabs)],
            free_homes=list(view.free_homes),
            wanted=set(slabs),
        )
        for books in draft.books.values():
            for slab in [slab for slab in books.kv if slab in draft.wanted]:
                self._empty(draft, books, slab)
        return draft.ops

    def forget(self, name: str) -> None:
        """Drop what is remembered of a model that goes; one that comes back begins anew."""
        for memory in (self._wait_until, self._hold_until, self._low_since):
            memory.pop(name, None)

    # -- wake ----------------------------------------------------------------------------------

    def _wakes(self, model: ModelView, stats: StepStats, now: float) -> bool:
        if model.state in {"Waking", "Draining"}:  # a lent one that is removed answers first
            return "lent" in model.units
        if model.state != "Lent" or not model.has_work:
            self._wait_until.pop(model.name, None)
            return False
        until = self._wait_until.get(model.name)
        if until is None:
            if self._thrashes(stats, now):
                self.thrash_holds += 1
                self._wait_until[model.name] = now + THRASH_WAIT_SECONDS
                self._hold_until[model.name] = now + THRASH_HOLD_SECONDS
                return False
        elif now < until:
            return False
        self._wait_until.pop(model.name, None)
        self._switches.append(now)
        return True

    def due_seconds(self, now: float) -> float | None:
        """Return the seconds until the next held wake may begin; None if none is held."""
        return min((end - now for end in self._wait_until.values() if end > now), default=None)

    def switch_interval(self, now: float) -> float | None:
        """Return the mean seconds between the last wakes; None while there were fewer than two."""
        if len(self._switches) < 2 or now <= self._switches[0]:
            return None
        return (now - self._switches[0]) / len(self._switches)

    def _thrashes(self, stats: StepStats, now: float) -> bool:
        if len(self._switches) < THRASH_WINDOW or not stats.switch_seconds:
            return False
        mean = (now - self._switches[0]) / len(self._switches)
        return mean < THRASH_MULTIPLE * stats.switch_seconds

    def _reclaim(self, draft: _Draft, model: ModelView) -> None:
        """Empty the homes of a waking model's lent units, in layer order."""
        for unit, state in enumerate(model.units):
            if state == "lent":
                draft.wanted.update(model.homes[unit])
        draft.free_homes = [slab for slab in draft.free_homes if slab not in draft.wanted]
        for books in draft.books.values():
            for slab in [slab for slab in books.kv if slab in draft.wanted]:
                self._empty(draft, books, slab)

    def _load(self, draft: _Draft, model: ModelView) -> None:
        held = {slab for books in draft.books.values() for slab in books.kv}
        for unit, state in enumerate(model.units):
            if state == "lent" and held.isdisjoint(model.homes[unit]):
                draft.ops.append(Load(model.name, unit, "wake"))

    # -- slabs ---------------------------------------------------------------------------------

    def _empty(self, draft: _Draft, books: _Books, slab: int) -> bool:
        """Order that a slab becomes free, at whatever price; the oldest sequence keeps running."""
        while not books.fits_without(slab):
            more = self._cheap_slab(draft)
            if more is not None:
                self._grow(draft, books, more)
                continue
            freed = books.next_victim()
            if freed is None:
                if not self._from_richer(draft, books):
                    return False
                continue
            draft.ops.append(Preempt(books.view.name, to_host=self._policy.swap))
            books.held -= freed
        draft.ops.append(Compact(books.view.name, slab))
        books.give(slab)
        return True

    def _grow(self, draft: _Draft, books: _Books, slab: int) -> None:
        draft.ops.append(Grow(books.view.name, slab))
        books.take(slab)

    def _cheap_slab(self, draft: _Draft) -> int | None:
        """Return a slab that costs no running sequence anything, or None."""
        if draft.free:
            return draft.free.pop(0)
        for books in draft.books.values():
            if books.idle and books.held <= 1:
                mine = _movable(draft, books)
                if mine:
                    # The block of zeros moves with the last slab, so others go before it.
                    slab = min(mine, key=lambda index: (books.kv[index], index))
                    if not books.fits_without(slab):
                        continue
                    draft.ops.append(Compact(books.view.name, slab))
                    books.give(slab)
                    return slab
        if self._policy.lend and draft.free_homes:
            return draft.free_homes.pop(0)
        return None

    def _from_richer(self, draft: _Draft, books: _Books) -> bool:
        """Take a slab for a model below its floor from one above its own."""
        if _stays(draft, books) >= books.view.floor_slabs:
            return False
        richer = [
            other
            for other in draft.books.values()
            if other is not books and _stays(draft, other) > other.view.floor_slabs
        ]
        for other in sorted(richer, key=lambda o: o.view.floor_slabs - len(o.kv)):
            mine = _movable(draft, other)
            if not mine:
                continue
            slab = min(mine, key=lambda i: (i in draft.arena.home_of, other.kv[i]))
            if self._empty(draft, other, slab):
                self._grow(draft, books, slab)
                return True
        return False

    # -- the ladder ----------------------------------------------------------------------------

    def _supply(
        self,
        draft: _Draft,
        books: _Books,
        blocks: int,
        *,
        must: bool,
        stats: StepStats,
        now: float,
    ) -> None:
        """Get slabs for blocks that a model lacks, as far as the policy goes."""
        per_slab = books.view.blocks_per_slab
        if blocks > 0 and not books.kv:
            blocks += 1  # of zeros
        while blocks > 0:
            slab = self._cheap_slab(draft)
            if slab is not None:
                self._grow(draft, books, slab)
                blocks -= per_slab
                continue
            lent = self._lend(draft, books, now)
            if lent:
                blocks -= lent * per_slab
                continue
            if must and self._from_richer(draft, books):
                blocks -= per_slab
                continue
            self._raise(draft, books.view, stats)
            return

    def _lend(self, draft: _Draft, borrower: _Books, now: float) -> int:
        """Lend the next idle unit, last ones first; return how many slabs that gave."""
        if not self._policy.lend:
            return 0
        idle = [
            books
            for books in draft.books.values()
            if books is not borrower
            and books.idle
            and books.view.lendable
            and books.view.alpha == 0
            and books.view.state in {"Resident", "Lent"}
            and len(books.resident) > self._min_resident
            and now >= self._hold_until.get(books.view.name, now)
        ]
        if not idle:
            return 0
        owner = self._first(idle)
        unit = owner.resident.pop()
        draft.ops.append(Lend(owner.view.name, unit, borrower.view.name))
        for slab in owner.view.homes[unit]:
            borrower.take(slab)
        return len(owner.view.homes[unit])

    def _first(self, idle: Iterable[_Books]) -> _Books:
        if self._order == "largest":
            return max(idle, key=lambda b: len(b.resident) * b.view.unit_bytes)
        if self._order == "lru":
            return min(idle, key=lambda b: b.view.last_work_seconds)
        return max(idle, key=lambda b: b.view.last_work_seconds)

    # -- active streaming ----------------------------------------------------------------------

    def _raise(self, draft: _Draft, model: ModelView, stats: StepStats) -> None:
        """Stream one level more if reading it stays hidden behind a decode-only step."""
        if not self._policy.active or not model.lendable or model.state != "Resident":
            return
        if any(isinstance(op, SetAlpha) and op.model == model.name for op in draft.ops):
            return
        if set(model.units) - {"resident", "streamed"}:
            return
        higher = [level for level in LEVELS if level > model.alpha]
        if higher and higher[0] <= self._active_cap * len(model.units):
            slots = hidden_slots(model, stats, alpha=higher[0])
            if slots:
                draft.ops.append(SetAlpha(model.name, higher[0], slots))

    # -- revert --------------------------------------------------------------------------------

    def _revert(self, draft: _Draft, now: float) -> None:
        """Give one borrowed unit back where KV use has been low for long enough."""
        ripe: list[_Books] = []
        for books in draft.books.values():
            name = books.view.name
            room = books.total - books.view.blocks_per_slab
            if books.held <= LOW_USE * room or (not books.kv and not books.held):
                since = self._low_since.setdefault(name, now)
                if now - since >= DWELL_SECONDS:
                    ripe.append(books)
            else:
                self._low_since.pop(name, None)
        if now - self._last_grow < DWELL_SECONDS:
            return
        if draft.free_homes:
            owner, unit = draft.arena.home_of[draft.free_homes[0]]
            if set(draft.arena.models[owner].homes[unit]) <= set(draft.free_homes):
                draft.ops.append(Load(owner, unit, "revert"))
                return
        for books in ripe:
            streams = books.view.alpha and books.view.state != "Failed"
            if streams and not self._policy.streamed:
                lower = max(level for level in LEVELS if level < books.view.alpha)
                slots = 1 if lower else 0
                draft.ops.append(SetAlpha(books.view.name, lower, slots))
                return
            borrowed = [s for s in books.kv if s in draft.arena.home_of]
            foreign = [s for s in borrowed if draft.arena.home_of[s][0] != books.view.name]
            if foreign:
                self._give_back(draft, min(foreign, key=lambda s: books.kv[s]))
                return

    def _give_back(self, draft: _Draft, slab: int) -> None:
        owner, unit = draft.arena.home_of[slab]
        homes = draft.arena.models[owner].homes[unit]
        holders = [(b, s) for b in draft.books.values() for s in homes if s in b.kv]
        if any(not books.fits_without(one) for books, one in holders):
            return
        for books, one in holders:
            draft.ops.append(Compact(books.view.name, one))
            books.give(one)
        draft.ops.append(Load(owner, unit, "revert"))


def _stays(draft: _Draft, books: _Books) -> int:
    """Count a model's KV slabs without those that a waking model waits for."""
    return len(books.kv.keys() - draft.wanted)


def _movable(draft: _Draft, books: _Books) -> list[int]:
    """KV slabs that may change hands: none that a waking model waits for, no streamed unit's."""
    homes, name = draft.arena.home_of, books.view.name
    return [
        slab
        for slab in books.kv
        if slab not in draft.wanted and (slab not in homes or homes[slab][0] != name)
    ]


def hidden_slots(model: ModelView, stats: StepStats, *, alpha: int) -> int:
    """Return with how many slots a level stays hidden in a decode-only step, 0 if it does not."""
    bound = bound_of(model, stats, alpha=alpha)
    if bound is None:
        return 0
    slots, most = bound
    return slots if alpha + slots <= most else 0


def bound_of(model: ModelView, stats: StepStats, *, alpha: int) -> tuple[int, float] | None:
    """Return (slots, hidden units) at a level; None without a link or measured steps."""
    step = stats.decode_seconds.get(model.name)
    if stats.link_rate is None or not step:
        return None
    transfer = stats.latency_seconds + model.unit_bytes / stats.link_rate
    layer = step / len(model.units)
    slots = slots_for(max(1, alpha), transfer, layer)
    return slots, hidden_bound(step_s=step, transfer_s=transfer, layer_s=layer, slots=slots)
