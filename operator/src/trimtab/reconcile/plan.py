"""What a step wants, made without clock or I/O: equal observations give equal plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.api.v1alpha1.conditions import Condition, ConditionType
    from trimtab.api.v1alpha1.reasons import Reason
    from trimtab.kube.resources import Manifest, Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """One object to delete, exactly as it was observed."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    resource_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event about the object itself."""

    reason: Reason
    note: str
    warning: bool
    action: str
    occasion: str
    """Tells this transition from an equal one at another time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Children, status and events of one object.

    Attributes:
        desired: Manifests in the order in which they are applied.
        deletions: What goes, after all of `desired` succeeded.
        status: Without conditions and times.
        conditions: Without times: `execute` adds them.
        events: Transitions to tell.
        blames: The condition that turns False if a child is refused.
        requeue_after_seconds: When to look again although nothing happens.
        fleet_revision: Of the fleet plan this follows.
    """

    desired: tuple[Manifest, ...] = ()
    deletions: tuple[Deletion, ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    events: tuple[EventRecord, ...] = ()
    blames: ConditionType | None = None
    requeue_after_seconds: float | None = None
    fleet_revision: int = 0
