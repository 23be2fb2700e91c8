"""One function's model, followed through a life: gates, learning, drift, kills."""

import numpy as np
import pytest

from tests.unit.rightsizing.sizing_builders import (
    LADDER,
    LAYOUT,
    a_model,
    a_usage,
    an_input,
    ran,
)
from trimtab.rightsizing.policy import SizerPolicy
from trimtab.rightsizing.resource import Resource
from trimtab.rightsizing.selection import CPU_ENTRY, MEMORY_ENTRY, Scores
from trimtab.rightsizing.sizer import Layout
from trimtab.rightsizing.types import Gate, Outcome, PeakKind, Size, Source


def a_learned_model(**fields):
    """Return a model that knows inputs 10 (0.2 vCPU, 100 MiB) and 1000 (0.7 vCPU, 900 MiB)."""
    model = a_model(**fields)
    for _ in range(20):
        ran(model, 10, cpu_s=2.0, peak=100.0)
        ran(model, 1000, cpu_s=6.0, peak=900.0)
    return model


def test_small_inputs_get_less_once_they_are_known():
    """After learning each input gets the smallest class above its need, of CPU and memory apart."""
    model = a_learned_model()
    assert model.decide(an_input(10), budget_s=10.0).want == Size(250, 256)
    assert model.decide(an_input(1000), budget_s=10.0).want == Size(750, 1152)


def test_the_first_ten_get_the_default():
    """Until ten runs have taught something the default is used, and says why."""
    model = a_model()
    for _ in range(10):
        decision = ran(model, 10, cpu_s=2.0)
        assert decision.size == LADDER.default
        assert decision.cpu.gate is Gate.WARMING_UP
        assert decision.cpu.source is Source.DEFAULT
    assert ran(model, 10, cpu_s=2.0).cpu.gate is None


def test_an_input_unlike_any_gets_the_default():
    """An input whose bucket holds fewer than two runs is novel, whatever the learner says."""
    model = a_learned_model()
    first = ran(model, 10**7, cpu_s=9.0)
    second = ran(model, 10**7, cpu_s=9.0)
    assert first.cpu.gate is second.cpu.gate is Gate.NOVEL_INPUT
    assert first.memory.gate is Gate.NOVEL_INPUT
    assert ran(model, 10**7, cpu_s=9.0).cpu.gate is None


def test_a_missing_feature_gets_the_default_and_is_counted():
    """The request is served at the default size and the feature is counted by name."""
    model = a_learned_model()
    decision = model.decide(an_input(0, missing="pixels:medium"), budget_s=10.0)
    assert decision.cpu.gate is Gate.FEATURE_MISSING
    assert decision.size == LADDER.default
    assert model.missing == {"pixels": 1}


def test_asking_without_an_invocation_changes_nothing():
    """A preview answers as the decision does, and counts nothing."""
    model = a_learned_model()
    before = (list(model.gated), dict(model.missing))
    preview = model.preview(an_input(10), budget_s=10.0)
    assert (list(model.gated), dict(model.missing)) == before
    assert preview == model.decide(an_input(10), budget_s=10.0)


def test_a_tighter_deadline_asks_for_more():
    """Buckets keep work, not classes: the same input needs more where less time is left."""
    model = a_learned_model(layout=Layout(numbers=("n",), deadlines=True))
    loose = model.decide(an_input(10), budget_s=10.0)
    tight = model.decide(an_input(10), budget_s=4.0)
    assert loose.cpu.candidates[Source.BUCKET] == 0
    assert tight.cpu.candidates[Source.BUCKET] == 2


def test_a_deadline_that_nothing_meets_is_infeasible():
    """More CPU than the work can use does not help, and the decision says so."""
    model = a_learned_model()
    assert model.decide(an_input(1000), budget_s=3.0).infeasible
    assert not model.decide(an_input(1000), budget_s=10.0).infeasible


def test_a_late_run_that_nothing_held_back_asks_for_no_more():
    """Waiting for something else is not cured by CPU."""
    model = a_model()
    for _ in range(12):
        features = an_input(5)
        model.decide(features, budget_s=1.0)
        model.observe(features, a_usage(cpu_s=0.5, wall_s=3.0, cpu_m=500), budget_s=1.0)
    learned = model.decide(features, budget_s=1.0).cpu.candidates[Source.LEARNED]
    assert LADDER.cpu_m[learned] == 500


def test_the_body_must_fit():
    """An upload larger than what was learned raises the memory at once."""
    model = a_learned_model()
    decision = model.decide(an_input(10, length=600 * 2**20), budget_s=10.0)
    assert decision.want.mem_mib == 640


def test_one_kill_raises_the_bucket_at_once():
    """After one kill at 256 MiB the same inputs get more than twice that (VPA issue 3766)."""
    model = a_learned_model()
    features = an_input(10)
    assert model.decide(features, budget_s=10.0).size.mem_mib == 256
    model.observe(features, a_usage(oom=True, mem_mib=256, peak=256.0), budget_s=10.0)
    assert model.decide(features, budget_s=10.0).size.mem_mib > 512


def test_a_retry_teaches_its_peak():
    """What the retry at the largest size used is what the same inputs get from then on."""
    model = a_learned_model()
    features = an_input(10)
    model.observe(features, a_usage(peak=700.0), budget_s=10.0, outcome=Outcome(retried=True))
    assert model.decide(features, budget_s=10.0).size.mem_mib == 896


def test_an_upper_bound_never_asks_for_more():
    """A cumulative peak above what the pod has is page cache, not need."""
    model = a_learned_model()
    features = an_input(10)
    before = model.decide(features, budget_s=10.0).want
    usage = a_usage(cpu_s=2.0, peak=1500.0, peak_kind=PeakKind.CUMULATIVE, mem_mib=256)
    model.observe(features, usage, budget_s=10.0)
    assert model.decide(features, budget_s=10.0).want.mem_mib == before.mem_mib


def test_drift_sends_everything_back_to_the_default():
    """Where more than 5 % of 64 were given too little the counts begin anew."""
    model = a_learned_model(policy=SizerPolicy(candidates=("bucket",)))
    for _ in range(40):
        for number in (10, 40, 160, 640):
            ran(model, number, cpu_s=2.0, peak=100.0)
    gates = [ran(model, 10 * 4 ** (k % 4), cpu_s=8.0).cpu.gate for k in range(20)]
    assert gates[0] is None
    assert Gate.WARMING_UP in gates
    assert model.cpu.learner.weights.any()


def test_an_infeasible_function_does_not_restart_for_ever():
    """Misses at the largest size are nobody's wrong decision."""
    model = a_model()
    gates = [ran(model, 10, cpu_s=90.0, width=2.0).cpu.gate for _ in range(200)]
    assert gates[-1] is None
    assert not any(model.undersized)


def test_short_invocations_share_one_class():
    """Below 100 ms of CPU a quota does not bind, so CPU is one class and memory stays per input."""
    model = a_model()
    for _ in range(30):
        ran(model, 10, cpu_s=0.02, peak=100.0)
        ran(model, 1000, cpu_s=0.04, peak=900.0)
    small = model.decide(an_input(10), budget_s=10.0)
    large = model.decide(an_input(1000), budget_s=10.0)
    assert small.cpu.source is large.cpu.source is Source.TOO_SHORT
    assert small.cpu.index == large.cpu.index == 0
    assert small.want.mem_mib < large.want.mem_mib


def test_confidence_grows_with_what_is_known():
    """Nothing is sure at first; everything followed and nothing undersized is 1."""
    model = a_model()
    assert model.confidence == 0.0
    for _ in range(90):
        ran(model, 10, cpu_s=2.0)
    assert model.confidence == 1.0


def test_dropped_samples_are_counted():
    """A sample that teaches nothing is counted by its reason and is no observation."""
    model = a_model()
    model.observe(an_input(1), a_usage(), budget_s=1.0, outcome=Outcome(first_call=True))
    assert model.dropped == {"first_call": 1}
    assert model.observations == 0


def test_a_pod_without_a_quota_is_no_smallest_class():
    """A late run at 0m, which is no quota, teaches what it needed rather than the first class."""
    model = a_model()
    features = an_input(5)
    for _ in range(12):
        model.observe(features, a_usage(cpu_s=6.0, wall_s=6.0, cpu_m=0), budget_s=5.0)
    costs = model.preview(features, budget_s=5.0).cpu.candidates
    assert LADDER.cpu_m[costs[Source.LEARNED]] >= 1000


@pytest.mark.parametrize("field", ["cpu_s", "wall_s", "throttled_s", "peak_anon_mib"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_figure_that_cannot_be_teaches_nothing(field, value):
    """A usage that is not finite or below nought is dropped, and counted as such."""
    model = a_model()
    model.observe(an_input(1), a_usage(**{field: value}), budget_s=10.0)
    assert model.dropped == {"not_finite": 1}
    assert model.observations == 0


def test_sizes_in_use_are_chosen_every_64_runs():
    """Wants are served by at most four sizes, each of which covers them."""
    model = a_model()
    changed = []
    for place in range(256):
        number = 10 ** (1 + place % 6)
        ran(model, number, cpu_s=1.0 + place % 6, peak=100.0 * (1 + place % 6))
        changed.append(model.choose_sizes())
    assert any(changed)
    assert 2 <= len(model.sizes) <= 4
    decision = model.decide(an_input(10), budget_s=10.0)
    assert decision.size in model.sizes
    assert decision.size.covers(decision.want)


def test_a_learner_that_breaks_three_times_begins_anew():
    """Three lessons in a row that leave no finite number reset the learner, not the counts."""
    resource = Resource(
        (1, 2, 3), default=2, width=2, under=4.0, entry=CPU_ENTRY, policy=SizerPolicy()
    )
    resource.learn(np.array([1.0, 1.0]), target=1, least=1, runs=0, need=None)
    for _ in range(3):
        resource.learn(np.array([1e200, 1e200]), target=0, least=0, runs=0, need=None, weight=1e200)
    assert (resource.rejected, resource.resets, resource.feedbacks) == (3, 1, 4)
    assert not resource.learner.weights.any()


def charged(scores, *, times, bucket, raised, learned, target=2):
    """Judge candidates that always say the same."""
    candidates = {Source.BUCKET: bucket, Source.RAISED: raised, Source.LEARNED: learned}
    for _ in range(times):
        scores.charge(candidates, costs=(8.0, 4.0, 0.0, 1.0, 2.0), target=target)
    return scores.best(candidates)


@pytest.mark.parametrize(
    ("entry", "times", "said", "best"),
    [
        pytest.param(CPU_ENTRY, 9, (2, 2, 2), Source.BUCKET, id="equal: the bucket"),
        pytest.param(CPU_ENTRY, 9, (1, 2, 2), Source.RAISED, id="the bucket is under"),
        pytest.param(CPU_ENTRY, 19, (3, 3, 2), Source.BUCKET, id="not judged often enough"),
        pytest.param(CPU_ENTRY, 40, (3, 3, 2), Source.LEARNED, id="judged often, and cheaper"),
        pytest.param(CPU_ENTRY, 40, (4, 4, 1), Source.BUCKET, id="under too often"),
        pytest.param(MEMORY_ENTRY, 199, (3, 3, 2), Source.BUCKET, id="memory: not yet"),
        pytest.param(MEMORY_ENTRY, 200, (3, 3, 2), Source.LEARNED, id="memory: 200 without one"),
    ],
)
def test_the_cheapest_candidate_is_followed(entry, times, said, best):
    """Each candidate is charged what its class would have cost; the learner alone must earn it."""
    bucket, raised, learned = said
    found = charged(Scores(entry), times=times, bucket=bucket, raised=raised, learned=learned)
    assert found is best


def test_a_miss_costs_more_than_a_margin():
    """A candidate that is below the head-room often is followed rather than one that misses seldom."""
    scores = Scores(CPU_ENTRY)
    costs = (1.6, 0.4, 0.0, 0.1, 0.2)
    for place in range(50):
        said = {Source.BUCKET: 0 if place % 10 == 0 else 2, Source.RAISED: 1}
        scores.charge(said, costs=costs, target=2, least=1, miss_price=10.0)
    assert scores.best(said) is Source.RAISED
    scores = Scores(CPU_ENTRY)
    for place in range(50):
        said = {Source.BUCKET: 0 if place % 10 == 0 else 2, Source.RAISED: 1}
        scores.charge(said, costs=costs, target=2, least=1)
    assert scores.best(said) is Source.BUCKET


def test_memory_forgives_no_under_prediction():
    """One under-prediction of the learner alone costs it 200 judged runs."""
    scores = Scores(MEMORY_ENTRY)
    charged(scores, times=300, bucket=3, raised=3, learned=2)
    charged(scores, times=1, bucket=3, raised=3, learned=1)
    assert charged(scores, times=199, bucket=3, raised=3, learned=2) is Source.BUCKET
    assert charged(scores, times=1, bucket=3, raised=3, learned=2) is Source.LEARNED


def test_a_layout_without_categories_has_no_places_for_them():
    """D counts what there is."""
    assert a_model(layout=LAYOUT).basis.width == 6
    assert a_model(layout=Layout(numbers=("n",), categories=True)).basis.width == 14
