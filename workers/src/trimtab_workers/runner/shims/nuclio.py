"""Nuclio: `handler(context, event)`, with `init_context(context)` before the first call."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import uuid
from typing import TYPE_CHECKING, Any

from trimtab_workers.runner.exchange import Answer, FunctionError, Request, answer
from trimtab_workers.runner.shims.awaiting import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.exchange import Shim


class Response:
    """What `context.Response(…)` makes."""

    def __init__(
        self,
        body: Any = None,
        headers: dict[str, Any] | None = None,
        content_type: str = "text/plain",
        status_code: int = 200,
    ) -> None:
        self.body = body
        self.headers = headers or {}
        self.content_type = content_type
        self.status_code = status_code


class Logger:
    """Nuclio's logger: a message, and in the `_with` forms fields beside it."""

    def __init__(self) -> None:
        self._log = logging.getLogger("function")
        if not self._log.handlers:
            self._log.addHandler(logging.StreamHandler(sys.stderr))
            self._log.setLevel(logging.INFO)

    def __getattr__(self, name: str) -> Callable[..., None]:
        level, _, fields = name.partition("_")
        write = {
            "debug": self._log.debug,
            "info": self._log.info,
            "warn": self._log.warning,
            "warning": self._log.warning,
            "error": self._log.error,
        }.get(level)
        if write is None or fields not in {"", "with"}:
            raise AttributeError(name)
        if not fields:
            return write
        return lambda message, **given: write("%s %s", message, json.dumps(given, default=str))


class Context:
    """What stays the same for all calls; `user_data` is the function's own."""

    def __init__(self) -> None:
        self.logger = Logger()
        self.platform = None
        self.worker_id = 0
        self.user_data = UserData()
        self.Response = Response


class UserData:
    """An object to keep things on."""


class Trigger:
    """Where an event came from."""

    kind = "http"
    name = "http"


class Event:
    """A request in Nuclio's shape; a JSON body is parsed, any other is bytes."""

    def __init__(self, request: Request) -> None:
        self.body: Any = request.body
        if request.is_json() and request.body:
            self.body = json.loads(request.body)
        self.content_type = request.header("content-type")
        # As Go writes them: handlers look for `Content-Type`.
        self.headers = {name.title(): value for name, value in request.joined_headers().items()}
        self.fields = request.parameters()
        self.id = request.header("trimtab-invocation") or str(uuid.uuid4())
        self.method = request.method
        self.path = request.path
        self.url = request.raw_path
        self.size = len(request.body)
        self.timestamp = dt.datetime.now(dt.UTC)
        self.trigger = Trigger()
        self.shard_id, self.num_shards = 0, 0
        self.type, self.type_version, self.version, self.last_in_batch = "", "", 0, False

    def get_header(self, name: str, default: str = "") -> str:
        """Return a header whatever its case."""
        return str(self.headers.get(name.title(), default))


def make(handler: Callable[[Any, Any], Any], *, parameters: int) -> Shim:
    """Return the shim; the module's `init_context` is called here."""
    del parameters
    context = Context()
    prepare = getattr(sys.modules.get(handler.__module__), "init_context", None)
    if callable(prepare):
        finished(prepare(context))

    def call(request: Request) -> Answer:
        try:
            event = Event(request)
        except ValueError as error:
            return answer(f"The body is no JSON: {error}.\n", status=400)
        return _answer(finished(handler(context, event)))

    return call


def _answer(result: Any) -> Answer:
    if isinstance(result, Response):
        return answer(
            result.body,
            status=result.status_code,
            headers=result.headers,
            content_type=result.content_type,
        )
    if isinstance(result, tuple):
        if len(result) != 2:
            raise FunctionError(
                f"The function gave back a tuple of {len(result)}; Nuclio knows (status, body)."
            )
        return answer(result[1], status=result[0])
    return answer(result)
