import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.planning.builders import a_fingerprint
from trimtab.planning.curves import Curve
from trimtab.planning.fingerprint import FingerprintInvalidError, StepPoint
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.step_arrays import Beside, StepModels
from trimtab.planning.step_model import StepWork, fit, work_of
from trimtab.planning.step_tables import StepTables

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


CONTEXTS = (16, 64, 256, 1024, 4096, 16384)


def _bent_us(context):
    """Attention that gets dearer per token past a cache of 1,024 tokens."""
    return 0.1 * context + 0.2 * max(0, context - 1024)


def _full_grid(*, beside=1.8):
    """A grid with many contexts, and mixed points that cost more than their parts."""

    def point(batch=0, context=0, chunk=0):
        dense = 700 + 20 * (batch + chunk)
        attention = batch * _bent_us(context)
        layer = dense + attention * (beside if batch and chunk else 1.0)
        return StepPoint(
            batch=batch,
            context=context,
            chunk=chunk,
            cached=0,
            t1_us=round(5000 + layer),
            mad1_us=0,
            t2_us=round(5000 + 11 * layer),
            mad2_us=0,
            repeats=3,
        )

    return replace(
        a_fingerprint(),
        depths=(1, 11),
        decode=tuple(point(batch=b, context=c) for b in (1, 2, 8, 32) for c in CONTEXTS),
        prefill=tuple(point(chunk=n) for n in (16, 32, 128, 512)),
        mixed=tuple(
            point(batch=b, context=c, chunk=n)
            for b in (1, 2, 8, 32)
            for c in CONTEXTS
            for n in (16, 128, 512)
        ),
    )


@pytest.mark.parametrize("context", [64, 600, 1024, 2500])
def test_many_contexts_are_followed_where_they_bend(context):
    """A full grid is interpolated: no line through 16k tokens is laid over the first thousand."""
    model = fit(_full_grid(), depth=DEPTH)
    work = StepWork(tokens=8, sampled=8, batch=8, kv_tokens=8 * context)
    truth = 5000 + DEPTH * (700 + 20 * 8 + 8 * _bent_us(context))
    assert model.step_us(work) == pytest.approx(truth, rel=0.02)


def test_a_grid_of_mixed_points_is_part_of_the_model():
    """What decoding costs more beside a chunk is charged where both are in a step, and only there."""
    model = fit(_full_grid(), depth=DEPTH)
    plain = fit(_full_grid(beside=1.0), depth=DEPTH)
    decode = StepWork(tokens=8, sampled=8, batch=8, kv_tokens=8 * 1024)
    assert model.step_us(decode) == plain.step_us(decode)
    mixed = StepWork(tokens=136, sampled=9, work=128 * 64, batch=8, kv_tokens=8 * 1024)
    truth = 5000 + DEPTH * (700 + 20 * 136 + 1.8 * 8 * _bent_us(1024))
    assert model.step_us(mixed) == pytest.approx(truth, rel=0.01)
    assert plain.step_us(mixed) < 0.9 * truth
    assert abs(model.mixed_error) < 0.02
    few = replace(_full_grid(), mixed=_full_grid().mixed[:1])
    assert fit(few, depth=DEPTH).kinds[0].mixed == ()


def test_a_chunk_of_a_measured_size_is_charged_what_was_measured():
    """What decoding costs more beside a chunk of exactly 128 tokens is not that of 16."""
    grid = _full_grid()
    dearer = tuple(
        replace(p, t1_us=p.t1_us + 5 * p.chunk, t2_us=p.t2_us + 55 * p.chunk) for p in grid.mixed
    )
    model = fit(replace(grid, mixed=dearer), depth=DEPTH)

    def extra(chunk):
        return model.kinds[0].mixed_us(chunk, 8.0, 1024.0)

    assert extra(16) < extra(127) < extra(128) < extra(129)
    assert extra(128) == pytest.approx((extra(127) + extra(129)) / 2, rel=0.01)
    assert extra(4) == extra(16)
    assert extra(4000) == extra(512)


def test_models_side_by_side_time_each_step_as_its_own_model_does():
    """Lines, bent surfaces, mixed grids, two kinds of layers and corrections, inside the grid and beyond."""
    plain, full = fit(a_fingerprint(), depth=DEPTH), fit(_full_grid(), depth=DEPTH)
    kinds = (full.kinds[0], replace(plain.kinds[0], layers=5))
    models = [
        plain,
        full,
        replace(full, kinds=kinds, correction=Curve((0.0, 3.0), (0.1, -0.2))),
        replace(plain, correction=Curve((1.0,), (0.3,)), fixed=Curve((1.0,), (700.0,))),
    ]
    together = StepModels(models)
    draw = random.Random(5)
    which = np.array([draw.randrange(len(models)) for _ in range(400)])
    batch = np.array([draw.choice([0.0, 1.0, 2.5, 8.0, 31.0, 70.0]) for _ in which])
    chunk = np.array([draw.choice([0.0, 1.0, 16.0, 60.5, 128.0, 512.0, 3000.0]) for _ in which])
    context = np.array([draw.choice([40.0, 900.5, 5000.0, 70_000.0]) for _ in which])
    beside = Beside(together, which, batch, context=context, sampled=1 + batch)
    times = beside.step_us(chunk + batch, chunk * 300 / 2)
    resting = together.decode_us(which, batch, context=context)
    outside = together.extrapolates(which, tokens=chunk, batch=batch + 1, context=context)
    for n, number in enumerate(which):
        work = StepWork(
            tokens=chunk[n] + batch[n],
            sampled=1 + batch[n],
            work=chunk[n] * 300 / 2,
            batch=batch[n],
            kv_tokens=batch[n] * context[n],
        )
        assert times[n] == pytest.approx(models[number].step_us(work), rel=1e-14)
        alone = replace(work, tokens=batch[n], sampled=batch[n], work=0.0)
        expected = models[number].step_us(alone) if batch[n] else 0.0
        assert resting[n] == pytest.approx(expected, rel=1e-14)
        large = StepWork(
            tokens=chunk[n],
            sampled=1.0,
            batch=batch[n] + 1,
            kv_tokens=(batch[n] + 1) * context[n],
        )
        assert outside[n] == models[number].extrapolates(large)
    assert 0 < outside.sum() < len(outside)


@pytest.mark.parametrize("fingerprint", [a_fingerprint(), _full_grid()])
def test_the_tables_of_a_simulation_hold_the_model_s_times(fingerprint):
    """Decode steps are looked up by mean context; value and slope are the model's, between knots too."""
    model = fit(fingerprint, depth=DEPTH)
    tables = StepTables(model, SchedulerLimits(token_budget=64, max_running=40))
    for batch in (1, 3, 40):
        for context in (1, 40, 700.5, 1024, 30_000):
            now, slope, steps = tables.decode(batch, batch * context)
            later = min(steps, 5.0)
            for after, us in ((0.0, now), (later, now + slope * later)):
                work = StepWork(
                    tokens=batch,
                    sampled=batch,
                    batch=batch,
                    kv_tokens=batch * (context + after),
                )
                assert us == pytest.approx(model.step_us(work), rel=1e-12)


def test_a_larger_step_is_never_faster_within_a_noisy_full_grid_or_beyond():
    """Time rises with batch, context and chunk, alone and together, on the grid and outside of it."""
    draw = random.Random(2)

    def noisy(point):
        return replace(point, t2_us=round(point.t2_us * draw.uniform(0.96, 1.04)))

    grid = _full_grid()
    model = fit(
        replace(
            grid,
            decode=tuple(map(noisy, grid.decode)),
            prefill=tuple(map(noisy, grid.prefill)),
            mixed=tuple(map(noisy, grid.mixed)),
        ),
        depth=DEPTH,
    )
    batches, contexts, chunks = (1, 3, 8, 40, 64), (8, 100, 3000, 16384, 40_000), (0, 8, 64, 900)

    def time(batch, context, chunk):
        work = chunk * chunk / 2
        return model.step_us(
            StepWork(
                tokens=batch + chunk,
                sampled=batch + (chunk > 0),
                work=work,
                batch=batch,
                kv_tokens=batch * context,
            )
        )

    for b, c, n in itertools.product(batches, contexts, chunks):
        here = time(b, c, n) * (1 + 1e-12)
        assert all(time(x, c, n) * (1 + 1e-9) >= here for x in batches if x > b)
        assert all(time(b, x, n) * (1 + 1e-9) >= here for x in contexts if x > c)
        assert all(time(b, c, x) * (1 + 1e-9) >= here for x in chunks if x > n)
