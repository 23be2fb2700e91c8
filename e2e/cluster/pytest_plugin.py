"""Session fixtures `control_plane`, `process_cluster` and `node_cluster`: one real cluster per level.

Each session starts its own and removes it at its end, so that sessions do not disturb each other. With
`TRIMTAB_TEST_CLUSTER=NAME` the clusters `NAME-<level>` are started if need be, used and left running;
with `TRIMTAB_KUBECONFIG` that cluster serves as every level. A level that cannot start skips its tests and
says what is missing; with `CI=true` the control-plane and node levels must start.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from e2e.cluster import api, build, embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.cluster.api import Cluster

PREFIX = "test-"
REQUIRED_IN_CI = ("control-plane", "node")


LEVELS = {"control_plane": "control-plane", "process_cluster": "process", "node_cluster": "node"}
"""Fixture → level."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the collected tests need before the first one runs, because a test's time is limited.

    What fails here fails again, with its reason, in the fixture.
    """
    if session.config.option.collectonly or "TRIMTAB_KUBECONFIG" in os.environ:
        return
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    for fixture, level in LEVELS.items():
        if fixture in used and not embedded.missing(level):
            with contextlib.suppress(api.ClusterError):
                build.build_level(level, console=Console(file=sys.__stderr__))


def _report(line: str) -> None:
    print(f"  {line}", file=sys.__stderr__, flush=True)


@contextlib.contextmanager
def running(level: str) -> Iterator[Cluster]:
    """Give a cluster of a level for the length of the block, or skip with what is missing."""
    shared = os.environ.get("TRIMTAB_TEST_CLUSTER")
    name = f"{shared}-{level}" if shared else f"{PREFIX}{level}-{os.getpid()}"
    embedded.remove_orphans(PREFIX)
    try:
        cluster = api.up(name=name, level=level, report=_report, owned=not shared)
    except (api.LevelUnavailableError, api.BuildError) as exc:
        if os.environ.get("CI") == "true" and level in REQUIRED_IN_CI:
            pytest.fail(f"with CI=true the {level} tier must run: {exc}", pytrace=False)
        pytest.skip(str(exc))
    except api.ClusterError:
        if not shared:
            api.down(name)
        raise
    try:
        yield cluster
    finally:
        if not shared:
            api.down(name)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """Yield a real API server, controllers and scheduler, with kwok for fake nodes; no root needed."""
    with running("control-plane") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def process_cluster() -> Iterator[Cluster]:
    """Yield a control plane with a stand-in node that runs pods as local processes."""
    with running("process") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """Yield a cluster with containerd and kubelet: real pods in real cgroups; needs root on Linux."""
    with running("node") as cluster:
        yield cluster
