"""A plan gives away only what will be given up: what runs alone and has no room beside it stays."""

from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY
from tests.unit.planning.gpu_builders import A100, H100, a_70b, an_8b, gpus, on_gpus
from trimtab.planning.beside import Beside
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.snapshot import Assignment, Config, Constraints, Load, Targets

QUIET = Load(requests_per_second=0.5, prompt_tokens=256, output_tokens=64)
ONE = Constraints(max_replicas=1)
OLD = an_8b(name="old", objective="MinLatency", constraints=ONE, load=QUIET)
NEW = an_8b(
    name="new",
    objective="MinCost",
    load=QUIET,
    created_seconds=OLD.created_seconds + 1,
)


def runs(*, tp, node="a", replicas=1, product=H100, generation=1, ready=None):
    config = Config(
        product=product, cpu_model="", precision="bf16", threads=0, tensor_parallel_size=tp
    )
    return Assignment(
        intent_uid=OLD.uid,
        config=config,
        replicas=replicas,
        nodes=((node, replicas),),
        generation=generation,
        ready=ready,
    )


def plan(*intents, pools, **fields):
    found = plan_fleet(on_gpus(*intents, pools=pools, **fields), POLICY)
    return {p.name: p for p in found.intents}


def shape(found):
    return found.option.config.tensor_parallel_size, found.option.replicas


def test_two_newcomers_share_what_one_running_alone_would_not_give_up():
    """Without anything running both find room; beside a lone replica of two GPUs the other waits."""
    pools = (gpus("a", count=2),)
    fresh = plan(OLD, NEW, pools=pools)
    assert [shape(fresh[name]) for name in ("old", "new")] == [(1, 1), (1, 1)]
    found = plan(OLD, NEW, pools=pools, assignments=(runs(tp=2),))
    assert shape(found["old"]) == (2, 1)
    assert found["old"].keeps_assignment
    assert (found["new"].verdict, found["new"].reason) == ("Unplanned", "NoCapacity")
    assert "2 GPUs of NVIDIA-H100-80GB-HBM3 are held" in found["new"].message
    assert "Add a node" in found["new"].message


def test_what_is_paused_gives_nothing_away_and_is_planned_anew_afterwards():
    """With room beside it a lone replica would take one GPU less; while it is fixed it does not."""
    third = replace(NEW, name="third", uid="uid-third", created_seconds=NEW.created_seconds + 1)
    pools = (gpus("a", count=3),)
    found = plan(OLD, NEW, third, pools=pools, assignments=(runs(tp=2),))
    assert [shape(one) for one in found.values()] == [(1, 1)] * 3
    fixed = replace(runs(tp=2), fixed=True)
    edited = replace(OLD, generation=2)
    for old in (OLD, edited):
        found = plan(old, NEW, third, pools=pools, assignments=(fixed,))
        assert (shape(found["old"]), found["old"].nodes) == ((2, 1), (("a", 1),))
        assert (found["old"].keeps_assignment, found["old"].fixed) == (True, True)
        assert (found["new"].verdict, found["third"].verdict) == ("Planned", "Unplanned")
        assert "held by" in found["third"].message


def test_replicas_that_somebody_else_counts_keep_their_room():
    """Three where one would do, as an autoscaler asks for them: nobody is planned on the other two."""
    busy = replace(OLD, constraints=Constraints(gpu_products=(H100,), max_replicas=2))
    pools = (gpus("a", count=3),)
    three = runs(tp=1, replicas=3)
    assert plan(busy, NEW, pools=pools, assignments=(three,))["new"].verdict == "Planned"
    found = plan(busy, NEW, pools=pools, assignments=(replace(three, counted=True),))
    assert (shape(found["old"]), found["old"].keeps_assignment) == ((1, 3), True)
    assert (found["new"].verdict, found["new"].reason) == ("Unplanned", "NoCapacity")
    (edited,) = plan(
        replace(busy, generation=2),
        pools=(gpus("a", count=8),),
        assignments=(replace(three, counted=True),),
    ).values()
    assert edited.option.replicas == 3, "the configuration may change, the count may not"


def test_the_remedy_for_too_few_counted_replicas_is_not_a_pin():
    """Who reads that more are needed is told whom to ask; maxReplicas would change nothing."""
    load = replace(QUIET, requests_per_second=500.0)
    targets = Targets(tpot_us=50_000)
    busy = replace(OLD, objective="TargetLatency", targets=targets, load=load)
    one = replace(runs(tp=1), counted=True)
    (found,) = plan(busy, pools=(gpus("a", count=8),), assignments=(one,)).values()
    assert "maxReplicas" not in found.message
    assert "whoever sets the Deployment's replicas" in found.message


def test_with_room_beside_it_a_lone_replica_makes_room():
    """One more GPU elsewhere is enough: it changes there first, and two newcomers follow it."""
    pools = (gpus("a", count=2), gpus("b", count=1))
    third = replace(NEW, uid="uid-third", name="third")
    found = plan(OLD, NEW, third, pools=pools, assignments=(runs(tp=2),))
    assert {name: shape(one) for name, one in found.items()} == {
        "old": (1, 1),
        "new": (1, 1),
        "third": (1, 1),
    }


def test_an_edit_gives_up_its_place():
    """Whoever edits is followed through an outage, so others may have what it leaves."""
    edited = replace(OLD, generation=2)
    found = plan(edited, NEW, pools=(gpus("a", count=2),), assignments=(runs(tp=2),))
    assert [shape(found[name]) for name in ("old", "new")] == [(1, 1), (1, 1)]


def test_a_replica_without_a_machine_keeps_no_place():
    """Its node is gone, so there is no outage to be feared from another configuration."""
    lost = runs(tp=2, node="gone")
    found = plan(OLD, NEW, pools=(gpus("a", count=2),), assignments=(lost,))
    assert [shape(found[name]) for name in ("old", "new")] == [(1, 1), (1, 1)]


def test_a_lone_replica_that_does_not_serve_keeps_no_place():
    """There is no outage to be feared from another configuration, and it may be what helps."""
    down = runs(tp=2, ready=0)
    found = plan(OLD, NEW, pools=(gpus("a", count=2),), assignments=(down,))
    assert [shape(found[name]) for name in ("old", "new")] == [(1, 1), (1, 1)]


def test_what_no_longer_holds_its_model_and_does_not_serve_is_planned_anew():
    """One GPU turns out to be too small: two of the same node are planned in its place."""
    deep = replace(OLD, model=replace(OLD.model, depth=5 * OLD.model.depth))
    pools = (gpus("a", count=2),)
    (down,) = plan(deep, pools=pools, assignments=(runs(tp=1, ready=0),)).values()
    assert (down.verdict, shape(down)) == ("Planned", (2, 1))
    (up,) = plan(deep, pools=pools, assignments=(runs(tp=1, ready=1),)).values()
    assert shape(up) == (1, 1)


def test_one_of_several_replicas_makes_room():
    """Fewer of the same need no room beside them."""
    busy = replace(OLD, constraints=Constraints(gpu_products=(H100,), max_replicas=2))
    two = runs(tp=1, replicas=2)
    found = plan(busy, NEW, pools=(gpus("a", count=2),), assignments=(two,))
    assert [shape(found[name]) for name in ("old", "new")] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(("count", "fits"), [(1, False), (2, True)])
def test_replicas_make_room_on_their_own_product_only(count, fits):
    """One that is taken away leaves an H100 free: for another shape of the same, not for an A100."""
    pools = (gpus("a", count=2), gpus("b", count=count, product=A100))
    two = runs(tp=1, replicas=2)
    taken = replace(runs(tp=1, node="b", product=A100), intent_uid="uid-other")
    beside = Beside(on_gpus(OLD, pools=pools, assignments=(two, taken)))
    wanted = {
        product: plan(NEW, pools=(gpus("c", product=product),))["new"].option
        for product in (H100, A100)
    }
    int8 = replace(wanted[H100], config=replace(wanted[H100].config, precision="int8"))
    assert beside.reaches(wanted[A100], two) is fits
    assert not beside.fits(int8)
    assert beside.reaches(int8, two)
    assert not beside.reaches(int8, replace(two, replicas=1))
    assert beside.reaches(int8, replace(two, ready=2))
    assert not beside.reaches(int8, replace(two, ready=1)), "the other one serves alone"


def test_what_would_be_better_without_an_outage_is_told():
    """The plan keeps what runs and says what an edit, or a node, would change."""
    money = replace(OLD, objective="MinCost")
    pools = (gpus("a", count=2),)
    (found,) = plan(money, pools=pools, assignments=(runs(tp=2),)).values()
    assert (found.verdict, shape(found)) == ("Planned", (2, 1))
    assert any("would be an outage" in note and "Any edit" in note for note in found.notes)
    (roomy,) = plan(money, pools=(*pools, gpus("b", count=1)), assignments=(runs(tp=2),)).values()
    assert shape(roomy) == (1, 1)
    assert not any("outage" in note for note in roomy.notes)


def test_a_missed_target_that_only_an_outage_would_meet_is_told():
    """It runs on nearest terms, names what would meet the target, and what would help."""
    targets = Targets(tpot_us=8_000)
    strict = replace(OLD, objective="TargetLatency", targets=targets)
    pools = (gpus("a", count=2),)
    (fresh,) = plan(strict, pools=pools).values()
    assert (fresh.verdict, shape(fresh)) == ("Planned", (2, 1))
    (found,) = plan(strict, pools=pools, assignments=(runs(tp=1),)).values()
    assert (found.verdict, found.reason, shape(found)) == ("PlannedNearest", "NoCapacity", (1, 1))
    assert "would meet the objective" in found.message
    assert "Any edit" in found.message


def test_gpus_of_others_are_counted_in_what_blocks():
    """A fleet in foreign use says so: the fleet's own part alone would look like a small fleet."""
    pools = (replace(gpus("a", count=1), others=7),)
    found = plan(OLD, NEW, pools=pools, assignments=(runs(tp=1),))
    assert found["new"].reason == "NoCapacity"
    assert "request 7 GPUs of NVIDIA-H100-80GB-HBM3" in found["new"].message


@pytest.mark.parametrize("node", ["a", "cordoned"])
def test_what_runs_on_gpus_that_no_longer_hold_it_blocks_no_plan(node):
    """Its KV cache would have no block: it is not simulated, and its intent is planned all the same."""
    edited = a_70b(name="old", objective="MinLatency", load=QUIET, generation=2)
    intent, product = (edited, H100) if node == "a" else (an_8b(name="old", load=QUIET), A100)
    here = runs(tp=1, node=node, product=product)
    (found,) = plan(intent, pools=(gpus("a", count=8),), assignments=(here,)).values()
    assert (found.verdict, found.reason) == ("Planned", "Chosen")
    assert found.option.config.product == H100
