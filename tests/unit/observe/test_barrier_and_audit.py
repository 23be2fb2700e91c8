"""The barrier before planning, and the audits after it."""

from __future__ import annotations

import asyncio
from typing import Any

from trimtab.observe.audit import Ledger, compare
from trimtab.observe.barrier import Barrier
from trimtab.observe.cache import ObjectCache
from trimtab.observe.records import Record, generic


def a_body(uid: str, version: int = 1) -> dict[str, Any]:
    meta = {"name": uid, "namespace": "n", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": meta}


class Played:
    def __init__(self, *listed: frozenset[str] | Exception | None) -> None:
        self.listed = list(listed)
        self.now = 0.0
        self.cache: ObjectCache[Record] = ObjectCache(generic)
        self.slept = 0
        self.on_sleep: Any = lambda: None
        self.barrier = Barrier(
            {"things": self.cache}, list_uids=self.list, clock=lambda: self.now, sleep=self.sleep
        )

    async def list(self, kind: str) -> frozenset[str] | None:
        answer = self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1
        assert self.slept < 1000, "the barrier never opened"
        self.on_sleep()
        await asyncio.sleep(0)


async def test_nothing_is_planned_over_a_half_filled_cache() -> None:
    """The barrier stays shut while one listed uid is unknown, and opens with the last one."""
    played = Played(frozenset({"a", "b"}))
    played.cache.put(a_body("a"))
    shut = []

    def arrive() -> None:
        shut.append(played.barrier.passed)
        if played.slept == 5:
            played.cache.put(a_body("b"))

    played.on_sleep = arrive
    await played.barrier.run(retryable=(OSError,))
    assert shut == [False] * 5
    assert played.barrier.passed


async def test_what_vanished_before_the_watch_began_is_not_waited_for() -> None:
    """A uid that a later list no longer has counts as gone."""
    played = Played(frozenset({"a", "ghost"}), frozenset({"a"}))
    played.cache.put(a_body("a"))
    await played.barrier.run(retryable=(OSError,))
    assert played.barrier.passed


async def test_a_failed_list_is_no_empty_cluster() -> None:
    """While the server does not answer, or the definition is missing, the barrier stays shut."""
    played = Played(OSError("refused"), None, frozenset({"a"}))
    states = []
    played.on_sleep = lambda: (states.append(played.barrier.passed), played.cache.put(a_body("a")))
    await played.barrier.run(retryable=(OSError,))
    assert states == [False, False]


def test_audits_find_what_watches_lost() -> None:
    """Missing, stale and vanished objects are told apart."""
    cache: ObjectCache[Record] = ObjectCache(generic)
    for uid in ("same", "old", "ghost"):
        cache.put(a_body(uid))
    report = compare(cache, [a_body("same"), a_body("old", 5), a_body("new")])
    assert report.missing == {"new"}
    assert report.stale == {"old"}
    assert report.ghosts == {"ghost"}


def test_a_short_lag_is_no_difference() -> None:
    """A difference wakes after a minute and turns liveness red after two and a half."""
    cache: ObjectCache[Record] = ObjectCache(generic)
    ledger = Ledger()
    report = compare(cache, [a_body("new")])
    assert ledger.note("things", report, now=0) == frozenset()
    assert ledger.note("things", report, now=61) == {"new"}
    assert ledger.healthy(now=149)
    assert not ledger.healthy(now=151)
    cache.put(a_body("new"))
    assert ledger.note("things", compare(cache, [a_body("new")]), now=160) == frozenset()
    assert ledger.healthy(now=1000)
