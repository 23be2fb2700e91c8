"""What `import parliament` gives where that package is not installed: its context and its decorator."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Context:
    """Flask's request, and the CloudEvent if it was one."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.cloud_event: Any = None


def event(
    function: Callable[..., Any] | None = None,
    *,
    event_type: str = "parliament.response",
    event_source: str = "/parliament/function",
) -> Callable[..., Any]:
    """Decorate a function whose result is the data of a CloudEvent, sent in binary mode."""

    def decorator(decorated: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(decorated)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            from cloudevents.http import CloudEvent, to_binary  # noqa: PLC0415 - not at every start

            attributes = {"type": event_type, "source": event_source}
            headers, body = to_binary(CloudEvent(attributes, decorated(*arguments, **named)))
            return body, 200, headers

        return wrapper

    return decorator if function is None else decorator(function)
