import random
from dataclasses import replace

import pytest

from tests.unit.planning.builders import a_fingerprint
from trimtab.planning.fingerprint import FingerprintInvalidError
from trimtab.planning.step_model import StepWork, fit, work_of

DEPTH = 30


def test_known_times_are_recovered_from_exact_depths():
    """With no noise the full model's step time is F + L·h within rounding."""
    model = fit(a_fingerprint(), depth=DEPTH)
    work = StepWork(tokens=4, sampled=4, batch=4, kv_tokens=4 * 512)
    truth = 5000 + 400 + DEPTH * (700 + 20 * 4 + 0.1 * 4 * 512)
    assert model.step_us(work) == pytest.approx(truth, rel=0.01)
    chunk = StepWork(tokens=256, sampled=1, work=256 * (512 + 128))
    truth = 5000 + 100 + DEPTH * (700 + 20 * 256 + 0.02 * 256 * (512 + 128))
    assert model.step_us(chunk) == pytest.approx(truth, rel=0.01)
    assert model.residual < 0.01


@pytest.mark.parametrize("distance", [1, 4])
def test_known_times_are_recovered_from_noisy_depths(distance):
    """The error of the full-depth time stays within three standard errors, which are above zero."""
    draw = random.Random(7)
    noisy = a_fingerprint(
        noise=lambda: 1 + draw.gauss(0, 0.0148 / 50**0.5 * 1.253), distance=distance
    )
    model = fit(noisy, depth=DEPTH)
    assert model.standard_error > 0
    for batch in (1, 2, 4, 8):
        work = StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=batch * 256)
        truth = 5000 + 100 * batch + DEPTH * (700 + 20 * batch + 0.1 * batch * 256)
        assert abs(model.step_us(work) / truth - 1) <= 3 * model.standard_error


def test_a_larger_distance_of_depths_lowers_the_standard_error():
    """Noise is multiplied by (L - 1)/d."""
    near = fit(a_fingerprint(distance=1), depth=DEPTH).standard_error
    far = fit(a_fingerprint(distance=4), depth=DEPTH).standard_error
    assert far < near / 2


def test_cost_per_sequence_is_kept_apart_from_cost_per_token():
    """Decoding 8 sequences may cost more than 32 prompt tokens; neither bends the other's curve."""
    fingerprint = a_fingerprint()
    slow = tuple(
        replace(p, t1_us=p.t1_us + 300 * p.batch, t2_us=p.t2_us + 600 * p.batch)
        for p in fingerprint.decode
    )
    model = fit(replace(fingerprint, decode=slow), depth=DEPTH)
    for point in (*slow, *fingerprint.prefill):
        truth = point.t1_us + (DEPTH - 1) * (point.t2_us - point.t1_us)
        assert model.step_us(work_of(point)) == pytest.approx(truth, rel=0.02)


def test_a_negative_layer_time_is_refused():
    """A deeper model that is faster beyond noise is no measurement."""
    fingerprint = a_fingerprint()
    broken = replace(fingerprint.decode[0], t2_us=1000)
    with pytest.raises(FingerprintInvalidError, match="less than the"):
        fit(replace(fingerprint, decode=(broken, *fingerprint.decode[1:])), depth=DEPTH)


def test_time_that_falls_with_load_is_refused():
    """512 tokens cannot be more than 10 % faster than 256."""
    fingerprint = a_fingerprint()
    fast = tuple(
        replace(p, t1_us=6000, t2_us=6100) if (p.chunk, p.cached) == (512, 0) else p
        for p in fingerprint.prefill
    )
    with pytest.raises(FingerprintInvalidError, match="time falls"):
        fit(replace(fingerprint, prefill=fast), depth=DEPTH)


def test_steps_beyond_the_grid_say_so():
    """Extrapolation is allowed with the last slope, but flagged."""
    model = fit(a_fingerprint(), depth=DEPTH)
    inside = StepWork(tokens=8, sampled=8, batch=8, kv_tokens=8 * 1024)
    beyond = StepWork(tokens=64, sampled=64, batch=64, kv_tokens=64 * 1024)
    assert not model.extrapolates(inside)
    assert model.extrapolates(beyond)
    assert model.step_us(beyond) > model.step_us(inside)


def test_the_mixed_point_is_a_check_not_an_input():
    """A mixed step that takes twice the sum is reported as an error of the model."""
    fingerprint = a_fingerprint()
    good = fit(fingerprint, depth=DEPTH)
    assert good.mixed_error is not None
    assert abs(good.mixed_error) < 0.03
    twice = tuple(replace(p, t1_us=2 * p.t1_us, t2_us=2 * p.t2_us) for p in fingerprint.mixed)
    bad = fit(replace(fingerprint, mixed=twice), depth=DEPTH)
    assert bad.mixed_error == pytest.approx(-0.5, abs=0.05)
    assert bad.kinds == good.kinds
