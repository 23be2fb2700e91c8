"""Properties of a bound on accuracy, over drawn losses and limits."""

from dataclasses import replace

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.planning.builders import CAPABILITIES, a_loss, a_model, an_intent, plan_one
from trimtab.planning.accuracy import dump, parse
from trimtab.planning.snapshot import Constraints

ALL = replace(CAPABILITIES, precisions=("bf16", "fp32", "int8", "int4"))
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
percents = st.floats(-2, 30).map(lambda x: round(x, 3))
limits = st.integers(0, 20_000).map(lambda n: f"{n / 1000:g}")


@FEW
@given(int8=st.none() | percents, int4=st.none() | percents, limit=limits)
@example(int8=0.4, int4=6.0, limit="1")
@example(int8=None, int4=0.5, limit="1")
def test_a_limit_admits_exactly_what_was_measured_within_it(int8, int4, limit):
    """An option has a loss within the limit, or its precision is refused with a reason; never both."""
    drawn = {"int8": int8, "int4": int4}
    losses = tuple(a_loss(p, percent=x) for p, x in drawn.items() if x is not None)
    intent = an_intent(
        model=replace(a_model(), losses=losses),
        constraints=Constraints(max_accuracy_loss_percent=limit),
    )
    found = plan_one(intent, capabilities=ALL)
    refused = {a.config.precision for a in found.alternatives if a.reason == "AccuracyLoss"}
    possible = {found.option.config.precision} | {
        a.config.precision for a in found.alternatives if a.option is not None
    }
    within = {loss.precision for loss in losses if not loss.exceeds(limit)}
    assert refused == {"int8", "int4"} - within
    assert possible <= {"bf16", "fp32"} | within
    assert set(found.unmeasured) == {p for p, x in drawn.items() if x is None}


@given(percent=st.floats(-50, 900), error=st.floats(0, 50), limit=limits)
def test_figures_survive_the_document_and_judge_alike(percent, error, limit):
    """A loss that was written and read shows, and is judged by, the same figures."""
    loss = a_loss("int4", percent=percent, error_percent=error)
    [read] = parse(dump([loss]))
    assert (read.percent, read.error_percent) == (loss.percent, loss.error_percent)
    assert (
        read.exceeds(limit)
        == loss.exceeds(limit)
        == (loss.percent > 0 and not _within(loss, limit))
    )


def _within(loss, limit):
    return float(loss.percent) <= float(limit)
