"""The values that cross the engine's border: requests in, outputs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from trimtab_workers.engine.errors import EngineError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

FinishReason = Literal["stop", "length", "abort"]
TenantState = Literal["Loading", "Resident", "Lent", "Waking", "Draining", "Failed"]

MAX_LOGPROBS = 20
LOWEST_TEMPERATURE = 1e-5  # below it logits ÷ temperature overflow; vLLM draws the line here too
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1_024
MAX_STOP_TOKENS = 256  # looked through once per token
MAX_BIASES = 1_024  # added to the logits in every step
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


def _check(holds: bool, param: str, value: object, remedy: str) -> None:  # noqa: FBT001 - reads as prose
    if not holds:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise InvalidRequestError(f"{param} is {shown}. {remedy}", param=param)


def _check_size(size: int, most: int, param: str, unit: str) -> None:
    if size > most:
        raise InvalidRequestError(f"{param} has {size} {unit}. Give at most {most}.", param=param)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a request ends; the defaults are OpenAI's.

    Attributes:
        max_tokens: Output tokens at most; None means all that the context leaves.
        temperature: 0 is greedy.
        top_k: 0 (or -1, vLLM's spelling) considers all tokens.
        seed: Noise is keyed by (seed, position), so it survives preemption; None draws a fresh one.
        stop: Texts that end the request, never emitted, also across token borders.
        logprobs: None for none; k returns the chosen token's and the k most likely ones'.
        logit_bias: Added to the logits of token ids, before the temperature.

    Raises:
        InvalidRequestError: A value is out of range; names the field, the value and the range.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)

    def __post_init__(self) -> None:
        _check(
            self.max_tokens is None or self.max_tokens >= 1,
            "max_tokens",
            self.max_tokens,
            "Give at least 1, or leave it out.",
        )
        _check(0.0 <= self.temperature <= 2.0, "temperature", self.temperature, "Give 0 to 2.")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "Give more than 0 and at most 1.")
        _check(self.top_k >= -1, "top_k", self.top_k, "Give a positive count, or 0 for all tokens.")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "Give 0 to 1.")
        _check(
            self.seed is None or -(2**63) <= self.seed < 2**63,
            "seed",
            self.seed,
            "Give a 64-bit integer.",
        )
        _check(
            len(self.stop) <= MAX_STOP_STRINGS and all(self.stop),
            "stop",
            self.stop,
            f"Give at most {MAX_STOP_STRINGS} texts, none of them empty.",
        )
        longest = max((len(text) for text in self.stop), default=0)
        _check_size(longest, MAX_STOP_CHARACTERS, "stop", "characters in a text")
        _check_size(len(self.stop_token_ids), MAX_STOP_TOKENS, "stop_token_ids", "ids")
        _check_size(len(self.logit_bias), MAX_BIASES, "logit_bias", "entries")
        _check(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "top_logprobs",
            self.logprobs,
            f"Give 0 to {MAX_LOGPROBS}.",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value: float = getattr(self, name)
            _check(-2.0 <= value <= 2.0, name, value, "Give -2 to 2.")
        _check(
            0.0 < self.repetition_penalty <= 10.0,
            "repetition_penalty",
            self.repetition_penalty,
            "Give more than 0 and at most 10; 1 changes nothing.",
        )
        for token_id, bias in self.logit_bias.items():
            _check(
                token_id >= 0 and -100.0 <= bias <= 100.0,
                "logit_bias",
                {token_id: bias},
                "Give token ids of the vocabulary and biases from -100 to 100.",
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < LOWEST_TEMPERATURE

    @property
    def plain_greedy(self) -> bool:
        """Whether an arg-max over raw logits decides, without penalties, biases or logprobs."""
        return (
            self.greedy
            and self.logprobs is None
            and not self.logit_bias
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and self.repetition_penalty == 1.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to produce; `n` choices are `n` requests, made by the server.

    Attributes:
        request_id: Unique among live requests; what `Engine.abort` takes.
        model: Public name, as in the model set.
        prompt_token_ids: At least one token.
        arrival_seconds: `engine.clock.now()` when the request came in, so that time to first token
            includes tokenising; None means the time of `submit`.
        choices: The `n` the user asked for, only for the metric `request_params_n`; 0 in all but
            the first request of a call, so that it is counted once.
    """

    request_id: str
    model: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    arrival_seconds: float | None = None
    choices: int = 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token's log-probability and the most likely alternatives.

    Attributes:
        token: Text of the token alone; partial UTF-8 shows as U+FFFD.
        token_bytes: Its exact bytes.
        top: (token id, text, bytes, log-probability), most likely first.
    """

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[int, str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """When things happened to a request, in the engine clock's seconds."""

    arrival_seconds: float
    scheduled_seconds: float | None
    first_token_seconds: float | None
    finished_seconds: float | None
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a step added to one request.

    `token_ids` are sampled tokens; `text_delta` may lag behind them, because partial characters
    and possible stop texts are held back. The last output has `finish_reason` or `error`.

    Attributes:
        stop_reason: The stop text or stop token id that ended the request; None for end of text.
        cached_tokens: Prompt tokens found in the prefix cache.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text_delta: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    timings: Timings | None = None
    error: EngineError | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None
