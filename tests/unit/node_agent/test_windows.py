"""Windows: what was used between begin and end, overlaps, pods that go, limits on their number."""

from __future__ import annotations

import shutil

import pytest

from trimtab.rightsizing.types import PeakKind, Size
from trimtab_workers.node_agent import windows as windows_module
from trimtab_workers.node_agent.app import Sampler, agent_app
from trimtab_workers.node_agent.cgroup import reader
from trimtab_workers.node_agent.windows import (
    PodNotFoundError,
    TooManyWindowsError,
    WindowExistsError,
    WindowNotFoundError,
    Windows,
    pause_seconds,
)

UID = "0f6e9a1c-3b5d-4a7e-9c21-5d8f0b7a6e43"
POD = f"kubepods/burstable/pod{UID}"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def node(tree):
    made = tree(2)
    made.group(POD)
    return made


@pytest.fixture
def windows(node, clock):
    return Windows(reader(node.root), clock=clock)


def test_a_window_has_the_differences_and_the_highest_sample(windows, node, clock) -> None:
    """CPU and throttling are differences, the peak is the highest of all samples, a kill is seen."""
    windows.begin(UID, "a")
    node.group(POD, anon=120)
    clock.now += 0.02
    windows.sample()
    node.group(POD, usage=2_000_000, throttled=90_000, periods=5, anon=60, kills=1)
    clock.now += 0.98
    usage = windows.end(UID, "a").usage
    assert usage.cpu_s == pytest.approx(0.5)
    assert usage.wall_s == pytest.approx(1.0)
    assert (usage.throttled_s, usage.periods_throttled) == (pytest.approx(0.05), 2)
    assert (usage.peak_anon_mib, usage.peak_kind) == (128.0, PeakKind.SAMPLED)
    assert usage.oom
    assert usage.alloc == Size(500, 256)
    assert not usage.alloc_changed


def test_a_resize_within_a_window_is_told(windows, node) -> None:
    """The size at the end is the one reported, and that it changed."""
    windows.begin(UID, "a")
    node.group(POD, cpu_max="200000 100000")
    usage = windows.end(UID, "a").usage
    assert (usage.alloc, usage.alloc_changed) == (Size(2000, 256), True)


def test_windows_that_overlap_are_both_told(windows) -> None:
    """Two invocations in one pod at once cannot be told apart; one after the other can."""
    windows.begin(UID, "a")
    windows.begin(UID, "b")
    assert windows.end(UID, "a").overlapping
    assert windows.end(UID, "b").overlapping
    windows.begin(UID, "c")
    assert not windows.end(UID, "c").overlapping


def test_samples_are_taken_when_they_are_due(windows, node, clock) -> None:
    """A sample before its time reads nothing; without windows there is nothing to wait for."""
    assert windows.sample() is None
    windows.begin(UID, "a")
    node.group(POD, anon=120)
    assert windows.sample() == pytest.approx(0.01)
    node.group(POD, anon=50)
    assert windows.end(UID, "a").usage.peak_anon_mib == 58.0


def test_samples_grow_rarer_with_a_windows_age() -> None:
    """Every 10 ms at first, every 2 % of the age later, every 100 ms at most."""
    assert [pause_seconds(age) for age in (0.0, 0.5, 2.0, 60.0)] == [0.01, 0.01, 0.04, 0.1]


def test_what_cannot_be_begun_or_ended_is_refused(windows, monkeypatch) -> None:
    """Unknown pods, repeated ids, windows that are not open, and too many of them each have their error."""
    with pytest.raises(PodNotFoundError, match="No pod of UID none"):
        windows.begin("none", "a")
    windows.begin(UID, "a")
    with pytest.raises(WindowExistsError):
        windows.begin(UID, "a")
    with pytest.raises(WindowNotFoundError):
        windows.end(UID, "b")
    monkeypatch.setattr(windows_module, "MOST_WINDOWS", 1)
    with pytest.raises(TooManyWindowsError):
        windows.begin(UID, "b")


def test_a_window_that_nobody_ends_is_forgotten(windows, clock) -> None:
    """A gateway that died leaves no window for ever."""
    windows.begin(UID, "a")
    clock.now += 4000
    windows.begin(UID, "b")
    assert len(windows) == 1


def test_sampling_forgets_a_window_that_nobody_ends(windows, clock) -> None:
    """An agent that nobody asks for anything any more comes to rest."""
    windows.begin(UID, "a")
    clock.now += 4000
    assert windows.sample() is None


def test_one_pod_has_a_bounded_number_of_windows(windows) -> None:
    """The seventeenth window of a pod is refused until another has ended."""
    for number in range(16):
        windows.begin(UID, str(number))
    with pytest.raises(TooManyWindowsError, match=f"16 windows are open in pod {UID}"):
        windows.begin(UID, "16")
    assert len(windows) == 16
    windows.end(UID, "0")
    windows.begin(UID, "16")


def test_a_pod_is_read_once_for_all_of_its_windows(node, clock) -> None:
    """Windows that are due together share a sample."""
    source = reader(node.root)
    windows = Windows(source, clock=clock)
    for number in range(3):
        windows.begin(UID, str(number))
    reads = []
    held_bytes = source.held_bytes
    source.held_bytes = lambda group: reads.append(group) or held_bytes(group)
    node.group(POD, anon=120)
    clock.now += 1
    windows.sample()
    assert len(reads) == 1
    node.group(POD, anon=50)
    peaks = [windows.end(UID, str(number)).usage.peak_anon_mib for number in range(3)]
    assert peaks == [128.0] * 3


def test_a_pod_that_ends_within_its_window_has_no_usage(windows, node, clock) -> None:
    """Its end is an error of its own, sampling goes on for the others, and the window is closed."""
    windows.begin(UID, "a")
    shutil.rmtree(node.root / POD)
    clock.now += 1
    assert windows.sample() is not None
    with pytest.raises(PodNotFoundError, match="during window a"):
        windows.end(UID, "a")
    with pytest.raises(WindowNotFoundError):
        windows.end(UID, "a")


def test_a_pod_that_has_just_started_is_found(windows, node, clock) -> None:
    """The tree is looked through again for a pod that was not there before."""
    windows.begin(UID, "a")
    late = UID.replace("0f6e", "1f6e")
    node.group(f"kubepods/pod{late}")
    clock.now += 1
    windows.begin(late, "a")


async def test_the_agent_serves_windows_over_http(windows, node, aiohttp_agent) -> None:
    """POST begins, DELETE ends with integers in the wire's units, refusals have a status and a reason."""
    client = await aiohttp_agent(agent_app(windows, sampler=Sampler(windows)))
    path = f"/-/pods/{UID}/windows/a"
    async with client.post(path) as answer:
        assert answer.status == 201
    async with client.post(path) as answer:
        assert (answer.status, (await answer.json())["error"]) == (409, "WindowExists")
    node.group(POD, usage=2_000_000)
    async with client.delete(path) as answer:
        document = await answer.json()
    assert {
        "cpuMicros": 500_000,
        "peakKib": 58 * 1024,
        "peakKind": "Sampled",
    }.items() <= document.items()
    assert document["overlapping"] is False
    async with client.delete(path) as answer:
        assert (answer.status, (await answer.json())["error"]) == (404, "WindowNotFound")
    async with client.post("/-/pods/none/windows/a") as answer:
        assert (answer.status, (await answer.json())["error"]) == (404, "PodNotFound")
    async with client.post(f"/-/pods/{UID}/windows/{'x' * 200}") as answer:
        assert answer.status == 400
