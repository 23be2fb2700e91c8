import json

import pytest

from tests.unit.planning.change_builders import arrivals
from trimtab.planning.load_history import (
    Bucket,
    LoadHistory,
    LoadHistoryInvalidError,
    added,
    dump,
    join,
    parse,
    read,
)


def test_a_gateway_s_rows_are_read_up_to_the_bucket_that_runs():
    """The present 10 s are not over, so their count would read as a fall."""
    rows = [[100, 3, 300, 150, 0], [110, 2, 200, 100, 1]]
    history = read(rows, now=117.0)
    assert (history.since, history.until) == (100, 110)
    assert history.buckets == (Bucket(100, 3, 300, 150),)


def test_a_replica_whose_clock_is_wrong_counts_at_our_time():
    """Counts of several gateways are added by bucket, so a clock that is off is shifted first."""
    rows = [[1100, 3, 300, 150, 0]]
    assert read(rows, now=130.0, shift=-1000.0).buckets == (Bucket(100, 3, 300, 150),)


def test_what_two_replicas_saw_is_added_and_reading_twice_adds_nothing():
    """Replicas see different requests; a later reading of the same hour does not."""
    one, two = read([[100, 3, 3, 3, 0]], now=120), read([[100, 4, 4, 4, 0]], now=120)
    both = added([one, two])
    assert both.requests(60) == 7
    assert join(both, both) == both
    assert join(both, one) == both


def test_counts_outlive_the_gateway_that_made_them():
    """A gateway that is gone reports nothing; what it reported stays for its hour."""
    before = added([read([[100, 3, 3, 3, 0]], now=120), read([[100, 4, 4, 4, 0]], now=120)])
    after = join(before, read([[100, 4, 4, 4, 0], [120, 5, 5, 5, 0]], now=140))
    assert after.requests(60) == 12


def test_an_hour_of_counts_and_a_day_of_peaks_are_kept():
    """Older buckets go; the largest count of each 5 min stays for a day."""
    history = join(
        LoadHistory(since=0, until=10, buckets=(Bucket(0, 9),), peaks=((0, 9),)),
        LoadHistory(since=3600, until=3610, buckets=(Bucket(3600, 1),), peaks=((3600, 1),)),
    )
    assert history.requests(3600) == 1
    assert history.peaks == ((0, 9), (3600, 1))
    day = LoadHistory(since=86_700, until=86_710, buckets=(Bucket(86_700, 1),))
    assert join(history, day).peaks == ((3600, 1),)


def test_silence_counts_only_while_somebody_listened():
    """A rate is over the seconds that are known, not over those before counting began."""
    history = LoadHistory(since=100, until=160, buckets=(Bucket(100, 12),))
    assert history.rate(300) == pytest.approx(0.2)
    assert history.rate(30) == 0.0
    assert LoadHistory().rate(300) == 0.0


def test_the_busy_rate_is_that_of_the_busy_five_minutes():
    """The p95 of rates of 5 min sees a burst of 10 min in half an hour, and forgets it after one."""

    def busy(history):
        return history.busy_rate(percentile=95, window_seconds=1800, rate_seconds=300)

    burst = arrivals(4.0, seconds=600, history=arrivals(1.0, seconds=1800))
    lull = arrivals(1.0, seconds=900, history=burst)
    assert busy(lull) == pytest.approx(4.0)
    assert busy(arrivals(1.0, seconds=2100, history=lull)) == pytest.approx(1.0)


def test_dispersion_is_one_for_poisson_and_large_for_bursts_and_a_step_is_no_burst():
    """Variance ÷ mean of 10 s counts, from neighbours: a load that rose once still is Poisson."""
    poisson = arrivals(2.0, seconds=3600, seed=1)
    bursts = arrivals(lambda at: 20.0 if at % 100 == 0 else 0.1, seconds=3600, seed=1)
    step = arrivals(6.0, seconds=1800, seed=2, history=arrivals(2.0, seconds=1800, seed=1))
    assert 1.0 <= poisson.dispersion(3600) < 1.5
    assert 1.0 <= step.dispersion(3600) < 1.7
    assert bursts.dispersion(3600) > 20


def test_a_history_reads_back_to_what_was_written():
    """Dump and parse are inverse, and an hour of traffic takes a few KB."""
    histories = {"team-a/chat": arrivals(2.0, seconds=3600, seed=1), "team-a/idle": LoadHistory()}
    text = dump(histories)
    assert parse(text) == histories
    assert len(text) < 8_000


def test_what_does_not_fit_is_left_out_the_quietest_first():
    """A ConfigMap holds 1 MiB: the busiest intents are kept."""
    histories = {"busy": arrivals(9.0, seconds=600), "quiet": arrivals(1.0, seconds=600)}
    size = len(dump(histories))
    assert list(parse(dump(histories, most_bytes=size - 100))) == ["busy"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.update(v=2), "v is 2"),
        (lambda d: d["intents"]["i"].update(requests=[-1]), "-1 is no count"),
        (lambda d: d["intents"]["i"].update(requests=[1, 2]), "equally long"),
        (lambda d: d["intents"]["i"].pop("from"), "KeyError"),
        (lambda d: d.update(intents=[]), "AttributeError"),
    ],
)
def test_a_spoilt_history_is_refused_by_name(spoil, said):
    """Whoever edits the ConfigMap gets a sentence, and the operator an empty history."""
    document = json.loads(dump({"i": arrivals(1.0, seconds=10)}))
    spoil(document)
    with pytest.raises(LoadHistoryInvalidError, match=said):
        parse(json.dumps(document))
    with pytest.raises(LoadHistoryInvalidError, match="starts anew"):
        parse("no JSON")
    with pytest.raises(LoadHistoryInvalidError, match="starts anew"):
        parse("[" * 100_000)
