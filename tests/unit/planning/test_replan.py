from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY, a_fleet, plan_one
from tests.unit.planning.change_builders import MINUTE, TWO, running, wanted
from trimtab.planning.objectives import Judged
from trimtab.planning.plan import Anchoring
from trimtab.planning.replan import Reconfiguration, keeps, next_step, switching_cost
from trimtab.planning.snapshot import Anchor

NOW = 1000 * MINUTE
JUST = NOW - MINUTE
LONG = NOW - 11 * MINUTE


def _step(current, target, *, now=NOW):
    return next_step(current, target, now_us=now, policy=POLICY)


def _said(current, target):
    step = _step(current, target)
    return step.kind, step.replicas, step.cause, step.held


# What exists and what is wanted.


def test_nothing_is_made_of_nothing():
    """Neither a plan nor a worker: there is no step."""
    assert _step(None, None) is None


def test_what_does_not_run_is_created_whole():
    """Nobody is served yet, so there is nothing to be careful about."""
    assert _said(None, wanted(7)) == ("Create", 7, "New", "None")
    assert _said(running(0), wanted(7)) == ("Create", 7, "New", "None")


def test_what_serves_stays_when_no_option_is_planned():
    """A prediction that worsened removes nothing."""
    assert _said(running(3), None) == ("Keep", 3, "None", "NoPlan")


def test_what_is_as_wanted_is_kept():
    """Equal configuration and count ask for nothing."""
    assert _said(running(3), wanted(3)) == ("Keep", 3, "None", "None")


def test_a_step_taken_twice_is_taken_once():
    """The step follows from what exists: what was asked for and is starting is not asked for again."""
    step = _step(running(4), wanted(12, running_meets=False))
    after = running(step.replicas, ready=4, changed_us=NOW)
    assert (step.kind, step.replicas) == ("Scale", 5)
    assert _said(after, wanted(12, running_meets=False)) == ("Keep", 5, "None", "InFlight")


# Replicas.


@pytest.mark.parametrize(("have", "reach"), [(1, 2), (3, 4), (4, 5), (8, 10), (40, 50)])
def test_replicas_rise_by_a_quarter_at_a_time(have, reach):
    """At least one, at most 25 % (Dynamo PR #14296)."""
    assert _said(running(have), wanted(400, running_meets=False)) == (
        "Scale",
        reach,
        "Missed",
        "None",
    )


def test_replicas_rise_at_once_where_the_target_is_missed_and_wait_where_it_is_not():
    """Dwell has exceptions: a missed target with a feasible option is one."""
    recent = running(2, changed_us=JUST)
    assert _said(recent, wanted(3, running_meets=False))[:2] == ("Scale", 3)
    kept = _step(recent, wanted(3))
    assert (kept.kind, kept.held, kept.again_us) == ("Keep", "Dwell", JUST + 10 * MINUTE)
    assert _said(running(2, changed_us=LONG), wanted(3))[:2] == ("Scale", 3)
    assert _said(recent, wanted(3, generation=2))[:3] == ("Scale", 3, "Edit")


def test_a_missed_target_that_nothing_meets_does_not_cut_the_rest_short():
    """Without a feasible option there is no hurry."""
    kept = _step(running(2, changed_us=JUST), wanted(3, meets=False, running_meets=False))
    assert kept.held == "Dwell"


def test_replicas_fall_only_when_fewer_were_found_to_do():
    """Not because a rate fell: fewer must meet the target at the busy load, for ten minutes."""
    assert _said(running(4), wanted(2)) == ("Keep", 4, "None", "StillNeeded")
    assert _said(running(4), wanted(2, fewest=4, fewest_now=2))[3] == "StillNeeded"
    assert _said(running(4), wanted(2, fewest=3)) == ("Scale", 3, "Spare", "None")


def test_replicas_fall_no_further_than_planned_bounded_and_found():
    """The largest of the three limits holds, and one replica always stays."""
    assert _said(running(8), wanted(1, fewest=1))[:2] == ("Scale", 6)
    assert _said(running(8), wanted(7, fewest=1))[:2] == ("Scale", 7)
    assert _said(running(8), wanted(1, fewest=7))[:2] == ("Scale", 7)
    assert _said(running(2), wanted(1, fewest=1))[:2] == ("Scale", 1)
    assert _said(running(1), wanted(1, fewest=1)) == ("Keep", 1, "None", "None")


def test_replicas_do_not_fall_while_something_is_under_way_or_was_just_done():
    """Not all ready, rolling, or within ten minutes of the last change."""
    spare = wanted(1, fewest=1)
    assert _said(running(4, ready=3), spare)[3] == "InFlight"
    assert _said(running(4, rolling=True), spare)[3] == "InFlight"
    assert _said(running(4, changed_us=JUST), spare)[3] == "Dwell"
    assert _said(running(4, changed_us=LONG), spare)[:2] == ("Scale", 3)


def test_an_edit_shrinks_without_the_ten_minutes_but_not_without_the_check():
    """Who edits wants it now; that fewer do is still computed."""
    edited = wanted(1, generation=2)
    recent = running(4, changed_us=JUST)
    assert _said(recent, replace(edited, fewest_now=1)) == ("Scale", 3, "Edit", "None")
    assert _said(recent, replace(edited, fewest_now=4))[3] == "StillNeeded"
    assert _said(running(4, ready=2, changed_us=JUST), edited)[:2] == ("Scale", 3)


def test_whoever_is_not_served_yet_is_made_room_for_at_once():
    """A newcomer planned where another takes less does not wait for that one's rest."""
    recent = running(4, changed_us=JUST)
    assert _said(recent, wanted(2, needed=True)) == ("Scale", 3, "Needed", "None")
    moved = _step(recent, wanted(4, config=TWO, room=4, needed=True))
    assert (moved.kind, moved.cause) == ("Move", "Needed")
    alone = _step(running(1), wanted(1, config=TWO, needed=True))
    assert alone.held == "Lone"


def test_pins_win_at_once_and_over_everything():
    """A pinned count is kept in one step, whatever rests or rolls (KAITO #1956: overridden)."""
    recent = running(2, changed_us=JUST, rolling=True)
    assert _said(recent, wanted(2, least=9)) == ("Scale", 9, "Pins", "None")
    assert _said(running(9, changed_us=JUST), wanted(9, least=1, most=2)) == (
        "Scale",
        2,
        "Pins",
        "None",
    )
    assert _said(running(4), wanted(1, fewest=1, least=4)) == ("Keep", 4, "None", "None")


def test_replicas_that_somebody_else_set_are_not_fought():
    """Dynamo #4420: manual edits were reverted again and again."""
    theirs = running(7, foreign=True)
    assert _said(theirs, wanted(2, fewest=1)) == ("Keep", 7, "None", "NotOurs")
    assert _said(theirs, wanted(9, running_meets=False, least=8))[0] == "Keep"
    moved = _step(theirs, wanted(2, config=TWO, room=9))
    assert (moved.kind, moved.replicas) == ("Move", 7)


def test_lost_replicas_are_not_waited_for():
    """A lost device cuts the rest short, and what is lost does not shrink the step."""
    lost = running(8, ready=4, changed_us=JUST, lost=True)
    assert _said(lost, wanted(10)) == ("Scale", 10, "Lost", "None")


def test_replicas_that_no_machine_has_room_for_are_given_up():
    """What never starts carries nothing: without it the plan holds as well."""
    stuck = running(8, ready=7, changed_us=JUST, lost=True)
    assert _said(stuck, wanted(3)) == ("Scale", 7, "Lost", "None")
    assert _said(running(8, ready=7, changed_us=JUST), wanted(3))[3] == "InFlight"


# Configurations.


def test_a_move_is_made_before_the_old_is_broken_where_there_is_room():
    """With as many replicas as there were, as far as they fit: a roll to fewer ends old ones first."""
    step = _step(running(4), wanted(2, config=TWO, room=3))
    assert (step.kind, step.config, step.replicas) == ("Move", TWO, 3)
    assert step.mode == "MakeBeforeBreak"
    assert _step(running(4), wanted(6, config=TWO, room=8)).replicas == 6


def test_without_room_replicas_are_replaced_one_at_a_time():
    """One goes, one comes, and at least one serves all the while."""
    step = _step(running(3), wanted(3, config=TWO, room=0))
    assert (step.kind, step.mode) == ("Move", "OneByOne")


def test_replicas_that_do_not_fit_in_each_others_places_stay():
    """Where one that goes makes no room for one that comes, only an edit or a loss breaks them."""
    target = wanted(3, config=TWO, room=0, swaps=False)
    assert _said(running(3), target) == ("Keep", 3, "None", "NoRoom")
    assert _step(running(3), replace(target, generation=2)).mode == "BreakBeforeMake"


def test_a_lone_replica_without_room_moves_on_edit_or_loss_only():
    """Its move is an outage: not for a better score."""
    target = wanted(1, config=TWO, room=0)
    assert _said(running(1), target)[3] == "Lone"
    assert _step(running(1), replace(target, running_meets=False)).held == "Lone"
    for forced in (_step(running(1, lost=True), target), _step(running(1, generation=0), target)):
        assert (forced.kind, forced.mode) == ("Move", "BreakBeforeMake")


def test_one_change_of_configuration_is_in_flight():
    """A roll that goes on is waited for, unless the intent is edited or its devices are lost."""
    rolling = running(2, rolling=True, changed_us=JUST)
    target = wanted(2, config=TWO, room=4, running_meets=False)
    kept = _step(rolling, target)
    assert (kept.held, kept.again_us) == ("InFlight", JUST + 20 * MINUTE)
    assert _step(rolling, replace(target, generation=2)).kind == "Move"
    assert _step(replace(rolling, lost=True), target).kind == "Move"
    assert _step(replace(rolling, changed_us=NOW - 21 * MINUTE), target).kind == "Move"


def test_a_better_configuration_waits_ten_minutes():
    """Dwell holds for moves too; a missed target does not wait."""
    recent = running(2, changed_us=JUST)
    assert _said(recent, wanted(2, config=TWO, room=4))[3] == "Dwell"
    missed = wanted(2, config=TWO, room=4, running_meets=False)
    assert _said(recent, missed)[:3] == ("Move", 2, "Missed")


def test_what_is_better_this_minute_waits_until_it_carries_a_busy_one():
    """Unless what runs misses its target now, is edited, or serves nobody."""
    target = wanted(2, config=TWO, room=4, lasts=False)
    assert _said(running(2), target)[3] == "StillNeeded"
    assert _said(running(2), replace(target, lasts=True))[0] == "Move"
    assert _said(running(2), replace(target, running_meets=False))[0] == "Move"
    assert _said(running(2), replace(target, generation=2))[0] == "Move"
    assert _said(running(2, ready=0), target)[0] == "Move"


def test_what_is_better_waits_for_the_measurements_that_are_on_their_way():
    """Of two options one is measured and one estimated; what misses its target or is edited does not wait."""
    target = wanted(2, config=TWO, room=4, measuring=True)
    assert _said(running(2), target)[3] == "Measuring"
    assert _said(running(2), replace(target, measuring=False))[0] == "Move"
    assert _said(running(2), replace(target, running_meets=False))[0] == "Move"
    assert _said(running(2), replace(target, generation=2))[0] == "Move"
    assert _said(running(2, ready=0), target)[0] == "Move"


def test_what_does_not_serve_has_nothing_to_rest_for():
    """A worker that never became ready is replaced at once, room beside it or not."""
    dead = running(1, ready=0, changed_us=JUST)
    assert _said(dead, wanted(1, config=TWO, room=0))[:2] == ("Move", 1)


# What a move must save.


def _judged(score, *, fingerprint="measured", meets=True):
    option = replace(plan_one().option, fingerprint=fingerprint)
    ratio = () if meets else (_missing(),)
    return Judged(option=option, score=score, resources=score, ratios=ratio)


def _missing():
    from trimtab.planning.objectives import Ratio

    return Ratio(name="TimeToFirstToken", value=1.5, lost="MissesTarget")


def test_switching_costs_more_without_anchors_and_what_was_measured():
    """0.05 + seconds/1,800; 120 s until known; doubled for a key without anchors."""
    anchor = Anchor(key="k", batch=1.0, kv_tokens=1.0, step_us=1, steps=200)
    anchored, bare = a_fleet(anchors=(anchor,)), a_fleet()
    usual = 0.05 + 120 / 1800
    assert switching_cost(anchored, "k", policy=POLICY) == pytest.approx(usual)
    assert switching_cost(bare, "k", policy=POLICY) == pytest.approx(2 * usual)
    seen = [Reconfiguration(key="k", seconds=900), Reconfiguration(key="other", seconds=9)]
    assert switching_cost(anchored, "k", policy=POLICY, measured=seen) == pytest.approx(0.55)


def test_the_uncalibrated_is_not_chased():
    """An option whose prediction nobody corrected must gain more than what runs was corrected by."""
    best = _judged(1.0)

    def anchored(judged, seen):
        anchoring = Anchoring(
            count=4, good=True, suspect=False, factor_permille=seen, seen_permille=seen
        )
        return replace(judged, option=replace(judged.option, anchoring=anchoring))

    assert not keeps(_judged(1.3), best, cost=0.2)
    assert not keeps(anchored(_judged(1.3), 1000), best, cost=0.2)
    assert keeps(anchored(_judged(1.3), 1150), best, cost=0.2)
    assert keeps(anchored(_judged(1.3), 850), best, cost=0.2)
    assert not keeps(anchored(_judged(1.3), 1150), anchored(best, 1150), cost=0.2)
    assert not keeps(anchored(_judged(1.3, meets=False), 1150), best, cost=0.2)
