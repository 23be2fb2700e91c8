"""Ending what a stand-in node started: by pid and start time, never by name."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from typing import TYPE_CHECKING

from e2e.cluster.process.processes import Identity, Process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def stop_node(state_dir: Path) -> None:
    """End the node itself if it runs; its pods are left to `sweep`."""
    with contextlib.suppress(FileNotFoundError):
        kept = json.loads((state_dir / "node.json").read_text())
        node = Identity(kept["pid"], kept["start_ticks"])
        node.kill(signal.SIGHUP)
        _await_end([node], seconds=5.0)
        node.kill(signal.SIGKILL)
        _await_end([node], seconds=5.0)


def sweep(state_dir: Path, *, seconds: float = 8.0) -> int:
    """End every container process recorded under `state_dir`, remove its traces, return their number.

    They get SIGTERM and, once `seconds` are over, SIGKILL. Call it when no node runs there any more:
    a node would restart them. Logs of pods that had ended before are kept in `ended/`.
    """
    traces = state_dir.glob("pods/*/containers/*/*/pids.json")
    found = [Process.found(path.parent) for path in traces]
    alive = [p for p in found if p is not None and (p.child.alive() or p.shim.alive())]
    for process in alive:
        process.child.kill(signal.SIGTERM)
    _await_end([p.child for p in alive], seconds=seconds)
    for process in alive:
        process.kill()
    _await_end([p.shim for p in alive], seconds=5.0)
    shutil.rmtree(state_dir / "pods", ignore_errors=True)
    (state_dir / "node.json").unlink(missing_ok=True)
    return len(alive)


def _await_end(waited: Sequence[Identity], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(process.alive() for process in waited) and time.monotonic() < deadline:
        time.sleep(0.02)
