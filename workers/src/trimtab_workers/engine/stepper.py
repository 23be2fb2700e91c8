"""One step of one model: schedule, execute, accept tokens, end what is done."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.errors import BatchFailedError
from trimtab_workers.engine.faults import attempt
from trimtab_workers.engine.sampling import NanLogitsError
from trimtab_workers.engine.tenants import FAILURES_UNTIL_FAILED
from trimtab_workers.engine.types import Output, Timings, TokenLogprob

if TYPE_CHECKING:
    from trimtab_workers.engine.backend import Runner
    from trimtab_workers.engine.clock import Clock
    from trimtab_workers.engine.errors import EngineError
    from trimtab_workers.engine.metrics import WaitingReason
    from trimtab_workers.engine.mover import Mover
    from trimtab_workers.engine.sampling import Sampled
    from trimtab_workers.engine.scheduler import Scheduler, StepPlan
    from trimtab_workers.engine.sequence import Sequence
    from trimtab_workers.engine.tenants import Tenant
    from trimtab_workers.engine.types import FinishReason

log = logging.getLogger(__name__)


def step(tenant: Tenant, clock: Clock, *, mover: Mover | None = None) -> bool:
    """Run one step of a model's work; False if there was nothing that could run.

    Args:
        tenant: The model.
        clock: The engine's.
        mover: Makes the plan's copies; needed where blocks may be swapped.

    Raises:
        BatchFailedError: The third batch in a row has failed; the model is to be failed.
    """
    scheduler, runner = tenant.scheduler, tenant.runner
    if scheduler is None or runner is None or not scheduler.has_work:
        return False
    began = clock.now()
    plan = scheduler.schedule()
    tenant.metrics.preempted(plan)
    if mover is not None:
        mover.copy_swaps(tenant, plan.swaps)
    if not plan.rows:
        return False
    for row in plan.prefill:
        if row.sequence.scheduled_seconds is None:
            row.sequence.scheduled_seconds = began
    try:
        result = runner.execute(plan)
    except Exception as error:  # noqa: BLE001 - whatever it is, only this batch may suffer
        _fail(tenant, scheduler=scheduler, runner=runner, plan=plan, cause=error, clock=clock)
        return True
    tenant.failures = 0
    for row in plan.rows:
        scheduler.commit(row)
    now = clock.now()
    for sequence, sampled in result.sampled:
        what = f"Request {sequence.request.request_id}: turning a token into text"
        work = partial(_accept, tenant, scheduler, sequence, sampled, now)
        problem = attempt(work, what=what)
        if problem is not None:
            end_early(tenant, scheduler, sequence, now=now, error=problem)
    _count(tenant, scheduler, plan, began=began, now=clock.now())
    return True


def _count(
    tenant: Tenant, scheduler: Scheduler, plan: StepPlan, *, began: float, now: float
) -> None:
    context = sum(row.start + 1 for row in plan.decode)
    tenant.metrics.step(plan, seconds=now - began, context_tokens=context)
    if plan.phase == "decode":
        tenant.decode_steps.append((now, now - began))
        tenant.windows.add(
            now=now, seconds=now - began, sequences=len(plan.decode), context_tokens=context
        )
    show_load(tenant, scheduler)


def show_load(tenant: Tenant, scheduler: Scheduler) -> None:
    """Bring the gauges up to date."""
    blocks = scheduler.blocks
    tenant.metrics.load(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        reason=waits_for(tenant, scheduler),
        usage=blocks.used / blocks.capacity if blocks.capacity else 0.0,
        capacity_tokens=blocks.capacity * BLOCK_TOKENS,
    )


def waits_for(tenant: Tenant, scheduler: Scheduler) -> WaitingReason:
    """Return what the first of a model's waiting requests waits for.

    That is weights (`wake`), blocks or a place in the batch (`capacity`), or only the model's next
    step, while others have theirs (`rotation`).
    """
    if tenant.state in {"Lent", "Waking"}:
        return "wake"
    full = len(scheduler.running) >= scheduler.max_seqs
    return "capacity" if full or scheduler.missing_first() else "rotation"


def _accept(
    tenant: Tenant, scheduler: Scheduler, sequence: Sequence, sampled: Sampled, now: float
) -> None:
    token = sampled.token_id
    sequence.tokens.append(token)
    if sequence.first_token_seconds is None:
        sequence.first_token_seconds = now
        tenant.metrics.first_token(sequence, now=now)
    else:
        last = sequence.last_token_seconds
        tenant.metrics.next_token(gap_seconds=now - (now if last is None else last))
    sequence.last_token_seconds = now
    stop_reason: str | int | None
    reason, stop_reason = _ends(tenant, sequence, token)
    text = "" if reason == "stop" else _text(sequence, token)
    if sequence.detokenizer is not None and sequence.detokenizer.stopped_by is not None:
        reason, stop_reason = "stop", sequence.detokenizer.stopped_by
    if reason is not None and sequence.detokenizer is not None:
        text += sequence.detokenizer.finish()
    if reason is not None:
        scheduler.remove(sequence)
        tenant.metrics.finished(sequence, reason=reason, now=now)
    sequence.sink(
        Output(
            request_id=sequence.request.request_id,
            token_ids=(token,),
            text_delta=text,
            logprobs=_logprobs(tenant, sampled),
            finish_reason=reason,
            stop_reason=stop_reason,
            prompt_tokens=sequence.prompt_length,
            cached_tokens=sequence.cached_tokens,
            timings=timings(sequence, now if reason is not None else None),
        )
    )


def _text(sequence: Sequence, token: int) -> str:
    return "" if sequence.detokenizer is None else sequence.detokenizer.push(token)


def _ends(tenant: Tenant, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
    params = sequence.params
    if token in params.stop_token_ids:
        return "stop", token
    ends = tenant.tokenizer.eos_token_ids if tenant.tokenizer is not None else frozenset()
    if token in ends and not params.ignore_eos:
        return "stop", None
    return ("length" if len(sequence.tokens) >= sequence.limit else None), None


def _logprobs(tenant: Tenant, sampled: Sampled) -> tuple[TokenLogprob, ...] | None:
    tokenizer = tenant.tokenizer
    if sampled.logprob is None or tokenizer is None:
        return None
    return (
        TokenLogprob(
            sampled.token_id,
            tokenizer.token_text(sampled.token_id),
            tokenizer.token_bytes(sampled.token_id),
            sampled.logprob,
            tuple(
                (token, tokenizer.token_text(token), tokenizer.token_bytes(token), logprob)
                for token, logprob in sampled.top
            ),
        ),
    )


def timings(sequence: Sequence, finished: float | None) -> Timings:
    """Return when things happened to a sequence."""
    return Timings(
        arrival_seconds=sequence.arrival_seconds,
        scheduled_seconds=sequence.scheduled_seconds,
        first_token_seconds=sequence.first_token_seconds,
        finished_seconds=finished,
        preemptions=sequence.preemptions,
    )


def end_early(
    tenant: Tenant,
    scheduler: Scheduler,
    sequence: Sequence,
    *,
    now: float,
    error: EngineError | None,
) -> None:
    """End a request from outside: aborted, or with an error."""
    scheduler.remove(sequence)
    tenant.metrics.finished(sequence, reason="abort" if error is None else "error", now=now)
    held = sequence.detokenizer.finish() if sequence.detokenizer is not None and not error else ""
    sequence.sink(
        Output(
            request_id=sequence.request.request_id,
            text_delta=held,
            finish_reason="abort" if error is None else None,
            prompt_tokens=sequence.prompt_length,
            cached_tokens=sequence.cached_tokens,
            timings=timings(sequence, now),
            error=error,
        )
    )


def refuse(tenant: Tenant, sequence: Sequence, *, now: float, error: EngineError) -> None:
    """Answer a request of a model that failed; its blocks go with the model's slabs."""
    sequence.sink(
        Output(
            request_id=sequence.request.request_id,
            prompt_tokens=sequence.prompt_length,
            cached_tokens=sequence.cached_tokens,
            timings=timings(sequence, now),
            error=error,
        )
    )
    tenant.metrics.finished(sequence, reason="error", now=now)


def _fail(
    tenant: Tenant,
    *,
    scheduler: Scheduler,
    runner: Runner,
    plan: StepPlan,
    cause: Exception,
    clock: Clock,
) -> None:
    name = tenant.spec.name
    what = "gave NaN" if isinstance(cause, NanLogitsError) else f"failed: {cause}"
    error = BatchFailedError(
        f"Model {name}: a forward step of {len(plan.rows)} requests {what}. These requests are "
        "lost, others go on; send them again, and look at the worker's log if it happens twice."
    )
    log.error("step_failed", exc_info=cause, extra={"model": name, "requests": len(plan.rows)})
    scheduler.blocks.forget_all()
    if scheduler.host is not None:
        scheduler.host.forget_all()
    for row in plan.rows:
        runner.clear(block for block in row.sequence.blocks if block.refs == 1)
        end_early(tenant, scheduler, row.sequence, now=clock.now(), error=error)
    scheduler.blocks.check()
    tenant.failures += 1
    show_load(tenant, scheduler)
    if tenant.failures >= FAILURES_UNTIL_FAILED:
        raise error
