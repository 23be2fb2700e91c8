"""A request on its way: tokens, KV blocks, progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.kv import block_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.engine.kv import Block
    from trimtab_workers.engine.tokenizer import StreamDetokenizer
    from trimtab_workers.engine.types import Output, Request, SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's state; only the engine thread touches it after admission.

    Attributes:
        tokens: Prompt and generated token ids.
        computed: Tokens whose keys and values are in `blocks`.
        host_places: Where in host memory the blocks of its `computed` tokens lie while it is
            swapped out; empty otherwise.
        limit: Tokens (prompt and output) at which it ends with "length".
        seed: The request's, or one drawn at submission; noise is keyed by (seed, position).
    """

    request: Request
    sink: Callable[[Output], None]
    tokens: list[int]
    prompt_length: int
    limit: int
    seed: int
    arrival_seconds: float
    detokenizer: StreamDetokenizer | None = None
    blocks: list[Block] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    computed: int = 0
    cached_tokens: int = 0
    external_tokens: int = 0
    host_places: list[int] = field(default_factory=list)
    preemptions: int = 0
    scheduled_seconds: float | None = None
    first_token_seconds: float | None = None
    last_token_seconds: float | None = None

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        return self.request.params

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return len(self.tokens) - self.prompt_length

    def blocks_for(self, tokens: int) -> int:
        """Blocks that this many tokens need."""
        return -(-tokens // BLOCK_TOKENS)

    def full_block_keys(self, model: str, *, up_to: int) -> list[bytes]:
        """Return the content keys of the full blocks among the first `up_to` tokens."""
        full = up_to // BLOCK_TOKENS
        while len(self.keys) < full:
            first = len(self.keys) * BLOCK_TOKENS
            parent = self.keys[-1] if self.keys else b""
            self.keys.append(block_key(model, parent, self.tokens[first : first + BLOCK_TOKENS]))
        return self.keys[:full]
