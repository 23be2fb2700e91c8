"""One node of played pods per module; a proxy, an operator and a namespace per scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from e2e.faults import bench as benches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e.cluster.api import Cluster


@pytest.fixture(scope="session")
def installation(control_plane: Cluster) -> benches.Installation:
    """The chart's rights and prices."""
    return benches.install(control_plane)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of played models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def node(
    control_plane: Cluster,
    installation: benches.Installation,
    undisturbed: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """A node whose pods are played; it is there for this module's tests only.

    `undisturbed` plays a node of the same name and takes it away again: it must have ended before,
    whichever test comes first.
    """
    with benches.played_node(control_plane, tmp_path_factory.mktemp("node")):
        yield


@pytest.fixture
def bench(
    control_plane: Cluster,
    installation: benches.Installation,
    node: None,
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[benches.Bench]:
    """A fresh namespace, a proxy and a running operator."""
    folder = tmp_path_factory.mktemp("bench")
    with benches.bench(control_plane, installation, folder, models=models) as found:
        yield found


@pytest.fixture(scope="session")
def undisturbed(
    control_plane: Cluster,
    installation: benches.Installation,
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the intent `chat` comes to when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with (
        benches.played_node(control_plane, folder),
        benches.bench(control_plane, installation, folder, models=models) as found,
    ):
        found.apply(found.intent())
        found.wait_settled()
        assert not found.proxy.injected
        return found.end_state()
