"""The two generating endpoints: tokenise, run every choice in the engine, reply or stream."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from aiohttp import web

from trimtab_workers.engine.errors import ContextLengthError, EngineError, InvalidRequestError
from trimtab_workers.engine.types import Output, Request, SamplingParams
from trimtab_workers.server.parse import Sampling, parse_chat, parse_completion
from trimtab_workers.server.replies import (
    DONE,
    Choice,
    Reply,
    dump,
    event,
    server_timing,
    usage_of,
)
from trimtab_workers.web.errors import REQUEST_ID, ApiError, request_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from trimtab_workers.server.slot import EngineSlot, ServedEngine, Tokenizer

T = TypeVar("T")

THREAD_CHARACTERS: Final = 4_096
_SEED_SPAN: Final = 2**63
_RETRY_SECONDS: Final = 1.0
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def to_api_error(error: EngineError) -> ApiError:
    """Translate what the engine refuses into what the client sees."""
    retry = error.retry_after_seconds
    if error.status == 503 and retry is None:
        retry = int(_RETRY_SECONDS)
    return ApiError(
        error.status, error.message, code=error.code, param=error.param, retry_after_seconds=retry
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    api: Literal["chat", "text"]
    reply: Reply
    sampling: Sampling
    requests: Sequence[Request]


class Generation:
    """Serves `/v1/chat/completions` and `/v1/completions`."""

    def __init__(self, slot: EngineSlot) -> None:
        self._slot = slot

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        engine = self._slot.require()
        arrival = engine.clock.now()
        call = parse_chat(await json_body(request))
        tokenizer = engine.tokenizer(call.sampling.model)
        # A template is foreign code that may take its time, which streams must not wait for.
        ids = tuple(await asyncio.to_thread(tokenizer.apply_chat_template, call.messages))
        prepared = _prepare("chat", call.sampling, [ids], arrival=arrival)
        return await self._answer(request, engine, prepared)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """Continue one or several texts."""
        engine = self._slot.require()
        arrival = engine.clock.now()
        call = parse_completion(await json_body(request))
        tokenizer = engine.tokenizer(call.sampling.model)
        prompts = [await _encode(tokenizer, prompt) for prompt in call.prompts]
        prepared = _prepare("text", call.sampling, prompts, arrival=arrival)
        return await self._answer(request, engine, prepared)

    async def _answer(
        self, request: web.Request, engine: ServedEngine, call: _Call
    ) -> web.StreamResponse:
        async with contextlib.AsyncExitStack() as stack:
            streams: list[AsyncIterator[Output]] = []
            for part in call.requests:
                stream = _submit(engine, part, api=call.api)
                streams.append(stream)
                close = getattr(stream, "aclose", None)
                if close is not None:
                    stack.push_async_callback(close)
            merged = await stack.enter_async_context(contextlib.aclosing(_merge(streams)))
            choices = [Choice(index=index) for index in range(len(streams))]
            if call.sampling.stream:
                return await _stream(request, call, choices, merged)
            async for index, output in merged:
                choices[index].take(output)
            usage = usage_of(choices, per_prompt=call.sampling.n)
            body = dump(call.reply.whole(choices, usage=usage))
            timing = server_timing(choices[0]) if len(choices) == 1 else None
            headers = {} if timing is None else {"Server-Timing": timing}
            return web.Response(body=body, content_type="application/json", headers=headers)


def _submit(
    engine: ServedEngine, request: Request, *, api: Literal["chat", "text"]
) -> AsyncIterator[Output]:
    try:
        return engine.stream(request)
    except ContextLengthError as error:
        error.param = "messages" if api == "chat" else "prompt"
        raise


async def _stream(
    request: web.Request,
    call: _Call,
    choices: Sequence[Choice],
    merged: AsyncIterator[tuple[int, Output]],
) -> web.StreamResponse:
    """Stream; an error before the first output is still a plain HTTP error."""
    response = web.StreamResponse(headers=STREAM_HEADERS | {REQUEST_ID: request_id(request)})
    try:
        async for index, output in merged:
            choice = choices[index]
            choice.take(output)
            choice.texts.clear()
            choice.logprobs.clear()
            chunks = call.reply.chunks(choice, output)
            if call.sampling.continuous_usage:
                sofar = usage_of([choice], per_prompt=1).to_dict()
                chunks = [chunk | {"usage": sofar} for chunk in chunks]
            if chunks:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(b"".join(event(chunk) for chunk in chunks))
    except EngineError as error:
        if not response.prepared:
            raise
        response.force_close()
        await response.write(to_api_error(error).event())
        await response.write_eof()
        return response
    last = b""
    if call.sampling.include_usage:
        usage = usage_of(choices, per_prompt=call.sampling.n)
        last = event(call.reply.usage_chunk(usage))
    await response.write(last + DONE)
    await response.write_eof()
    return response


def _prepare(
    api: Literal["chat", "text"],
    sampling: Sampling,
    prompts: Sequence[tuple[int, ...]],
    *,
    arrival: float,
) -> _Call:
    for prompt in prompts:
        if not prompt:
            raise InvalidRequestError(
                "The prompt has no tokens. Give at least one.",
                param="messages" if api == "chat" else "prompt",
            )
    call_id = ("chatcmpl-" if api == "chat" else "cmpl-") + uuid.uuid4().hex
    requests = [
        Request(
            request_id=f"{call_id}-{number}-{choice}",
            model=sampling.model,
            prompt_token_ids=prompt,
            params=_for_choice(sampling, choice),
            arrival_seconds=arrival,
            choices=0 if choice else sampling.n,
        )
        for number, prompt in enumerate(prompts)
        for choice in range(sampling.n)
    ]
    reply = Reply(
        api=api,
        call_id=call_id,
        created=int(time.time()),
        model=sampling.model,
        with_logprobs=sampling.params.logprobs is not None,
        with_usage=sampling.include_usage,
    )
    return _Call(api=api, reply=reply, sampling=sampling, requests=requests)


def _for_choice(sampling: Sampling, choice: int) -> SamplingParams:
    """Give each choice of a seeded call its own noise; choice 0 keeps the seed."""
    seed = sampling.params.seed
    if seed is None or not choice:
        return sampling.params
    shifted = (seed + choice + _SEED_SPAN) % (2 * _SEED_SPAN) - _SEED_SPAN
    return dataclasses.replace(sampling.params, seed=shifted)


async def _merge(
    streams: Sequence[AsyncIterator[Output]],
) -> AsyncGenerator[tuple[int, Output], None]:
    """Yield the outputs of several requests as they come, with the index of their choice."""
    if len(streams) == 1:
        async for output in streams[0]:
            yield 0, output
        return
    waiting = {asyncio.ensure_future(anext(stream)): i for i, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                try:
                    output = task.result()
                except StopAsyncIteration:
                    continue
                yield index, output
                waiting[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _encode(tokenizer: Tokenizer, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return prompt
    return await in_thread_if_long(lambda: tuple(tokenizer.encode(prompt)), size=len(prompt))


async def in_thread_if_long(work: Callable[[], T], *, size: int) -> T:
    """Run CPU work on the loop if the text is short, else in a thread: streams must not stall."""
    return work() if size <= THREAD_CHARACTERS else await asyncio.to_thread(work)


async def json_body(request: web.Request) -> dict[str, Any]:
    """Return the request's JSON object.

    Raises:
        ApiError: 400 if it is none.
    """
    try:
        text = await request.text()
        body = await in_thread_if_long(lambda: json.loads(text), size=len(text))
    except (ValueError, RecursionError, LookupError) as error:  # no JSON, too deep, no charset
        raise ApiError(
            400, f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return body
