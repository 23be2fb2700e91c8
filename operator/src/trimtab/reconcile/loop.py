"""One object's loop: wait, step, pace. It ends at deletion or when the process stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.reconcile.pacing import Outcome, next_delay_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from trimtab.reconcile.inbox import Inbox

    class HeartBeat(Protocol):
        """Takes note of every step, whatever its outcome."""

        def __call__(self, key: str, *, outcome: Outcome, failures: int, seconds: float) -> None:
            """One step of `key` took `seconds`."""


_log = structlog.get_logger(__name__)

STEP_SECONDS: Final = 60.0
REST_SECONDS: Final = 0.2
"""At least this long between two steps of one object, so that a storm of events counts once."""

URGENT: Final = frozenset({"spec", "deleted"})
"""Causes that end a back-off: the object itself says something new."""


async def run_loop(
    *,
    key: str,
    inbox: Inbox,
    step: Callable[[], Awaitable[Outcome]],
    slots: asyncio.Semaphore,
    clock: Callable[[], float],
    jitter: Callable[[], float],
    stopped: Callable[[], bool],
    heart_beat: HeartBeat,
) -> None:
    """Step whenever woken, at an appointment, or at the resync; never raise but when cancelled.

    Args:
        key: The object's uid, under which the inbox wakes it.
        inbox: Source of wakes; closing it ends the loop.
        step: Observes, plans and executes once.
        slots: How many steps of all loops run at once.
        clock: Monotonic seconds.
        jitter: Uniform in [-1, 1].
        stopped: Whether the framework wants this loop to end.
        heart_beat: Told of every step.
    """
    inbox.register(key)
    failures = 0
    delay = 0.0
    not_before = 0.0
    try:
        while not (inbox.closed or stopped()):
            deadline = clock() + delay
            causes = await _wait(inbox, key, deadline, not_before, clock)
            if inbox.closed or stopped():
                return
            if causes & URGENT:
                failures = 0
            began = clock()
            outcome = await _guarded(step, slots, key)
            failures = failures + 1 if outcome.failed else 0
            heart_beat(key, outcome=outcome, failures=failures, seconds=clock() - began)
            if outcome.ended:
                return
            delay = next_delay_seconds(outcome=outcome, failures=failures, jitter=jitter())
            not_before = clock() + (delay if outcome.failed else REST_SECONDS)
    finally:
        inbox.unregister(key)


async def _wait(
    inbox: Inbox, key: str, deadline: float, not_before: float, clock: Callable[[], float]
) -> frozenset[str]:
    """Wait until there is a cause and the rest is over; an urgent cause cuts the rest short."""
    causes: frozenset[str] = frozenset()
    while not inbox.closed:
        target = deadline if not causes else not_before
        remaining = target - clock()
        if remaining <= 0:
            return causes
        causes |= await inbox.wait(key, remaining)
        if causes & URGENT or (causes and clock() >= not_before):
            return causes
    return causes


async def _guarded(
    step: Callable[[], Awaitable[Outcome]], slots: asyncio.Semaphore, key: str
) -> Outcome:
    """A step that raises would end kopf's daemon for good, so everything ends as an outcome."""
    async with slots:
        try:
            async with asyncio.timeout(STEP_SECONDS):
                return await step()
        except TimeoutError:
            _log.warning("step_timed_out", uid=key, seconds=STEP_SECONDS)
            return Outcome(failed=True, message=f"A step took longer than {STEP_SECONDS:g} s.")
        except Exception as error:  # noqa: BLE001 - ends as an outcome, see above
            _log.exception("step_failed", uid=key)
            return Outcome(failed=True, message=f"{type(error).__name__}: {error}")
