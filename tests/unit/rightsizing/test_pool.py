"""Placement, rule by rule, and pods over time."""

import itertools

import numpy as np
import pytest

from tests.unit.rightsizing.sizing_builders import a_function
from trimtab.rightsizing import policies
from trimtab.rightsizing.pool import (
    Limits,
    Need,
    Pod,
    PodState,
    PoolStats,
    Queue,
    Reject,
    Start,
    Use,
    UseAndGrow,
    UseLarger,
    place,
)
from trimtab.rightsizing.pool_sim import PoolSimulation
from trimtab.rightsizing.simulate import draws
from trimtab.rightsizing.targets import Work
from trimtab.rightsizing.types import Size

SMALL, WIDE, LARGE = Size(500, 256), Size(1000, 256), Size(1000, 512)
WORK = Work(cpu_s=4.0, idle_s=0.0, width=2.0)
NOW = 100.0


def a_pod(name, size=SMALL, state=PodState.IDLE, *, since=0.0, free=0.0):
    """Return a pod."""
    return Pod(name=name, size=size, state=state, since_s=since, free_s=free)


def placed(*pods, size=SMALL, work=WORK, left=10.0, queued=0, rates=None, resize=None, most=3):
    """Return what is done with an invocation that has so many seconds left."""
    return place(
        Need(size=size, work=work, deadline_s=NOW + left),
        pods=pods,
        queued=queued,
        stats=PoolStats(rates=rates or {}, resize_s=resize),
        limits=Limits(max_pods=most, idle_s=60.0),
        now_s=NOW,
    )


def test_a_warm_pod_of_the_size_comes_first():
    """The one that has been idle longest, and never a busy one."""
    found = placed(
        a_pod("busy", state=PodState.BUSY, since=1.0),
        a_pod("new", since=9.0),
        a_pod("old", since=2.0),
        a_pod("large", LARGE),
    )
    assert isinstance(found, Use)
    assert found.pod == "old"


@pytest.mark.parametrize(
    ("rates", "others", "start"),
    [
        ({}, (), False),
        ({SMALL: 1 / 60}, (), False),
        ({SMALL: 0.1}, (), True),
        ({SMALL: 0.1}, (a_pod("coming", state=PodState.STARTING, free=200.0),), False),
    ],
)
def test_a_larger_pod_comes_next(rates, others, start):
    """The smallest larger one; one of the size is started if it would be used before it is removed."""
    found = placed(a_pod("larger", LARGE), a_pod("wide", WIDE), *others, rates=rates, most=4)
    assert isinstance(found, UseLarger)
    assert (found.pod, found.start) == ("wide", start)


@pytest.mark.parametrize(("left", "grows"), [(4.6, True), (4.2, False)])
def test_a_pod_grows_where_that_is_in_time(left, grows):
    """1 s of resizing at 0.5 vCPU leaves 3.5 CPU seconds for 1 vCPU."""
    found = placed(a_pod("small"), size=WIDE, left=left, resize=1.0)
    assert isinstance(found, UseAndGrow) is grows
    assert not isinstance(placed(a_pod("small"), size=WIDE, left=left), UseAndGrow)
    assert not isinstance(placed(a_pod("small"), size=LARGE, resize=1.0), UseAndGrow)
    busy = a_pod("resizing", state=PodState.RESIZING)
    assert not isinstance(placed(busy, size=WIDE, resize=1.0), UseAndGrow)


@pytest.mark.parametrize(("left", "waits"), [(11.0, True), (9.0, False)])
def test_waiting_is_for_those_who_have_time(left, waits):
    """2 s until the pod is free and 8 s at 0.5 vCPU fit into 11 s and not into 9."""
    found = placed(a_pod("busy", state=PodState.BUSY, free=NOW + 2), left=left)
    assert isinstance(found, Queue) is waits
    assert isinstance(found, Start) is not waits
    behind = placed(a_pod("busy", state=PodState.BUSY, free=NOW + 2), left=left, queued=1)
    assert isinstance(behind, Start)


def test_nobody_waits_for_a_pod_that_leaves():
    """A pod on its way out is never free again, whenever its last run ends."""
    leaving = a_pod("leaving", state=PodState.LEAVING, free=NOW + 1)
    assert isinstance(placed(leaving, left=50.0), Start)


def test_nobody_starts_two_pods_for_one_request():
    """Whoever is late waits for the pod that is starting already; the next in line gets one more."""
    coming = a_pod("coming", state=PodState.STARTING, free=NOW + 99)
    assert isinstance(placed(coming, left=1.0), Queue)
    assert isinstance(placed(coming, left=1.0, queued=1), Start)


def test_where_there_may_be_no_more_an_idle_pod_goes():
    """The idle pod of the size used least makes room; busy pods never do."""
    busy = a_pod("busy", state=PodState.BUSY, free=NOW + 999)
    found = placed(
        busy,
        a_pod("often", SMALL),
        a_pod("seldom", WIDE),
        size=LARGE,
        work=None,
        rates={SMALL: 2.0, WIDE: 1.0},
    )
    assert isinstance(found, Start)
    assert found.evict == "seldom"
    full = [a_pod(f"b{i}", state=PodState.BUSY, free=NOW + 999) for i in range(3)]
    assert isinstance(placed(*full, work=None), Queue)
    assert isinstance(placed(*full, work=None, queued=128), Reject)


def served(policy, function, *, gap, count=60, most=4, idle=60.0, start=1.0):
    """Serve requests that come at even gaps."""
    asked = draws([len(function.inputs)], requests=count, random=np.random.default_rng(0))[0]
    simulation = PoolSimulation(
        function,
        policy,
        limits=Limits(max_pods=most, idle_s=idle),
        starts_s=itertools.repeat(start),
    )
    return simulation.serve([(gap * place_, draw) for place_, draw in enumerate(asked)])


def test_every_arrival_is_answered_once():
    """At any pace, requests = answers, and there are never more pods than allowed."""
    function = a_function((1.0, 2.0, 4.0))
    for gap in (0.0, 0.5, 5.0, 100.0):
        run = served(policies.Constant(Size(1000, 2048)), function, gap=gap)
        assert run.requests == 60
        assert len(run.wait_s) + run.rejected == 60
        assert run.most_pods <= 4
    assert run.cold == 60
    assert run.late == 0


def test_a_burst_at_zero_starts_no_more_than_allowed():
    """Fifty first requests at once get fifty answers from at most four starts (KEDA HTTP issue 1692)."""
    function = a_function((1.0,), deadline_s=100.0)
    run = served(policies.Constant(Size(1000, 2048)), function, gap=0.0, count=50)
    assert run.requests == 50
    assert run.rejected == 0
    assert run.starts <= 4


def test_idle_pods_are_what_warm_starts_cost():
    """A longer idle time means fewer cold starts and more vCPU-seconds that serve nobody."""
    function = a_function((1.0,))
    short = served(policies.Constant(Size(1000, 2048)), function, gap=10.0, idle=5.0)
    long = served(policies.Constant(Size(1000, 2048)), function, gap=10.0, idle=60.0)
    assert short.cold == 60
    assert long.cold == 1
    assert long.idle_vcpu_s > short.idle_vcpu_s
    assert long.busy_vcpu_s == pytest.approx(60.0)
    assert short.busy_mib_s == pytest.approx(60.0 * 2048)
