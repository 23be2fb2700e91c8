"""How Ready follows the gating conditions, and when a condition's time moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from trimtab.api.v1alpha1.conditions import (
    CONDITIONS,
    MESSAGE_LIMIT,
    Condition,
    ConditionType,
    at_first_sight,
    ready,
    stamp,
    with_ready,
)
from trimtab.api.v1alpha1.reasons import Reason

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def a_condition(kind: str, status: str = "True", reason: Reason = Reason.SERVING) -> Condition:
    return Condition(
        type=ConditionType(kind), status=status, reason=reason, message=f"{kind} is {status}."
    )


@pytest.mark.parametrize("kind", sorted(CONDITIONS))
def test_everything_is_unknown_at_first_sight(kind: str) -> None:
    """A new object shows every condition of its kind as Unknown, Ready first."""
    conditions = at_first_sight(kind)
    assert [c.type for c in conditions] == [d.type for d in CONDITIONS[kind]]
    assert {(c.status, c.reason) for c in conditions} == {("Unknown", Reason.PENDING)}


@pytest.mark.parametrize(
    ("planned", "placed", "serving", "copied"),
    [
        ("False", "False", "False", "Planned"),
        ("True", "Unknown", "False", "Placed"),
        ("True", "True", "False", "Serving"),
        ("True", "True", "True", "Serving"),
    ],
)
def test_ready_copies_the_first_gate_that_is_not_true(
    planned: str, placed: str, serving: str, copied: str
) -> None:
    """Ready has status, reason and message of the first gate that is not True, or of the last."""
    given = [
        a_condition("Serving", serving, Reason.LOADING),
        a_condition("Placed", placed, Reason.ROLLING),
        a_condition("Planned", planned, Reason.NO_FIT),
    ]
    found = ready("InferenceIntent", given)
    (expected,) = [c for c in given if c.type == copied]
    assert (found.type, found.status, found.reason, found.message) == (
        "Ready",
        expected.status,
        expected.reason,
        expected.message,
    )


def test_informing_conditions_do_not_gate() -> None:
    """A missed target or an unreliable pool informs; it makes nothing unready."""
    given = [a_condition(kind) for kind in ("Planned", "Placed", "Serving")]
    given.append(a_condition("WithinTarget", "False", Reason.OUTSIDE_TARGET))
    assert ready("InferenceIntent", given).status == "True"


def test_missing_gate_is_unknown() -> None:
    """A gate that nobody judged yet is no reason to call an object ready."""
    found = ready("InferenceIntent", [a_condition("Planned")])
    assert (found.status, found.reason) == ("Unknown", Reason.PENDING)
    assert "Placed" in found.message


def test_conditions_are_given_in_the_declared_order() -> None:
    """Ready comes first, then the kind's own order, whatever the order given."""
    given = [a_condition(kind) for kind in ("Serving", "Planned", "Placed")]
    assert [c.type for c in with_ready("InferenceIntent", given)] == [
        "Ready",
        "Planned",
        "Placed",
        "Serving",
    ]


def test_time_moves_only_with_the_status() -> None:
    """A new reason or message keeps lastTransitionTime; a new status moves it."""
    first = stamp([a_condition("Placed")], previous=[], generation=1, now=NOON)
    assert first[0]["lastTransitionTime"] == "2026-11-23T12:00:00Z"
    later = NOON + timedelta(hours=1)
    same = stamp(
        [a_condition("Placed", "True", Reason.ROLLING)], previous=first, generation=2, now=later
    )
    assert same[0]["lastTransitionTime"] == "2026-11-23T12:00:00Z"
    assert (same[0]["reason"], same[0]["observedGeneration"]) == ("Rolling", 2)
    moved = stamp([a_condition("Placed", "False")], previous=same, generation=2, now=later)
    assert moved[0]["lastTransitionTime"] == "2026-11-23T13:00:00Z"


def test_other_managers_conditions_are_neither_read_nor_written() -> None:
    """Only the given conditions are returned, so an apply owns nobody else's."""
    previous = [
        {"type": "Approved", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    ]
    found = stamp([a_condition("Placed")], previous=previous, generation=1, now=NOON)
    assert [entry["type"] for entry in found] == ["Placed"]


def test_times_are_written_in_utc_and_messages_are_cut() -> None:
    """Whatever zone the clock has, the status holds UTC; no message exceeds its limit."""
    zone = timezone(timedelta(hours=2))
    long = Condition(
        type=ConditionType.PLACED, status="True", reason=Reason.PLACED, message="x" * 5000
    )
    (entry,) = stamp([long], previous=[], generation=1, now=NOON.astimezone(zone))
    assert entry["lastTransitionTime"] == "2026-11-23T12:00:00Z"
    assert len(str(entry["message"])) == MESSAGE_LIMIT
