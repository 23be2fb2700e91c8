"""Worked by hand: what an invocation needed, and what it may teach."""

import pytest

from tests.unit.rightsizing.sizing_builders import ANSWERED, a_usage
from trimtab.rightsizing.samples import lesson
from trimtab.rightsizing.targets import (
    Work,
    cost_vector,
    need_cpu,
    need_mem,
    smallest_class,
    split,
    throttled,
)
from trimtab.rightsizing.types import Ladder, LadderError, Outcome, PeakKind, Size


@pytest.mark.parametrize(
    ("usage", "work"),
    [
        pytest.param(
            a_usage(cpu_s=8.0, wall_s=10.0), Work(cpu_s=8.0, idle_s=2.0, width=1.0), id="serial"
        ),
        pytest.param(
            a_usage(cpu_s=16.0, wall_s=8.0, cpu_m=2000),
            Work(cpu_s=16.0, idle_s=0.0, width=2.0),
            id="two threads",
        ),
        pytest.param(
            a_usage(cpu_s=0.5, wall_s=5.0), Work(cpu_s=0.5, idle_s=4.5, width=1.0), id="waits"
        ),
        pytest.param(
            a_usage(cpu_s=5.0, wall_s=22.0, held=True, cpu_m=250),
            Work(cpu_s=5.0, idle_s=2.0, width=1.5),
            id="throttled: as wide as was seen before",
        ),
        pytest.param(
            a_usage(cpu_s=18.0, wall_s=10.0, held=True, cpu_m=2000),
            Work(cpu_s=18.0, idle_s=1.0, width=1.8),
            id="throttled: at least as wide as it ran",
        ),
    ],
)
def test_usage_is_split_into_work_and_waiting(usage, work):
    """CPU seconds, seconds that CPU does not shorten, and width follow from one run."""
    found = split(usage, width_seen=1.5)
    assert found.cpu_s == pytest.approx(work.cpu_s)
    assert found.idle_s == pytest.approx(work.idle_s)
    assert found.width == pytest.approx(work.width)


@pytest.mark.parametrize(
    ("work", "need", "infeasible"),
    [
        pytest.param(Work(cpu_s=5.0, idle_s=0.0, width=1.0), 0.575, False, id="serial"),
        pytest.param(Work(cpu_s=16.0, idle_s=0.0, width=2.0), 1.84, False, id="two threads"),
        pytest.param(Work(cpu_s=1.0, idle_s=4.0, width=1.0), 1.15 / 5.4, False, id="waits"),
        pytest.param(Work(cpu_s=9.0, idle_s=0.0, width=1.0), 1.0, True, id="more than it can use"),
        pytest.param(Work(cpu_s=0.1, idle_s=9.0, width=1.0), 1.0, True, id="waits too long"),
    ],
)
def test_need_meets_the_deadline_with_a_margin(work, need, infeasible):
    """A budget of 10 s with a margin of 1.15 asks for m·C/(E - m·I), at most the width."""
    found = need_cpu(work, budget_s=10.0, margin=1.15)
    assert found.cpu == pytest.approx(need)
    assert found.infeasible is infeasible


@pytest.mark.parametrize(
    ("seconds", "periods", "held"), [(0.5, 1, True), (0.49, 9, False), (9.0, 0, False)]
)
def test_throttled_means_a_twentieth_of_the_time(seconds, periods, held):
    """A quota that hardly held a run back does not make it throttled."""
    usage = a_usage(wall_s=10.0, throttled_s=seconds, periods_throttled=periods)
    assert throttled(usage) is held


def test_memory_need_has_headroom_and_holds_the_body():
    """100 MiB of peak need 147; samples need 1.3 times as much; a larger body needs itself."""
    assert need_mem(100, kind=PeakKind.RESET, body_bytes=0, margin=1.15) == pytest.approx(147)
    assert need_mem(100, kind=PeakKind.SAMPLED, body_bytes=0, margin=1.15) == pytest.approx(191.1)
    assert need_mem(1, kind=PeakKind.RESET, body_bytes=500 * 2**20, margin=1.15) == 500


def test_costs_are_dearer_below_the_target():
    """With five classes each step above costs a quarter, each step below four quarters."""
    assert cost_vector(5, target=2, under=4.0).tolist() == [2.0, 1.0, 0.0, 0.25, 0.5]
    assert cost_vector(1, target=0, under=4.0).tolist() == [0.0]


def test_smallest_class_is_the_first_that_is_enough():
    """A need between two classes takes the upper one, one above all the largest."""
    classes = (250, 500, 1000)
    assert [smallest_class(classes, need) for need in (1, 250, 251, 2000)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(status=404), "client_error"),
        (Outcome(client_gone=True), "client_gone"),
        (Outcome(timed_out=True), "timed_out"),
        (Outcome(excluded=True), "excluded"),
        (Outcome(first_call=True), "first_call"),
        (Outcome(transfer_s=1.1), "slow_transfer"),
        (Outcome(overlapping=True), "overlapping"),
        (Outcome(length_differs=True), "length_differs"),
        (Outcome(status=0), "no_answer"),
    ],
)
def test_misleading_samples_teach_nothing(outcome, reason):
    """Each reason to drop a sample is counted by its name."""
    found = lesson(a_usage(wall_s=10.0), outcome)
    assert (found.cpu, found.memory, found.dropped) == (False, False, reason)


def test_some_samples_teach_memory_alone():
    """A server error, a resize and a kill for memory say nothing about time."""
    for usage, outcome, reason in (
        (a_usage(), Outcome(status=500), "server_error"),
        (a_usage(alloc_changed=True), ANSWERED, "resized"),
        (a_usage(oom=True), Outcome(status=0), "oom"),
    ):
        found = lesson(usage, outcome)
        assert (found.cpu, found.memory, found.dropped) == (False, True, reason)
    assert lesson(a_usage(), ANSWERED).dropped is None


def test_a_ladder_is_made_of_two_ranges():
    """Max is a class even where no step leads to it, and the default is rounded up to a class."""
    ladder = Ladder.of(cpu_m=(100, 1050, 500), mem_mib=(128, 512, 128), default_cpu_m=300)
    assert ladder.cpu_m == (100, 600, 1050)
    assert ladder.mem_mib == (128, 256, 384, 512)
    assert ladder.default == Size(600, 512)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu_m": (100, 1000, 50)}, "cpu.step is 50m"),
        ({"mem_mib": (128, 256, 64)}, "memory.step is 64Mi"),
        ({"cpu_m": (2000, 1000, 100)}, "min is 2000m and max is 1000m"),
        ({"cpu_m": (100, 4000, 100)}, "40 classes"),
        ({"default_mem_mib": 4096}, "default is 4096Mi, above max 256Mi"),
    ],
)
def test_a_bad_ladder_is_refused_by_name(fields, words):
    """The message names the field and its value."""
    given = {"cpu_m": (100, 1000, 100), "mem_mib": (128, 256, 128)} | fields
    with pytest.raises(LadderError, match=words):
        Ladder.of(**given)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpu_m": ()}, "0 classes"),
        ({"cpu_m": (500, 250)}, "not positive and ascending"),
        ({"default": Size(300, 128)}, "default is 300"),
    ],
)
def test_bad_classes_are_refused_by_name(fields, words):
    """Classes given one by one are checked too."""
    given = {"cpu_m": (250, 500), "mem_mib": (128,), "default": Size(500, 128)} | fields
    with pytest.raises(LadderError, match=words):
        Ladder(**given)
