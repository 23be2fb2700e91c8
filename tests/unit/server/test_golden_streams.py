"""The bytes of a stream, from the real engine's steps on: only the tokens are prescribed."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.unit.engine.builders import TINY
from tests.unit.server.conftest import Running, masked, running
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = {
    "model": "team-a/chat",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 30,
    "temperature": 0,
}
PROMPT = 20
END = 511


@dataclass
class Pieces:
    """A tokenizer whose token i is the i-th piece of the answer, however it cuts characters."""

    pieces: list[bytes]
    eos_token_ids: frozenset[int] = frozenset({END})

    def apply_chat_template(self, _: object) -> list[int]:
        return [300] * PROMPT

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id] if token_id < len(self.pieces) else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        return token_id == END


@dataclass
class Prescribed:
    """The engine's runner, but the n-th token is n, and the end of text follows the last."""

    runner: Any
    tokens: int
    fails_at: int | None = None
    seen: list[int] = field(default_factory=list)

    def execute(self, plan: Any) -> Any:
        result = self.runner.execute(plan)
        rows = []
        for sequence, sampled in result.sampled:
            position = sequence.generated
            self.seen.append(position)
            if position == self.fails_at:
                raise RuntimeError("the device went away")
            token = position if position < self.tokens else END
            rows.append((sequence, replace(sampled, token_id=token)))
        return replace(result, sampled=tuple(rows))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


@asynccontextmanager
async def serving(*pieces: bytes, fails_at: int | None = None) -> AsyncIterator[Running]:
    spec = ModelSpec(
        name="team-a/chat",
        path=Path(),
        dtype="fp32",
        random=RandomWeights(hf_config=TINY | {"max_position_embeddings": 128}, seed=3),
    )
    engine = Engine(EngineConfig(models=(spec,)))
    async with running(engine) as worker:
        assert await asyncio.to_thread(engine.wait_loaded, 60)
        tenant = engine.tenant("team-a/chat")
        tenant.tokenizer = Pieces(list(pieces))
        tenant.runner = Prescribed(tenant.runner, len(pieces), fails_at=fails_at)
        yield worker


def chunks(*deltas: str, end: dict[str, Any], usage: str = "") -> bytes:
    """Return a chat stream's bytes: role, one chunk per text, the end."""
    head = (
        b'data: {"id":"ID","object":"chat.completion.chunk","created":0,'
        b'"model":"team-a/chat","choices":[{"index":0,"delta":'
    )
    rows = ['{"role":"assistant","content":""},"logprobs":null,"finish_reason":null']
    rows += [
        f'{{"content":{json.dumps(delta)}}},"logprobs":null,"finish_reason":null'
        for delta in deltas
    ]
    rows.append('{},"logprobs":null,' + json.dumps(end, separators=(",", ":"))[1:-1])
    return b"".join(head + row.encode() + b"}]" + usage.encode() + b"}\n\n" for row in rows)


async def test_a_stop_text_over_four_tokens_leaks_nothing():
    """Nothing of a stop text is sent, wherever the tokens cut it, and it is the stop_reason."""
    async with serving(b"Go on ", b"S", b"TO", b"P", b" and on") as worker:
        raw = await worker.stream("/v1/chat/completions", CHAT | {"stop": ["STOP", "never"]})
        end = {"finish_reason": "stop", "stop_reason": "STOP"}
        assert masked(raw) == chunks("Go on ", end=end) + b"data: [DONE]\n\n"
        assert worker.server.slot.engine.tenant("team-a/chat").runner.seen == [0, 1, 2, 3]


async def test_what_only_looked_like_a_stop_text_is_sent_late():
    """Text held back is sent as soon as it can no longer become a stop text, or at the end."""
    async with serving(b"ST", b"OR", b"E a ST") as worker:
        raw = await worker.stream("/v1/chat/completions", CHAT | {"stop": "STOP"})
        golden = chunks("STOR", "E a ", "ST", end={"finish_reason": "stop"})
        assert masked(raw) == golden + b"data: [DONE]\n\n"


async def test_characters_over_tokens_are_sent_whole():
    """A character whose bytes come in several tokens is one delta; a cut one ends as U+FFFD."""
    smile = "🙂".encode()
    async with serving(b"a", *(bytes((byte,)) for byte in smile), b"\xc3", b"\xa9\xf0") as worker:
        raw = await worker.stream("/v1/chat/completions", CHAT)
        golden = chunks("a", "🙂", "é", "\ufffd", end={"finish_reason": "stop"})
        assert masked(raw) == golden + b"data: [DONE]\n\n"


async def test_usage_counts_tokens_that_have_no_text():
    """Usage counts every sampled token, the end of text and unfinished bytes included."""
    async with serving(b"\xf0", b"\x9f\x99\x82") as worker:
        options = {"stream_options": {"include_usage": True}}
        raw = await worker.stream("/v1/chat/completions", CHAT | options)
        golden = chunks("🙂", end={"finish_reason": "stop"}, usage=',"usage":null')
        usage = (
            b'data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"team-a/chat",'
            b'"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3,"total_tokens":23,'
            b'"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
        )
        assert masked(raw) == golden + usage + b"data: [DONE]\n\n"


async def test_length_ends_with_what_was_held_back():
    """At max_tokens the text that waited for the rest of a stop text is sent."""
    async with serving(b"Go ", b"ST", b"OP") as worker:
        raw = await worker.stream("/v1/chat/completions", CHAT | {"stop": "STOP", "max_tokens": 2})
        golden = chunks("Go ", "ST", end={"finish_reason": "length"})
        assert masked(raw) == golden + b"data: [DONE]\n\n"


async def test_an_error_after_the_first_byte_is_the_last_event():
    """A step that fails in mid-stream ends it with an error object and without [DONE]."""
    async with serving(b"Go ", b"on", fails_at=1) as worker:
        raw = await worker.stream("/v1/chat/completions", CHAT)
        sent, error = raw.rstrip().rsplit(b"\n\n", 1)
        assert masked(sent + b"\n\n") == chunks("Go ", end={}).rsplit(b"data:", 1)[0]
        assert json.loads(error.removeprefix(b"data: ")) == {
            "error": {
                "message": (
                    "Model team-a/chat: a forward step of 1 requests failed: the device went away. "
                    "These requests are lost, others go on; send them again, and look at the "
                    "worker's log if it happens twice."
                ),
                "type": "server_error",
                "param": None,
                "code": "engine_step_failed",
            }
        }


async def test_a_client_that_leaves_frees_its_blocks_within_a_step():
    """After a disconnect at most the step under way and the next one still run for the client."""
    async with serving(*[b"word "] * 100) as worker:
        engine = worker.server.slot.engine
        runner = engine.tenant("team-a/chat").runner
        left = asyncio.Event()
        loop = asyncio.get_running_loop()
        inner, after = runner.runner.execute, []

        def execute(plan: Any) -> Any:
            if left.is_set():
                after.append(plan)
            return inner(plan)

        runner.runner.execute = execute
        scheduler = engine.tenant("team-a/chat").scheduler
        gone = asyncio.Event()
        remove = scheduler.remove

        def removed(sequence: Any) -> None:
            remove(sequence)
            loop.call_soon_threadsafe(gone.set)

        scheduler.remove = removed
        abort = engine.abort

        def aborted(request_id: str) -> None:
            abort(request_id)
            left.set()

        engine.abort = aborted
        url = worker.url("/v1/chat/completions")
        body = CHAT | {"stream": True, "max_tokens": 100}
        async with worker.session.post(url, json=body) as reply:
            await reply.content.readuntil(b"\n\n")
            reply.close()
        await asyncio.wait_for(gone.wait(), 30)
        assert len(after) <= 1
        assert engine.state()["kv"]["used_tokens"] == 0
