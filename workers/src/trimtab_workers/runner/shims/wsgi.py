"""Call a WSGI application with a request: the functions that live in Flask."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from trimtab_workers.runner.exchange import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def call(application: Callable[..., Iterable[bytes]], request: Request) -> Answer:
    """Return the application's answer; it is streamed if its length is not said."""
    begun: list[Any] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        del exc_info
        begun[:] = [int(status.split(" ", 1)[0]), headers]
        return written.append

    written: list[bytes] = []
    pieces = application(_environ(request), start_response)
    iterator = iter(_closing(pieces))
    first = next(iterator, b"")  # an application may call start_response as late as here
    if not begun:
        raise RuntimeError("The WSGI application did not call start_response. Correct it.")
    status, headers = begun
    if any(name.lower() == "content-length" for name, _ in headers):
        return Answer(status, headers, b"".join((*written, first, *iterator)))
    return Answer(status, headers, _streamed((*written, first), iterator))


def _closing(pieces: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _streamed(first: tuple[bytes, ...], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from first
    yield from rest


def _environ(request: Request) -> dict[str, Any]:
    host, _, port = request.header("host", "localhost").partition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        # WSGI's text is bytes in Latin-1.
        "PATH_INFO": request.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "RAW_URI": request.raw_path,
        "QUERY_STRING": request.query,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": request.peer,
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.joined_headers().items():
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environ[key] = value
        elif key != "CONTENT_LENGTH":
            environ[f"HTTP_{key}"] = value
    return environ
