"""What an engine's scheduler is started with, as far as a simulation follows it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSpace:
    """Host memory for preempted sequences.

    Attributes:
        blocks: KV blocks that it holds.
        block_bytes: Of one block of all layers.
        bytes_per_us: Of the link; None where a copy takes no time beside the step's.
        latency_us: Of each copy.
    """

    blocks: int
    block_bytes: int
    bytes_per_us: float | None
    latency_us: float = 0.0

    def copy_us(self, blocks: int) -> float:
        """Return how long a step waits for blocks that come back."""
        if not blocks or self.bytes_per_us is None:
            return 0.0
        return self.latency_us + blocks * self.block_bytes / self.bytes_per_us


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What an engine's scheduler is started with.

    Attributes:
        token_budget: Tokens computed in one step, decoding sequences included.
        max_running: Sequences at once, at most ``token_budget``.
        block_tokens: Tokens of a KV block.
        watermark: Share of the blocks that admission leaves free.
        policy: What happens to a sequence that loses its blocks.
        max_model_len: Longest prompt + output; None is all blocks.
        queue_limit: Requests beyond ``max_running`` that are taken; None is any number.
        prefix_caching: A preempted sequence finds again what nobody has used since. With ``Swap`` it is
            not simulated.
        window: Tokens that a query sees at most; 0 is all.
        swap: Where ``Swap`` puts sequences; what does not fit is recomputed.
    """

    token_budget: int
    max_running: int
    block_tokens: int = 16
    watermark: float = 0.02
    policy: Literal["Recompute", "Swap"] = "Recompute"
    max_model_len: int | None = None
    queue_limit: int | None = 1024
    prefix_caching: bool = True
    window: int = 0
    swap: SwapSpace | None = None

    def __post_init__(self) -> None:
        """Refuse limits under which the engine would not start."""
        if not 1 <= self.max_running <= self.token_budget or self.block_tokens < 1:
            raise ValueError(
                f"SchedulerLimits: max_running is {self.max_running}, token_budget "
                f"{self.token_budget} and block_tokens {self.block_tokens}. Every running sequence "
                "takes a token of each step: give at least 1 and a budget of at least max_running."
            )
        if (self.policy == "Swap") != (self.swap is not None):
            raise ValueError(
                f"SchedulerLimits: policy is {self.policy} and swap is {self.swap}. Give swap with "
                "policy Swap and only with it."
            )
