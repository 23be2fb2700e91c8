"""What a failed request means."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.kube.errors import ApiError, FaultKind, NotLeadingError, classify


def an_error(code: int, message: str = "", **details: Any) -> ApiError:
    status = {"message": message, "details": details}
    return ApiError(method="PATCH", path="/x", code=code, status=status, retry_after_seconds=7.0)


FIELD = {
    "reason": "FieldManagerConflict",
    "field": ".spec.replicas",
    "message": 'conflict with "hpa"',
}
FORBIDDEN = (
    'jobs.batch is forbidden: User "system:serviceaccount:t:o" cannot create resource "jobs" '
    'in API group "batch" in the namespace "team-a"'
)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (an_error(401), FaultKind.UNAUTHENTICATED, ""),
        (an_error(403, FORBIDDEN), FaultKind.MISSING_PERMISSION, "create jobs.batch in namespace team-a"),
        (an_error(403, "exceeded quota: small, requested: pods=1"), FaultKind.QUOTA_EXCEEDED, "small"),
        (an_error(403, 'violates PodSecurity "restricted:latest"'), FaultKind.INVALID, "PodSecurity"),
        (
            an_error(403, "unable to create: namespace t is forbidden because it is being terminated"),
            FaultKind.NAMESPACE_GONE,
            "",
        ),
        (an_error(404, 'namespaces "t" not found', kind="namespaces"), FaultKind.NAMESPACE_GONE, ""),
        (an_error(404, 'deployments "x" not found'), FaultKind.NOT_FOUND, ""),
        (an_error(409), FaultKind.CONFLICT, ""),
        (an_error(409, "conflict", causes=[FIELD]), FaultKind.FIELD_CONFLICT, ".spec.replicas belongs to manager hpa"),
        (
            an_error(422, "bad", causes=[{"field": "spec.x", "message": "must be positive"}]),
            FaultKind.INVALID,
            "spec.x: must be positive",
        ),
        (an_error(413, "too large"), FaultKind.INVALID, "too large"),
        (an_error(429), FaultKind.THROTTLED, ""),
        (an_error(503), FaultKind.UNAVAILABLE, ""),
        (TimeoutError(), FaultKind.UNAVAILABLE, "did not answer"),
        (NotLeadingError("late"), FaultKind.NOT_LEADING, "late"),
    ],
)  # fmt: skip
def test_each_answer_has_one_meaning(error: BaseException, kind: FaultKind, words: str) -> None:
    """An answer becomes the one thing to do about it, with a sentence that names what is wrong."""
    fault = classify(error)
    assert fault is not None
    assert fault.kind is kind
    assert words in fault.message


def test_a_bug_is_no_api_failure() -> None:
    """What is not the API server's fault is not classified, and ends the step loudly."""
    assert classify(KeyError("x")) is None


def test_retry_after_is_kept() -> None:
    """The server's own wish is passed on."""
    fault = classify(an_error(429))
    assert fault is not None
    assert fault.retry_after_seconds == 7.0
