"""Which changes of conditions are told as events: transitions, once each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.conditions import ConditionType
from trimtab.api.v1alpha1.reasons import Reason
from trimtab.reconcile.plan import EventRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab.api.v1alpha1.conditions import Condition
    from trimtab.observe.records import IntentRecord

_SILENT: Final = frozenset(
    {
        Reason.PENDING,
        Reason.NO_TARGET,
        Reason.TOO_FEW_REQUESTS,
        Reason.NOT_READY,
        Reason.WAITING_FOR_PLAN,
        Reason.PLANNING,
    }
)
"""Beginnings and absences: shown as conditions, no news in themselves."""

_EXPECTED: Final = frozenset(
    {
        Reason.INSPECTING,
        Reason.INSPECTED,
        Reason.FINGERPRINTING,
        Reason.ESTIMATED,
        Reason.ROLLING,
        Reason.LOADING,
        Reason.PAUSED,
    }
)
"""Not True, and yet as it should be: no warning."""


def transitions(record: IntentRecord, conditions: Iterable[Condition]) -> tuple[EventRecord, ...]:
    """Return an event per condition whose status or reason is new; Ready repeats others.

    The time of the last transition is part of each event's identity: the status is written before
    the events, so a crash in between loses an event but never tells one twice.
    """
    before = {c.get("type"): c for c in record.status.get("conditions") or ()}
    told = []
    for condition in conditions:
        old = before.get(str(condition.type), {})
        same = (old.get("status"), old.get("reason")) == (condition.status, str(condition.reason))
        if condition.type is ConditionType.READY or same or condition.reason in _SILENT:
            continue
        told.append(
            EventRecord(
                reason=condition.reason,
                note=condition.message,
                warning=condition.status == "False" and condition.reason not in _EXPECTED,
                action=str(condition.type),
                occasion=f"{old.get('lastTransitionTime', '')}/{old.get('reason', '')}/"
                f"{record.generation}",
            )
        )
    return tuple(told)
