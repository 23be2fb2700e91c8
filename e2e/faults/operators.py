"""The operator as a process of this machine, as a Deployment would keep it: restarted when it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass(slots=True, kw_only=True)
class End:
    """How one run of the operator ended."""

    code: int
    seconds: float


class OperatorProcess:
    """`python -m trimtab` with a kubeconfig; a context manager that supervises it.

    It is started again `restart_seconds` after each end, whoever caused it, until the context closes
    or `hold` was called.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path,
        log: Path,
        environment: Mapping[str, str],
        restart_seconds: float = 0.2,
        command: Sequence[str] = (sys.executable, "-m", "trimtab"),
    ) -> None:
        self.health_port = free_port()
        self.log = log
        self.ends: list[End] = []
        self.starts = 0
        self._restart_seconds = restart_seconds
        self._command = tuple(command)
        self._environment = {
            **os.environ, "KUBECONFIG": str(kubeconfig), "TRIMTAB_BIND_ADDRESS": "127.0.0.1",
            "TRIMTAB_HEALTH_PORT": str(self.health_port), "TRIMTAB_METRICS_PORT": "0",
            **environment,
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Self:
        """Start it."""
        self._wanted.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it for good, politely first."""
        self._closing.set()
        self.hold(number=signal.SIGTERM)
        self._wanted.set()
        self._thread.join(timeout=30)

    def _supervise(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait()
            if self._closing.is_set():
                return
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    self._command, cwd=ROOT, env=self._environment,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            started = time.monotonic()
            with self._lock:
                self._process = process
                self.starts += 1
            code = process.wait()
            # The planner's child process must not outlive a killed operator, as in a container.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self.ends.append(End(code=code, seconds=time.monotonic() - started))
            self._closing.wait(self._restart_seconds)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the running process, if there is one; it is started again."""
        with self._lock:
            if self._process and self._process.poll() is None:
                self._process.send_signal(number)

    def hold(self, *, number: int = signal.SIGKILL, seconds: float = 30) -> None:
        """End the process and keep it down until `release`."""
        self._wanted.clear()
        self.kill(number)
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill(signal.SIGKILL)

    def release(self) -> None:
        """Let it be started again."""
        self._wanted.set()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        with self._lock:
            return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> dict[str, Any] | None:
        """Return a document of the health port, None where it does not answer or answers 503."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.health_port}{path}", timeout=5
            ) as answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return None

    def loops(self) -> dict[str, Any]:
        """Return `/debug/loops`: heart-beats by `namespace/name`; empty while nobody leads."""
        return dict((self.get("/debug/loops") or {}).get("loops", {}))

    def ready(self) -> bool:
        """Whether it leads and has passed its barrier."""
        document = self.get("/debug/loops") or {}
        return bool(document.get("leader") and document.get("barrier", {}).get("passed"))

    def tail(self, lines: int = 20) -> str:
        """Return the end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""
