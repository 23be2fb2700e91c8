"""What a precision loses: the document, and what a bound on it does to a plan."""

import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.planning.builders import CAPABILITIES, a_loss, a_model, an_intent, plan, plan_one
from trimtab.planning.accuracy import AccuracyInvalidError, dump, parse
from trimtab.planning.fingerprint import MAX_BYTES
from trimtab.planning.snapshot import Constraints

ALL = replace(CAPABILITIES, precisions=("bf16", "fp32", "int8", "int4"))
MEASURED = (a_loss("int8", percent=0.4), a_loss("int4", percent=6.0))


def planned(*losses, precisions=None, limit=None, model=None):
    pins = Constraints(precisions=precisions, max_accuracy_loss_percent=limit)
    model = replace(model or a_model(), losses=losses)
    return plan_one(an_intent(model=model, constraints=pins), capabilities=ALL)


def options_of(found):
    """Return the precisions of all options that could run."""
    shown = [found.option] if found.option else []
    return {o.config.precision for o in (*shown, *(a.option for a in found.alternatives)) if o}


def test_a_document_comes_back():
    """What one Job measured at several precisions is read as it was written."""
    assert parse(dump(MEASURED)) == MEASURED


def test_the_longest_document_fits_a_termination_message():
    """Every precision there is, with the longest names and figures, stays below the kubelet's cut."""
    key = replace(MEASURED[0].key, model="f" * 64, engine_version="v" * 64)
    long = [
        replace(
            a_loss(name, percent=100.0),
            key=key,
            tokens=50_000_000,
            own_micronats=50_000_000,
            error_micronats=50_000_000,
            seconds=50_000_000,
        )
        for name in ("fp16", "bf16", "fp32", "fp8", "int8", "int4")
    ]
    assert len(dump(long).encode()) <= MAX_BYTES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v": 2}, "field v is 2"),
        ({"rows": []}, "field rows is []"),
        ({"tokens": 0}, "field tokens is 0"),
        ({"ownMicroNats": 1.5}, "field ownMicroNats is 1.5"),
        ({"key": {"model": ""}}, "field model is ''"),
        ({"key": None}, "field key is None"),
    ],
)
def test_a_document_that_cannot_be_right_is_refused(change, said):
    """The field, its value and the remedy are named."""
    document = json.loads(dump(MEASURED)) | change
    with pytest.raises(AccuracyInvalidError, match="Measure the accuracy again") as refused:
        parse(json.dumps(document))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("differenceMicroNats", -9_000_000),
        ("errorMicroNats", -1),
        ("agreementPermille", 1001),
        ("precision", "int8"),
    ],
)
def test_a_row_that_cannot_be_right_is_refused(field, value):
    """A perplexity below one, a negative error and a precision named twice are no measurement."""
    document = json.loads(dump(MEASURED))
    document["rows"][1][field] = value
    with pytest.raises(AccuracyInvalidError):
        parse(json.dumps(document))


def test_nonsense_is_no_document():
    """Text that is not JSON, and brackets without end, are refused and break nothing."""
    for text in ("", "[]", "[" * 100_000):
        with pytest.raises(AccuracyInvalidError):
            parse(text)


def test_percent_is_of_perplexity():
    """A difference of ln 1.05 nats is 5 %; its error grows with the slope; the noise is said."""
    loss = a_loss("int4", percent=5.0, error_percent=2.0)
    assert loss.percent == Decimal("5.000")
    assert loss.perplexity / loss.own_perplexity == pytest.approx(1.05, rel=1e-5)
    assert loss.error_percent == pytest.approx(Decimal("2.0"), abs=Decimal("0.002"))
    assert not loss.within_noise
    assert replace(loss, error_micronats=25_000).within_noise
    assert "within the noise" in replace(loss, error_micronats=25_000).described()
    assert "within the noise" not in loss.described()


def test_a_limit_admits_and_refuses_by_what_was_measured():
    """Between two measured losses a limit keeps one out, and the reason has both numbers."""
    found = planned(*MEASURED, precisions=("int8", "int4", "bf16"), limit="1.5")
    assert options_of(found) == {"bf16", "int8"}
    [refused] = [a for a in found.alternatives if a.config.precision == "int4"]
    assert (refused.reason, refused.option) == ("AccuracyLoss", None)
    assert "int4 loses 6 % of accuracy" in refused.why_not
    assert "more than spec.constraints.maxAccuracyLossPercent 1.5." in refused.why_not
    assert found.unmeasured == ()
    assert found.losses == MEASURED
    wide = planned(*MEASURED, precisions=("int8", "int4", "bf16"), limit="6")
    assert options_of(wide) >= {"int4"}


def test_a_limit_alone_lets_every_precision_be_considered():
    """Without `precisions`, all that the engine runs are options within the limit."""
    assert options_of(planned(*MEASURED)) == {"bf16"}
    assert options_of(planned(*MEASURED, limit="0")) == {"bf16", "fp32"}
    found = planned(*MEASURED, limit="1.5")
    assert "int8" in options_of(found)
    assert "int4" not in options_of(found)


def test_what_is_not_measured_is_excluded_and_asked_for():
    """With a limit an unmeasured precision waits for its measurement, and the plan goes on without."""
    found = planned(MEASURED[0], limit="1.5")
    assert found.unmeasured == ("int4",)
    [refused] = [a for a in found.alternatives if a.config.precision == "int4"]
    assert refused.reason == "AccuracyLoss"
    assert "is not measured yet" in refused.why_not
    assert found.option is not None


def test_without_a_limit_what_is_allowed_is_planned_and_measured():
    """A precision that is named runs at once; its loss is asked for, and told once it is known."""
    before = planned(precisions=("int4",))
    assert (before.option.config.precision, before.unmeasured) == ("int4", ("int4",))
    assert "is not measured yet" in before.notes[-1]
    after = planned(*MEASURED, precisions=("int4",))
    assert (after.option.config.precision, after.unmeasured) == ("int4", ())
    assert "int4 loses 6 % of accuracy" in after.notes[-1]


def test_nothing_is_measured_unasked():
    """The checkpoint's own precision, a wider one, and one that the engine lacks are not measured."""
    assert planned().unmeasured == ()
    assert planned(precisions=("fp32", "fp8")).unmeasured == ()
    wide = a_model(precision="fp32")
    assert planned(precisions=("bf16", "int8"), model=wide).unmeasured == ("bf16", "int8")


def test_when_the_limit_leaves_nothing_both_numbers_are_in_the_condition():
    """Every excluded precision is named with its loss, and the remedy with the own precision."""
    found = planned(*MEASURED, precisions=("int8", "int4"), limit="0.1")
    assert (found.verdict, found.reason) == ("Unplanned", "ConstraintsExcludeAll")
    for words in ("int8 loses 0.4 %", "int4 loses 6 %", "maxAccuracyLossPercent 0.1", "Allow bf16"):
        assert words in found.message
    assert {a.reason for a in found.alternatives} == {"AccuracyLoss"}


@given(
    own=st.integers(0, 20_000_000),
    difference=st.integers(-20_000_000, 20_000_000),
    error=st.integers(0, 20_000_000),
)
@example(own=20_000_000, difference=20_000_000, error=20_000_000)
def test_every_loss_that_is_accepted_can_be_told(own, difference, error):
    """A forged document with the largest figures that are read has a percentage like any other."""
    assume(difference >= -own)
    document = json.loads(dump(MEASURED[:1]))
    document["ownMicroNats"] = own
    document["rows"][0] |= {"differenceMicroNats": difference, "errorMicroNats": error}
    [loss] = parse(json.dumps(document))
    assert "of accuracy (standard error" in loss.described()


def test_larger_figures_than_can_be_told_are_refused():
    """Fifty nats are no measurement, and their percentage has more digits than a decimal keeps."""
    document = json.loads(dump(MEASURED[:1]))
    document["rows"][0]["differenceMicroNats"] = 50_000_000
    with pytest.raises(AccuracyInvalidError, match="must be an integer of"):
        parse(json.dumps(document))


def test_words_that_fail_for_one_intent_leave_everybody_a_plan():
    """The intent itself keeps its place and says what failed; its neighbour has all of its plan."""
    huge = replace(MEASURED[0], difference_micronats=50_000_000, error_micronats=50_000_000)
    pins = Constraints(precisions=("int8",))
    bad = an_intent(name="bad", uid="bad", model=replace(a_model(), losses=(huge,)))
    found = plan(
        replace(bad, constraints=pins), an_intent(name="good", uid="good"), capabilities=ALL
    )
    by_name = {one.name: one for one in found.intents}
    assert by_name["bad"].option.config.precision == "int8"
    assert "explaining its plan failed with InvalidOperation" in by_name["bad"].message
    assert by_name["good"].verdict == "Planned"
    assert by_name["good"].alternatives
