"""OpenAI error objects: the one shape in which a client sees a failure."""

from __future__ import annotations

import json
import logging
import math
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"


class ApiError(Exception):
    """A request that ends with an OpenAI error object.

    Args:
        status: HTTP status.
        message: A full sentence for the person who reads the client's log.
        code: Machine-readable reason, such as `model_not_found`.
        param: The field of the request that is at fault, if one is.
        kind: OpenAI's `type`; derived from the status when left out.
        retry_after_seconds: Sent as `Retry-After`, rounded up to whole seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or _kind_of(status)
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """Return the OpenAI error object."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> web.Response:
        """Return the error as an HTTP response."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return web.json_response(self.body(), status=self.status, headers=headers)

    def event(self) -> bytes:
        """Return the error as a server-sent event, for a stream whose first byte has left."""
        return b"data: " + json.dumps(self.body(), separators=(",", ":")).encode() + b"\n\n"


def _kind_of(status: int) -> str:
    kinds = {
        HTTPStatus.UNAUTHORIZED: "authentication_error",
        HTTPStatus.FORBIDDEN: "permission_error",
        HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    }
    default = INVALID_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_ERROR
    return kinds.get(HTTPStatus(status), default)


def from_http(error: web.HTTPException, *, method: str, path: str) -> ApiError:
    """Translate aiohttp's own refusals (unknown path, wrong method, body too large)."""
    if error.status == HTTPStatus.NOT_FOUND:
        return ApiError(404, f"Unknown request URL: {method} {path}.", code="unknown_url")
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        return ApiError(405, f"{method} is not allowed on {path}.", code="method_not_allowed")
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return ApiError(
            413, "The request body is larger than 4 MiB; shorten it.", code="request_too_large"
        )
    return ApiError(error.status, error.reason, code=error.reason.lower().replace(" ", "_"))


REQUEST_ID: Final = "X-Request-Id"
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
_ID_KEY: Final = web.RequestKey("request_id", str)


def request_id(request: web.Request) -> str:
    """Return the caller's `X-Request-Id` if it is sane, else one of our own."""
    known = request.get(_ID_KEY)
    if known is None:
        given = request.headers.get(REQUEST_ID, "")
        known = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        request[_ID_KEY] = known
    return known


def nothing_more(_: Exception) -> ApiError | None:
    """Translate no further exceptions."""
    return None


def openai_errors(
    translate: Callable[[Exception], ApiError | None] = nothing_more,
) -> Middleware:
    """Return the middleware that turns every failure into an OpenAI error object.

    Args:
        translate: Turns a package's own exceptions into an `ApiError`, or returns None.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except (ConnectionResetError, web.HTTPMove):
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not end as an HTML page
            response = _as_api_error(error, request, translate).response()
        if not response.prepared:
            response.headers.setdefault(REQUEST_ID, request_id(request))
        return response

    return middleware


def _as_api_error(
    error: Exception, request: web.Request, translate: Callable[[Exception], ApiError | None]
) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, web.HTTPException):
        return from_http(error, method=request.method, path=request.path)
    translated = translate(error)
    if translated is not None:
        return translated
    log.error(
        "request_failed",
        exc_info=error,
        extra={"path": request.path, "request_id": request_id(request)},
    )
    return ApiError(
        500,
        "The server failed on this request. This is a bug: please report it with the log.",
        code="internal_error",
    )
