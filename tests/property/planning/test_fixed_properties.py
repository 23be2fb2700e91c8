"""What nobody may touch now is a constant of the plan, over drawn fleets."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planning.gpu_builders import gpus
from tests.unit.planning.test_reach import NEW, OLD, plan, runs

FEW = settings(max_examples=25, deadline=None)


@FEW
@given(
    free=st.integers(0, 3),
    size=st.sampled_from([1, 2]),
    replicas=st.integers(1, 2),
    ready=st.sampled_from([None, 0, 1]),
    generation=st.integers(0, 1),
    priorities=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    objective=st.sampled_from(["MinLatency", "MinCost"]),
)
def test_what_is_fixed_keeps_its_room_whoever_asks_for_it(
    *, free, size, replicas, ready, generation, priorities, objective
):
    """Edited, not ready, or better elsewhere: it stays as it is, and all others fit beside it."""
    held = replace(runs(tp=size, replicas=replicas, ready=ready, generation=generation), fixed=True)
    others = [
        replace(NEW, name=f"new-{n}", uid=f"uid-new-{n}", priority=priority)
        for n, priority in enumerate(priorities)
    ]
    total = size * replicas + free
    pools = (gpus("a", count=total),)
    old = replace(OLD, objective=objective)
    found = plan(old, *others, pools=pools, assignments=(held,))
    mine = found.pop("old")
    assert mine.fixed
    assert (mine.option.config, mine.option.replicas) == (held.config, held.replicas)
    assert mine.nodes == held.nodes
    taken = [p.option.replicas * p.option.config.devices for p in found.values() if p.option]
    assert sum(taken) <= free
    assert not any(p.fixed for p in found.values())
