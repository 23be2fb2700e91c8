"""Step times and memory for fingerprints come from real steps, at any depth."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.unit.engine.builders import TINY
from trimtab_workers.engine.measure import StepMeter


@pytest.fixture(scope="module")
def meter() -> StepMeter:
    return StepMeter(TINY, dtype="fp32", max_sequences=4, max_context=256, max_chunk=64)


@contextlib.contextmanager
def _rows_per_layer(meter: StepMeter, rows: list[int]) -> Iterator[None]:
    """Note the rows of every layer that is run, by the kernels or by torch."""
    runner = meter.engine.tenant("measured").runner
    model, native = runner.model, runner._native
    original = model._run_layer

    def counted(*args: object, **kwargs: object) -> object:
        rows.append(len(args[0]))
        return original(*args, **kwargs)

    class Counting:
        """The kernels, with their steps noted."""

        def __getattr__(self, name: str) -> object:
            return getattr(kernels, name)

        def tt_step(self, pool: object, shape: object, step: object) -> int:
            rows.extend([step._obj.rows] * (step._obj.last - step._obj.first))
            return kernels.tt_step(pool, shape, step)

    model._run_layer = counted
    if native is not None:
        kernels, native._kernels = native._kernels, Counting()
    try:
        yield
    finally:
        model._run_layer = original
        if native is not None:
            native._kernels = kernels


@pytest.mark.parametrize(
    "point",
    [
        {"batch": 4, "context": 256},
        {"batch": 1, "context": 1},
        {"chunk": 64},
        {"chunk": 64, "cached": 192},
        {"chunk": 32, "batch": 4, "context": 100},
    ],
)
def test_every_kind_of_step(meter: StepMeter, point: dict[str, int]):
    """Decode, prefill, continued prefill and mixed steps run at both depths and leave no trace."""
    rows: list[int] = []
    with _rows_per_layer(meter, rows):
        assert meter.measure_step(**point, layers=1) > 0
        assert meter.measure_step(**point, layers=2) > 0
    tokens = point.get("batch", 0) + point.get("chunk", 0)
    assert rows in ([tokens] * 3, [max(4, tokens)] * 3)
    assert meter.engine.state()["kv"]["used_tokens"] == 0


def test_preparation_is_not_timed():
    """What is done before a step, such as emptying caches, runs once per step and is not timed."""
    from trimtab_workers.engine.clock import VirtualClock

    clock = VirtualClock()
    meter = StepMeter(
        TINY, max_context=64, max_chunk=16, clock=clock, prepare=lambda: clock.advance(5.0)
    )
    assert meter.measure_step(1, 10) == 0.0
    assert clock.now() == 5.0


@pytest.mark.parametrize("point", [{}, {"chunk": 8, "layers": 3}, {"batch": 4, "context": 9000}])
def test_impossible_points(meter: StepMeter, point: dict[str, int]):
    """Points without work, deeper than the model or beyond the cache are refused."""
    with pytest.raises(ValueError, match=r"measure_step: .*(Give|Raise)"):
        meter.measure_step(**point)


def test_memory_does_not_depend_on_depth_where_it_must_not():
    """Weights grow by one layer per layer; a step's peak allocation is the same at both depths."""
    rows = [
        StepMeter(TINY | {"num_hidden_layers": depth}, max_context=128, max_chunk=64).memory(
            chunk=64
        )
        for depth in (1, 2)
    ]
    layer = (96 * 160 + 96 * 96 + 3 * 128 * 96) * 2
    norms = 2 * 96 * 2
    assert rows[1].weights - rows[0].weights == layer + norms
    assert rows[0].activation == pytest.approx(rows[1].activation, rel=0.02)
    assert rows[0].activation > 64 * 96 * 2
    assert rows[0].non_torch > 0
