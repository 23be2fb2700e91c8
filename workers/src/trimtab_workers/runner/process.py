"""The child as the parent holds it: frames both ways, how it ended, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.spawn import Started

_POLITE_SECONDS: Final = 0.5
# After the last frame in the socket has had its chance to be read.
_EOF_SECONDS: Final = 0.05


class Exit(NamedTuple):
    """How a child ended; `cpu_s` is of its whole life."""

    status: int
    cpu_s: float

    @property
    def killed_by(self) -> int:
        """The signal that killed it, 0 if it ended by itself."""
        return -self.status if self.status < 0 else 0

    def __str__(self) -> str:
        if self.killed_by:
            return f"was killed by {_name(self.killed_by)}"
        return f"ended with status {self.status}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last has no name
        return f"signal {number}"


class Child:
    """A running child.

    Attributes:
        pid: Its process id, which is its session's and its group's as well.
        calls: Requests it has been given.
        cpu_s: CPU time that it has told of: its import's and its calls'.
        exited: Done once it ended.
    """

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = pid
        self.reader = reader
        self.writer = writer
        self.calls = 0
        self.cpu_s = 0.0
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @classmethod
    async def adopt(cls, started: Started) -> Child:
        """Return the child of a started process."""
        reader, writer = await asyncio.open_connection(sock=started.sock)
        return cls(started.pid, reader, writer)

    def ended(self, outcome: Exit) -> None:
        """Say how it ended and end what it started: whoever reads its frames then sees their end.

        A process that the function forked may hold the socket open, so its end alone says nothing.
        """
        self.signal(signal.SIGKILL)
        self.exited.set_result(outcome)
        asyncio.get_running_loop().call_later(_EOF_SECONDS, self.reader.feed_eof)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and to all it started in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def stop(self) -> None:
        """End it: by the end of its socket, then SIGTERM, then SIGKILL, half a second apart."""
        self.writer.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if await self._ends_within(_POLITE_SECONDS):
                break
            self.signal(number)
        await asyncio.shield(self.exited)
        # What it started may still be there, and would use the next call's CPU and memory.
        self.signal(signal.SIGKILL)

    async def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        await asyncio.shield(self.exited)
        self.writer.close()

    async def _ends_within(self, seconds: float) -> bool:
        await asyncio.wait({self.exited}, timeout=seconds)
        return self.exited.done()


class Reaper:
    """Collects ended children by SIGCHLD; as process 1 of a container, orphans as well."""

    def __init__(self) -> None:
        self._known: dict[int, Callable[[Exit], None]] = {}

    def install(self) -> None:
        """Take over SIGCHLD of the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.collect)

    def expect(self, pid: int, ended: Callable[[Exit], None]) -> None:
        """Call `ended` when the process has ended, which may be before this call."""
        self._known[pid] = ended
        self.collect()

    def collect(self) -> None:
        """Collect all that have ended."""
        for pid in list(self._known):
            with contextlib.suppress(ChildProcessError):
                found, status, used = os.wait4(pid, os.WNOHANG)
                if found:
                    code = os.waitstatus_to_exitcode(status)
                    self._known.pop(pid)(Exit(code, used.ru_utime + used.ru_stime))
        if os.getpid() == 1:
            self._collect_orphans()

    def _collect_orphans(self) -> None:
        """Collect what the function left behind; a known child that ends meanwhile has its own turn."""
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, look)) is not None:
                if found.si_pid in self._known:
                    return
                os.waitpid(found.si_pid, 0)
