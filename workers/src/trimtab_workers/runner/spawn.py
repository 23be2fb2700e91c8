"""Start a child; without asyncio, so that it loads the function while the parent imports that."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from trimtab_workers.runner.settings import RunnerSettings

_CODE: Final = "import sys; from trimtab_workers.runner.child import main; main(sys.argv[1:])"


class Started(NamedTuple):
    """A child that was started, before there is an event loop."""

    pid: int
    sock: socket.socket


def start(settings: RunnerSettings, *, memory_mib: int = 0) -> Started:
    """Start a child in a session of its own, so that what it starts can be ended with it."""
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    environment = {**os.environ, **settings.child_environment()}
    if memory_mib:
        environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] = str(memory_mib)
    arguments = [sys.executable, "-P", "-c", _CODE, str(theirs.fileno()), str(os.getpid())]
    pid = os.posix_spawn(sys.executable, arguments, environment, setsid=True)
    theirs.close()
    return Started(pid, ours)
