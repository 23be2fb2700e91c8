"""An engine without a model: it answers with the words it is told, one per step."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter

from trimtab_workers.engine.clock import SystemClock
from trimtab_workers.engine.errors import (
    BatchFailedError,
    ContextLengthError,
    DrainingError,
    QueueFullError,
    UnknownModelError,
)
from trimtab_workers.engine.types import Output, Request, Timings, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


TIMINGS = Timings(
    arrival_seconds=1.0,
    scheduled_seconds=1.1,
    first_token_seconds=1.25,
    finished_seconds=1.35,
    preemptions=0,
)


class FakeTokenizer:
    """One token per word; ids are word lengths, since nobody here reads them back."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [len(word) for word in text.split()]
        return [1, *ids] if add_special_tokens else ids

    def decode(self, token_ids: list[int]) -> str:
        return " ".join("x" * token for token in token_ids)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        text = " ".join(f"<{m['role']}> {m['content']}" for m in messages)
        return self.encode(f"{text} <assistant>", add_special_tokens=False)


@dataclass
class FakeEngine:
    """Serves `models`; every answer is `words`.

    `gate` holds each token back until released; `fail_after` breaks the step after that many
    tokens; `aborted` names requests whose reader left early.
    """

    models_: tuple[str, ...] = ("team-a/chat",)
    words: tuple[str, ...] = ("Paris", " is", " nice")
    context: int = 64
    queue_full: bool = False
    fail_after: int | None = None
    gate: asyncio.Semaphore | None = None
    ready_: bool = True
    live_: str | None = None
    file_revision: int = 1
    reload_error: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: int = 0
    draining: bool = False
    stopped: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.clock = SystemClock()
        self.registry = CollectorRegistry()
        Counter("vllm:prompt_tokens", "Prompt tokens.", registry=self.registry)

    def start(self) -> None:
        pass

    def stop(self, timeout_seconds: float = 10.0) -> None:
        self.stopped = True

    def drain(self) -> None:
        self.draining = True

    @property
    def idle(self) -> bool:
        return not self.running

    @property
    def ready(self) -> bool:
        return self.ready_ and not self.draining

    def liveness(self) -> str | None:
        return self.live_

    def models(self) -> tuple[dict[str, Any], ...]:
        return tuple(
            {"name": name, "state": "Resident", "max_model_len": self.context, "error": None}
            for name in self.models_
        )

    def tokenizer(self, model: str) -> FakeTokenizer:
        if model not in self.models_:
            raise UnknownModelError(f"The model '{model}' does not exist.", param="model")
        return FakeTokenizer()

    def stream(self, request: Request) -> Any:
        if self.draining:
            raise DrainingError("The worker is shutting down. Retry elsewhere.")
        if self.queue_full:
            raise QueueFullError("1024 requests wait.", retry_after_seconds=3)
        prompt, wanted = len(request.prompt_token_ids), request.params.max_tokens or 0
        if prompt + wanted > self.context:
            raise ContextLengthError(
                f"{prompt} prompt tokens and {wanted} output tokens exceed {self.context}.",
                param="messages",
            )
        self.requests.append(request)
        self.running += 1
        self._announce()
        return self._outputs(request)

    async def _outputs(self, request: Request) -> Any:
        finished = False
        try:
            limit = min(request.params.max_tokens or len(self.words), len(self.words))
            for position in range(limit):
                if self.gate is not None:
                    await self.gate.acquire()
                else:
                    await asyncio.sleep(0)
                if position == self.fail_after:
                    raise BatchFailedError("The step failed: NaN logits.")
                word = self.words[position]
                last = position == limit - 1
                reason = ("stop" if limit == len(self.words) else "length") if last else None
                finished = last
                yield Output(
                    request_id=request.request_id,
                    token_ids=(position,),
                    text_delta=word,
                    logprobs=(_logprob(position, word),) if _asked(request) else None,
                    finish_reason=reason,
                    prompt_tokens=len(request.prompt_token_ids),
                    timings=TIMINGS,
                )
        finally:
            self.running -= 1
            if not finished:
                self.aborted.append(request.request_id)
            self._announce()

    def _announce(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await self.changed.wait()

    def reload(self, revision: int | None = None) -> int:
        if self.reload_error is not None:
            raise self.reload_error
        return self.file_revision

    def state(self) -> dict[str, Any]:
        return {"v": 1, "revision": 1, "draining": False, "models": [], "errors": []}


def _asked(request: Request) -> bool:
    return request.params.logprobs is not None


def _logprob(position: int, word: str) -> TokenLogprob:
    return TokenLogprob(
        token_id=position,
        token=word,
        token_bytes=word.encode(),
        logprob=-0.5,
        top=((position, word, word.encode(), -0.5), (9, "no", b"no", float("-inf"))),
    )
