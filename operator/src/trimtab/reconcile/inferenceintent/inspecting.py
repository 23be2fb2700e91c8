"""Where an intent's inspection stands, from its Jobs, their pods and what was kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.names import COMPONENT_LABEL
from trimtab.observe.inspections import (
    INSPECTION_KEY,
    Inspection,
    ModelFacts,
    Refusal,
    parse_verdict,
    stated_refusal,
)
from trimtab.reconcile.inferenceintent import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab.observe.records import ConfigMapRecord, JobRecord, PodRecord

_FIRST_RETRY_SECONDS: Final = 30.0
_LONGEST_RETRY_SECONDS: Final = 300.0


def retry_seconds(attempt: int) -> float:
    """Return how long a refused model rests before it is read again: 30 s, doubled, to 5 min."""
    return min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(attempt, 10))


def inspection(
    *,
    source: str,
    generation: int,
    kept: ConfigMapRecord | None,
    found: Sequence[JobRecord],
    pods: Sequence[PodRecord],
    now: datetime,
    seconds: Callable[[float], float],
) -> Inspection:
    """Return where reading a source stands.

    Args:
        source: Digest of the source that the intent names now.
        generation: Of the intent: an edit lets a refused model be read again at once.
        kept: The ConfigMap of this source, if there is one.
        found: Inspection Jobs of the intent, of any source.
        pods: Their pods.
        now: Wall clock in UTC, as the server's times are.
        seconds: Scales policy times, for tests.
    """
    facts = parse_verdict(kept.data.get(INSPECTION_KEY, "")) if kept is not None else None
    if isinstance(facts, ModelFacts):
        return Inspection(source_digest=source, state="Done", facts=facts)
    mine = [j for j in found if j.annotations.get(jobs.SOURCE_ANNOTATION) == source]
    if not mine:
        return Inspection(source_digest=source, state="Absent")
    job = max(mine, key=_attempt)
    its_pods = sorted(
        (p for p in pods if p.labels.get("batch.kubernetes.io/job-name") == job.name),
        key=lambda p: (p.created, p.name),
    )
    said = next((p for p in reversed(its_pods) if p.ended and p.ended.exit_code == 0), None)
    if said is not None and said.ended is not None and said.ended.message:
        verdict = parse_verdict(said.ended.message)
        if isinstance(verdict, ModelFacts):
            return Inspection(
                source_digest=source,
                state="Done",
                attempt=_attempt(job),
                job_name=job.name,
                facts=verdict,
                message=said.ended.message,
                node=said.node,
            )
        return _refused(job, verdict, source, generation, said.ended.finished_at, now, seconds)
    # A completed Job whose pod is known but not yet seen to end: its event comes.
    if job.failed or (job.complete and all(p.ended for p in its_pods)):
        refusal = _stated(its_pods) or Refusal(
            reason="InspectionFailed", message=_exit(job, its_pods)
        )
        return _refused(job, refusal, source, generation, job.finished_at, now, seconds)
    return Inspection(
        source_digest=source,
        state="Running",
        attempt=_attempt(job),
        job_name=job.name,
        obstacle=_obstacle(its_pods[-1]) if its_pods else "",
    )


def inspection_pods(pods: Sequence[PodRecord]) -> tuple[PodRecord, ...]:
    """Return those of an intent's pods that inspect."""
    return tuple(p for p in pods if p.labels.get(COMPONENT_LABEL) == "inspection")


def _attempt(job: JobRecord) -> int:
    text = job.annotations.get(jobs.ATTEMPT_ANNOTATION, "0")
    return int(text) if text.isdigit() else 0


def _refused(  # noqa: PLR0917 - private, called twice with the same names
    job: JobRecord,
    refusal: Refusal,
    source: str,
    generation: int,
    finished: str,
    now: datetime,
    seconds: Callable[[float], float],
) -> Inspection:
    attempt = _attempt(job)
    edited = job.annotations.get(jobs.GENERATION_ANNOTATION) != str(generation)
    rest = seconds(retry_seconds(attempt))
    remaining = 0.0 if edited else rest - (now - _time(finished, now)).total_seconds()
    # A clock that jumped must not silence the retry for longer than its rest.
    remaining = min(remaining, rest)
    return Inspection(
        source_digest=source,
        state="Failed",
        attempt=attempt,
        job_name=job.name,
        refusal=refusal,
        retry_due=remaining <= 0,
        retry_in_seconds=max(0.0, remaining) + 0.5,
    )


def _time(text: str, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return otherwise


def _stated(pods: Sequence[PodRecord]) -> Refusal | None:
    said = (stated_refusal(p.ended.message) for p in reversed(pods) if p.ended is not None)
    return next((refusal for refusal in said if refusal is not None), None)


def _exit(job: JobRecord, pods: Sequence[PodRecord]) -> str:
    ended = next((p.ended for p in reversed(pods) if p.ended is not None), None)
    if ended is None:
        return f"Job {job.name} ended without a verdict ({job.problem or 'its pod is gone'})."
    said = f": {ended.message.strip()[-1500:]}" if ended.message.strip() else ""
    return (
        f"Job {job.name} ended without a verdict, exit code {ended.exit_code} "
        f"({ended.reason or 'no reason'}){said}"
    )


def _obstacle(pod: PodRecord) -> str:
    if pod.unschedulable:
        return f"pod {pod.name} cannot be scheduled: {pod.unschedulable}"
    if pod.waiting_reason in ("", "ContainerCreating", "PodInitializing"):
        return ""
    return f"pod {pod.name} does not start: {pod.waiting_reason}: {pod.waiting_message}"
