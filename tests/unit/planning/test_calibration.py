import math
import random
import statistics
from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY, a_fingerprint
from trimtab.planning import calibration
from trimtab.planning.calibration import Correction, Residual, calibrate, correction
from trimtab.planning.snapshot import Anchor
from trimtab.planning.step_model import StepWork, fit

DEPTH = 30
SIZES = (1, 2, 4, 8)
BATCHES = (1, 4, 16, 64)
MODELS = {
    size: fit(a_fingerprint(layer_us=700.0 / size, us_per_token=20.0 / size), depth=DEPTH)
    for size in SIZES
}


def work(batch, context=256):
    return StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=batch * context)


def an_anchor(size, batch, *, factor, steps=500, key=None, context=256):
    """A replica that runs ``factor`` times as slowly as its model says."""
    truth = MODELS[size].step_us(work(batch, context)) * factor
    return Anchor(
        key=key or f"tp{size}",
        tensor_parallel_size=size,
        batch=batch,
        kv_tokens=batch * context,
        step_us=round(truth),
        steps=steps,
    )


def a_correction(*points, sizes=SIZES):
    residuals = tuple(
        Residual(tensor_parallel_size=size, batch=batch, error=error)
        for size, batch, error in points
    )
    return Correction(residuals=residuals, sizes=sizes, policy=POLICY)


def errors(anchors, distortion, *, sizes=SIZES):
    """Return the errors that remain at sizes and batches of a distorted world."""
    remaining = []
    for size in sizes:
        model = calibrate(
            MODELS[size], anchors, tensor_parallel_size=size, models=MODELS, policy=POLICY
        )
        for batch in BATCHES:
            truth = MODELS[size].step_us(work(batch)) * distortion(size, batch)
            remaining.append(abs(model.step_us(work(batch)) / truth - 1))
    return remaining


def test_four_anchors_over_two_sizes_leave_at_most_five_percent():
    """A distortion that grows with TP and falls with B, up to 18 %, is known from its corners."""

    def distortion(size, batch):
        return math.exp(0.05 + 0.04 * math.log2(size) - 0.02 * math.log2(batch))

    anchors = [an_anchor(s, b, factor=distortion(s, b)) for s in (1, 8) for b in (1, 64)]
    raw = [abs(1 / distortion(s, b) - 1) for s in SIZES for b in BATCHES]
    assert max(raw) > 0.12
    assert max(errors(anchors, distortion)) <= 0.05


def test_two_anchors_at_one_size_spoil_no_other_and_one_factor_for_all_would():
    """Other sizes, which were right, lose at most 2 points; a global factor costs them over 2."""

    def distortion(size, batch):
        return 1.06 if size == 1 else 1.0

    anchors = [an_anchor(1, batch, factor=distortion(1, batch)) for batch in (1, 64)]
    assert max(errors(anchors, distortion, sizes=(2, 4, 8))) <= 0.02
    assert max(errors(anchors, distortion, sizes=(1,))) < 0.03
    naive = math.exp(statistics.fmean(math.log(distortion(1, b)) for b in (1, 64)))
    assert naive - 1 > 0.02


def test_a_single_anchor_counts_half():
    """n/(n + 1): one observation is as much noise as knowledge, many are believed."""
    assert a_correction((1, 8, 0.2)).log_factor(1, 8) == pytest.approx(0.1)
    many = a_correction(*[(1, 8, 0.2)] * 63)
    assert many.log_factor(1, 8) == pytest.approx(0.2 * 63 / 64)


def test_between_anchored_sizes_it_is_linear_in_the_logarithms():
    """TP 2 lies a third of the way from 1 to 8, batch 8 half-way from 1 to 64; beyond B it is flat."""
    corners = a_correction((1, 1, 0.0), (1, 64, 0.12), (8, 1, 0.24), (8, 64, 0.36))
    shrunk = 4 / 5
    assert corners.log_factor(2, 8) == pytest.approx(shrunk * (0.06 + 0.24 / 3))
    assert corners.log_factor(1, 1000) == pytest.approx(shrunk * 0.12)
    assert corners.log_factor(8, 0.5) == pytest.approx(shrunk * 0.24)


def test_outside_the_anchored_sizes_half_is_taken():
    """Anchors at TP 2 and 4 say half as much about 1 and 8, on either side."""
    found = a_correction((2, 8, 0.1), (4, 8, 0.2))
    shrunk = 2 / 3
    assert found.log_factor(1, 8) == pytest.approx(shrunk * 0.05)
    assert found.log_factor(8, 8) == pytest.approx(shrunk * 0.10)


def test_no_anchor_changes_nothing():
    """Without anchors the model is the fitted one."""
    assert calibrate(MODELS[1], (), policy=POLICY) == MODELS[1]
    assert a_correction().log_factor(4, 8) == 0


@pytest.mark.parametrize("factor", [0.45, 2.2])
def test_beyond_a_factor_of_two_nothing_is_corrected(factor):
    """Such an error is no drift: the fingerprint is suspect and its times stay as they are."""
    anchors = [an_anchor(1, 8, factor=factor), an_anchor(2, 8, factor=1.1)]
    found = correction(anchors, MODELS, policy=POLICY)
    assert found.suspect
    assert not found.good
    model = found.apply(MODELS[1], tensor_parallel_size=1)
    assert model.step_us(work(8)) == pytest.approx(MODELS[1].step_us(work(8)))
    assert not correction([an_anchor(1, 8, factor=1.9)], MODELS, policy=POLICY).suspect


def test_one_contended_minute_makes_no_fingerprint_suspect():
    """The median of three or more says so; the odd minute itself corrects nothing."""
    rest = [(1, b, 0.1) for b in (1, 2, 4, 8)]
    odd = a_correction(*rest, (1, 32, 1.0))
    assert not odd.suspect
    assert odd.log_factor(1, 32) == pytest.approx(a_correction(*rest).log_factor(1, 32))
    assert odd.seen(1, 32) == pytest.approx(1.0)
    models = [c.apply(MODELS[1], tensor_parallel_size=1) for c in (odd, a_correction(*rest))]
    assert models[0].correction == models[1].correction
    assert a_correction(*rest, *[(1, 32, 1.0)] * 3).suspect
    assert a_correction(*[(1, b, 1.0) for b in (1, 4, 16)], (1, 64, 0.0)).suspect


def test_what_residuals_say_is_worked_out_once(monkeypatch):
    """Every option of a plan asks; of 64 anchors no second answer groups them again."""
    found = a_correction(*[(1, 2.0 ** (n % 8), 0.1) for n in range(64)], sizes=(1,))
    first = (found.good, found.suspect, found.log_factor(1, 4), found.seen(1, 4))

    def refuse(*_):
        pytest.fail("grouped again")

    monkeypatch.setattr(calibration, "_groups", refuse)
    assert (found.good, found.suspect, found.log_factor(1, 4), found.seen(1, 4)) == first
    assert first[0]


def test_few_steps_and_unknown_sizes_say_nothing():
    """An anchor of 199 steps, or of a size without a model, is not read."""
    short = an_anchor(1, 8, factor=1.3, steps=199)
    alone = {1: MODELS[1]}
    assert not correction([short, an_anchor(2, 8, factor=1.3)], alone, policy=POLICY).residuals
    assert correction([replace(short, steps=200)], alone, policy=POLICY).residuals


def test_the_newest_of_each_key_count():
    """Of 70 anchors of one key the last 64 are kept, and another key's stay."""
    old = [an_anchor(1, 8, factor=1.5) for _ in range(6)]
    new = [an_anchor(1, 8, factor=1.1) for _ in range(64)]
    found = correction([*old, *new, an_anchor(2, 8, factor=1.0)], MODELS, policy=POLICY)
    assert len(found.residuals) == 65
    assert max(r.error for r in found.residuals) == pytest.approx(math.log(1.1), abs=1e-4)


def test_a_corrected_model_is_compared_unchanged():
    """Anchors are held against the fitted times, so that correcting twice is correcting once."""
    anchors = [an_anchor(1, b, factor=1.1) for b in (1, 64)]
    once = calibrate(MODELS[1], anchors, policy=POLICY)
    assert calibrate(once, anchors, policy=POLICY) == once


GOOD = ((1, 1, 0.1), (1, 16, 0.12), (8, 1, 0.11), (8, 16, 0.09))


@pytest.mark.parametrize(
    ("points", "sizes", "good"),
    [
        (GOOD, SIZES, True),
        (GOOD[:3], SIZES, False),
        ([(1, b, e) for _, b, e in GOOD], SIZES, False),
        ([(1, b, e) for _, b, e in GOOD], (1,), True),
        ([(s, min(b, 3), e) for s, b, e in GOOD], SIZES, False),
        (((1, 1, 0.3), (1, 16, -0.3), (8, 1, -0.3), (8, 16, 0.3)), SIZES, False),
    ],
    ids=["good", "three", "one size of four", "the only size", "near batches", "contradicting"],
)
def test_what_good_anchors_are(points, sizes, good):
    """Four or more, two sizes or all there are, batches four times apart, foretelling each other."""
    assert a_correction(*points, sizes=sizes).good is good


def test_each_anchor_is_held_against_the_correction_of_all_others():
    """Leaving one out is correcting by the rest, also where it was the only one of its size or batch."""
    draw = random.Random(5)
    for _ in range(20):
        points = [
            (draw.choice([1, 2, 8]), draw.choice([1, 1.1, 4, 30]), draw.uniform(-0.3, 0.3))
            for _ in range(draw.randint(2, 12))
        ]
        rest = [a_correction(*points[:n], *points[n + 1 :]) for n in range(len(points))]
        errors = [
            abs(error - one.log_factor(size, batch))
            for one, (size, batch, error) in zip(rest, points, strict=True)
        ]
        found = a_correction(*points).unexplained()
        assert found == pytest.approx(statistics.median(errors), abs=1e-12)


def test_near_batches_do_not_make_a_slope():
    """Batches of 7.9 and 8.1 with opposite noise are one point, so batch 64 sees their mean."""
    noisy = a_correction((1, 7.9, 0.1), (1, 8.1, -0.1))
    assert abs(noisy.log_factor(1, 64)) < 1e-9
