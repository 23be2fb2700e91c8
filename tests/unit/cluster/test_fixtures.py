"""When the cluster fixtures skip and when they fail, and who removes what."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.outcomes import Failed, Skipped

from e2e.cluster import api, embedded, pytest_plugin
from e2e.cluster.errors import BuildError, ClusterError, LevelUnavailableError
from e2e.cluster.state import State

if TYPE_CHECKING:
    from pathlib import Path

MISSING = LevelUnavailableError("It needs root. Remedy: be root.")


class Cluster:
    """Stands for a cluster that started; remembers what was asked for and removed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[dict[str, Any]] = []
        self.removed: list[str] = []

    def up(self, **arguments: Any) -> str:
        self.asked.append(arguments)
        if self.error:
            raise self.error
        return "cluster"

    def down(self, name: str) -> bool:
        self.removed.append(name)
        return True


def a_cluster(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Cluster:
    cluster = Cluster(error)
    monkeypatch.setattr(api, "up", cluster.up)
    monkeypatch.setattr(api, "down", cluster.down)
    monkeypatch.setattr(embedded, "remove_orphans", lambda _: [])
    monkeypatch.delenv("TRIMTAB_TEST_CLUSTER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    return cluster


@pytest.mark.parametrize("error", [MISSING, BuildError("go build failed")])
def test_a_level_that_cannot_start_is_skipped_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A person sees in the skip reason what to install."""
    a_cluster(monkeypatch, error)
    with pytest.raises(Skipped, match=str(error)), pytest_plugin.running("node"):
        pass


@pytest.mark.parametrize("level", ["control-plane", "node"])
def test_in_ci_the_control_plane_and_node_levels_must_start(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """In CI a missing requirement fails the tier instead of hiding it."""
    a_cluster(monkeypatch, MISSING)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Failed, match=r"must run: It needs root"), pytest_plugin.running(level):
        pass


def test_in_ci_the_process_level_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in node is optional everywhere."""
    a_cluster(monkeypatch, MISSING)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(Skipped), pytest_plugin.running("process"):
        pass


def test_a_session_owns_and_removes_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session's cluster carries its pid and is gone after it, also when a test failed."""
    cluster = a_cluster(monkeypatch)
    with pytest.raises(ZeroDivisionError), pytest_plugin.running("node"):
        raise ZeroDivisionError
    name = f"test-node-{os.getpid()}"
    assert cluster.asked[0]["name"] == name
    assert cluster.asked[0]["owned"] is True
    assert cluster.removed == [name]


def test_a_shared_cluster_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRIMTAB_TEST_CLUSTER the next session finds the cluster warm."""
    cluster = a_cluster(monkeypatch)
    monkeypatch.setenv("TRIMTAB_TEST_CLUSTER", "mine")
    with pytest_plugin.running("node"):
        pass
    assert cluster.asked[0]["name"] == "mine-node"
    assert cluster.removed == []


def test_a_start_that_breaks_half_way_is_removed_and_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A component that dies at start is an error of the tier, and leaves nothing."""
    cluster = a_cluster(monkeypatch, ClusterError("etcd ended"))
    with pytest.raises(ClusterError, match="etcd ended"), pytest_plugin.running("node"):
        pass
    assert cluster.removed == [f"test-node-{os.getpid()}"]


def test_clusters_of_sessions_that_died_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed session's cluster goes with the next session; a living one's and a user's stay."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mine = [str(os.getpid()), str(embedded.start_time(os.getpid()))]
    for name, owner in (
        ("test-dead", [str(os.getpid()), "1"]),
        ("test-alive", mine),
        ("test-kept", []),
        ("demo", [str(os.getpid()), "1"]),
    ):
        State(name=name, provider="embedded", level="process", owner=owner).save()
    assert embedded.remove_orphans("test-") == ["test-dead"]
    left = sorted(path.name for path in (tmp_path / "trimtab/clusters").iterdir() if path.is_dir())
    assert left == ["demo", "test-alive", "test-kept"]
