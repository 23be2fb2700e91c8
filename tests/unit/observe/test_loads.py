from dataclasses import replace
from typing import Any

import pytest

from trimtab.observe.loads import LoadBook, seen_by
from trimtab.planning.load_history import Bucket, LoadHistory
from trimtab.planning.snapshot import Load
from trimtab.planning.variation import ObservedVariation, Sample, Variation

DECLARED = Load(requests_per_second=1.0, prompt_tokens=100, output_tokens=50)
LENGTHS = (100.0, 50.0)


def some_traffic(rate: float, *, seconds: int, start: int = 0) -> LoadHistory:
    """Return exactly so many requests in each 10 s."""
    count = round(10 * rate)
    return LoadHistory(
        since=start,
        until=start + seconds,
        buckets=tuple(
            Bucket(at, count, 100 * count, 50 * count)
            for at in range(start, start + seconds, 10)
            if count
        ),
    )


def take(book: LoadBook, seen: LoadHistory, **fields: Any) -> bool:
    """Let the book take in what was seen."""
    given: dict[str, Any] = {
        "declared": DECLARED,
        "seen": seen,
        "lengths": LENGTHS,
        "several": False,
        "now": 0.0,
    }
    return book.update("u", **given | fields)


def test_what_is_declared_holds_until_enough_was_seen_that_differs() -> None:
    """Little traffic replaces nothing; much within the band neither."""
    book = LoadBook()
    assert not take(book, some_traffic(9.0, seconds=20))
    assert book.of("u") is None
    assert not take(book, some_traffic(1.0, seconds=3600))
    assert book.of("u") is None


def test_observed_load_replaces_what_is_declared_and_is_told_once() -> None:
    """More than the band's edge, and enough of it: planned for from then on."""
    book = LoadBook()
    assert take(book, some_traffic(3.0, seconds=300))
    assert book.of("u") == Load(requests_per_second=3.0, prompt_tokens=100, output_tokens=50)
    assert not take(book, some_traffic(3.0, seconds=320))


def test_tests_divide_the_times() -> None:
    """With a divisor of 20 half an hour takes a minute and a half."""
    falls = [some_traffic(30.0, seconds=600), some_traffic(10.0, seconds=140, start=600)]
    slow, quick = LoadBook(), LoadBook(time_divisor=20)
    for book in (slow, quick):
        for seen in falls:
            take(book, seen)
    found = [book.of("u") for book in (slow, quick)]
    assert [f.requests_per_second for f in found if f] == [30.0, 10.0]


def test_a_restart_goes_on_with_what_was_planned_for() -> None:
    """What the status says was observed holds until traffic says otherwise."""
    book = LoadBook()
    book.restore("u", DECLARED)
    book.restore("v", None)
    assert book.of("u") == DECLARED
    assert book.of("v") is None


def test_an_edit_of_the_declared_load_counts_anew() -> None:
    """Who declares ten times the load before it comes is not told that it has not come yet."""
    book = LoadBook()
    take(book, some_traffic(3.0, seconds=600))
    book.edited("u", now=600.0)
    assert book.of("u") is None
    ten = Load(requests_per_second=10.0, prompt_tokens=100, output_tokens=50)
    assert not take(book, some_traffic(0.3, seconds=1190), declared=ten)
    assert book.of("u") is None
    assert take(book, some_traffic(0.3, seconds=1220), declared=ten)


def test_the_busy_load_is_of_interest_where_there_is_more_than_one_replica() -> None:
    """A lone replica is never taken away, so nobody plans for what fewer would have to carry."""
    book = LoadBook()
    take(book, some_traffic(3.0, seconds=1800))
    assert book.busy("u") is None
    assert take(book, some_traffic(3.0, seconds=1810), several=True)
    busy = book.busy("u")
    assert busy is not None
    assert busy.requests_per_second == pytest.approx(3.0)


def test_a_missed_target_is_told_once_and_makes_the_load_count() -> None:
    """After five minutes; then a load that is a little higher is planned for."""
    book = LoadBook()
    risen = some_traffic(1.1, seconds=600)
    assert not book.judged("u", within=False, now=0.0)
    assert not take(book, risen, now=299.0)
    assert book.judged("u", within=False, now=300.0)
    assert not book.judged("u", within=False, now=315.0)
    assert take(book, risen, now=315.0)
    found = book.of("u")
    assert found is not None
    assert found.requests_per_second == pytest.approx(1.1)


def test_counts_of_all_replicas_are_read_by_our_clock() -> None:
    """A replica an hour ahead counts in our time; a garbled one counts nothing."""
    rows = [[1000, 2, 200, 100, 0]]
    entry = {"team/chat": {"counts": rows}}
    ahead = {"team/chat": {"counts": [[4600, 3, 300, 150, 0]]}}
    documents = [
        {"now": 1031.0, "intents": entry},
        {"now": 4631.0, "intents": ahead},
        {"now": 1031.0, "intents": {"team/chat": {"counts": [["x"]]}}},
        {"now": 1031.0, "intents": {}},
    ]
    seen = seen_by(documents, "team/chat", now=1031.0)
    assert seen.buckets == (Bucket(1000, 5, 500, 250),)
    assert (seen.since, seen.until) == (1000, 1030)


def test_bursts_are_told_once_and_survive_a_restart() -> None:
    """What gateways say of the gaps becomes part of the load, which the status gives back."""
    book = LoadBook()
    bursts = ObservedVariation(gap=Sample(3.0, 3600))
    seen = some_traffic(1.0, seconds=3600)
    assert take(book, seen, variation=bursts)
    assert not take(book, seen, variation=bursts)
    found = book.of("u")
    assert found is not None
    assert found.variation == Variation(gap=3.0)
    again = LoadBook()
    again.restore("u", found)
    assert not take(again, seen)
    assert again.of("u") == found


def test_an_edit_of_the_declared_load_keeps_how_uneven_requests_are() -> None:
    """The gateways' hour says the same as before: the edited load is planned with it, and once."""
    book = LoadBook()
    bursts = ObservedVariation(gap=Sample(3.0, 3600))
    take(book, some_traffic(1.0, seconds=3600), variation=bursts)
    two = replace(DECLARED, requests_per_second=2.0)
    for _ in range(2):
        book.edited("u", now=3600.0)
        assert book.of("u") is None
        assert book.planned("u", declared=two) == replace(two, variation=Variation(gap=3.0))
        seen = some_traffic(1.0, seconds=3610)
        assert not take(book, seen, declared=two, variation=bursts)
    assert book.planned("u", declared=None) is None
    even = ObservedVariation(gap=Sample(1.0, 3600))
    assert take(book, some_traffic(1.0, seconds=3620), declared=two, variation=even)
    assert book.planned("u", declared=two) == two


def test_a_restart_goes_on_with_how_uneven_an_edited_load_was_planned() -> None:
    """A declared load has no figure of its own for it."""
    book = LoadBook()
    book.restore("u", None, variation=Variation(gap=3.0))
    assert book.of("u") is None
    assert book.planned("u", declared=DECLARED) == replace(DECLARED, variation=Variation(gap=3.0))
    assert book.planned("v", declared=DECLARED) == DECLARED
