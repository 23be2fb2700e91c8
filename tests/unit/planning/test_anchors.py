"""What windows of live replicas make of predictions."""

import math
from dataclasses import replace

import pytest

from tests.unit.planning.builders import (
    LOAD,
    POLICY,
    a_fingerprint,
    a_fleet,
    a_key,
    a_model,
    a_pool,
    an_intent,
)
from trimtab.planning.anchors import (
    AnchorsInvalidError,
    DecodeCounters,
    correction_for,
    departure,
    dump_anchors,
    parse_anchors,
    read_counters,
)
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.snapshot import Anchor, Assignment, Config
from trimtab.planning.sources import find_source
from trimtab.planning.step_model import StepWork, fit

FINGERPRINT = a_fingerprint()
KEY = FINGERPRINT.key.digest()
POOLS = tuple(a_pool(f"n{n}", threads=1) for n in range(4))


def an_anchor(
    factor=1.0, *, batch=2.0, context=200.0, depth=30, steps=300, fingerprint=FINGERPRINT
):
    """Return a window whose steps took so many times what is predicted."""
    work = StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=batch * context)
    return Anchor(
        key=fingerprint.key.digest(),
        depth=depth,
        tensor_parallel_size=fingerprint.key.tensor_parallel_size,
        batch=batch,
        kv_tokens=batch * context,
        step_us=round(factor * fit(fingerprint, depth=depth).step_us(work)),
        steps=steps,
    )


def many(factor, *, count=8):
    """Return anchors that are good: many, their batches four times apart."""
    return tuple(an_anchor(factor, batch=float(2 ** (n % 4))) for n in range(count))


def planned(*anchors, fingerprints=(FINGERPRINT,), **fields):
    fleet = a_fleet(
        fields.pop("intent", an_intent(load=LOAD)),
        pools=POOLS,
        fingerprints=fingerprints,
        anchors=anchors,
        **fields,
    )
    return plan_fleet(fleet, POLICY).intents[0]


def test_a_slow_replica_s_anchors_raise_the_prediction_and_are_shown():
    """Eight windows at 1.4 times the prediction move it by e to 8/9 of ln 1.4."""
    bare, anchored = planned().option, planned(*many(1.4)).option
    factor = 1.4 ** (8 / 9)
    assert anchored.anchoring.factor_permille == pytest.approx(1000 * factor, abs=3)
    assert anchored.predicted.unloaded_e2e_us == pytest.approx(
        factor * bare.predicted.unloaded_e2e_us, rel=0.01
    )
    assert anchored.predicted.capacity_milli_rps < bare.predicted.capacity_milli_rps
    assert any("corrected by 8 anchors" in r for r in anchored.confidence.reasons)
    assert bare.anchoring is None


def test_good_anchors_raise_the_level_and_take_the_extra_margin_off_first_tokens():
    """A weakness is made up for, and TTFT has no more than the level's margin."""
    old = a_fingerprint(key=replace(a_key(), engine_version="0.0.9"))
    bare = planned(fingerprints=(old,)).option
    good = planned(
        *(replace(a, key=old.key.digest()) for a in many(1.1)), fingerprints=(old,)
    ).option
    few = planned(
        *(replace(a, key=old.key.digest()) for a in many(1.1, count=2)), fingerprints=(old,)
    ).option
    assert (bare.confidence.level, few.confidence.level, good.confidence.level) == (
        "Medium",
        "Medium",
        "High",
    )
    assert (few.anchoring.good, good.anchoring.good) == (False, True)
    assert (bare.ttft_margin_permille, good.ttft_margin_permille) == (200, 100)


def test_a_suspect_fingerprint_is_not_corrected_and_measured_again():
    """Beyond a factor of two the measurement is wrong: it stays in force, trusted less, and is repeated."""
    bare, suspect = planned(), planned(*many(2.5))
    assert suspect.option.anchoring.suspect
    assert suspect.option.anchoring.factor_permille == 1000
    assert suspect.option.anchoring.seen_permille == pytest.approx(2500, rel=0.01)
    assert suspect.option.predicted.unloaded_e2e_us == bare.option.predicted.unloaded_e2e_us
    assert suspect.option.confidence.level == "Medium"
    assert [need.key for need in bare.needs if need.again] == []
    assert [need.key for need in suspect.needs if need.again] == [KEY]


def test_what_has_no_anchors_does_not_replace_what_runs_for_what_anchors_took_away():
    """Two threads look better only because one thread's prediction was corrected by 1.6."""
    one = a_fingerprint(key=a_key(threads=1))
    two = a_fingerprint(key=a_key(threads=2), layer_us=640.0, fixed_us=4500.0)
    held = Assignment(
        intent_uid="uid-chat",
        config=Config(product="cpu", cpu_model=one.key.cpu_model, precision="bf16", threads=1),
        replicas=1,
        nodes=(("n0", 1),),
        generation=1,
    )
    fleet = a_fleet(
        an_intent(load=replace(LOAD, requests_per_second=0.05)),
        pools=(a_pool("n0", threads=2),),
        fingerprints=(one, two),
        assignments=(held,),
        anchors=many(1.6),
    )
    stays = plan_fleet(fleet, POLICY).intents[0]
    assert stays.option.config.threads == 1
    assert any(a.reason == "Uncalibrated" for a in stays.alternatives)
    exact = tuple(an_anchor(1.0, batch=float(2**n), fingerprint=two) for n in range(4))
    both = replace(fleet, anchors=(*many(1.6), *exact))
    assert plan_fleet(both, POLICY).intents[0].option.config.threads == 2


def test_each_anchor_is_held_against_the_model_of_its_own_depth():
    """Models of several depths share a fingerprint; one of 60 layers is not 2 times slower than it should be."""
    anchors = tuple(an_anchor(1.2, depth=60, batch=float(2 ** (n % 4))) for n in range(4))
    known = correction_for(FINGERPRINT, fingerprints=(FINGERPRINT,), anchors=anchors, policy=POLICY)
    assert not known.suspect
    assert math.exp(known.log_factor(1, 2.0)) == pytest.approx(1.2 ** (4 / 5), rel=0.01)


def test_anchors_of_other_keys_say_nothing():
    """Another precision's replicas are another question; another tensor-parallel size's are not."""
    other = a_fingerprint(key=a_key(precision="fp32"))
    wide = a_fingerprint(key=replace(a_key(), tensor_parallel_size=2))

    def known(anchor, *fingerprints):
        return correction_for(
            FINGERPRINT, fingerprints=fingerprints, anchors=(anchor,), policy=POLICY
        )

    assert known(an_anchor(1.5, fingerprint=other), FINGERPRINT, other) is None
    assert known(an_anchor(1.5, fingerprint=wide), FINGERPRINT, wide).sizes == (1, 2)
    assert known(an_anchor(1.5, fingerprint=wide), FINGERPRINT) is None


def test_a_source_without_anchors_is_the_fitted_model():
    """No anchors, no correction: the same object for every intent of a family."""
    fleet = a_fleet(fingerprints=(FINGERPRINT,))
    config = Config(product="cpu", cpu_model=FINGERPRINT.key.cpu_model, precision="bf16", threads=1)
    one, two = (
        find_source(a_model(), config, snapshot=fleet, policy=POLICY).model for _ in range(2)
    )
    assert one is two
    assert one.correction is None


def test_what_anchors_in_force_saw_is_no_departure():
    """Drift is measured from what was last seen, not from the shrunk correction, or it never ends."""
    seen = correction_for(
        FINGERPRINT, fingerprints=(FINGERPRINT,), anchors=many(1.5, count=3), policy=POLICY
    )
    window = an_anchor(1.5)
    assert departure(window, FINGERPRINT, known=None) == pytest.approx(math.log(1.5), abs=0.01)
    assert departure(window, FINGERPRINT, known=seen) == pytest.approx(0.0, abs=0.01)
    assert abs(math.log(1.5) - seen.log_factor(1, 2.0)) > 0.1


def test_a_window_is_the_difference_of_two_answers():
    """Means per step; a worker that started anew in between has none."""
    before = DecodeCounters(steps=100, seconds=2.0, sequences=150, context_tokens=30_000)
    after = DecodeCounters(steps=500, seconds=14.0, sequences=950, context_tokens=190_000)
    anchor = after.since(before).anchor(key="k", depth=30, tensor_parallel_size=1)
    assert (anchor.batch, anchor.kv_tokens, anchor.step_us, anchor.steps) == (2.0, 400, 30_000, 400)
    assert before.since(after) is None


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"steps": 1, "seconds": "x", "sequences": 1, "context_tokens": 1},
        {"steps": -1, "seconds": 1, "sequences": 1, "context_tokens": 1},
        {"steps": 1, "seconds": float("nan"), "sequences": 1, "context_tokens": 1},
        {"steps": float("inf"), "seconds": 1, "sequences": 1, "context_tokens": 1},
        {"steps": 1, "seconds": 1, "sequences": 10**400, "context_tokens": 1},
        {"steps": 1, "seconds": 1, "sequences": 1, "context_tokens": 10**5000},
        {"steps": 1, "seconds": 1e308, "sequences": 1, "context_tokens": 1},
        {"steps": 2, "seconds": 1, "sequences": 1, "context_tokens": 1},
    ],
)
def test_garbled_counters_are_refused(entry):
    """A pod's nonsense becomes no anchor."""
    with pytest.raises(ValueError, match=r"decode_only|convert"):
        read_counters(entry)


def test_counters_too_deep_to_be_shown_are_refused():
    """The error is a sentence too where the entry cannot be printed."""
    deep = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(ValueError, match="too long to be shown"):
        read_counters(deep)


def test_kept_anchors_read_back():
    """What is written is what is read; batches to a thousandth."""
    anchors = tuple(replace(a, batch=1.125) for a in many(1.2))
    text = dump_anchors(anchors)
    assert parse_anchors(text, key=KEY, tensor_parallel_size=1) == anchors
    assert parse_anchors("", key=KEY, tensor_parallel_size=1) == ()
    full = dump_anchors(an_anchor() for _ in range(POLICY.kept_anchors))
    assert len(full) < 4096


@pytest.mark.parametrize(
    "text",
    ["x", "[]", '{"v":2,"anchors":[]}', '{"v":1}', '{"v":1,"anchors":[[1,2,3]]}',
     '{"v":1,"anchors":[[30,0,1,1,1]]}', '{"v":1,"anchors":[[30,1000,1,"1",1]]}', "[" * 100_000,
     '{"v":1,"anchors":[[30,1000,1,1' + "0" * 400 + ",1]]}"],
)  # fmt: skip
def test_what_somebody_else_wrote_is_no_anchor(text):
    """They are collected anew, and the error says so."""
    with pytest.raises(AnchorsInvalidError, match="collected anew"):
        parse_anchors(text, key=KEY, tensor_parallel_size=1)
