"""Processes are known by pid, start time and boot, and by nothing else."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from e2e.cluster.errors import ClusterError
from e2e.cluster.processes import Processes, Record, boot_id, start_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable, "-I", "-S", "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]  # fmt: skip


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    known = Processes(tmp_path)
    yield known
    known.stop_all(grace_seconds=0)


def until_it_speaks(processes: Processes, component: str) -> None:
    deadline = time.monotonic() + 20
    while "\nup" not in processes.log(component).read_text():
        assert time.monotonic() < deadline, processes.tail(component)
        time.sleep(0.01)


def test_a_started_process_is_recorded_with_its_real_identity(processes: Processes) -> None:
    """The record names the component itself, not what launched it."""
    record = processes.start("sleeper", SLEEP)
    until_it_speaks(processes, "sleeper")
    assert record.alive
    assert start_time(record.pid) == record.started
    assert os.getsid(record.pid) == record.pid


def test_a_running_component_is_not_started_again(processes: Processes) -> None:
    """Starting twice gives the same process."""
    assert processes.start("sleeper", SLEEP) == processes.start("sleeper", SLEEP)


def test_stop_ends_and_forgets(processes: Processes) -> None:
    """After stop the process is gone and so is its record."""
    record = processes.start("sleeper", SLEEP)
    processes.stop("sleeper")
    assert not record.alive
    assert processes.get("sleeper") is None


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(
    processes: Processes,
) -> None:
    """Nothing can refuse to be stopped."""
    record = processes.start("stubborn", STUBBORN)
    until_it_speaks(processes, "stubborn")
    processes.stop("stubborn", grace_seconds=0.1)
    assert not record.alive


@pytest.mark.parametrize("other", [{"started": "1"}, {"boot": "another-boot"}])
def test_a_reused_pid_is_never_signalled(processes: Processes, other: dict[str, str]) -> None:
    """A record of another start time or boot is of another process, which is left in peace."""
    record = processes.start("sleeper", SLEEP)
    fields = {"started": record.started, "boot": record.boot} | other
    stranger = Record(component="sleeper", pid=record.pid, **fields)
    assert not stranger.alive
    stranger.kill(signal.SIGKILL)
    assert record.alive


def test_a_program_that_is_not_there_is_an_error_that_names_it(processes: Processes) -> None:
    """A missing binary is reported at once and leaves no record."""
    with pytest.raises(ClusterError, match=r"ghost could not be started: .*/no/such/binary"):
        processes.start("ghost", ["/no/such/binary"])
    assert processes.get("ghost") is None


def test_a_process_runs_on_the_cpus_it_is_given(processes: Processes) -> None:
    """The control plane can be kept off the CPUs where something is measured."""
    first = min(os.sched_getaffinity(0))
    record = processes.start("pinned", SLEEP, cpus=[first])
    assert os.sched_getaffinity(record.pid) == {first}


def test_this_boot_has_an_id() -> None:
    """Start times are counted from boot, so without its id a record would outlive a reboot."""
    assert len(boot_id()) == 36
