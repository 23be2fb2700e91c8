"""One HTTP exchange as a function's code sees it, before a signature gives it its shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
BYTES_TYPE: Final = "application/octet-stream"


class FunctionError(Exception):
    """The function gave back what is no HTTP answer; says what and what it may give."""


# NamedTuple, not dataclass: importing `dataclasses` would take a tenth of the child's start.
class Request(NamedTuple):
    """A request with its whole body.

    Attributes:
        path: Decoded, without the query.
        raw_path: As it was sent, without the query.
        headers: In the order in which they were sent; names in lower case.
    """

    method: str
    path: str
    raw_path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes
    peer: str = ""

    def header(self, name: str, default: str = "") -> str:
        """Return a header's first value; the name is in lower case."""
        return next((value for key, value in self.headers if key == name), default)

    def joined_headers(self) -> dict[str, str]:
        """Return the headers with repeated ones joined by commas."""
        joined: dict[str, str] = {}
        for name, value in self.headers:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        return joined

    def parameters(self) -> dict[str, str]:
        """Return the query's parameters; the last of repeated ones wins."""
        return dict(self.parameter_pairs())

    def parameter_pairs(self) -> list[tuple[str, str]]:
        """Return the query's parameters in order."""
        if not self.query:
            return []
        from urllib.parse import parse_qsl  # noqa: PLC0415 - most requests have no query

        return parse_qsl(self.query, keep_blank_values=True)

    def is_json(self) -> bool:
        """Return whether the content type says JSON, structured CloudEvents among them."""
        kind = self.header("content-type").partition(";")[0].strip().lower()
        return kind == JSON_TYPE or kind.endswith("+json")

    def json_object(self) -> dict[str, Any]:
        """Return the body if it is a JSON object, else an empty one."""
        if self.body and (self.is_json() or not self.header("content-type")):
            try:
                found = json.loads(self.body)
            except (ValueError, RecursionError):
                return {}
            if isinstance(found, dict):
                return found
        return {}

    def text(self) -> str | None:
        """Return the body as text, None if it is none."""
        kind = self.header("content-type").partition(";")[0].strip().lower()
        textual = (
            not kind
            or self.is_json()
            or kind.startswith("text/")
            or kind.endswith(("xml", "javascript", "x-www-form-urlencoded"))
        )
        if textual:
            try:
                return self.body.decode()
            except UnicodeDecodeError:
                return None
        return None


class Answer(NamedTuple):
    """What the function answered; a body that is no bytes is streamed.

    Attributes:
        failed: The function raised.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterator[bytes]
    failed: bool = False


Shim = Callable[[Request], Answer]


def answer(
    value: Any, *, status: Any = 200, headers: Any = None, content_type: str | None = None
) -> Answer:
    """Return any value as an answer: bytes and text as they are, everything else as JSON.

    Args:
        value: The body; None is an empty one.
        status: Anything that `int` takes.
        headers: A mapping, pairs, or None; a list as value repeats the header.
        content_type: Used if no header says it; by default by the value's type.

    Raises:
        FunctionError: The status is none, or the value cannot be written as JSON.
    """
    try:
        code = int(status)
    except (TypeError, ValueError) as error:
        raise FunctionError(
            f"The function's status is {status!r}; give an integer from 200 to 599."
        ) from error
    pairs = list(_pairs(headers))
    body, natural = _bytes(value)
    if body and not any(name.lower() == "content-type" for name, _ in pairs):
        pairs.append(("content-type", content_type or natural))
    return Answer(code, pairs, body)


def _pairs(headers: Any) -> Iterable[tuple[str, str]]:
    if not headers:
        return
    for name, value in headers.items() if hasattr(headers, "items") else headers:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            yield str(name), str(one)


def _bytes(value: Any) -> tuple[bytes, str]:
    if value is None:
        return b"", TEXT_TYPE
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), BYTES_TYPE
    if isinstance(value, str):
        return value.encode(), TEXT_TYPE
    try:
        return json.dumps(value).encode(), JSON_TYPE
    except (TypeError, ValueError) as error:
        raise FunctionError(
            f"The function gave back a {type(value).__name__} that cannot be written as JSON ({error}). "
            "Give back text, bytes, or values that JSON knows."
        ) from error
