"""The engine as the server holds it: absent while its modules load, then starting, ready, draining.

Importing torch and reading weights takes seconds; the ports answer before that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from trimtab_workers.web.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.types import Output, Request

log = logging.getLogger(__name__)

STARTING_RETRY_SECONDS = 2.0


class Tokenizer(Protocol):
    """What the server needs of a model's tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return token ids."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation, opened for the assistant's turn."""
        ...


class ServedEngine(Protocol):
    """What the server needs of the engine; `trimtab_workers.engine.engine.Engine` has it."""

    @property
    def clock(self) -> Clock: ...  # noqa: D102 - see Engine
    @property
    def registry(self) -> CollectorRegistry: ...  # noqa: D102 - see Engine
    def start(self) -> None: ...  # noqa: D102 - see Engine
    def stop(self, timeout_seconds: float = 10.0) -> None: ...  # noqa: D102 - see Engine
    def drain(self) -> None: ...  # noqa: D102 - see Engine
    @property
    def idle(self) -> bool: ...  # noqa: D102 - see Engine
    @property
    def ready(self) -> bool: ...  # noqa: D102 - see Engine
    def liveness(self) -> str | None: ...  # noqa: D102 - see Engine
    def models(self) -> tuple[Mapping[str, Any], ...]: ...  # noqa: D102 - see Engine
    def tokenizer(self, model: str) -> Tokenizer: ...  # noqa: D102 - see Engine
    def stream(self, request: Request) -> AsyncIterator[Output]: ...  # noqa: D102 - see Engine
    def reload(self, revision: int | None = None) -> int: ...  # noqa: D102 - see Engine
    def state(self) -> dict[str, Any]: ...  # noqa: D102 - see Engine


class EngineSlot:
    """Where the engine will be; says why there is none."""

    def __init__(self) -> None:
        self._engine: ServedEngine | None = None
        self.failure: BaseException | None = None
        self.draining = False

    async def fill(self, build: Callable[[], ServedEngine]) -> None:
        """Build and start the engine in a thread, so that the ports keep answering.

        Raises:
            Exception: Whatever `build` raises; it is kept in `failure` too.
        """
        try:
            engine = await asyncio.to_thread(build)
            await asyncio.to_thread(engine.start)
        except Exception as error:
            self.failure = error
            raise
        self._engine = engine
        if self.draining:
            engine.drain()

    @property
    def engine(self) -> ServedEngine | None:
        """The engine, or None while it starts."""
        return self._engine

    def require(self) -> ServedEngine:
        """Return the engine.

        Raises:
            ApiError: 503 while there is none.
        """
        if self._engine is None:
            raise ApiError(
                503,
                "The engine is starting. Retry in a moment.",
                code="starting",
                retry_after_seconds=STARTING_RETRY_SECONDS,
            )
        return self._engine

    def health(self) -> str:
        """Return `ok`, `starting` or `draining`."""
        if self.draining:
            return "draining"
        return "ok" if self._engine is not None and self._engine.ready else "starting"

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True
        if self._engine is not None:
            self._engine.drain()

    async def stop(self) -> None:
        """End the engine's thread and free its memory."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)
