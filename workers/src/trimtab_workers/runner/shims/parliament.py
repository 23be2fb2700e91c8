"""Parliament (Knative func before its ASGI middleware): `main(context)` with Flask's request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from trimtab_workers.runner.loading import RefusedError
from trimtab_workers.runner.shims import wsgi
from trimtab_workers.runner.shims.parliament_module import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.exchange import Shim

log = logging.getLogger(__name__)

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def make(main: Callable[[Any], Any], *, parameters: int) -> Shim:
    """Return the shim.

    Raises:
        RefusedError: Flask is not installed.
    """
    del parameters
    try:
        import flask  # noqa: PLC0415 - only the runner's image has it
    except ImportError as error:
        raise RefusedError(
            "FrameworkMissing",
            "main(context) is for Parliament, which gives it Flask's request, and Flask is not installed. "
            "Use the runner's image, or pip install 'trimtab[runner]'.",
        ) from error
    application = flask.Flask("function")

    def handle(path: str = "") -> Any:
        del path
        context = Context(flask.request)
        if flask.request.method == "POST":
            context.cloud_event = _cloud_event(flask.request)
        result = main(context)
        return "" if result is None else result

    for rule in ("/", "/<path:path>"):
        application.add_url_rule(rule, view_func=handle, methods=_METHODS)
    return lambda request: wsgi.call(application, request)


def _cloud_event(request: Any) -> Any:
    structured = request.content_type and "cloudevents" in request.content_type
    if "ce-specversion" not in request.headers and not structured:
        return None
    from cloudevents.http import from_http  # noqa: PLC0415 - comes with functions-framework

    try:
        return from_http(request.headers, request.get_data())
    except Exception as error:  # noqa: BLE001 - Parliament serves what is no event as plain HTTP
        log.warning("not_a_cloud_event", extra={"reason": str(error)})
        return None
