"""The processes of a cluster: each is recorded as pid, start time and boot, and stopped by that alone.

A record is written by the child itself before it becomes the component, so not even a kill -9 of
`up` leaves a process that nobody knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TAIL_BYTES = 3000
LAUNCHER = Path(__file__).with_name("launch.py")


def boot_id() -> str:
    """Return an id of this boot, because start times are counted from it; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """Return when a process started, in a form that only compares for equality; None if it is gone.

    A zombie counts as gone: it runs nothing and holds nothing.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _start_time_from_ps(pid) if sys.platform != "linux" else None
    return None if fields[0] in "ZX" else fields[19]


def _start_time_from_ps(pid: int) -> str | None:
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One started process; equal pids of another start time or boot are other processes."""

    component: str
    pid: int
    started: str
    boot: str

    @property
    def alive(self) -> bool:
        """Return whether exactly this process still runs."""
        return self.boot == boot_id() and start_time(self.pid) == self.started

    def kill(self, number: int) -> None:
        """Signal the process if it is still the one recorded."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Processes:
    """The recorded processes of one cluster, under `<state>/run`, with logs under `<state>/logs`."""

    def __init__(self, state_dir: Path) -> None:
        self._run = state_dir / "run"
        self._logs = state_dir / "logs"

    def log(self, component: str) -> Path:
        """Return the log file of a component."""
        return self._logs / f"{component}.log"

    def tail(self, component: str) -> str:
        """Return the last bytes of a component's log, for error messages."""
        try:
            with self.log(component).open("rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - TAIL_BYTES))
                return handle.read().decode(errors="replace")
        except OSError:
            return "(no log)"

    def get(self, component: str) -> Record | None:
        """Return the record of a component, alive or not."""
        try:
            pid, started, boot = (self._run / f"{component}.pid").read_text().split("\n")[:3]
        except (OSError, ValueError):
            return None
        return Record(component=component, pid=int(pid), started=started, boot=boot)

    def all(self) -> list[Record]:
        """Return every record, oldest first."""
        files = sorted(self._run.glob("*.pid"), key=lambda path: path.stat().st_mtime_ns)
        return [record for path in files if (record := self.get(path.stem))]

    def alive(self, component: str) -> bool:
        """Return whether a component's recorded process runs."""
        record = self.get(component)
        return record is not None and record.alive

    def start(
        self,
        component: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        cpus: Iterable[int] | None = None,
        cwd: Path | None = None,
    ) -> Record:
        """Start a component detached from this session, unless its recorded process runs already."""
        if (record := self.get(component)) and record.alive:
            return record
        self._run.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        record_file = self._run / f"{component}.pid"
        pinned = ",".join(map(str, cpus)) if cpus is not None else ""
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(record_file), pinned, "--"]
        with self.log(component).open("ab") as log:
            log.write(f"--- {time.strftime('%F %T')} {' '.join(map(str, command))}\n".encode())
            log.flush()
            done = subprocess.run(
                [*launcher, *map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=cwd or self._run.parent, check=False,
                env=dict(environment) if environment is not None else None,
            )  # fmt: skip
        if done.returncode:
            record_file.unlink(missing_ok=True)
            raise ClusterError(
                f"{component} could not be started: {self.tail(component).strip()[-400:]} "
                "Remedy: see the file named there; an executable that is missing is built again by "
                "`python -m e2e.cluster build`."
            )
        started = self.get(component)
        if started is None:
            raise ClusterError(
                f"{component} did not record itself under {self._run}. Remedy: check that the disk "
                "is not full, then run `python -m e2e.cluster down` and `up` again."
            )
        return started

    def stop(self, component: str, *, grace_seconds: float = 10.0) -> None:
        """Stop a component with SIGTERM, after the grace period with SIGKILL, and forget it."""
        self.stop_all([component], grace_seconds=grace_seconds)

    def stop_all(self, components: Sequence[str] | None = None, *, grace_seconds: float) -> None:
        """Stop components (all of them by default) at the same time and forget them."""
        records = [r for r in self.all() if components is None or r.component in components]
        for record in records:
            record.kill(signal.SIGTERM)
        if not _wait_gone(records, seconds=grace_seconds):
            for record in records:
                record.kill(signal.SIGKILL)
            if not _wait_gone(records, seconds=10.0):
                left = [f"{r.component} (pid {r.pid})" for r in records if r.alive]
                raise ClusterError(
                    f"{', '.join(left)} survived SIGKILL, so it hangs in the kernel. "
                    "Remedy: look at /proc/<pid>/stack and /proc/<pid>/wchan."
                )
        for record in records:
            (self._run / f"{record.component}.pid").unlink(missing_ok=True)


def _wait_gone(records: Sequence[Record], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(record.alive for record in records):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
