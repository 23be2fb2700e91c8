"""What a plan may take over from the plan before."""

from dataclasses import replace

import pytest

from tests.unit.planning.builders import (
    LOAD,
    POLICY,
    SMOLLM2,
    a_fingerprint,
    a_fleet,
    a_key,
    a_loss,
    a_model,
    an_intent,
)
from trimtab.planning import survey
from trimtab.planning.case import subjects
from trimtab.planning.estimate import Subject
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.prices import parse_price_book
from trimtab.planning.snapshot import Anchor, Load, Targets
from trimtab.planning.survey import Surveys

A, B = an_intent("a"), an_intent("b", load=replace(LOAD, requests_per_second=0.3))


@pytest.fixture
def made(monkeypatch):
    """Count the surveys that are made."""
    calls = []
    real = survey._surveyed

    def counted(subjects, **kwargs):
        calls.extend(subjects)
        return real(subjects, **kwargs)

    monkeypatch.setattr(survey, "_surveyed", counted)
    return calls


def test_only_what_changed_is_surveyed_again(made):
    """A second plan asks for the options of the intent whose load changed, and of nobody else."""
    known = Surveys()
    plan_fleet(a_fleet(A, B), POLICY, surveys=known)
    assert len(made) == 2
    busier = replace(B, load=replace(LOAD, requests_per_second=0.5))
    found = plan_fleet(a_fleet(A, busier), POLICY, surveys=known)
    assert len(made) == 3
    assert repr(found) == repr(plan_fleet(a_fleet(A, busier), POLICY))


def test_equal_models_of_other_namespaces_share_a_survey(made):
    """Under which name losses are kept, and a loss that admits nothing new, change no prediction."""
    known = Surveys()
    twin = replace(A, uid="twin", name="twin", model=replace(A.model, identity="elsewhere"))
    plan_fleet(a_fleet(A, twin), POLICY, surveys=known)
    assert len(made) == 1
    lossy = replace(A, model=replace(A.model, losses=(a_loss("int8", percent=9.0),)))
    plan_fleet(a_fleet(lossy, twin), POLICY, surveys=known)
    assert len(made) == 1


def test_a_plan_is_the_same_with_and_without_what_is_remembered(made):
    """A new generation, another name or priority changes no prediction; the plan has the new ones."""
    known = Surveys()
    plan_fleet(a_fleet(A, B), POLICY, surveys=known)
    renamed = replace(A, uid="uid-c", name="c", generation=7, priority=3)
    found = plan_fleet(a_fleet(renamed, B), POLICY, surveys=known)
    assert len(made) == 2
    assert repr(found) == repr(plan_fleet(a_fleet(renamed, B), POLICY))
    assert {p.name: p.generation for p in found.intents} == {"b": 1, "c": 7}


@pytest.mark.parametrize(
    "fields",
    [
        {"prices": parse_price_book({"cpuHour": {"*": "9"}, "memoryGiBHour": "0.005"})},
        {"fingerprints": (a_fingerprint(key=a_key(threads=1)),)},
        {"gateway_overhead_us": 500},
    ],
)
def test_whatever_predictions_are_made_from_forgets_everything(made, fields):
    """New prices, fingerprints or overheads: nothing of the last plan is used."""
    known = Surveys()
    plan_fleet(a_fleet(A, B), POLICY, surveys=known)
    found = plan_fleet(a_fleet(A, B, **fields), POLICY, surveys=known)
    assert len(made) == 4
    assert repr(found) == repr(plan_fleet(a_fleet(A, B, **fields), POLICY))


def test_anchors_and_fingerprints_of_another_family_forget_nothing(made):
    """Live replicas of one model give anchors every minute; others' options stay what they were."""
    wide = replace(SMOLLM2, intermediate_size=2048)
    other = replace(B, model=a_model(wide))
    mine = a_fingerprint()
    theirs = a_fingerprint(key=a_key(wide))
    known = Surveys()
    plan_fleet(a_fleet(A, other, fingerprints=(mine, theirs)), POLICY, surveys=known)
    assert len(made) == 2
    anchored = a_fleet(A, other, fingerprints=(mine, theirs), anchors=(an_anchor_of(theirs),))
    found = plan_fleet(anchored, POLICY, surveys=known)
    assert [subject.model for subject in made[2:]] == [other.model]
    assert repr(found) == repr(plan_fleet(anchored, POLICY))


def test_anchors_of_estimates_forget_everything(made):
    """They belong to no fingerprint that a plan is given, so no family can be told to be spared."""
    known, estimated = Surveys(), a_fingerprint(key=a_key(threads=2))
    plan_fleet(a_fleet(A, B), POLICY, surveys=known)
    anchored = a_fleet(A, B, anchors=(an_anchor_of(estimated),))
    found = plan_fleet(anchored, POLICY, surveys=known)
    assert len(made) == 4
    assert repr(found) == repr(plan_fleet(anchored, POLICY))


def an_anchor_of(fingerprint):
    return Anchor(
        key=fingerprint.key.digest(),
        depth=30,
        batch=2.0,
        kv_tokens=400.0,
        step_us=99_000,
        steps=300,
    )


def test_a_survey_belongs_to_a_plan():
    """Asking before a plan began is a bug, and says so."""
    with pytest.raises(RuntimeError, match="before a plan began"):
        Surveys().of(Subject(intent=A, model=A.model, configs=(), load=None))


def test_what_fails_for_one_intent_fails_for_it_alone(made, monkeypatch):
    """Surveys are made together; a bug that one intent meets is told in its plan, the rest is planned."""
    real = survey.least_replicas

    def failing(intent):
        if intent.load.requests_per_second == 0.3:
            raise ZeroDivisionError
        return real(intent)

    alone = plan_fleet(a_fleet(A), POLICY).intents[0]
    monkeypatch.setattr(survey, "least_replicas", failing)
    good, bad = plan_fleet(a_fleet(A, B), POLICY).intents
    assert repr(good) == repr(alone)
    assert bad.reason == "NoEstimate"
    assert "ZeroDivisionError" in bad.message


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_how_many_counts_are_asked_about_at_once_changes_nothing(monkeypatch, at_once):
    """What lies beyond a walk's end is predicted for nothing, and never found."""
    busy = replace(A, load=replace(LOAD, requests_per_second=2.0))
    expected = repr(plan_fleet(a_fleet(busy, B), POLICY))
    monkeypatch.setattr(survey, "_FEW", at_once)
    assert repr(plan_fleet(a_fleet(busy, B), POLICY)) == expected


def test_intents_are_surveyed_alike_together_and_alone():
    """Other lengths, loads and objectives beside it change no digit of an intent's survey."""
    intents = [
        A,
        replace(B, objective="TargetLatency", targets=Targets(tpot_us=90_000, percentile=99)),
        an_intent("c", load=Load(requests_per_second=40.0, prompt_tokens=900, output_tokens=1)),
        an_intent("d", load=None, objective="MinCost"),
    ]
    fleet = a_fleet(*intents)
    together, apart = Surveys(), Surveys()
    for known in (together, apart):
        known.begin(fleet, POLICY)
    wanted = list(subjects(fleet, POLICY, machines=together.machines))
    together.ahead(wanted)
    assert len(wanted) == len(intents)
    assert len({repr(apart.of(one)) for one in wanted}) == len(intents)
    assert [together.of(one) for one in wanted] == [apart.of(one) for one in wanted]
