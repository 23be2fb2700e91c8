"""Policies and simulator on a function that is a formula, so that each answer can be worked out."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.rightsizing.sizing_builders import LADDER, LAYOUT, a_function
from trimtab.rightsizing import policies, profiled
from trimtab.rightsizing.policy import DEFAULT
from trimtab.rightsizing.simulate import (
    Cause,
    best_constant,
    drawn,
    draws,
    expected_late,
    replay,
)
from trimtab.rightsizing.types import Size

WORKS = (1.0, 2.0, 4.0, 8.0)
FLOORS = (128, 256, 512, 1024)


def requests(function, count, *, seed=0):
    """Return a function's requests."""
    return draws([len(function.inputs)], requests=count, random=np.random.default_rng(seed))[0]


def ours(function, **fields):
    """Return the production model as a policy."""
    return policies.Trimtab(function, **{"layout": LAYOUT, "policy": DEFAULT} | fields)


def test_the_simulator_draws_each_input_from_its_own_cells():
    """Place q of a cell is the q-th of its sorted times, and an empty cell is 600 s."""
    function = a_function(WORKS)
    assert drawn(function.inputs[1], 250, 0.99) == 8.0
    assert drawn(function.inputs[1], 333, 0.5) == 600.0


def test_two_hundred_requests_are_sized_and_none_is_late():
    """Nobody is late, most are not gated, several sizes are used, and small ones waste less."""
    function = a_function(WORKS, floors=FLOORS)
    asked = requests(function, 200)
    found = replay(function, ours(function), asked)
    assert len(found.seconds) == 200
    assert found.cause == [None] * 200
    assert sum(source.startswith("default") for source in found.source) < 100
    assert len(set(zip(found.cpu_m, found.mem_mib, strict=True))) >= 3
    last = {i: (found.cpu_m[k], found.mem_mib[k]) for k, i in enumerate(found.index)}
    assert last == {0: (250, 256), 1: (250, 384), 2: (500, 640), 3: (1000, 1280)}


def test_the_gate_is_what_saves_new_inputs():
    """Large inputs after many small ones are in time with the gate, and late without it."""
    numbers = (*range(1000, 1012), 10, 3)
    function = a_function((*(0.5,) * 12, 60.0, 64.0), deadline_s=80.0, numbers=numbers)
    asked = [
        *(draw for draw in requests(function, 300) if draw.index < 12),
        *(draw for draw in requests(function, 100, seed=1) if draw.index >= 12),
    ]
    gated = replay(function, ours(function), asked)
    open_ = replay(function, ours(function, policy=replace(DEFAULT, warm_up=0, known=0)), asked)
    assert gated.cause == [None] * len(asked)
    assert Cause.UNDERSIZE in open_.cause


def test_a_kill_costs_a_second_run():
    """Too little memory runs the request again at the largest size, and its time is both."""
    function = a_function((2.0,), floors=(512,), deadline_s=5.0)
    found = replay(function, policies.Constant(Size(500, 256)), requests(function, 3))
    assert found.oom == [True] * 3
    assert found.seconds == [4.0 + 2.0] * 3
    assert found.mem_mib == [2048] * 3
    assert found.cause == [Cause.OOM] * 3


def test_causes_are_told_apart():
    """Too small, impossible, and slow by chance are different misses."""
    function = a_function((4.0, 30.0), deadline_s=10.0)
    found = replay(function, policies.Constant(Size(250, 2048)), requests(function, 20))
    told = dict(zip(found.index, found.cause, strict=True))
    assert told == {0: Cause.UNDERSIZE, 1: Cause.INFEASIBLE}


def test_the_best_constant_serves_the_slowest_input():
    """In hindsight: the fewest late, then the smallest of both."""
    function = a_function(WORKS, floors=FLOORS)
    assert best_constant(function) == Size(1000, 1024)
    assert expected_late(function, 250) == 0.5
    assert policies.best_static(function).size == Size(1000, 1024)


def test_the_oracle_gives_each_input_its_own():
    """Per input the smallest class with 95 % in time, and the memory that it runs with."""
    function = a_function(WORKS, floors=FLOORS)
    found = replay(function, policies.Oracle(function), requests(function, 50))
    assert found.cause == [None] * 50
    assert {i: found.cpu_m[k] for k, i in enumerate(found.index)} == {
        0: 250,
        1: 250,
        2: 500,
        3: 1000,
    }


@pytest.mark.parametrize("policy", [policies.Regression, policies.CypressLike])
def test_a_regression_learns_a_formula(policy):
    """Work that is a power of the feature is predicted from ten runs on."""
    function = a_function(WORKS, floors=FLOORS)
    found = replay(function, policy(function), requests(function, 100))
    assert found.cause == [None] * 100
    last = {i: found.cpu_m[k] for k, i in enumerate(found.index)}
    assert last[0] == 250
    assert last[2] == 500
    assert last[3] in {1000, 1250}


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [
        (policies.VPALike, {Size(1250, 1280)}),
        (policies.KRRLike, {Size(1000, 1280), Size(1250, 1280)}),
    ],
)
def test_recommenders_of_use_find_one_size(policy, sizes):
    """One size for every input, from a percentile of what was used."""
    function = a_function(WORKS, floors=FLOORS)
    found = replay(function, policy(function.ladder), requests(function, 300))
    assert set(map(Size, found.cpu_m[100:], found.mem_mib[100:])) <= sizes


@pytest.mark.parametrize("profile", [profiled.parrotfish_like, profiled.aquatope_like])
def test_profiling_finds_a_size_that_serves_all(profile):
    """One size that meets every input's deadline, with its runs counted."""
    function = a_function(WORKS, floors=FLOORS)
    found = profile(function, random=np.random.default_rng(0))
    assert found.policy.size.covers(Size(1000, 1024))
    assert found.runs > 20
    assert found.vcpu_seconds > 0


def test_profiling_without_a_sound_size_takes_the_largest():
    """Where nothing meets the deadline the search ends with the fastest."""
    function = a_function((30.0,), deadline_s=1.0)
    found = profiled.aquatope_like(function, random=np.random.default_rng(0))
    assert found.policy.size == LADDER.largest
    found = profiled.parrotfish_like(function, random=np.random.default_rng(0))
    assert found.policy.size.cpu_m >= 1000


def test_few_sizes_are_four():
    """With few sizes nobody is late either, and four pools at most are used at a time."""
    function = a_function(tuple(0.5 * k for k in range(1, 16)), floors=(128,) * 15)
    policy = ours(function, few_sizes=True)
    found = replay(function, policy, requests(function, 600))
    assert set(found.cause) == {None}
    assert 2 <= len(policy.model.sizes) <= 4
    assert len(set(zip(found.cpu_m[-100:], found.mem_mib[-100:], strict=True))) <= 5
