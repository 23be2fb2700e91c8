"""Where reading a model stands, from Jobs and pods."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.reconcile.builders import VERDICT
from trimtab.observe.records import config_map, job, pod
from trimtab.reconcile.inferenceintent.inspecting import inspection, retry_seconds

if TYPE_CHECKING:
    from trimtab.observe.inspections import Inspection

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
REFUSED = '{"v":1,"ok":false,"reason":"ModelNotFound","message":"/models/m0/x is not there."}'


def a_job(attempt: int = 0, *, generation: int = 1, source: str = "s", **status: Any) -> Any:
    annotations = {
        "trimtab.dev/attempt": str(attempt),
        "trimtab.dev/generation": str(generation),
        "trimtab.dev/source": source,
    }
    meta = {"name": f"inspect-{attempt}", "namespace": "n", "uid": f"j{attempt}"}
    return job({"metadata": meta | {"annotations": annotations}, "status": status})


def a_pod(attempt: int = 0, *, state: Any = None, **status: Any) -> Any:
    labels = {"batch.kubernetes.io/job-name": f"inspect-{attempt}"}
    meta = {"name": f"p{attempt}", "namespace": "n", "uid": f"p{attempt}", "labels": labels}
    containers = [{"state": state}] if state else []
    return pod({"metadata": meta, "spec": {}, "status": {"containerStatuses": containers} | status})


def ended(message: str, code: int = 0, at: str = "2026-11-23T11:59:50Z") -> Any:
    return {"terminated": {"exitCode": code, "message": message, "finishedAt": at, "reason": "X"}}


def look(**changes: Any) -> Inspection:
    fields: dict[str, Any] = {
        "source": "s",
        "generation": 1,
        "kept": None,
        "found": [],
        "pods": [],
        "now": NOW,
        "seconds": lambda s: s,
    }
    return inspection(**(fields | changes))


def test_nothing_was_read_yet() -> None:
    """Without Job and without facts the model is to be read."""
    assert look().state == "Absent"


def test_kept_facts_need_no_job() -> None:
    """What was read once is not read again."""
    kept = config_map({"metadata": {"name": "m"}, "data": {"inspection.json": VERDICT}})
    found = look(kept=kept)
    assert found.state == "Done"
    assert found.message == ""


def test_a_fresh_verdict_is_to_be_kept() -> None:
    """The Job's message comes with the node it ran on, whose CPU it names."""
    done = a_pod(state=ended(VERDICT))
    found = look(found=[a_job()], pods=[done])
    assert (found.state, found.message) == ("Done", VERDICT)


def test_another_source_is_read_anew() -> None:
    """A Job of a former source says nothing about the present one."""
    assert look(source="t", found=[a_job()], pods=[a_pod(state=ended(VERDICT))]).state == "Absent"


def test_a_refusal_is_repeated_after_its_rest() -> None:
    """The first retry is due 30 s after the end, not before."""
    soon = look(found=[a_job()], pods=[a_pod(state=ended(REFUSED))])
    assert soon.state == "Failed"
    assert not soon.retry_due
    assert soon.retry_in_seconds == pytest.approx(20.5)
    late = ended(REFUSED, at="2026-11-23T11:59:00Z")
    assert look(found=[a_job()], pods=[a_pod(state=late)]).retry_due


def test_an_edit_retries_at_once() -> None:
    """A new generation does not wait."""
    assert look(generation=2, found=[a_job()], pods=[a_pod(state=ended(REFUSED))]).retry_due


def test_a_jumping_clock_does_not_silence_the_retry() -> None:
    """An end that lies in the future waits no longer than its rest."""
    future = ended(REFUSED, at="2026-11-23T13:00:00Z")
    found = look(found=[a_job()], pods=[a_pod(state=future)])
    assert found.retry_in_seconds is not None
    assert found.retry_in_seconds <= 30.5


def test_the_newest_attempt_counts() -> None:
    """A former refusal does not outlive a later verdict."""
    pods = [a_pod(0, state=ended(REFUSED)), a_pod(1, state=ended(VERDICT))]
    assert look(found=[a_job(0), a_job(1)], pods=pods).state == "Done"


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}


@pytest.mark.parametrize(
    ("status", "pods", "reason", "words"),
    [
        (FAILED, [], "InspectionFailed", "BackoffLimitExceeded"),
        (FAILED, [a_pod(state=ended("Traceback: boom", 1))], "InspectionFailed", "exit code 1"),
        (FAILED, [a_pod(state=ended('{"v":1,"ok":false,"reason":"PickleRefused","message":"p"}', 1))], "PickleRefused", "p"),
        (COMPLETE, [a_pod(state=ended(""))], "InspectionFailed", "without a verdict"),
    ],
)  # fmt: skip
def test_a_job_without_a_verdict_is_explained(
    status: Any, pods: list[Any], reason: str, words: str
) -> None:
    """What ended badly says how, and a stated refusal is believed."""
    found = look(found=[a_job(**status)], pods=pods)
    assert found.refusal is not None
    assert found.refusal.reason == reason
    assert words in found.refusal.message


def test_a_completed_job_waits_for_its_pods_last_event() -> None:
    """The Job's event may overtake its pod's."""
    assert look(found=[a_job(**COMPLETE)], pods=[a_pod(state={"running": {}})]).state == "Running"


def test_a_pod_that_cannot_start_says_why() -> None:
    """The scheduler's sentence is the obstacle."""
    unbound = [
        {
            "type": "PodScheduled",
            "status": "False",
            "message": 'persistentvolumeclaim "m" not found',
        }
    ]
    found = look(found=[a_job()], pods=[a_pod(phase="Pending", conditions=unbound)])
    assert found.state == "Running"
    assert 'persistentvolumeclaim "m" not found' in found.obstacle


def test_rests_double_up_to_five_minutes() -> None:
    """30 s, 1, 2, 4 and then 5 min."""
    assert [retry_seconds(n) for n in (0, 1, 2, 3, 4, 99)] == [30, 60, 120, 240, 300, 300]
