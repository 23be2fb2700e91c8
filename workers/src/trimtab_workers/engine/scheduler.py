"""Continuous batching: which tokens of which sequences the next step computes (engine.md §5)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trimtab_workers.engine.config import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trimtab_workers.engine.kv import Block, DeviceBlockManager, HostBlockManager
    from trimtab_workers.engine.sequence import Sequence

Phase = Literal["decode", "prefill", "mixed"]


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens [start, start + count) of a sequence; `sample` if they reach its end."""

    sequence: Sequence
    start: int
    count: int

    @property
    def sample(self) -> bool:
        """Whether a next token is sampled after these."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class Swap:
    """One block's way between its slot on the device and its place in host memory."""

    out: bool
    slot: int
    place: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work: `decode` rows of one token each, then `prefill` chunks.

    Attributes:
        preempted: Sequences that lost their blocks since the last plan.
        swaps: Copies to make before the rows are computed, in this order: a slot or place may be
            emptied by one and filled by the next.
    """

    decode: tuple[Row, ...] = ()
    prefill: tuple[Row, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    recomputed_tokens: int = 0
    swaps: tuple[Swap, ...] = ()

    @property
    def phase(self) -> Phase:
        """What the step mixes; the planner's anchors use decode-only steps."""
        if not self.prefill:
            return "decode"
        return "mixed" if self.decode else "prefill"

    @property
    def rows(self) -> tuple[Row, ...]:
        """Decode rows first, then chunks: the order of rows in the batch."""
        return self.decode + self.prefill


@dataclass(slots=True)
class _Draft:
    budget: int
    decode: list[Row] = field(default_factory=list)
    prefill: list[Row] = field(default_factory=list)
    preempted: bool = False


class Scheduler:
    """Decides one model's steps; pure but for the sequences and blocks it is given.

    Rules: decode rows first; then resumed sequences before new ones, each only if its *whole*
    context plus one block fits above the watermark (vllm #25538, PR #44594), beside what running
    ones take until its prompt is done, so that none leaves before it has given a token; prompts in
    chunks up to the token budget. When blocks run out the youngest running sequence leaves, for host memory
    where there is room and else to be recomputed, never the oldest, so the oldest always ends.

    Attributes:
        floor_blocks: What the model can always get back; enough for its longest sequence.
    """

    def __init__(
        self,
        blocks: DeviceBlockManager,
        *,
        model: str,
        max_batch_tokens: int,
        max_seqs: int,
        watermark: float,
        host: HostBlockManager | None = None,
        floor_blocks: int = 0,
    ) -> None:
        self.blocks = blocks
        self.host = host
        self.model = model
        self.max_batch_tokens = max_batch_tokens
        self.max_seqs = max_seqs
        self.floor_blocks = floor_blocks
        self._watermark = watermark
        self._swaps: list[Swap] = []
        self._preempted: list[Sequence] = []
        self._recomputed = 0
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        if host is not None:
            blocks.on_evict = self._keep_prefix

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.waiting)

    @property
    def reserve(self) -> int:
        """Blocks that admission leaves free: the watermark."""
        return int(self._watermark * self.blocks.capacity)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind all others."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or aborted sequence and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    # -- what the controller asks --------------------------------------------------------------

    def missing_running(self) -> int:
        """Blocks that the next step's decodes need beyond those available."""
        need = sum(
            sequence.blocks_for(len(sequence.tokens)) - len(sequence.blocks)
            for sequence in self.running
            if sequence.remaining == 1
        )
        return max(0, need - self.blocks.available)

    def missing_waiting(self) -> int:
        """Blocks missing to admit what the next step's token budget holds, the first at least.

        Cached prefixes are not looked for: they make the true need smaller.
        """
        room = self.max_seqs - len(self.running)
        need = tokens = 0
        for sequence in self.waiting:
            if room < 1 or (tokens and tokens + sequence.remaining > self.max_batch_tokens):
                break
            tokens += sequence.remaining
            need += sequence.blocks_for(len(sequence.tokens)) + 1
            room -= 1
        if not need:
            return 0
        return max(0, need + self.reserve + self._growth(tokens) - self.blocks.available)

    def missing_first(self) -> int:
        """Blocks missing to admit the first waiting request; cached prefixes are not looked for."""
        if not self.waiting:
            return 0
        first = self.waiting[0]
        need = first.blocks_for(len(first.tokens))
        if self.running:
            need += 1 + self.reserve + self._growth(first.remaining)
        return max(0, need - self.blocks.available)

    def victims(self) -> list[int]:
        """Blocks that each running sequence holds alone, youngest first, without the oldest."""
        return [
            sum(block.refs == 1 for block in sequence.blocks)
            for sequence in reversed(self.running[1:])
        ]

    def preempt_youngest(self, *, to_host: bool) -> bool:
        """Make the youngest running sequence leave, but for the oldest; False if there is none."""
        if len(self.running) < 2:
            return False
        self._preempt(self.running[-1], to_host=to_host)
        return True

    def take_swaps(self) -> tuple[Swap, ...]:
        """Return the copies that must be made before any block is written, once."""
        swaps, self._swaps = tuple(self._swaps), []
        return swaps

    # -- the next step -------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Choose the next step's rows and allocate their blocks."""
        draft = _Draft(self.max_batch_tokens)
        self._plan_decodes(draft)
        for sequence in self.running:
            if sequence.remaining > 1:
                self._plan_chunk(draft, sequence)
        if not draft.preempted:
            self._admit(draft)
        preempted, self._preempted = tuple(self._preempted), []
        recomputed, self._recomputed = self._recomputed, 0
        return StepPlan(
            tuple(draft.decode), tuple(draft.prefill), preempted, recomputed, self.take_swaps()
        )

    def _plan_decodes(self, draft: _Draft) -> None:
        index = 0
        while index < len(self.running) and draft.budget > 0:
            sequence = self.running[index]
            index += 1
            if sequence.remaining != 1:
                continue
            if self._grow(draft, sequence):
                draft.decode.append(Row(sequence, sequence.computed, 1))
                draft.budget -= 1

    def _grow(self, draft: _Draft, sequence: Sequence) -> bool:
        """Give a decoding sequence its next block; preempts from the youngest end if it must."""
        while len(sequence.blocks) < sequence.blocks_for(len(sequence.tokens)):
            taken = self.blocks.allocate(1)
            if taken is not None:
                sequence.blocks.extend(taken)
                continue
            victim = self.running[-1]
            if len(self.running) == 1:
                if self.blocks.capacity < self.floor_blocks:
                    return False  # its slabs are with others and come back
                raise RuntimeError(
                    f"Model {self.model}: the only running sequence does not fit into "
                    f"{self.blocks.capacity} KV blocks although max_model_len is clamped to them; "
                    "this is a bug, please report it with your model set."
                )
            self._preempt(victim, to_host=True)
            draft.preempted = True
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence, *, to_host: bool) -> None:
        self.running.remove(victim)
        if not (to_host and self._swap_out(victim)):
            self._recomputed += victim.computed
            victim.computed = 0
        self.blocks.release(victim.blocks)
        victim.blocks = []
        victim.preemptions += 1
        if victim.first_token_seconds is None:
            victim.scheduled_seconds = None  # the queue time ends with the latest scheduling
        self.waiting.appendleft(victim)
        self._preempted.append(victim)

    def _swap_out(self, victim: Sequence) -> bool:
        filled = victim.blocks_for(victim.computed)
        if self.host is None or not filled:
            return False
        places = self.host.allocate(filled)
        if places is None:
            return False
        victim.host_places = places
        pairs = zip(victim.blocks, places, strict=False)
        self._swaps += [Swap(True, block.slot, place) for block, place in pairs]  # noqa: FBT003 - out
        return True

    def _keep_prefix(self, block: Block) -> None:
        if self.host is not None and block.key is not None:
            place = self.host.remember(block.key)
            if place is not None:
                self._swaps.append(Swap(True, block.slot, place))  # noqa: FBT003 - out

    def _plan_chunk(self, draft: _Draft, sequence: Sequence) -> None:
        count = min(sequence.remaining, draft.budget)
        if count > 0:
            draft.prefill.append(Row(sequence, sequence.computed, count))
            draft.budget -= count

    def _admit(self, draft: _Draft) -> None:
        while self.waiting and len(self.running) < self.max_seqs and draft.budget > 0:
            sequence = self.waiting[0]
            if not self._allocate_whole(sequence):
                return
            self.waiting.popleft()
            self.running.append(sequence)
            if sequence.remaining > 1:
                self._plan_chunk(draft, sequence)
            else:
                draft.decode.append(Row(sequence, sequence.computed, 1))
                draft.budget -= 1

    def _growth(self, tokens: int) -> int:
        """Blocks that running sequences take until a prompt of so many tokens, admitted now, is done.

        It gets at least the budget without a row of each of them in every step, behind the prompts
        that are not done yet. Younger ones do not matter: they leave before it does.
        """
        budget = max(1, self.max_batch_tokens - len(self.running))
        ahead = sum(s.remaining for s in self.running if s.remaining > 1)
        later = -(-(ahead + tokens) // budget) - 1
        if later < 1:
            return 0
        return sum(
            max(0, s.blocks_for(min(s.limit, len(s.tokens) + later)) - len(s.blocks))
            for s in self.running
        )

    def _allocate_whole(self, sequence: Sequence) -> bool:
        """Allocate blocks for a sequence's whole context, reusing cached prefixes."""
        context = len(sequence.tokens)
        keys: list[bytes] = []
        if not sequence.host_places:
            keys = sequence.full_block_keys(self.model, up_to=context - 1)
        found, idle = self.blocks.peek(keys)
        need = sequence.blocks_for(context) - found
        headroom = 0
        if self.running:
            left = sequence.remaining - found * BLOCK_TOKENS
            headroom = 1 + self.reserve + self._growth(max(1, left))
        if need + headroom > self.blocks.available - idle:
            return False
        shared = self.blocks.match(keys)
        fresh = self.blocks.allocate(need)
        if fresh is None:
            raise RuntimeError(
                "KV blocks vanished between counting and taking; this is a bug, please report it."
            )
        sequence.blocks = shared + fresh
        if sequence.host_places:
            self._swap_in(fresh, sequence.host_places)
            self._give_places_back(sequence)
            return True
        external = self._find_outside(keys[found:], fresh)
        sequence.computed = (found + external) * BLOCK_TOKENS
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.computed
            sequence.external_tokens = external * BLOCK_TOKENS
        return True

    def _find_outside(self, keys: list[bytes], fresh: list[Block]) -> int:
        """Fetch prefix blocks from host memory; only now, as taking blocks may have evicted some."""
        if self.host is None or not self.blocks.caching:
            return 0
        places = self.host.find(keys)
        self._swap_in(fresh, places)
        for block, key in zip(fresh[: len(places)], keys, strict=False):
            self.blocks.remember(block, key)
        return len(places)

    def _swap_in(self, blocks: list[Block], places: list[int]) -> None:
        pairs = zip(blocks, places, strict=False)
        self._swaps += [Swap(False, block.slot, place) for block, place in pairs]  # noqa: FBT003 - in

    def _give_places_back(self, sequence: Sequence) -> None:
        if self.host is not None:
            self.host.release(sequence.host_places)
        sequence.host_places = []

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        self._give_places_back(sequence)

    def commit(self, row: Row) -> None:
        """Record that a row's keys and values are in place, and make full blocks findable."""
        sequence = row.sequence
        before = sequence.computed
        sequence.computed = row.start + row.count
        if self.blocks.caching and sequence.computed // BLOCK_TOKENS > before // BLOCK_TOKENS:
            keys = sequence.full_block_keys(self.model, up_to=sequence.computed)
            for index in range(before // BLOCK_TOKENS, len(keys)):
                self.blocks.remember(sequence.blocks[index], keys[index])
