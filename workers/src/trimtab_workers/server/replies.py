"""The bytes a client sees: OpenAI's JSON objects and server-sent events."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab_workers.engine.types import Output, Timings, TokenLogprob

DONE: Final = b"data: [DONE]\n\n"
_LOWEST_LOGPROB: Final = -9999.0  # JSON has no infinity; OpenAI's and vLLM's stand-in


def event(document: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + dump(document) + b"\n\n"


def dump(document: dict[str, Any]) -> bytes:
    """Return compact JSON, text as UTF-8."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


@dataclass(slots=True)
class Usage:
    """Token counts of a whole call."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(slots=True)
class Choice:
    """What one choice has produced so far."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    started: bool = False
    characters: int = 0
    timings: Timings | None = None

    def take(self, output: Output) -> None:
        """Add what a step produced."""
        self.texts.append(output.text_delta)
        self.logprobs.extend(output.logprobs or ())
        self.tokens += len(output.token_ids)
        self.prompt_tokens = max(self.prompt_tokens, output.prompt_tokens)
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.timings = output.timings or self.timings
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = output.stop_reason


def usage_of(choices: Sequence[Choice], *, per_prompt: int) -> Usage:
    """Return the call's usage; a prompt that `per_prompt` choices share counts once."""
    return Usage(
        prompt=sum(choice.prompt_tokens for choice in choices[::per_prompt]),
        completion=sum(choice.tokens for choice in choices),
        cached=sum(choice.cached_tokens for choice in choices[::per_prompt]),
    )


def server_timing(choice: Choice) -> str | None:
    """Return a `Server-Timing` header with TTFT and TPOT in milliseconds, where both are known.

    A reply in one piece shows neither to whoever measures from outside, such as the gateway.
    """
    timings = choice.timings
    if timings is None or timings.first_token_seconds is None:
        return None
    ttft = timings.first_token_seconds - timings.arrival_seconds
    header = f"ttft;dur={ttft * 1e3:.3f}"
    if timings.finished_seconds is None or choice.tokens < 2:
        return header
    decode = timings.finished_seconds - timings.first_token_seconds
    return f"{header}, tpot;dur={decode * 1e3 / (choice.tokens - 1):.3f}"


class Reply:
    """Formats one call's answers, in whole or in chunks."""

    def __init__(
        self,
        *,
        api: Literal["chat", "text"],
        call_id: str,
        created: int,
        model: str,
        with_logprobs: bool,
        with_usage: bool = False,
    ) -> None:
        self._chat = api == "chat"
        self._head = {"id": call_id, "created": created, "model": model}
        self._with_logprobs = with_logprobs
        self._with_usage = with_usage

    def whole(self, choices: Sequence[Choice], *, usage: Usage) -> dict[str, Any]:
        """Return the reply to a call without streaming."""
        kind = "chat.completion" if self._chat else "text_completion"
        return {
            "id": self._head["id"],
            "object": kind,
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": [self._finished(choice) for choice in choices],
            "usage": usage.to_dict(),
        }

    def chunks(self, choice: Choice, output: Output) -> list[dict[str, Any]]:
        """Return the chunks for what a step added to one choice; none if nothing is to be seen.

        With `include_usage` each has `usage`, null until somebody fills it in.
        """
        chunks = []
        if self._chat and not choice.started:
            chunks.append(self._chunk(choice, {"role": "assistant", "content": ""}, None))
        choice.started = True
        logprobs = output.logprobs or ()
        if output.text_delta or (self._with_logprobs and logprobs):
            content = {"content": output.text_delta} if self._chat else output.text_delta
            chunks.append(self._chunk(choice, content, self._logprobs(choice, logprobs)))
        if output.finish_reason is not None:
            last = self._chunk(choice, {} if self._chat else "", None)
            last["choices"][0]["finish_reason"] = output.finish_reason
            if output.stop_reason is not None:
                last["choices"][0]["stop_reason"] = output.stop_reason
            chunks.append(last)
        return chunks

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Return the chunk that `stream_options.include_usage` asks for."""
        return self._envelope([]) | {"usage": usage.to_dict()}

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._head["id"],
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": self._head["created"],
            "model": self._head["model"],
            "choices": choices,
        }

    def _chunk(
        self, choice: Choice, content: object, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        row = {
            "index": choice.index,
            "delta" if self._chat else "text": content,
            "logprobs": logprobs,
            "finish_reason": None,
        }
        return self._envelope([row]) | ({"usage": None} if self._with_usage else {})

    def _finished(self, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.texts)
        body: dict[str, Any] = {"index": choice.index}
        if self._chat:
            body["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            body["text"] = text
        body["logprobs"] = self._logprobs(choice, choice.logprobs)
        body["finish_reason"] = choice.finish_reason
        if choice.stop_reason is not None:
            body["stop_reason"] = choice.stop_reason
        return body

    def _logprobs(self, choice: Choice, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        if self._chat:
            return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}
        return _text_logprobs(choice, tokens)


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": _finite(token.logprob),
        "bytes": list(token.token_bytes),
        "top_logprobs": [
            {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}
            for _, text, raw, logprob in token.top
        ],
    }


def _text_logprobs(choice: Choice, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(choice.characters)
        choice.characters += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {text: _finite(logprob) for _, text, _, logprob in token.top} for token in tokens
        ],
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)
