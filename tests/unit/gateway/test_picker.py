from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trimtab_workers.gateway.endpoints import Endpoint
from trimtab_workers.gateway.picker import Picker


def an_endpoint(uid):
    return Endpoint(uid=uid, name=uid, address="10.0.0.1", port=8000, ready=True)


def even(_):
    return 1000


PODS = [an_endpoint(uid) for uid in "abc"]


def test_sequential_requests_take_turns():
    """With equal pods and nothing outstanding, requests go round."""
    picker = Picker()
    seen = []
    for _ in range(6):
        pod = picker.pick(PODS, weight=even, now=0.0)
        seen.append(pod.uid)
        picker.release(pod.uid)
    assert Counter(seen) == {"a": 2, "b": 2, "c": 2}


@given(st.integers(1, 60), st.integers(500, 2000), st.integers(500, 2000))
def test_outstanding_work_follows_the_weights(requests, first, second):
    """With requests that never end, each pod holds its weight's share, give or take one."""
    picker = Picker()
    weights = {"a": first, "b": second}
    for _ in range(requests):
        picker.pick(PODS[:2], weight=weights.__getitem__, now=0.0)
    share = requests * first / (first + second)
    assert abs(picker.outstanding("a") - share) <= 1
    assert picker.outstanding("a") + picker.outstanding("b") == requests


def test_the_smallest_ratio_wins():
    """The pod with the smallest (outstanding + 1) ÷ weight is chosen."""
    picker = Picker()
    weights = {"a": 500, "b": 2000}
    chosen = [picker.pick(PODS[:2], weight=weights.__getitem__, now=0.0).uid for _ in range(5)]
    assert chosen == ["b", "b", "b", "a", "b"]


def test_no_pod_is_none():
    """Without endpoints, or with all excluded, there is nothing to pick."""
    picker = Picker()
    assert picker.pick([], weight=even, now=0.0) is None
    assert picker.pick(PODS, weight=even, exclude={"a", "b", "c"}, now=0.0) is None


def test_refusing_pods_are_avoided_while_others_exist():
    """A pod that refused a connection gets nothing for 1 s, then 2 s, unless it is alone."""
    picker = Picker()
    picker.refused("a", now=10.0)
    assert picker.pick(PODS[:2], weight=even, now=10.5).uid == "b"
    assert picker.pick(PODS[:1], weight=even, now=10.5).uid == "a"
    picker.release("a")
    assert picker.pick(PODS[:2], weight=even, now=11.0).uid == "a"
    picker.refused("a", now=11.0)
    assert picker.pick([PODS[0], PODS[2]], weight=even, now=12.9).uid == "c"
    picker.accepted("a")
    picker.release("a")
    assert picker.pick([PODS[0], PODS[2]], weight=even, now=12.9).uid == "a"


def test_penalties_stop_growing():
    """However often a pod refuses, it is tried again after 10 s."""
    picker = Picker()
    for _ in range(20):
        picker.refused("a", now=0.0)
    assert picker.pick(PODS[:2], weight=even, now=10.0).uid == "a"


class PickerMachine(RuleBasedStateMachine):
    """Random picks, releases, refusals and departures."""

    def __init__(self):
        super().__init__()
        self.picker = Picker()
        self.held = []

    @rule(uids=st.sets(st.sampled_from("abcde"), min_size=1), now=st.floats(0, 100))
    def pick(self, uids, now):
        chosen = self.picker.pick([an_endpoint(u) for u in sorted(uids)], weight=even, now=now)
        assert chosen.uid in uids
        self.held.append(chosen.uid)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.picker.release(self.held.pop(index))

    @rule(uid=st.sampled_from("abcde"), now=st.floats(0, 100))
    def refuse(self, uid, now):
        self.picker.refused(uid, now=now)

    @rule(uids=st.sets(st.sampled_from("abcde")))
    def forget(self, uids):
        self.picker.forget_all_but(uids)

    @invariant()
    def counts_are_what_is_held(self):
        for uid in "abcde":
            assert self.picker.outstanding(uid) == self.held.count(uid)


TestPickerMachine = PickerMachine.TestCase
