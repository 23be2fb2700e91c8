"""OpenAI error objects: the one shape in which a client sees a failure."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

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
