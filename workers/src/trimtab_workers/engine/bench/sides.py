"""Sides of a comparison as processes: each loads once, works in turns, and idles in between.

A side reads one JSON object per line on standard input and answers with one on the file descriptor
that `TRIMTAB_BENCH_REPLY_FD` names, so that what its libraries print disturbs nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

REPLY_FD = "TRIMTAB_BENCH_REPLY_FD"
BUSY_IDLER = 0.02
_END_SECONDS = 20.0


class SideError(Exception):
    """A side's process ended or refused; the message names it and what it wrote last."""


class Side:
    """One process of a comparison, in a process group of its own.

    Args:
        name: What to call it in errors.
        command: How to start it.
        environment: Added to this process's own; None takes a variable away.
        log: File that takes what it prints.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str | None], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self.stopped_when_idle = False
        self.paused = False
        reading, writing = os.pipe()
        merged = {**os.environ, **environment, REPLY_FD: str(writing)}
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, or the peer's Python
                list(command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in merged.items() if value is not None},
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        self._replies: IO[str] = os.fdopen(reading, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            SideError: The process ended, or the command failed.
        """
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command without waiting, so that several sides work at once.

        Raises:
            SideError: The process has ended.
        """
        self.resume()
        line = json.dumps({"do": do, **arguments}) + "\n"
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SideError(self._obituary()) from error

    def receive(self) -> dict[str, Any]:
        """Wait for the answer to a command that was sent.

        Raises:
            SideError: The process ended, or the command failed.
        """
        line = self._replies.readline()
        if not line:
            raise SideError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.name}: {answer['error']}")
        return answer

    def _obituary(self) -> str:
        code = self._process.wait(_END_SECONDS)
        text = self.log.read_text(encoding="utf-8", errors="replace")
        last = "\n".join(text.splitlines()[-12:])
        return f"{self.name} ended with status {code}. The last lines of {self.log}:\n{last}"

    # -- turns ---------------------------------------------------------------------------------

    def idle_share(self, seconds: float = 1.0) -> float:
        """Return the cores that the side uses while it should do nothing; 0 is none."""
        before, began = self._cpu_seconds(), time.perf_counter()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / (time.perf_counter() - began)

    def _cpu_seconds(self) -> float:
        return group_cpu_seconds(self._process.pid)

    def pause(self) -> None:
        """Stop the whole group if it was found to spin while idle; else it stays as it is."""
        if self.stopped_when_idle and not self.paused:
            self._signal(signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        """Let a paused side run."""
        if self.paused:
            self._signal(signal.SIGCONT)
            self.paused = False

    def close(self) -> None:
        """End the group: politely, then by force."""
        self.resume()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        else:
            self._signal(signal.SIGKILL)
        self._replies.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            # The group is the process's own, started by this class.
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def group_cpu_seconds(group: int) -> float:
    """Return the CPU seconds that the living processes of a process group have used."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold spaces.
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def our_command(module: str) -> list[str]:
    """Return how to start one of our own sides."""
    return [sys.executable, "-m", f"trimtab_workers.engine.bench.{module}"]
