"""The learner: it finds each input's class, and survives numbers that break it."""

import numpy as np
import pytest

from trimtab.rightsizing.learner import LEVELS, Basis, CostSensitive, Scaler
from trimtab.rightsizing.targets import cost_vector


def test_the_learner_finds_two_kinds_of_input():
    """Two inputs with different targets are told apart after a hundred lessons each."""
    learner = CostSensitive(8, 3)
    small, large = np.array([1.0, -1.0, 0.0]), np.array([1.0, 1.0, 1.0])
    for _ in range(100):
        learner.learn(small, cost_vector(8, target=1, under=4.0))
        learner.learn(large, cost_vector(8, target=6, under=4.0))
    assert int(learner.costs(small).argmin()) == 1
    assert int(learner.costs(large).argmin()) == 6


def test_a_lesson_that_breaks_the_weights_is_not_learned():
    """An update that would leave infinity is refused and leaves the weights alone."""
    learner = CostSensitive(4, 2)
    before = learner.weights.copy()
    assert not learner.learn(np.array([1.0, 1e300]), np.full(4, 1e300))
    assert (learner.weights == before).all()
    assert learner.learn(np.array([1.0, 1.0]), np.ones(4))


def test_numbers_are_standardised_in_logarithms_and_clipped():
    """The mean becomes 0, and nothing is more than three deviations away."""
    scaler = Scaler(1)
    assert scaler.standard((5.0,)).tolist() == [0.0]
    for value in (9.0, 99.0, 999.0):
        scaler.add((value,))
    assert scaler.standard((99.0,))[0] == pytest.approx(0.0)
    assert scaler.standard((999.0,))[0] == pytest.approx(1.0)
    assert scaler.standard((1e30,))[0] == 3.0


def test_a_number_that_never_varies_is_nought():
    """A constant feature does not divide by nothing."""
    scaler = Scaler(1)
    for _ in range(5):
        scaler.add((7.0,))
    assert scaler.standard((7.0,)).tolist() == [0.0]


def test_the_basis_bends():
    """Bias, the number, and its hinges where it is above them."""
    basis = Basis(numbers=1, categories=False)
    assert basis.width == 6
    x = basis.inputs(np.array([1.0]), ())
    assert x.tolist() == pytest.approx([1.0, 1.0, 1.7, 1.0, 0.3, 0.0])


def test_only_two_numbers_bend_where_there_are_many():
    """Beyond sixteen inputs the third number and later are plain."""
    assert Basis(numbers=3, categories=False).width == 16
    assert Basis(numbers=4, categories=False).width == 1 + 4 + 8
    assert Basis(numbers=4, categories=False, hinges=False).width == 5


def test_late_categories_share_a_place():
    """Seven categories have places of their own; whatever comes later shares the eighth."""
    basis = Basis(numbers=0, categories=True)
    basis.admit([f"k={i}" for i in range(20)])
    assert len(basis.levels) == LEVELS - 1
    first, other = basis.inputs(np.zeros(0), ["k=0"]), basis.inputs(np.zeros(0), ["k=19"])
    assert first[1] == 1.0
    assert other[LEVELS] == 1.0
    assert basis.inputs(np.zeros(0), ["k=never"]).tolist() == other.tolist()
