"""Sequences that decode together: what they need next is known without looking at each of them.

All advance by a token per step, so a length is an offset from one counter, the blocks that a step begins are a
histogram of offsets modulo the block, and the next end is the top of a heap.
"""

import math
from dataclasses import dataclass
from heapq import heappop, heappush

from trimtab.planning.queue_blocks import CachedRun


@dataclass(slots=True, eq=False)
class Request:
    """One request under way.

    Attributes:
        limit: Tokens, prompt and output, at which it ends.
        length: Tokens so far; while it decodes, ``offset`` + its group's counter.
        computed: Tokens whose keys and values are there, while it does not decode.
        host_blocks: Blocks in host memory while it is swapped out.
        run: What it may find again of its blocks.
    """

    index: int
    arrival_us: float
    prompt: int
    limit: int
    length: int
    computed: int = 0
    decoding: bool = False
    offset: int = 0
    episode: int = 0
    host_blocks: int = 0
    run: CachedRun | None = None
    first_us: float = math.nan
    last_us: float = math.nan
    preemptions: int = 0

    @property
    def remaining(self) -> int:
        """Tokens to compute before its next one, while it does not decode."""
        return self.length - self.computed


class DecodingGroup:
    """The decoding sequences of one replica.

    Attributes:
        counter: Decode steps so far.
        count: Sequences.
        kv_tokens: Their tokens.
    """

    __slots__ = ("_block_tokens", "_ends", "_phases", "count", "counter", "kv_tokens")

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._phases = [0] * block_tokens
        self._ends: list[tuple[int, int, int, Request]] = []
        self.counter = self.count = self.kv_tokens = 0

    def add(self, request: Request) -> None:
        """Take in a sequence that has its first token since it was admitted."""
        request.decoding = True
        request.episode += 1
        request.offset = request.length - self.counter
        self.count += 1
        self.kv_tokens += request.length
        self._phases[request.offset % self._block_tokens] += 1
        end = self.counter + request.limit - request.length
        heappush(self._ends, (end, request.index, request.episode, request))

    def remove(self, request: Request) -> None:
        """Let a sequence go; its length is its own again, and all but the last token is computed."""
        request.length = self.length(request)
        request.decoding = False
        request.computed = request.length - 1
        self.count -= 1
        self.kv_tokens -= request.length
        self._phases[request.offset % self._block_tokens] -= 1

    def length(self, request: Request) -> int:
        """Return a sequence's tokens so far, whether or not it is in the group."""
        return request.offset + self.counter if request.decoding else request.length

    def begins_block(self, request: Request) -> bool:
        """Whether a sequence needs a new block for the next step: one token more than whole blocks."""
        return request.decoding and (request.offset + self.counter - 1) % self._block_tokens == 0

    def growth(self, later: int = 0) -> int:
        """Return the blocks that the next step begins, or one so many steps later."""
        return self._phases[(1 - self.counter - later) % self._block_tokens]

    def growth_after_first(self, steps: int) -> int:
        """Return the blocks that so many steps begin, but for the first of them."""
        whole, rest = divmod(steps - 1, self._block_tokens)
        # The phases of `growth` at 1 to rest steps later are neighbours on a ring.
        start = (1 - self.counter - rest) % self._block_tokens
        beyond = max(0, start + rest - self._block_tokens)
        begun = sum(self._phases[start : start + rest]) + sum(self._phases[:beyond])
        return whole * self.count + begun

    def steps_until_end(self) -> int:
        """Return in how many steps the first sequence ends."""
        ends = self._ends
        while not ends[0][3].decoding or ends[0][3].episode != ends[0][2]:
            heappop(ends)  # it was preempted since
        return ends[0][0] - self.counter

    def steps_in_blocks(self, steps: int, *, available: int) -> int:
        """Return how many of ``steps`` can be taken before blocks run out.

        Args:
            steps: At least 1.
            available: Blocks, after the first step took its own.
        """
        # No sequence begins more blocks than this; most caches hold them.
        if available >= -(-(steps - 1) // self._block_tokens) * self.count:
            return steps
        if available >= self.growth_after_first(steps):
            return steps
        whole = min((steps - 1) // self._block_tokens, available // self.count)
        taken, left = whole * self._block_tokens + 1, available - whole * self.count
        while taken < steps:
            left -= self.growth(taken)
            if left < 0:
                return taken
            taken += 1
        return steps

    def advance(self, steps: int) -> list[Request]:
        """Give every sequence its tokens of so many steps; return those that ended, which leave."""
        self.counter += steps
        self.kv_tokens += steps * self.count
        ended = []
        while self.count and self.steps_until_end() == 0:
            request = heappop(self._ends)[3]
            self.remove(request)
            ended.append(request)
        return ended
