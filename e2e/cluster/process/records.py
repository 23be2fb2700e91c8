"""What the stand-in node remembers of a container on disk, and the status made from it (pure)."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """Replace a file at once, so that a crash leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(path.name + ".tmp")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    fresh.replace(path)


def timestamp(unix_seconds: float) -> str:
    """Return a Unix time as the API server writes times."""
    moment = dt.datetime.fromtimestamp(int(unix_seconds), tz=dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclasses.dataclass(slots=True, kw_only=True)
class Record:
    """A container as the node knows it; all of it is needed after the node's own restart."""

    attempt: int = 0
    restarts: int = 0
    back_off: int = 0
    """How many restarts were waited for since the container last ran long."""
    running: bool = False
    started_at: float = 0.0
    ready: bool = False
    startup_passed: bool = False
    waiting: tuple[str, str] = ("ContainerCreating", "")
    """Reason and message while it does not run."""
    termination: dict[str, Any] | None = None
    """The `terminated` state of the last run that ended."""
    over: bool = False
    """No further run will follow."""

    @classmethod
    def load(cls, path: Path) -> Record:
        """Return the record kept at `path`, or a new one."""
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            return cls()
        value["waiting"] = tuple(value["waiting"])
        return cls(**value)

    def save(self, path: Path) -> None:
        """Keep the record at `path`."""
        write_json(path, dataclasses.asdict(self))


def container_status(container: Mapping[str, Any], record: Record, *, uid: str) -> dict[str, Any]:
    """Return one entry of `containerStatuses`."""
    identity = f"stand-in://{uid}/{container['name']}/{record.attempt}"
    result: dict[str, Any] = {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"stand-in://{container['image']}",
        "restartCount": record.restarts,
        "ready": record.ready,
        "started": record.running and record.startup_passed,
        "state": {},
        "lastState": {},
    }
    if record.attempt:
        result["containerID"] = identity
    ended = {"terminated": record.termination} if record.termination else {}
    if record.running:
        result["state"] = {"running": {"startedAt": timestamp(record.started_at)}}
        result["lastState"] = ended
    elif record.over and record.termination:
        result["state"] = ended
    else:
        reason, message = record.waiting
        result["state"] = {
            "waiting": {"reason": reason} | ({"message": message} if message else {})
        }
        result["lastState"] = ended
    return result


def phase(init: Sequence[Record], main: Sequence[Record]) -> str:
    """Return the pod's phase from its containers' records."""
    if any(record.over and _code(record) != 0 for record in init):
        return "Failed"
    if main and all(record.over for record in main):
        return "Succeeded" if all(_code(record) == 0 for record in main) else "Failed"
    begun = any(record.attempt for record in main)
    return "Running" if begun else "Pending"


def _code(record: Record) -> int:
    return int((record.termination or {}).get("exitCode", 0))


def conditions(
    *,
    phase: str,
    init: Sequence[Record],
    main: Mapping[str, Record],
    gates: Iterable[str],
    live: Sequence[Mapping[str, Any]],
    now: float,
) -> list[dict[str, Any]]:
    """Return the conditions a kubelet owns; a transition time moves only with the status.

    Args:
        phase: The pod's phase.
        init: Records of the init containers.
        main: Records of the containers, by name.
        gates: Condition types of `spec.readinessGates`.
        live: The pod's conditions as last seen on the server.
        now: Unix time.
    """
    finished = phase in {"Succeeded", "Failed"}
    unready = sorted(name for name, record in main.items() if not record.ready)
    initialised = all(record.over and _code(record) == 0 for record in init)
    have = {condition["type"]: condition for condition in live}
    closed = [gate for gate in gates if have.get(gate, {}).get("status") != "True"]
    why = ("PodCompleted", "") if finished else ("ContainersNotReady", "")
    if unready and not finished:
        why = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    ready_why = why
    if not unready and closed:
        ready_why = ("ReadinessGatesNotReady", f"readiness gates not ready: {', '.join(closed)}")
    wanted = [
        ("Initialized", initialised, ("ContainersNotInitialized", "")),
        ("ContainersReady", not unready and not finished, why),
        ("Ready", not unready and not closed and not finished, ready_why),
    ]
    result = []
    for kind, good, (reason, message) in wanted:
        status = "True" if good else "False"
        before = have.get(kind, {})
        moved = before.get("status") != status
        since = timestamp(now) if moved else before.get("lastTransitionTime")
        entry = {"type": kind, "status": status, "lastTransitionTime": since}
        entry |= {"reason": None if good else reason, "message": None if good else message or None}
        result.append(entry)
    return result
