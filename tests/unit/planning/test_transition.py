from dataclasses import replace

from tests.unit.planning.builders import POLICY, a_pool
from tests.unit.planning.change_builders import ONE, SECOND, TWO, running
from trimtab.planning.replan import Step
from trimtab.planning.transition import Candidate, admit, devices, devices_by_product

NOW = 10**10
GPU = replace(ONE, product="NVIDIA-H100", threads=0, tensor_parallel_size=4)


def _move(uid, *, cause="Better", current=None, replicas=2, **fields):
    step = Step(kind="Move", config=TWO, replicas=replicas, cause=cause, mode="MakeBeforeBreak")
    return Candidate(
        uid=uid,
        priority=fields.pop("priority", 0),
        created_seconds=fields.pop("created", 0),
        running=current or running(replicas, **fields),
        step=step,
    )


def _admitted(*candidates, total=100):
    steps = admit(candidates, totals={"cpu": total}, now_us=NOW, policy=POLICY)
    return sorted(uid for uid, step in steps.items() if step.kind != "Keep")


def test_devices_are_threads_or_gpus():
    """A replica takes its threads, or tensor x pipeline GPUs."""
    assert devices(TWO) == 2
    assert devices(replace(GPU, pipeline_parallel_size=2)) == 8
    assert devices_by_product((a_pool("a", threads=3), a_pool("b", threads=4))) == {"cpu": 7}


def test_at_most_a_tenth_of_the_devices_change_at_once():
    """Three moves of four devices each: two fit into ten of a hundred."""
    moves = [_move(uid) for uid in "abc"]
    assert _admitted(*moves) == ["a", "b"]
    assert _admitted(*moves, total=200) == ["a", "b", "c"]


def test_one_change_goes_ahead_however_large():
    """A change that is more than a tenth of the fleet would never be made otherwise."""
    assert _admitted(_move("a", replicas=40), _move("b")) == ["a"]


def test_what_is_under_way_counts():
    """Replicas that start, and rolls, use the budget; who is held keeps what exists."""
    starting = Candidate(
        uid="a",
        priority=0,
        created_seconds=0,
        running=running(9, ready=0, changed_us=NOW - SECOND),
        step=Step(kind="Keep", config=ONE, replicas=9),
    )
    other = _move("b")
    assert _admitted(starting, other) == []
    steps = admit([starting, other], totals={"cpu": 100}, now_us=NOW, policy=POLICY)
    assert (steps["b"].held, steps["b"].config, steps["b"].replicas) == ("Transition", ONE, 2)
    rolling = replace(starting, running=running(9, rolling=True, changed_us=NOW - SECOND))
    assert _admitted(rolling, other) == []


def test_what_never_gets_ready_counts_for_a_bounded_time():
    """A crash loop holds others up for the time of a change; a long roll as long as it gets on."""
    long_ago, just_now = NOW - POLICY.change_seconds * SECOND, NOW - SECOND

    def beside(**fields):
        keep = Step(kind="Keep", config=ONE, replicas=9)
        stuck = _move("a", current=running(9, **fields))
        return _admitted(replace(stuck, step=keep), _move("b", cause="Edit"))

    assert beside(ready=0, changed_us=just_now) == []
    assert beside(ready=0, changed_us=long_ago) == ["b"]
    assert beside(rolling=True, changed_us=long_ago) == ["b"]
    assert beside(rolling=True, changed_us=long_ago, progressed_us=just_now) == []


def test_an_intent_goes_on_with_its_own_change():
    """If all that is in transition is its own, its next step is not held."""
    own = _move("a", current=running(40, ready=20, changed_us=NOW - SECOND), replicas=40)
    assert _admitted(own) == ["a"]


def test_what_restores_service_is_never_held():
    """Lost, new and pinned go ahead of everything, and use the budget."""
    created = Candidate(
        uid="n",
        priority=0,
        created_seconds=0,
        running=None,
        step=Step(kind="Create", config=ONE, replicas=50, cause="New"),
    )
    lost, pinned = _move("l", cause="Lost"), _move("p", cause="Pins")
    assert _admitted(created, lost, pinned, _move("b")) == ["l", "n", "p"]


def test_the_most_urgent_goes_first_then_priority_then_age():
    """An edit before a missed target before what is better; the important and the old first."""
    order = [
        _move("e", cause="Edit", replicas=5),
        _move("m", cause="Missed", replicas=5, priority=9),
        _move("b", replicas=5, priority=9),
    ]
    assert _admitted(*order[::-1], total=10) == ["e"]
    assert _admitted(*order[:0:-1], total=10) == ["m"]
    assert _admitted(_move("x", priority=1), _move("a"), total=10) == ["x"]
    assert _admitted(_move("x", created=1), _move("y", created=2), total=10) == ["x"]


def test_products_have_budgets_of_their_own():
    """What changes on one product holds up nobody on another."""
    step = Step(kind="Move", config=GPU, replicas=1, cause="Better", mode="MakeBeforeBreak")
    gpu = Candidate(
        uid="g", priority=0, created_seconds=0, running=running(1, config=GPU), step=step
    )
    steps = admit(
        [_move("a", replicas=9), gpu],
        totals={"cpu": 100, "NVIDIA-H100": 8},
        now_us=NOW,
        policy=POLICY,
    )
    assert {uid: s.kind for uid, s in steps.items()} == {"a": "Move", "g": "Move"}
