"""Continuous batching: which tokens of which sequences the next step computes (engine.md §5)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trimtab_workers.engine.config import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trimtab_workers.engine.kv import DeviceBlockManager
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
class StepPlan:
    """One step's work: `decode` rows of one token each, then `prefill` chunks."""

    decode: tuple[Row, ...] = ()
    prefill: tuple[Row, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    recomputed_tokens: int = 0

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
    preempted: list[Sequence] = field(default_factory=list)
    recomputed: int = 0


class Scheduler:
    """Decides one model's steps; pure but for the sequences and blocks it is given.

    Rules: decode rows first; then resumed sequences before new ones, each only if its *whole*
    context plus one block fits above the watermark (vllm #25538, PR #44594); prompts in chunks up
    to the token budget. When blocks run out the youngest running sequence is preempted and
    recomputed later, never the oldest, so the oldest always ends.
    """

    def __init__(
        self,
        blocks: DeviceBlockManager,
        *,
        model: str,
        max_batch_tokens: int,
        max_seqs: int,
        watermark: float,
    ) -> None:
        self.blocks = blocks
        self.model = model
        self.max_batch_tokens = max_batch_tokens
        self.max_seqs = max_seqs
        self._reserve = int(watermark * blocks.capacity)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.waiting)

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

    def schedule(self) -> StepPlan:
        """Choose the next step's rows and allocate their blocks."""
        draft = _Draft(self.max_batch_tokens)
        self._plan_decodes(draft)
        for sequence in self.running:
            if sequence.remaining > 1:
                self._plan_chunk(draft, sequence)
        if not draft.preempted:
            self._admit(draft)
        return StepPlan(
            tuple(draft.decode),
            tuple(draft.prefill),
            tuple(draft.preempted),
            draft.recomputed,
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
            self._preempt(draft, victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, draft: _Draft, victim: Sequence) -> None:
        if len(self.running) == 1:
            raise RuntimeError(
                f"Model {self.model}: the only running sequence does not fit into "
                f"{self.blocks.capacity} KV blocks although max_model_len is clamped to them; this "
                "is a bug, please report it with your model set."
            )
        self.running.remove(victim)
        draft.recomputed += victim.computed
        self._free(victim)
        victim.computed = 0
        victim.preemptions += 1
        if victim.first_token_seconds is None:
            victim.scheduled_seconds = None  # the queue time ends with the latest scheduling
        self.waiting.appendleft(victim)
        draft.preempted.append(victim)

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
            self._plan_chunk(draft, sequence)

    def _allocate_whole(self, sequence: Sequence) -> bool:
        """Allocate blocks for a sequence's whole context, reusing cached prefixes."""
        context = len(sequence.tokens)
        keys = sequence.full_block_keys(self.model, up_to=context - 1)
        found, idle = self.blocks.peek(keys)
        need = sequence.blocks_for(context) - found
        headroom = 1 + self._reserve if self.running else 0
        if need + headroom > self.blocks.available - idle:
            return False
        shared = self.blocks.match(keys)
        fresh = self.blocks.allocate(need)
        if fresh is None:
            raise RuntimeError(
                "KV blocks vanished between counting and taking; this is a bug, please report it."
            )
        sequence.blocks = shared + fresh
        sequence.computed = found * BLOCK_TOKENS
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.computed
        return True

    def _free(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []

    def commit(self, row: Row) -> None:
        """Record that a row's keys and values are in place, and make full blocks findable."""
        sequence = row.sequence
        before = sequence.computed
        sequence.computed = row.start + row.count
        if self.blocks.caching and sequence.computed // BLOCK_TOKENS > before // BLOCK_TOKENS:
            keys = sequence.full_block_keys(self.model, up_to=sequence.computed)
            for index in range(before // BLOCK_TOKENS, len(keys)):
                self.blocks.remember(sequence.blocks[index], keys[index])
