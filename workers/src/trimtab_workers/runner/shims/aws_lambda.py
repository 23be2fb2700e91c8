"""AWS Lambda: `handler(event, context)`, called as a function URL calls it.

The event is the HTTP API's payload format 2.0. Two additions make more handlers run unmodified:
`httpMethod` and `path` of format 1.0, and the members of a JSON body beside the format's own, for
handlers that were written to be invoked directly. `POST /2015-03-31/functions/<name>/invocations`, the
path of AWS's runtime interface emulator, gives exactly the body as event and exactly what is returned.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.runner.exchange import JSON_TYPE, Answer, Request, answer
from trimtab_workers.runner.shims.awaiting import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.exchange import Shim

_DIRECT: Final = re.compile(r"/2015-03-31/functions/[^/]+/invocations")
_DEFAULT_SECONDS: Final = 300.0
_MOST_DIGITS: Final = 15


class Context:
    """What Lambda tells a handler about its invocation."""

    def __init__(self, request: Request) -> None:
        name = os.environ.get("K_SERVICE", "function")
        given = request.header("trimtab-deadline-ms")
        known = given.isdecimal() and len(given) <= _MOST_DIGITS
        seconds = int(given) / 1000 if known else _DEFAULT_SECONDS
        self._ends = time.monotonic() + seconds
        self.function_name = name
        self.function_version = "$LATEST"
        self.invoked_function_arn = f"arn:aws:lambda:local:000000000000:function:{name}"
        self.memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0")
        self.aws_request_id = request.header("trimtab-invocation") or str(uuid.uuid4())
        self.log_group_name = f"/aws/lambda/{name}"
        self.log_stream_name = os.environ.get("HOSTNAME", "local")
        self.identity = None
        self.client_context = None

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the deadline, at least 0."""
        return max(0, int(1000 * (self._ends - time.monotonic())))


def make(handler: Callable[[Any, Any], Any], *, parameters: int) -> Shim:
    """Return the shim."""
    del parameters

    def call(request: Request) -> Answer:
        context = Context(request)
        if _DIRECT.fullmatch(request.path):
            event = json.loads(request.body) if request.body else {}
            result = json.dumps(finished(handler(event, context)))
            return answer(result, content_type=JSON_TYPE)
        return _answer(finished(handler(event_of(request, context.aws_request_id), context)))

    return call


def event_of(request: Request, request_id: str) -> dict[str, Any]:
    """Return the event of an HTTP request."""
    text = request.text()
    body = text if text is not None else base64.b64encode(request.body).decode()
    cookies = [part.strip() for part in request.header("cookie").split(";") if part.strip()]
    return {
        **request.json_object(),
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": request.path,
        "rawQueryString": request.query,
        "cookies": cookies,
        "headers": request.joined_headers(),
        "queryStringParameters": _joined(request.parameter_pairs()) or None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "trimtab",
            "domainName": request.header("host"),
            "domainPrefix": "trimtab",
            "http": {
                "method": request.method,
                "path": request.path,
                "protocol": "HTTP/1.1",
                "sourceIp": request.peer,
                "userAgent": request.header("user-agent"),
            },
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
            "timeEpoch": int(time.time() * 1000),
        },
        "body": body if request.body else None,
        "isBase64Encoded": text is None,
        "httpMethod": request.method,
        "path": request.path,
    }


def _joined(pairs: list[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _answer(result: Any) -> Answer:
    if not (isinstance(result, dict) and "statusCode" in result):
        return answer(result, content_type=JSON_TYPE)
    body = result.get("body")
    if result.get("isBase64Encoded") and isinstance(body, str):
        body = base64.b64decode(body)
    headers = {**(result.get("headers") or {}), **(result.get("multiValueHeaders") or {})}
    if result.get("cookies"):
        headers["set-cookie"] = list(result["cookies"])
    return answer(body, status=result["statusCode"], headers=headers, content_type=JSON_TYPE)
