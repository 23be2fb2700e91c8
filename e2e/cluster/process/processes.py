"""Processes that are not our children: start through the shim, wait by pidfd, signal by identity."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.cluster.process import shim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNKNOWN_EXIT = 137
"""What a kubelet reports for a container whose end nobody saw."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Return whether exactly this process still runs; a zombie does not."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        fields = text.rpartition(b")")[2].split()
        return fields[0] not in {b"Z", b"X"} and int(fields[19]) == self.start_ticks

    def kill(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to the group it leads; a dead one is left in peace."""
        if not self.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    async def ended(self) -> None:
        """Wait until the process has ended."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive():
                return
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            loop.add_reader(descriptor, lambda: done.done() or done.set_result(None))
            try:
                await done
            finally:
                loop.remove_reader(descriptor)
        finally:
            os.close(descriptor)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a command ended; `problem` says why it could not be started, if so."""

    code: int
    signal: int
    finished: float
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One run of a container: its shim, its command, the folder that holds their traces."""

    folder: Path
    shim: Identity
    child: Identity
    started: float

    @classmethod
    def found(cls, folder: Path) -> Process | None:
        """Return the run whose traces are in `folder`, or None where none was started."""
        try:
            value: dict[str, Any] = json.loads((folder / "pids.json").read_text())
        except FileNotFoundError:
            return None
        return cls(
            folder=folder,
            shim=Identity(*value["shim"]),
            child=Identity(*value["child"]),
            started=value["started"],
        )

    def exit(self) -> Exit | None:
        """Return how the command ended, or None while it runs."""
        try:
            return Exit(**json.loads((self.folder / "exit.json").read_text()))
        except FileNotFoundError:
            return None

    async def wait(self) -> Exit:
        """Wait for the end of the command, whoever started it; a lost shim gives code 137."""
        await self.shim.ended()
        found = self.exit()
        if found is None:  # the shim was killed; its command may live on
            await self.child.ended()
            found = Exit(code=UNKNOWN_EXIT, signal=0, finished=time.time(), problem="shim lost")
        return found

    def kill(self) -> None:
        """End the command and everything in its process group at once."""
        self.child.kill(signal.SIGKILL, group=True)


async def start(
    folder: Path, *, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
) -> Process:
    """Start a command that survives this process and return it.

    A command that cannot be executed counts as started and ended with code 128.
    """
    path = _write_spec(folder, argv=argv, env=env, cwd=cwd, log=log)
    launcher = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", shim.__file__, str(path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    await launcher.communicate()
    found = Process.found(folder)
    if found is None:
        raise RuntimeError(f"the shim for {folder} ended with {launcher.returncode} and no pids")
    return found


def _write_spec(
    folder: Path, *, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    spec = {
        "argv": list(argv),
        "env": dict(env),
        "cwd": str(cwd),
        "log": str(log),
        "folder": str(folder),
    }
    path = folder / "spec.json"
    path.touch(mode=0o600)  # the environment may hold tokens
    path.write_text(json.dumps(spec))
    return path


def identify(pid: int | None = None) -> Identity:
    """Return the identity of a running process, by default of this one."""
    number = os.getpid() if pid is None else pid
    return Identity(number, shim.start_time(number))
