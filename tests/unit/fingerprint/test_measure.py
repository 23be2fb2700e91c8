import random

from trimtab.planning.fingerprint import Fingerprint, dump
from trimtab.planning.step_model import StepWork, fit
from trimtab_workers.fingerprint.grid import CPU, QUICK
from trimtab_workers.fingerprint.measure import measure

FIXED, LAYER = 0.005, 0.0007


class FakeBench:
    """Steps of known length, with noise and a clock that they move."""

    def __init__(self, *, noise=0.0, drift=0.0, layer=LAYER):
        self.seconds = 0.0
        self.steps = []
        self._draw = random.Random(3)
        self._noise, self._drift, self._layer = noise, drift, layer

    def clock(self):
        return self.seconds

    def step_seconds(self, point, *, depth):
        tokens = point.batch + point.chunk
        taken = FIXED + depth * self._layer * (1 + 0.01 * tokens)
        taken *= 1 + abs(self._draw.gauss(0, self._noise)) + self._drift * self.seconds
        self.seconds += taken
        self.steps.append((point, depth))
        return taken


def _document(key, measured, points):
    def of(kind):
        return tuple(m for m, p in zip(measured.points, points, strict=True) if p.kind == kind)

    return Fingerprint(
        key=key,
        source="Measured",
        depths=(1, 1 + measured.distance),
        decode=of("decode"),
        prefill=of("prefill"),
        mixed=of("mixed"),
        notes=measured.notes,
    )


def test_a_quiet_machine_needs_few_repeats_of_one_and_two_layers():
    """Without noise every point is good at once, with the paper's pair of depths."""
    bench = FakeBench()
    measured = measure(bench, CPU, seconds=100, clock=bench.clock)
    assert measured.distance == 1
    assert measured.notes == ()
    assert {p.repeats for p in measured.points} == {6}


def test_known_times_come_out_of_a_noisy_machine():
    """F and h of the fake are recovered within the error that is reported."""
    from tests.unit.planning.builders import a_key

    bench = FakeBench(noise=0.02)
    measured = measure(bench, CPU, seconds=200, clock=bench.clock)
    document = _document(a_key(), measured, CPU)
    assert len(dump(document)) < 4096
    model = fit(document, depth=30)
    truth = FIXED + 30 * LAYER * (1 + 0.01 * 4)
    predicted = model.step_us(StepWork(tokens=4, sampled=4, batch=4, kv_tokens=4 * 256)) / 1e6
    # The fake's noise only slows steps down, on average by 1.6 %.
    assert abs(predicted / (truth * 1.016) - 1) < 0.05


def test_noise_that_hides_a_layer_asks_for_more_layers():
    """A thin layer beside a thick fixed part is measured at 2 or 4 layers' distance."""
    bench = FakeBench(noise=0.1, layer=0.0001)
    assert measure(bench, QUICK, seconds=30, clock=bench.clock).distance > 1


def test_time_goes_to_the_points_that_are_known_worst():
    """Every point gets its least repeats, the noisy ones more, and the limit is kept."""
    bench = FakeBench(noise=0.05)
    measured = measure(bench, QUICK, seconds=60, clock=bench.clock)
    repeats = [p.repeats for p in measured.points]
    assert min(repeats) >= 6
    assert max(repeats) > min(repeats)
    assert bench.seconds < 61


def test_a_machine_too_noisy_for_the_time_says_so():
    """What stays noisy is marked, not hidden."""
    bench = FakeBench(noise=0.8, layer=0.0001)
    measured = measure(bench, QUICK, seconds=2, clock=bench.clock)
    assert measured.notes in {("TimeLimit",), ("Unidentifiable",)}
    assert measured.worst_error > 0.03


def test_drift_cancels_because_depths_alternate():
    """A machine that slows down by half during the run does not bend the layer time."""
    bench = FakeBench(drift=0.02)
    measured = measure(bench, QUICK, seconds=20, clock=bench.clock)
    first = measured.points[0]
    ratio = first.t2_us / first.t1_us
    step = LAYER * (1 + 0.01)
    assert abs(ratio / ((FIXED + 2 * step) / (FIXED + step)) - 1) < 0.02
    depths = [depth for point, depth in bench.steps if point == QUICK[0]][-4:]
    assert depths == [1, 2, 2, 1]
