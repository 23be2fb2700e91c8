"""Reading request bodies: bounded in time, in size and, over all requests, in memory."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.web.errors import ApiError
from trimtab_workers.web.listeners import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

_BODY_SECONDS: Final = 60.0


class BodyBudget:
    """Bounds the memory that bodies of running requests take; one without a length counts most."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0

    @contextlib.contextmanager
    def reserve(self, request: web.Request) -> Iterator[None]:
        """Hold a request's share.

        Raises:
            ApiError: 503 if the others leave too little.
        """
        size = request.content_length
        if size is None or "Content-Encoding" in request.headers:
            size = MAX_BODY_BYTES  # what a compressed body unfolds to is not known either
        size = min(size, MAX_BODY_BYTES)
        if self._used and self._used + size > self._limit:
            raise ApiError(
                503,
                "The gateway holds too many large requests. Retry in a moment.",
                code="overloaded",
                retry_after_seconds=1.0,
            )
        self._used += size
        try:
            yield
        finally:
            self._used -= size


async def json_object(request: web.Request) -> dict[str, Any]:
    """Return the request's JSON object.

    Raises:
        ApiError: 400 if it is none, 408 if it does not arrive in time.
    """
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await request.json()
    except TimeoutError as error:
        raise ApiError(
            408, f"The request body did not arrive within {_BODY_SECONDS:g} s.", code="timeout"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400, f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return body
