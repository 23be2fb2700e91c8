"""The process that runs a model's chat template: foreign code, so its time and memory are bounded.

A sandbox alone bounds neither: `'a' * 10**9`, `10**10**9` or two nested loops are one expression
each. So the template runs here, in `python -m trimtab_workers.engine.renderer`, where the kernel
counts processor seconds and address space. Messages are JSON with a length of four bytes in front;
the first one that comes is the template, each other one a conversation.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Template

CPU_SECONDS: Final = 2.0
ADDRESS_SPACE_BYTES: Final = 256 << 20
MAX_RENDERED_CHARACTERS: Final = 4 << 20
LENGTH: Final = struct.Struct("<I")


def send(stream: BinaryIO, document: Mapping[str, Any]) -> None:
    """Write one message."""
    data = json.dumps(document).encode()
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one message; None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    data = stream.read(size)
    document: dict[str, Any] | None = json.loads(data) if len(data) == size else None
    return document


def compiled(source: str) -> Template:
    """Return a template in a sandbox that has what Hugging Face's templates use."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 - here and for parsing

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def rendered(template: Template, names: Mapping[str, Any]) -> dict[str, str]:
    """Render and return `{"text": …}`, or `{"refusal": …}` with a reason."""
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(**names):
            parts.append(part)
            length += len(part)
            if length > MAX_RENDERED_CHARACTERS:
                return {"refusal": f"it makes more than {MAX_RENDERED_CHARACTERS} characters"}
        return {"text": "".join(parts)}
    except Exception as error:  # noqa: BLE001 - foreign code: it may raise anything
        return {"refusal": f"{error}" or type(error).__name__}


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError  # noqa: PLC0415 - already loaded

    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return dt.datetime.now(tz=dt.UTC).strftime(layout)


def _serve(inbox: BinaryIO, outbox: BinaryIO) -> None:
    first = receive(inbox)
    if first is None:
        return
    # NB: the signal's default ends the process, also in the middle of one long C call.
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    template, problem = None, ""
    try:
        template = compiled(first["source"])
    except Exception as error:  # noqa: BLE001 - foreign code: each conversation is told
        problem = f"it is no valid Jinja2 ({error})"
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    while (call := receive(inbox)) is not None:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        reply = rendered(template, first["names"] | call) if template else {"refusal": problem}
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        send(outbox, reply)


def _confine() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the parent decides when to end
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # Where a pod's memory runs out the kernel shall end this process and not the engine.
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _confine()
    _serve(sys.stdin.buffer, sys.stdout.buffer)
