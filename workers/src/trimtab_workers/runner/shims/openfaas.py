"""OpenFaaS: `handle(event, context)` of the python3-http template, `handle(req)` of the classic one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from trimtab_workers.runner.exchange import JSON_TYPE, Answer, Request, answer
from trimtab_workers.runner.shims.awaiting import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.exchange import Shim


class Headers(dict[str, str]):
    """Headers whose names may be asked for in any case, as Flask's may in the template."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header or the default."""
        return super().get(name.lower(), default)


class Event:
    """The template's event."""

    def __init__(self, request: Request) -> None:
        self.body = request.body
        self.headers = Headers(request.joined_headers())
        self.method = request.method
        self.query = request.parameters()
        self.path = request.path


class Context:
    """The template's context."""

    def __init__(self) -> None:
        self.hostname = os.environ.get("HOSTNAME", "localhost")


def make(handle: Callable[..., Any], *, parameters: int) -> Shim:
    """Return the shim of the template whose `handle` takes so many parameters."""

    def http(request: Request) -> Answer:
        return _answer(finished(handle(Event(request), Context())))

    def classic(request: Request) -> Answer:
        text = request.text()
        result = finished(handle(request.body if text is None else text))
        return _flask(result) or answer(result)

    return classic if parameters == 1 else http


def _flask(result: Any) -> Answer | None:
    """Return the answer of `(body, status)` or `(body, status, headers)`, as the Flask templates take it."""
    if not (isinstance(result, tuple) and len(result) in {2, 3} and isinstance(result[1], int)):
        return None
    return answer(result[0], status=result[1], headers=result[2] if result[2:] else None)


def _answer(result: Any) -> Answer:
    if not isinstance(result, dict):
        return _flask(result) or answer(result)
    body = result.get("body")
    natural = JSON_TYPE if isinstance(body, (dict, list)) else None
    return answer(
        body,
        status=result.get("statusCode", 200),
        headers=result.get("headers"),
        content_type=natural,
    )
