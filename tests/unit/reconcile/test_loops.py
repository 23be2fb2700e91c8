"""Inbox, loop and periodic jobs on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trimtab.reconcile.inbox import Inbox
from trimtab.reconcile.loop import run_loop
from trimtab.reconcile.pacing import Outcome
from trimtab.reconcile.periodic import Periodic

pytestmark = pytest.mark.looptime


class Loop:
    """One loop whose steps are played; remembers when each began."""

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self.outcomes = list(outcomes)
        self.inbox = Inbox()
        self.began: list[float] = []
        self.beats: list[tuple[bool, int]] = []
        self.stop = False
        self.running = 0
        self.hold: asyncio.Event | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def step(self) -> Outcome:
        self.began.append(self.now())
        self.running += 1
        assert self.running == 1, "two steps of one object at once"
        try:
            if self.hold is not None:
                await self.hold.wait()
            outcome = self.outcomes.pop(0) if self.outcomes else Outcome()
        finally:
            self.running -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def beat(self, key: str, *, outcome: Outcome, failures: int, seconds: float) -> None:
        assert key == "u"
        assert seconds >= 0
        self.beats.append((outcome.failed, failures))

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(
            run_loop(
                key="u",
                inbox=self.inbox,
                step=self.step,
                slots=asyncio.Semaphore(1),
                clock=self.now,
                jitter=lambda: 0.0,
                stopped=lambda: self.stop,
                heart_beat=self.beat,
            )
        )


async def finish(loop: Loop, task: asyncio.Task[None]) -> None:
    loop.inbox.close()
    await task


async def test_a_loop_steps_at_its_start_and_at_the_resync() -> None:
    """Without any event an object is looked at every ten minutes."""
    loop = Loop()
    task = loop.start()
    await asyncio.sleep(1900)
    await finish(loop, task)
    assert [round(t) for t in loop.began] == [0, 600, 1200, 1800]


async def test_wakes_that_come_together_count_once() -> None:
    """A storm of events is one step, and one more for what came during it."""
    loop = Loop()
    loop.hold = asyncio.Event()
    task = loop.start()
    await asyncio.sleep(1)
    for _ in range(100):
        loop.inbox.wake("u", "pods")
    loop.hold.set()
    await asyncio.sleep(5)
    await finish(loop, task)
    assert len(loop.began) == 2


async def test_a_failing_step_backs_off_and_children_do_not_hurry_it() -> None:
    """Failures rest 2, 4, 8 s, whatever happens to children meanwhile."""
    loop = Loop(*[Outcome(failed=True)] * 3)
    task = loop.start()
    for _ in range(130):
        await asyncio.sleep(0.1)
        loop.inbox.wake("u", "pods")
    await asyncio.sleep(2)
    await finish(loop, task)
    assert [round(t) for t in loop.began[:4]] == [0, 2, 6, 14]
    assert loop.beats[:4] == [(True, 1), (True, 2), (True, 3), (False, 0)]


async def test_a_new_spec_ends_a_back_off() -> None:
    """An edit is tried at once, and failures are counted anew."""
    loop = Loop(*[Outcome(failed=True)] * 3)
    task = loop.start()
    await asyncio.sleep(7)
    loop.inbox.wake("u", "spec")
    await asyncio.sleep(0.01)
    await finish(loop, task)
    assert [round(t) for t in loop.began] == [0, 2, 6, 7]


async def test_retry_after_is_obeyed() -> None:
    """The server's wish is the least that a failed step rests."""
    loop = Loop(Outcome(failed=True, retry_after_seconds=50))
    task = loop.start()
    await asyncio.sleep(60)
    await finish(loop, task)
    assert [round(t) for t in loop.began] == [0, 50]


async def test_an_appointment_is_kept() -> None:
    """A plan that wants to look again does so at its time."""
    loop = Loop(Outcome(requeue_after_seconds=30))
    task = loop.start()
    await asyncio.sleep(40)
    await finish(loop, task)
    assert [round(t) for t in loop.began] == [0, 30]


async def test_a_step_that_raises_never_ends_the_loop() -> None:
    """A bug in a step is a failed step; a loop that ended would never come back."""
    loop = Loop(KeyError("bug"), ValueError("bug"))
    task = loop.start()
    await asyncio.sleep(10)
    assert not task.done()
    await finish(loop, task)
    assert loop.beats[0] == (True, 1)


async def test_a_step_that_hangs_is_ended() -> None:
    """After a minute a step gives its slot back."""
    loop = Loop()
    loop.hold = asyncio.Event()
    task = loop.start()
    await asyncio.sleep(61)
    assert loop.beats == [(True, 1)]
    await finish(loop, task)


async def test_a_deleted_object_ends_its_loop_at_once() -> None:
    """Even in a long back-off a deletion is noticed immediately."""
    loop = Loop(*[Outcome(failed=True)] * 8, Outcome(ended=True))
    task = loop.start()
    await asyncio.sleep(300)
    loop.outcomes[:-1] = []
    loop.inbox.wake("u", "deleted")
    await asyncio.sleep(0.01)
    assert task.done()
    assert loop.inbox.keys() == ()


async def test_closing_the_inbox_lets_the_step_in_flight_finish() -> None:
    """At SIGTERM nobody is woken, and who works may finish."""
    loop = Loop()
    loop.hold = asyncio.Event()
    task = loop.start()
    await asyncio.sleep(1)
    loop.inbox.close()
    await asyncio.sleep(1)
    assert not task.done()
    loop.hold.set()
    await loop.inbox.emptied()
    await task
    assert len(loop.began) == 1


async def test_a_periodic_job_survives_its_errors() -> None:
    """A run that raises is paced and repeated; a wake runs it soon."""
    runs: list[float] = []
    beats: list[str] = []

    async def step() -> float | None:
        runs.append(asyncio.get_running_loop().time())
        if len(runs) == 1:
            raise RuntimeError("once")
        return None

    async def gate() -> None:
        await asyncio.sleep(5)

    job = Periodic("job", step, every_seconds=100, gate=gate, beat=beats.append)
    task = asyncio.create_task(job.run())
    await asyncio.sleep(20)
    assert job.succeeded.is_set()
    job.wake()
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [round(t) for t in runs] == [5, 7, 20]
    assert beats == ["job"] * 3


def test_only_loops_are_woken() -> None:
    """A wake for an object without a loop is nobody's news."""
    inbox = Inbox()
    inbox.wake("nobody", "pods")
    assert inbox.keys() == ()


async def test_causes_are_told_once() -> None:
    """A loop learns why it was woken, and learns it once."""
    inbox = Inbox()
    inbox.register("u")
    inbox.wake("u", "pods")
    first: Any = await inbox.wait("u", 1)
    second: Any = await inbox.wait("u", 1)
    assert first == {"pods"}
    assert second == frozenset()
