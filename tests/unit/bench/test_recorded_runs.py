"""Recorded runs and features as people write them: what is a number is decided function by function."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.rightsizing.sizing_builders import a_function, a_usage, an_input
from trimtab.bench import recorded_runs, rightsizer, sizing_figures
from trimtab.rightsizing import policies, profiled
from trimtab.rightsizing.pool import Limits
from trimtab.rightsizing.pool_sim import PoolSimulation
from trimtab.rightsizing.simulate import Asked, Cause, draws, replay
from trimtab.rightsizing.types import Outcome, Size

HEADER = "function,input,memory_mib,cpu_millis,instance_type,seconds,http_status"
CLASSES = (250, 500, 750, 1000, 1250, 1500, 1750, 2000)


def read(tmp_path, inputs, features=None):
    """Return the functions of runs at every class, by name; `inputs` are pairs of function and input."""
    runs = tmp_path / "runs.csv"
    lines = [f"{f},{i},128,{cpu},m5.large,1.0,200" for f, i in inputs for cpu in CLASSES]
    runs.write_text("\n".join([HEADER, *lines]))
    known = {}
    if features is not None:
        (tmp_path / "features.csv").write_text(features)
        known = recorded_runs.read_features(tmp_path / "features.csv")
    found = recorded_runs.functions(
        recorded_runs.read_runs(runs), family="m5", classes=CLASSES, known=known, synthetic=()
    )
    return {function.name: function for function in found}


def features_of(function):
    """Return each input's features by its name."""
    return {one.name: one.features for one in function.inputs}


def test_another_function_s_column_makes_no_category(tmp_path):
    """A word in one function's rows leaves the column a number for the other."""
    found = read(
        tmp_path,
        [("f", "a"), ("g", "b")],
        "input,size\na,10\nb,large\n",
    )
    assert features_of(found["f"])["a"].numbers == (10.0,)
    assert features_of(found["g"])["b"].categories == ("size=large",)


def test_an_input_without_a_row_is_missing_beside_those_that_have_one(tmp_path):
    """A number as its name is no feature where others of its function have rows."""
    found = read(tmp_path, [("f", "1"), ("f", "2")], "input,size,bytes\n1,10,20\n")
    features = features_of(found["f"])
    assert features["1"].numbers == (10.0, 20.0)
    assert features["2"].missing == "size:absent"
    assert len(features["2"].numbers) == 2


def test_a_row_is_of_its_function_alone(tmp_path):
    """Two functions with inputs of one name have rows of their own."""
    found = read(tmp_path, [("f", "a"), ("g", "a")], "function,input,size\nf,a,10\ng,a,20\n")
    assert features_of(found["f"])["a"].numbers == (10.0,)
    assert features_of(found["g"])["a"].numbers == (20.0,)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("f,1,256.0,250.0,m5.large,1.0,200.0", True),
        ("f,1,256,250,m5.large,,500", False),
        ("f,1,256,250,m5.large,0,500", False),
        ("f,1,256,250,m5.large,1.0,", False),
    ],
)
def test_a_run_is_read_as_it_was_written(tmp_path, line, good):
    """Whole numbers may have a point, and a run that failed needs no time."""
    path = tmp_path / "runs.csv"
    path.write_text(f"{HEADER}\n{line}\n")
    (found,) = recorded_runs.read_runs(path)
    assert (found.mem_mib, found.cpu_m, found.good) == (256, 250, good)


def test_a_regression_gives_the_default_where_a_feature_is_missing():
    """An input that lacks a feature is not regressed on, and teaches nothing."""
    function = a_function((1.0, 4.0))
    policy = policies.Regression(function)
    known = Asked(features=an_input(4), budget_s=10.0, index=0)
    lacking = Asked(features=an_input(0, missing="n:absent"), budget_s=10.0, index=1)
    for _ in range(12):
        policy.observe(known, a_usage(cpu_s=4.0, wall_s=4.0), Outcome())
    before = policy.decide(known)
    for _ in range(12):
        policy.observe(lacking, a_usage(cpu_s=90.0, wall_s=90.0), Outcome())
    assert policy.decide(lacking) == (function.ladder.default, "default:FeatureMissing")
    assert policy.decide(known) == before


def test_a_payload_is_representative_where_its_feature_is_known():
    """Profiling does not take an input that lacks its feature for the smallest."""
    function = a_function((9.0, 1.0), numbers=(9.0, 1.0), deadline_s=10.0)
    lacking = function.inputs[0]
    object.__setattr__(lacking, "features", an_input(99, missing="n:absent"))
    found = profiled.parrotfish_like(function, random=np.random.default_rng(0))
    assert found.policy.size.cpu_m < 900


def test_figures_of_no_request_are_null():
    """Nobody late among nobody is no share of 0 %."""
    function = a_function((1.0,))
    empty = sizing_figures.answers(
        function, replay(function, policies.best_static(function), []), memory=True
    )
    found = sizing_figures.figures([empty], warm_up=0)
    assert found["requests"] == 0
    assert found["violations_percent"] is None
    assert found["mean_vcpu"] is None
    assert math.isfinite(found["late"])


@pytest.mark.parametrize(
    ("machine", "family"), [("m5.large", "m5"), ("n2-standard-16", "n2-standard")]
)
def test_a_machine_has_a_family_in_either_spelling(machine, family):
    """A type is its family with a size behind a point, or behind the last hyphen."""
    assert recorded_runs.family_of(machine) == family


@pytest.mark.parametrize("machine", ["m5.large", "n2-standard-2"])
@pytest.mark.parametrize("classes", [CLASSES, tuple(range(100, 1300, 100))])
def test_any_family_and_classes_run_without_options(tmp_path, machine, classes):
    """Without --machine and --classes what is in the file is taken."""
    path = tmp_path / "runs.csv"
    lines = [f"f,{i},128,{cpu},{machine},1.0,200" for i in (1, 2) for cpu in classes]
    path.write_text("\n".join([HEADER, *lines]))
    options = ["--runs", str(path), "--requests", "20", "--warm-up", "0", "--seeds", "1"]
    given = rightsizer.options().parse_args([*options, "--policies", "trimtab"])
    found = rightsizer.measure(given)
    assert found["options"]["machine"] == recorded_runs.family_of(machine)
    assert len(found["harness"]["static_late_percent"]) == len(classes)


def test_a_single_type_can_be_named(tmp_path):
    """--machine takes a whole type where families are told apart by a number."""
    path = tmp_path / "runs.csv"
    path.write_text(f"{HEADER}\nf,1,128,250,n2-standard-2,1,200\nf,1,128,500,n2-standard-4,1,200")
    runs = recorded_runs.read_runs(path)
    assert recorded_runs.machines(runs, family="n2-standard-2", classes=(250, 500)) == {
        250: "n2-standard-2"
    }


def a_function_that_failed_at(cpu_m, *, deadline_s=10.0):
    """Return a function of one input that never succeeded at a class."""
    function = a_function((1.0,), deadline_s=deadline_s)
    (one,) = function.inputs
    return replace(function, inputs=(replace(one, seconds={**one.seconds, cpu_m: ()}),))


def test_a_class_that_never_succeeded_is_late_before_any_deadline():
    """Beyond 600 s too a run that nobody saw succeed is late, with arrivals and when profiling."""
    function = a_function_that_failed_at(250, deadline_s=900.0)
    size = Size(250, 2048)
    asked = draws([1], requests=3, random=np.random.default_rng(0))[0]
    found = replay(function, policies.Constant(size), asked)
    assert found.cause == [Cause.UNDERSIZE] * 3
    simulation = PoolSimulation(
        function,
        policies.Constant(size),
        limits=Limits(max_pods=4, idle_s=60.0),
        starts_s=itertools.repeat(1.0),
    )
    assert simulation.serve([(0.0, draw) for draw in asked]).late == 3
    lab = profiled.Lab(function=function, random=np.random.default_rng(0))
    assert lab.run(0, size) > 1


@pytest.mark.parametrize("regime", ["A", "B", "C"])
def test_a_deadline_comes_from_a_class_that_succeeded(regime):
    """Where 1 vCPU never succeeded the nearest class that did is the reference, and not 600 s."""
    function = a_function_that_failed_at(1000)
    found = recorded_runs.with_deadlines(function, regime=regime, factor=1.2)
    assert found.deadlines == pytest.approx((1.2 / 0.75,))


def test_each_function_has_a_type_of_its_own(tmp_path):
    """A function that ran on a larger type of the family stays beside one that ran on a smaller."""
    path = tmp_path / "runs.csv"
    lines = [
        f"{function},1,128,{cpu},{machine},1.0,200"
        for function, machine in (("f", "m5.large"), ("g", "m5.xlarge"))
        for cpu in CLASSES
    ]
    path.write_text("\n".join([HEADER, *lines]))
    found = recorded_runs.functions(
        recorded_runs.read_runs(path), family="m5", classes=CLASSES, known={}, synthetic=()
    )
    assert [function.name for function in found] == ["f", "g"]


def test_what_is_left_out_is_said(tmp_path):
    """An input that ran too seldom, or elsewhere, is named with the reason."""
    path = tmp_path / "runs.csv"
    lines = [f"f,1,128,{cpu},m5.large,1.0,200" for cpu in CLASSES]
    others = ["f,2,128,250,m5.large,,500", "g,1,128,250,c5.large,1.0,200"]
    path.write_text("\n".join([HEADER, *lines, *others]))
    options = ["--runs", str(path), "--requests", "20", "--warm-up", "0", "--seeds", "1"]
    given = rightsizer.options().parse_args([*options, "--policies", "trimtab"])
    found = rightsizer.measure(given)
    never = "classes on m5, never with success"
    assert found["left_out"] == [
        {"function": "f", "input": "2", "why": f"ran at 1 of 8 {never}"},
        {"function": "g", "input": "1", "why": f"ran at 0 of 8 {never}"},
    ]
    assert "left out: input 2 of function f" in rightsizer.text(found)
