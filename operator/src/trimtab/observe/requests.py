"""What a pod requests, as the scheduler counts it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trimtab.observe.gpus import requested as gpus_of
from trimtab.observe.quantities import QuantityError, byte_count, millicores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """CPU, memory and whole GPUs."""

    millicores: int = 0
    memory_bytes: int = 0
    gpus: int = 0

    def plus(self, other: Requested) -> Requested:
        """Return the sum."""
        return Requested(
            millicores=self.millicores + other.millicores,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            gpus=self.gpus + other.gpus,
        )


def requests(spec: Mapping[str, Any]) -> Requested:
    """Return a pod's requests: containers and sidecars summed, init containers at most, and overhead.

    A sidecar, which is an init container that is always restarted, runs beside all that start later.
    """
    sidecars = Requested()
    starting: list[Requested] = []
    for container in spec.get("initContainers") or ():
        asked = _one(container)
        if container.get("restartPolicy") == "Always":
            sidecars = sidecars.plus(asked)
        else:
            starting.append(sidecars.plus(asked))
    running = sidecars
    for container in spec.get("containers") or ():
        running = running.plus(_one(container))
    every = [running, *starting]
    most = Requested(
        millicores=max(one.millicores for one in every),
        memory_bytes=max(one.memory_bytes for one in every),
        gpus=max(one.gpus for one in every),
    )
    return most.plus(_amounts(spec.get("overhead") or {}))


def _one(container: Mapping[str, Any]) -> Requested:
    asked = (container.get("resources") or {}).get("requests") or {}
    return replace(_amounts(asked), gpus=gpus_of(container))


def _amounts(asked: Mapping[str, Any]) -> Requested:
    return Requested(
        millicores=_read(millicores, asked.get("cpu", "0")),
        memory_bytes=_read(byte_count, asked.get("memory", "0")),
    )


def _read(unit: Callable[[str], int], text: str) -> int:
    """Return an amount; what cannot be read counts as none, and takes no other amount with it."""
    try:
        return unit(text)
    except QuantityError:
        return 0
