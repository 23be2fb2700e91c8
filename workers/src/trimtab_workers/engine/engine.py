"""The engine: one thread that steps, beside whatever loop submits.

Interface for the server (bodies follow). Callable from any thread unless said otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.clock import Clock, SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from prometheus_client import CollectorRegistry

    from trimtab_workers.engine.config import EngineConfig
    from trimtab_workers.engine.types import Output, Request


class Engine:
    """Serves the models of one configuration on one device.

    Attributes:
        config: The configuration in force.
        clock: Source of all times that outputs carry.
        registry: Prometheus registry of this engine alone, with vLLM's names.
    """

    config: EngineConfig
    clock: Clock
    registry: CollectorRegistry

    def __init__(self, config: EngineConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()

    def start(self) -> None:
        """Start the engine thread, which loads the models and then steps; returns at once."""
        raise NotImplementedError

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Abort what runs, end the thread and free the arena."""
        raise NotImplementedError

    def drain(self) -> None:
        """Refuse new requests with DrainingError; running ones go on."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits (what a drain waits for)."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether loading ended, at least one model is usable and nothing drains (`/health`)."""
        raise NotImplementedError

    def liveness(self) -> str | None:
        """Return None while alive, else a sentence: no step for 60 s with work, or a dead thread."""
        raise NotImplementedError

    def wait_loaded(self, timeout_seconds: float) -> bool:
        """Block until every model is Resident or Failed; False on time-out."""
        raise NotImplementedError

    def models(self) -> tuple[Mapping[str, Any], ...]:
        """Return name, state, max_model_len, error of every model, for `/v1/models`."""
        raise NotImplementedError

    def tokenizer(self, model: str) -> Any:
        """Return the model's `Tokenizer`: encode, decode, apply_chat_template, eos_token_ids.

        Raises:
            UnknownModelError, ModelUnavailableError.
        """
        raise NotImplementedError

    def submit(self, request: Request, sink: Callable[[Output], None]) -> None:
        """Queue a request; `sink` is called on the engine thread with every output.

        Raises:
            EngineError: It cannot be served: unknown model, context length, full queue, draining.
        """
        raise NotImplementedError

    def stream(self, request: Request) -> AsyncIterator[Output]:
        """Queue a request from an asyncio loop; iterate its outputs there.

        Submits before it returns, so errors are raised at the call, not at the first item. An
        output with an error is raised as that EngineError. Leaving the iteration early
        (`aclose`, cancellation) aborts the request.
        """
        raise NotImplementedError

    def abort(self, request_id: str) -> None:
        """End a request with finish_reason "abort" within one step; unknown ids are ignored."""
        raise NotImplementedError

    def reload(self, revision: int | None = None) -> int:
        """Re-read the model set file once, apply it if newer, return the revision in force.

        The server polls this each second until it returns `revision` or more. Errors are kept in
        `state()["errors"]` and raised.

        Raises:
            ConfigError: The file is bad; nothing changed.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return the document of contracts §6."""
        raise NotImplementedError
