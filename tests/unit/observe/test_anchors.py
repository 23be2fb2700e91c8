"""Windows of live replicas: when one ends, when plans see it, when it asks for a plan."""

from __future__ import annotations

import dataclasses

from trimtab.observe.anchors import AnchorBook
from trimtab.planning.anchors import DecodeCounters
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Anchor

ANCHOR = Anchor(key="k", depth=30, batch=2.0, kv_tokens=400.0, step_us=30_000, steps=300)


PLACE = ("pod", "m")


def add(
    book: AnchorBook,
    anchor: Anchor,
    *,
    departure: float,
    margin_permille: int = 150,
    place: tuple[str, str] = PLACE,
    now: float = 0.0,
) -> bool:
    return book.add(
        anchor, place=place, departure=departure, margin_permille=margin_permille, now=now
    )


def counted(steps: int) -> DecodeCounters:
    return DecodeCounters(
        steps=steps, seconds=steps * 0.02, sequences=2 * steps, context_tokens=400 * steps
    )


def test_a_window_lasts_a_minute_and_two_hundred_steps() -> None:
    """Fewer steps wait for more; the next window begins where one ends."""
    book = AnchorBook()
    assert book.window("pod", "m", counted(1000), now=0.0) is None
    assert book.window("pod", "m", counted(1190), now=59.0) is None
    assert book.window("pod", "m", counted(1199), now=61.0) is None
    found = book.window("pod", "m", counted(1250), now=75.0)
    assert found == counted(250)
    assert book.window("pod", "m", counted(1600), now=90.0) is None
    assert book.window("pod", "m", counted(1600), now=140.0) == counted(350)


def test_a_worker_that_starts_anew_begins_a_window() -> None:
    """Counters that fell are no window, and neither is what a pod before it counted."""
    book = AnchorBook()
    book.window("pod", "m", counted(1000), now=0.0)
    assert book.window("pod", "m", counted(10), now=100.0) is None
    assert book.window("pod", "m", counted(300), now=200.0) == counted(290)
    book.keep_pods(set())
    assert book.window("pod", "m", counted(900), now=300.0) is None


def test_three_windows_beyond_the_margin_ask_once() -> None:
    """Plans see just these three from then on; what they saw is no drift any more."""
    book = AnchorBook()
    book.recall("k", [dataclasses.replace(ANCHOR, step_us=20_000)])
    assert [add(book, ANCHOR, departure=0.4, margin_permille=150) for _ in range(3)] == [
        False,
        False,
        True,
    ]
    assert book.all() == (ANCHOR,) * 3
    assert not any(add(book, ANCHOR, departure=0.02, margin_permille=150) for _ in range(9))
    assert book.all() == (ANCHOR,) * 3


def test_what_the_margin_absorbs_is_no_drift() -> None:
    """Neither are errors of both signs, nor two windows."""
    book = AnchorBook()
    assert not any(add(book, ANCHOR, departure=0.14, margin_permille=150) for _ in range(5))
    mixed = AnchorBook()
    assert not any(add(mixed, ANCHOR, departure=e, margin_permille=100) for e in (0.4, 0.4, -0.4))
    assert book.all() == mixed.all() == ()


def test_plans_see_windows_when_they_are_published_the_newest_64_of_each_key() -> None:
    """Between two publications a plan is made from the same anchors, whatever comes in."""
    book, other = AnchorBook(), dataclasses.replace(ANCHOR, key="a")
    for n in range(70):
        add(book, dataclasses.replace(ANCHOR, steps=200 + n), departure=0.0, margin_permille=150)
    add(book, other, departure=0.0, margin_permille=150)
    assert book.all() == ()
    book.publish()
    kept = PlannerPolicy().kept_anchors
    assert [a.steps for a in book.published()["k"]] == list(range(270 - kept, 270))
    assert book.all()[0] == other
    seen = book.all()
    book.publish()
    assert book.all() == seen


def test_a_drift_is_one_replica_s_and_replaces_its_own_batches_alone() -> None:
    """Windows of several replicas are no drift together; anchors of other batches and depths stay."""
    book = AnchorBook()
    wide, deep = dataclasses.replace(ANCHOR, batch=8.0), dataclasses.replace(ANCHOR, depth=60)
    near = dataclasses.replace(ANCHOR, batch=3.9)
    book.recall("k", [wide, deep, near])
    assert not any(add(book, ANCHOR, departure=0.4, place=(f"p{n}", "m")) for n in range(3))
    assert not add(book, wide, departure=0.0, place=("p3", "m"))
    assert [add(book, ANCHOR, departure=0.4, place=("p0", "m")) for _ in range(2)] == [False, True]
    assert book.all() == (wide, deep, *[ANCHOR] * 3)
    book.publish()
    assert book.all() == (wide, deep, *[ANCHOR] * 3, wide)


def test_a_fingerprint_drifts_at_most_once_in_ten_minutes() -> None:
    """Two replicas that disagree ask for a plan now and then, not for two a minute for ever."""
    book = AnchorBook()
    found = [
        now
        for now in range(0, 1800, 60)
        for n in range(2)
        if add(book, ANCHOR, departure=0.4 - 0.8 * n, place=(f"p{n}", "m"), now=now)
    ]
    assert found == [120, 720, 1320]


def test_windows_of_a_pod_that_is_gone_are_no_part_of_a_drift() -> None:
    """What its uid saw before is forgotten with it."""
    book = AnchorBook()
    for _ in range(2):
        add(book, ANCHOR, departure=0.4)
    book.keep_pods(set())
    assert not add(book, ANCHOR, departure=0.4)


def test_windows_without_a_sequence_per_step_are_no_difference() -> None:
    """A worker that counts so is taken for one that started anew."""
    book = AnchorBook()
    book.window("pod", "m", counted(1000), now=0.0)
    odd = dataclasses.replace(counted(2000), sequences=2500)
    assert book.window("pod", "m", odd, now=100.0) is None
