"""OpenWhisk: `main(args)` → dict, called as a web action is.

The members of a JSON body, of a form and of the query are arguments; `__ow_*` tell the request. A
result with `statusCode`, `headers` or `body` is an HTTP answer, any other is JSON.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from trimtab_workers.runner.exchange import Answer, FunctionError, Request, answer
from trimtab_workers.runner.shims.awaiting import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.exchange import Shim

_HTML = "text/html"


def make(main: Callable[[dict[str, Any]], Any], *, parameters: int) -> Shim:
    """Return the shim."""
    del parameters

    def call(request: Request) -> Answer:
        return _answer(finished(main(arguments(request))))

    return call


def arguments(request: Request) -> dict[str, Any]:
    """Return what `main` is called with."""
    given: dict[str, Any] = request.json_object()
    taken = bool(given) or not request.body
    if request.header("content-type").startswith("application/x-www-form-urlencoded"):
        form = request._replace(query=request.body.decode("utf-8", "replace"))
        given, taken = dict(form.parameters()), True
    given |= request.parameters()
    if not taken:
        text = request.text()
        given["__ow_body"] = text if text is not None else base64.b64encode(request.body).decode()
    return given | {
        "__ow_method": request.method.lower(),
        "__ow_headers": request.joined_headers(),
        "__ow_path": request.path if request.path != "/" else "",
        "__ow_query": request.query,
    }


def _answer(result: Any) -> Answer:
    if result is None:
        result = {}
    if not isinstance(result, (dict, list)):
        raise FunctionError(
            f"main gave back a {type(result).__name__}; OpenWhisk knows a dictionary. "
            'Give back {"body": …} for anything else.'
        )
    if isinstance(result, dict) and "error" in result:
        error = result["error"]
        told = isinstance(error, dict) and "body" in error
        result = {"statusCode": 400, **(error if told else {"body": {"error": error}})}
    if isinstance(result, list) or not result.keys() & {"statusCode", "headers", "body"}:
        return answer(result)
    headers, body = result.get("headers") or {}, result.get("body")
    kind = next((str(v) for k, v in headers.items() if k.lower() == "content-type"), "")
    if isinstance(body, str) and _binary(kind):
        body = base64.b64decode(body)
    natural = _HTML if isinstance(body, str) else None
    status = result.get("statusCode", 200 if body else 204)
    return answer(body, status=status, headers=headers, content_type=natural)


def _binary(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    textual = ("text/", "application/json", "application/xml", "application/javascript")
    return bool(kind) and not kind.startswith(textual) and not kind.endswith(("+json", "+xml"))
