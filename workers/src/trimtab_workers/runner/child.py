"""The process that runs the user's code: load, say ready, answer one request after another.

It is started by the parent with the number of its socket and speaks `frames` over it; the function's
own output goes to the container's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.runner import frames
from trimtab_workers.runner.costs import cpu_micros
from trimtab_workers.runner.exchange import Answer, FunctionError, Request
from trimtab_workers.runner.failures import reported
from trimtab_workers.runner.loading import RefusedError, find, load, prepare
from trimtab_workers.runner.signatures import (
    ASGI,
    FUNCTIONS_FRAMEWORK,
    choose,
    framework_target,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.runner.exchange import Shim

_PR_SET_PDEATHSIG: Final = 1
_FIRST_TO_DIE: Final = "1000"
_LEAST_STATUS, _MOST_STATUS = 200, 599


def main(argv: list[str]) -> None:
    """Serve the function of the environment over the socket whose number is the first argument."""
    sock = socket.socket(fileno=int(argv[0]))
    # A program that the function starts and leaves behind could otherwise hold or garble the channel.
    sock.set_inheritable(False)
    channel = frames.BlockingChannel(sock)
    _settle(int(argv[1]))
    environment = os.environ
    try:
        source = find(
            Path(environment["TRIMTAB_FUNCTION_SOURCE"]).resolve(),
            environment["TRIMTAB_FUNCTION_MODULE"],
        )
        signature = environment.get("TRIMTAB_SIGNATURE") or None
        prepare(source)
        os.chdir(source.folder)
        target = framework_target(
            source.text, module=source.module, signature=signature, environment=environment
        )
        if target is not None:
            from trimtab_workers.runner.shims import functions_framework  # noqa: PLC0415

            shim = functions_framework.make(source, target=target, environment=environment)
            chosen = (FUNCTIONS_FRAMEWORK, target)
        else:
            module = load(source)
            found = choose(module, signature=signature)
            function = getattr(module, found.function)
            chosen = (found.signature, found.function)
            if found.signature == ASGI:
                _serve_asgi(function, channel.sock, chosen)
                return
            from trimtab_workers.runner.shims import shim as shim_of  # noqa: PLC0415

            shim = shim_of(found, function)
    except RefusedError as error:
        channel.write(
            frames.pack_json(frames.REFUSED, {"reason": error.reason, "message": str(error)})
        )
        return
    channel.write(_ready(chosen))
    _serve(channel, shim)


def _settle(parent: int) -> None:
    """Die with the parent, be the kernel's first choice when memory ends, and write whole lines."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - Linux alone has prctl

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)  # it died before it could be heard of
        # The parent then lives to tell of the kill, unless the whole cgroup is killed.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_DIE, encoding="ascii")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # TextIO of a process


def _ready(chosen: tuple[str, str]) -> bytes:
    signature, function = chosen
    document = {"signature": signature, "function": function, "cpu": cpu_micros()}
    return frames.pack_json(frames.READY, document)


def _serve_asgi(function: Any, sock: socket.socket, chosen: tuple[str, str]) -> None:
    from trimtab_workers.runner.shims import asgi  # noqa: PLC0415 - brings asyncio

    made = function() if chosen[1] == "new" else function
    asgi.serve(made, sock, ready=lambda: _ready(chosen))


def _serve(channel: frames.BlockingChannel, shim: Shim) -> None:
    """Answer requests until the parent ends."""
    while True:
        try:
            kind, payload = channel.read()
            if kind != frames.HEAD:
                continue  # ABORT of a call that had ended
            body = _body(channel)
        except (EOFError, ConnectionError):
            return
        if body is None:
            channel.write(frames.pack(frames.END))
            continue
        _call(channel, shim, request_of(json.loads(payload), body))
        with contextlib.suppress(Exception):  # it is the function's, which may have closed it
            sys.stdout.flush()


def _body(channel: frames.BlockingChannel) -> bytes | None:
    """Return the request's body, None if its client went away before its end."""
    pieces: list[bytearray] = []
    while True:
        kind, payload = channel.read()
        if kind == frames.DATA:
            pieces.append(payload)
        elif kind == frames.END:
            return b"".join(pieces)
        else:
            return None


def request_of(head: Mapping[str, Any], body: bytes) -> Request:
    """Return the request of a HEAD frame."""
    return Request(
        method=head["method"],
        path=head["path"],
        raw_path=head["rawPath"],
        query=head["query"],
        headers=[(name, value) for name, value in head["headers"]],
        body=body,
        peer=head["peer"],
    )


def _call(channel: frames.BlockingChannel, shim: Shim, request: Request) -> None:
    began = cpu_micros()
    try:
        answer = checked(shim(request))
    except Exception as error:  # noqa: BLE001 - whatever user code raises
        answer = _failure(error)
    if isinstance(answer.body, bytes):
        head = _head(answer, whole=True) | {
            "length": len(answer.body),
            "cpu": cpu_micros() - began,
        }
        channel.write(frames.pack_json(frames.HEAD, head))
        channel.write_data(answer.body)
        channel.write(frames.pack(frames.END))
        return
    channel.write(frames.pack_json(frames.HEAD, _head(answer, whole=False)))
    try:
        for piece in answer.body:
            channel.write_data(piece)
    except Exception as error:  # noqa: BLE001 - whatever user code raises
        reported(error)
        channel.write(frames.pack(frames.ABORT))
    channel.write(frames.pack_json(frames.END, {"cpu": cpu_micros() - began}))


def checked(answer: Answer) -> Answer:
    """Return the answer if HTTP can carry it.

    Raises:
        FunctionError: Its status or a header is none that HTTP knows.
    """
    if not _LEAST_STATUS <= answer.status <= _MOST_STATUS:
        raise FunctionError(
            f"The function's status is {answer.status}; give an integer from 200 to 599."
        )
    for name, value in answer.headers:
        legal = name and name.isascii() and not set(name) & set(' \t\r\n:()<>@,;\\"/[]?={}')
        if not legal or set(value) & {"\r", "\n", "\0"} or not _latin(value):
            raise FunctionError(
                f"The function's header {name!r} is {value[:100]!r}, which HTTP cannot carry. "
                "Use ASCII names, and values without line breaks."
            )
    return answer


def _latin(value: str) -> bool:
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _failure(error: BaseException) -> Answer:
    return Answer(500, [("content-type", "application/json")], reported(error), failed=True)


def _head(answer: Answer, *, whole: bool) -> dict[str, Any]:
    head: dict[str, Any] = {"status": answer.status, "headers": answer.headers, "whole": whole}
    if answer.failed:
        head["failed"] = True
    return head
