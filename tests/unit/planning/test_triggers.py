from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY, a_fingerprint, a_fleet, a_pool, an_intent
from tests.unit.planning.change_builders import MINUTE, ONE, SECOND, a_load
from trimtab.planning.prices import PriceBook
from trimtab.planning.snapshot import Anchor, Assignment
from trimtab.planning.triggers import Debounce, MissWatch, SpareWatch, drifted, triggers


def _due(*asked):
    debounce = Debounce()
    for seconds in asked:
        debounce = debounce.ask(now_us=seconds * SECOND)
    due = debounce.due_us(policy=POLICY)
    return None if due is None else due / SECOND


def test_a_plan_is_due_two_seconds_after_the_last_that_asked():
    """A storm of events is one plan."""
    assert _due() is None
    assert _due(5) == 7
    assert _due(5, 6, 6) == 8


def test_a_plan_is_due_ten_seconds_after_the_first_that_asked():
    """Somebody who asks every second keeps nobody waiting."""
    assert _due(*range(5, 30)) == 15


def test_a_missed_target_counts_after_five_minutes_without_a_good_one():
    """One good verdict begins it anew; too few requests decide nothing."""
    watch = MissWatch().seen(within=False, now_us=0)
    assert not watch.due(now_us=5 * MINUTE - 1, policy=POLICY)
    assert watch.due(now_us=5 * MINUTE, policy=POLICY)
    assert watch.seen(within=None, now_us=MINUTE) == watch
    assert watch.seen(within=False, now_us=MINUTE) == watch
    assert not watch.seen(within=True, now_us=MINUTE).due(now_us=10 * MINUTE, policy=POLICY)


def test_fewer_replicas_must_do_for_ten_minutes():
    """The most that was needed within the time counts."""
    watch = SpareWatch().seen(3, now_us=0)
    assert watch.fewest(now_us=10 * MINUTE - 1, policy=POLICY) is None
    assert watch.fewest(now_us=10 * MINUTE, policy=POLICY) == 3
    fewer = watch.seen(1, now_us=5 * MINUTE)
    assert fewer.fewest(now_us=14 * MINUTE, policy=POLICY) == 3
    assert fewer.fewest(now_us=15 * MINUTE, policy=POLICY) == 1
    again = fewer.seen(2, now_us=6 * MINUTE)
    assert again.fewest(now_us=14 * MINUTE, policy=POLICY) == 3
    # No more than two were needed since the fifth minute, when one would have done.
    assert again.fewest(now_us=15 * MINUTE, policy=POLICY) == 2


@pytest.mark.parametrize(
    ("errors", "margin", "expected"),
    [
        ((0.12, 0.12, 0.12), 100, True),
        ((-0.12, -0.12, -0.12), 100, True),
        ((0.12, 0.12), 100, False),
        ((0.12, 0.09, 0.12), 100, False),
        ((0.12, -0.12, 0.12), 100, False),
        ((0.0, 0.12, 0.12, 0.12), 100, True),
        ((0.12, 0.12, 0.12), 150, False),
    ],
)
def test_drift_is_three_windows_in_a_row_beyond_the_margin(errors, margin, expected):
    """In one direction, beyond 10 % and beyond what the margin absorbs."""
    assert drifted(errors, margin_permille=margin, policy=POLICY) == expected


def test_each_input_that_differs_is_named():
    """A plan says why it was made; what the operator did itself is told apart."""
    intent = an_intent()
    before = a_fleet(intent)
    held = Assignment(intent_uid=intent.uid, config=ONE, replicas=1, generation=1)
    anchor = Anchor(key="k", batch=1.0, kv_tokens=1.0, step_us=1, steps=200)
    cases = {
        "Edit": replace(before, intents=(replace(intent, generation=2),)),
        "Load": replace(before, intents=(replace(intent, load=a_load(9.0)),)),
        "Capacity": replace(before, pools=(a_pool("n9"),)),
        "Prices": replace(before, prices=PriceBook()),
        "Fingerprint": replace(before, fingerprints=(a_fingerprint(),)),
        "Anchors": replace(before, anchors=(anchor,)),
        "Running": replace(before, assignments=(held,)),
        "Engine": replace(before, capabilities=replace(before.capabilities, version="9")),
    }
    for name, after in cases.items():
        assert triggers(before, after) == (name,)
    assert triggers(None, before) == ("First",)
    two = a_fleet(intent, pools=(a_pool("n0"), a_pool("n1")))
    assert triggers(two, replace(two, pools=two.pools[::-1])) == ()
