"""One simulated replica: the engine's scheduler in counts, so that a step costs the same for 1 and 256 sequences.

Only what happens to a request by itself touches it: admission, its prompt's chunks, its end, its preemption. Method by
method this is `trimtab_workers.engine.scheduler`; contract C1 holds the two together.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from trimtab.planning.queue_blocks import BlockLedger
from trimtab.planning.queue_group import DecodingGroup, Request
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.step_tables import StepTables
from trimtab.planning.workload import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A step, or several equal ones in one jump, as an observer sees it.

    Attributes:
        steps: Engine steps; each after the first has the same sequences, one token longer.
        end_us: When the last of them is over.
        decodes: Decoding sequences.
        kv_tokens: Their tokens in the first step.
        chunks: (request, tokens computed before, tokens) of each prompt's part.
        preempted: Requests that lost their blocks at its beginning.
        running: Sequences that hold blocks.
        waiting: Requests that do not.
    """

    start_us: float
    end_us: float
    steps: int
    decodes: int
    kv_tokens: int
    chunks: tuple[tuple[int, int, int], ...]
    preempted: tuple[int, ...]
    running: int
    waiting: int


@dataclass(slots=True, kw_only=True)
class Progress:
    """What all replicas of a simulation have used of its budget of events."""

    max_events: int | None = None
    single_steps: bool = False
    events: int = 0
    steps: int = 0


@dataclass(slots=True)
class _Draft:
    """The next step while it is put together."""

    budget: int
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    joining: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    swapped_in: int = 0


# What a jump adds to decoding; nothing is ever put into it.
_NOTHING: Final = _Draft(0)


class QueueReplica:
    """An engine with one model, as far as time and blocks go.

    Attributes:
        finished: Requests in the order in which they ended.
        rejected: Requests that the engine refuses at once.
    """

    def __init__(
        self,
        tables: StepTables,
        *,
        blocks: int,
        limits: SchedulerLimits,
        progress: Progress,
        observe: Callable[[Event], None] | None = None,
    ) -> None:
        if blocks < 1:
            raise ValueError(
                f"The KV cache holds {blocks} blocks of {limits.block_tokens} tokens, and 1 is the "
                "least. Give more kv_tokens."
            )
        self._tables = tables
        self._limits = limits
        self._progress = progress
        self._observe = observe
        self._blocks = BlockLedger(
            blocks, caching=limits.prefix_caching and limits.policy == "Recompute"
        )
        self._reserve = int(limits.watermark * blocks)
        self._longest = min(limits.max_model_len or math.inf, blocks * limits.block_tokens)
        self._host_free = limits.swap.blocks if limits.swap else 0
        self._now = self._until = 0.0
        # What a turn allows: a single step (None), or a jump up to some time.
        self._cut: float | None = math.inf
        self._incoming: deque[Request] = deque()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._prefilling: list[Request] = []
        self._group = DecodingGroup(limits.block_tokens)
        self._accepted = 0
        self.finished: list[Request] = []
        self.rejected = self.preemptions = self.recomputed_tokens = 0

    @property
    def outstanding(self) -> int:
        """Requests that it had not finished at the time to which it was advanced."""
        late = 0
        for request in reversed(self.finished):
            if request.last_us <= self._until:
                break
            late += 1
        return self._accepted - len(self.finished) + late

    @property
    def peak_blocks(self) -> int:
        """Most blocks that were held at once."""
        return self._blocks.capacity - self._blocks.least_available

    def submit(self, index: int, arrival: Arrival, *, at_us: float) -> None:
        """Queue a request that arrives at the time to which the replica was advanced."""
        limits, wanted = self._limits, arrival.prompt + arrival.output
        full = (
            limits.queue_limit is not None
            and self.outstanding >= limits.queue_limit + limits.max_running
        )
        if wanted > self._longest or full:
            self.rejected += 1
            return
        self._accepted += 1
        self._incoming.append(
            Request(
                index=index,
                arrival_us=at_us,
                prompt=arrival.prompt,
                limit=wanted,
                length=arrival.prompt,
            )
        )

    def advance(self, *, until: float) -> None:
        """Take the steps that begin before ``until``, as far as an arrival then cannot change them."""
        self._until = until
        progress, incoming, waiting = self._progress, self._incoming, self._waiting
        most = math.inf if progress.max_events is None else progress.max_events
        while progress.events < most:
            while incoming and incoming[0].arrival_us <= self._now:
                waiting.append(incoming.popleft())
            if not self._running and not waiting:
                if not incoming:
                    return
                self._now = incoming[0].arrival_us
                continue
            if self._now >= until or not self._step(until):
                return

    def turn(self, *, at_us: float, cut_us: float | None) -> float | None:
        """Take one event when the engine's other models let it; return when it ends.

        Args:
            at_us: When it may begin; what arrived until then counts.
            cut_us: It may jump, as long as no step begins then or later; None takes a single step.

        Returns:
            None if there is nothing to do.
        """
        self._now, self._until = max(self._now, at_us), math.inf
        while self._incoming and self._incoming[0].arrival_us <= self._now:
            self._waiting.append(self._incoming.popleft())
        if not (self._running or self._waiting):
            return None
        self._cut = cut_us
        self._step(math.inf)
        return self._now

    # -- one event -----------------------------------------------------------------------------

    def _step(self, until: float) -> bool:
        """Take a step or a jump; False if one must wait until the next arrival is known."""
        open_ended = not self._waiting and len(self._running) < self._limits.max_running
        need = self._group.growth()
        if open_ended and self._decodes_only() and need <= self._blocks.available:
            cut = self._incoming[0].arrival_us if self._incoming else math.inf
            steps, total = self._jump(available=self._blocks.available - need, cut=cut)
            if not self._incoming and self._now + total > until:
                return False
            self._blocks.take(need)
            self._commit(_NOTHING, steps=steps, total_us=total)
            return True
        draft = _Draft(self._limits.token_budget)
        self._grow(draft)
        draft.budget -= self._group.count
        for request in self._prefilling:
            self._plan_chunk(draft, request)
        if not draft.preempted:
            self._admit(draft)
        if self._decodes_only() and not (draft.joining or draft.preempted):
            # Whoever waits is blocked, and decoding frees nothing until a sequence ends.
            steps, total = self._jump(available=self._blocks.available, cut=math.inf)
            self._commit(draft, steps=steps, total_us=total)
        else:
            self._commit(draft, steps=1, total_us=self._step_us(draft))
        return True

    def _decodes_only(self) -> bool:
        return self._group.count > 0 and not self._prefilling

    def _jump(self, *, available: int, cut: float) -> tuple[int, float]:
        """Return how many decode steps are alike from here, at least one, and their µs together.

        Until then nothing ends, blocks last, and no step after ``cut`` begins.

        Args:
            available: Blocks, after the first step took its own.
            cut: When a request comes that might be admitted, µs.
        """
        group = self._group
        first, slope, straight = self._tables.decode(group.count, group.kv_tokens)
        if self._progress.single_steps or self._cut is None:
            return 1, first
        cut = min(cut, self._cut)
        steps = group.steps_until_end()
        if straight < steps:
            steps = int(straight) + 1
        steps = group.steps_in_blocks(steps, available=available)
        if cut < math.inf and self._now + _total(first, slope, steps - 1) >= cut:
            # The step that begins at or after the cut is not this jump's any more.
            low, high = 1, steps - 1
            while low < high:
                middle = (low + high) // 2
                if self._now + _total(first, slope, middle) >= cut:
                    high = middle
                else:
                    low = middle + 1
            steps = max(1, low)
        return steps, _total(first, slope, steps)

    def _step_us(self, draft: _Draft) -> float:
        decodes = self._group.count + len(draft.joining)
        kv_tokens = self._group.kv_tokens + sum(r.length for r in draft.joining)
        swap = self._limits.swap
        copying = swap.copy_us(draft.swapped_in) if swap else 0.0
        if not draft.chunks:
            return copying + self._tables.decode(decodes, kv_tokens)[0]
        window = self._limits.window or math.inf
        tokens, ends, work = 0, 0, 0.0
        for request, count in draft.chunks:
            tokens += count
            ends += count == request.remaining
            work += count * min(request.computed + count / 2, window)
        return copying + self._tables.mixed_us(
            decodes=decodes, kv_tokens=kv_tokens, prompt_tokens=tokens, work=work, ends=ends
        )

    # -- the scheduler's rules -----------------------------------------------------------------

    def _grow(self, draft: _Draft) -> None:
        """Give decoding sequences their next blocks, the oldest first; the youngest make room."""
        need = self._group.growth()
        if need <= self._blocks.available:
            self._blocks.take(need)
            return
        place = 0
        while place < len(self._running):
            request = self._running[place]
            place += 1
            if not self._group.begins_block(request):
                continue
            while not self._blocks.available:
                victim = self._running[-1]
                if len(self._running) == 1:
                    raise RuntimeError(
                        f"Simulated request {victim.index} is alone and does not fit into "
                        f"{self._blocks.capacity} KV blocks, although longer ones are rejected; "
                        "this is a bug, please report it with your trace."
                    )
                self._preempt(victim)
                draft.preempted.append(victim)
                if victim is request:
                    break
            if request.decoding:
                self._blocks.take(1)

    def _preempt(self, victim: Request) -> None:
        self._running.remove(victim)
        if victim.decoding:
            self._group.remove(victim)
            held = self._blocks_for(victim.computed)
        else:
            self._prefilling.remove(victim)
            held = self._blocks_for(victim.length)
        full = victim.computed // self._limits.block_tokens
        victim.run = self._blocks.release(held=held, full=full)
        host = self._blocks_for(victim.computed)
        if 0 < host <= self._host_free:
            victim.host_blocks = host
            self._host_free -= host
        else:
            self.recomputed_tokens += victim.computed
            victim.computed = 0
        victim.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(victim)

    def _admit(self, draft: _Draft) -> None:
        limits = self._limits
        while self._waiting and len(self._running) < limits.max_running and draft.budget > 0:
            request = self._waiting[0]
            if not self._allocate_whole(draft, request):
                return
            self._waiting.popleft()
            self._running.append(request)
            if request.remaining > 1:
                self._prefilling.append(request)
                self._plan_chunk(draft, request)
            else:
                draft.joining.append(request)
                draft.budget -= 1

    def _allocate_whole(self, draft: _Draft, request: Request) -> bool:
        """Take blocks for a whole context if they lie above watermark and growth."""
        found = request.run.blocks if request.run is not None and not request.host_blocks else 0
        need = self._blocks_for(request.length) - found
        room = self._blocks.available - found - need
        if self._running:
            room -= 1 + self._reserve
            left = request.remaining - found * self._limits.block_tokens
            if room >= 0:
                room -= self._growth(max(1, left))
        if room < 0:
            return False
        if found and request.run is not None:
            self._blocks.reuse(request.run)
        request.run = None
        self._blocks.take(need)
        if request.host_blocks:
            draft.swapped_in += request.host_blocks
            self._host_free += request.host_blocks
            request.host_blocks = 0
        else:
            request.computed = found * self._limits.block_tokens
        return True

    def _growth(self, tokens: int) -> int:
        """Blocks that running sequences take until a prompt of so many tokens, begun now, is done."""
        budget = max(1, self._limits.token_budget - len(self._running))
        ahead = sum(request.remaining for request in self._prefilling)
        later = -(-(ahead + tokens) // budget) - 1
        if later < 1:
            return 0
        growth = 0
        for request in self._running:
            length = self._group.length(request)
            growth += self._blocks_for(min(request.limit, length + later)) - self._blocks_for(
                length
            )
        return growth

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_tokens)

    @staticmethod
    def _plan_chunk(draft: _Draft, request: Request) -> None:
        count = min(request.remaining, draft.budget)
        if count > 0:
            draft.chunks.append((request, count))
            draft.budget -= count

    # -- what a step changes -------------------------------------------------------------------

    def _commit(self, draft: _Draft, *, steps: int, total_us: float) -> None:
        start, self._now = self._now, self._now + total_us
        self._progress.events += 1
        self._progress.steps += steps
        if self._observe is not None:
            self._observe(self._event(draft, steps=steps, start=start))
        if steps > 1:
            self._blocks.take(self._group.growth_after_first(steps))
        for request in self._group.advance(steps):
            self._finish(request)
        for request, count in draft.chunks:
            request.computed += count
            if request.computed == request.length:
                self._prefilling.remove(request)
                self._add_token(request)
        for request in draft.joining:
            self._add_token(request)

    def _add_token(self, request: Request) -> None:
        """Give a sequence whose context was just computed its next token; it decodes from here on."""
        request.computed = request.length
        request.length += 1
        if math.isnan(request.first_us):
            request.first_us = self._now
        if request.length >= request.limit:
            self._finish(request)
            return
        self._group.add(request)

    def _finish(self, request: Request) -> None:
        computed = request.length - 1  # nobody asks for the last token's successor
        self._running.remove(request)
        self._blocks.release(
            held=self._blocks_for(computed), full=computed // self._limits.block_tokens
        )
        request.last_us = self._now
        self.finished.append(request)

    def _event(self, draft: _Draft, *, steps: int, start: float) -> Event:
        return Event(
            start_us=start,
            end_us=self._now,
            steps=steps,
            decodes=self._group.count + len(draft.joining),
            kv_tokens=self._group.kv_tokens + sum(r.length for r in draft.joining),
            chunks=tuple((r.index, r.computed, count) for r, count in draft.chunks),
            preempted=tuple(r.index for r in draft.preempted),
            running=len(self._running),
            waiting=len(self._waiting) + len(self._incoming),
        )


def _total(first: float, slope: float, steps: int) -> float:
    """Return the µs of so many steps, of which each takes ``slope`` more than the one before."""
    return steps * first + slope * (steps * (steps - 1) // 2)
