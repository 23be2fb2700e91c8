"""What a pod requests, as the scheduler counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.observe.gpus import requested as gpus_of
from trimtab.observe.quantities import QuantityError, byte_count, millicores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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
    """Return a pod's requests: containers summed, init containers at most."""
    running = _sum(spec.get("containers") or ())
    starting = [_sum([c]) for c in spec.get("initContainers") or ()]
    every = [running, *starting]
    return Requested(
        millicores=max(one.millicores for one in every),
        memory_bytes=max(one.memory_bytes for one in every),
        gpus=max(one.gpus for one in every),
    )


def _sum(containers: Iterable[Mapping[str, Any]]) -> Requested:
    found = Requested()
    for container in containers:
        found = found.plus(_one(container))
    return found


def _one(container: Mapping[str, Any]) -> Requested:
    asked = (container.get("resources") or {}).get("requests") or {}
    try:
        return Requested(
            millicores=millicores(asked.get("cpu", "0")),
            memory_bytes=byte_count(asked.get("memory", "0")),
            gpus=gpus_of(container),
        )
    except QuantityError:
        return Requested()
