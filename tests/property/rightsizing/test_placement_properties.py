"""What placement never does, whatever the pods are."""

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.rightsizing.pool import (
    Limits,
    Need,
    Pod,
    PodState,
    PoolStats,
    Queue,
    Start,
    Use,
    UseAndGrow,
    UseLarger,
    place,
)
from trimtab.rightsizing.targets import Work
from trimtab.rightsizing.types import Size

NOW = 50.0
sizes = st.builds(
    Size, st.sampled_from((250, 500, 1000, 2000)), st.sampled_from((128, 256, 512, 1024))
)
pods = st.lists(
    st.builds(
        Pod,
        name=st.text("abc", min_size=1, max_size=3),
        size=sizes,
        state=st.sampled_from(PodState),
        since_s=st.floats(0, NOW),
        free_s=st.one_of(st.just(0.0), st.floats(NOW, NOW + 100)),
    ),
    max_size=8,
    unique_by=lambda pod: pod.name,
)
works = st.one_of(
    st.none(),
    st.builds(Work, cpu_s=st.floats(0, 50), idle_s=st.floats(0, 20), width=st.floats(1, 4)),
)


@settings(max_examples=80)
@given(
    pods=pods,
    size=sizes,
    work=works,
    left=st.floats(-10, 100),
    queued=st.integers(0, 3),
    rates=st.dictionaries(sizes, st.floats(0, 5), max_size=4),
    resize=st.one_of(st.none(), st.floats(0.01, 5)),
    most=st.integers(1, 8),
)
def test_placement_keeps_its_promises(*, pods, size, work, left, queued, rates, resize, most):
    """Never a busy pod, too little memory, or too many pods; nobody waits for a pod that is not coming."""
    found = place(
        Need(size=size, work=work, deadline_s=NOW + left),
        pods=pods,
        queued=queued,
        stats=PoolStats(rates=rates, resize_s=resize),
        limits=Limits(max_pods=most, idle_s=60.0, max_queued=2),
        now_s=NOW,
    )
    by_name = {pod.name: pod for pod in pods}
    counted = sum(pod.state is not PodState.LEAVING for pod in pods)
    if isinstance(found, Use | UseLarger | UseAndGrow):
        chosen = by_name[found.pod]
        assert chosen.state in {PodState.IDLE, PodState.RESIZING}
        assert chosen.size.mem_mib >= size.mem_mib
    if isinstance(found, UseLarger):
        assert chosen.size.covers(size)
        assert not found.start or counted < most
    if isinstance(found, Start):
        assert counted < most or found.evict is not None
        assert found.evict is None or by_name[found.evict].state is PodState.IDLE
    if isinstance(found, Queue):
        coming = {PodState.BUSY, PodState.STARTING}
        awaited = any(pod.state in coming and pod.size.covers(size) for pod in pods)
        assert awaited or counted >= most
    assert found.why or isinstance(found, UseAndGrow)
