"""Which cluster is taken, and what is said about those that are not."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import api, embedded, providers, state
from e2e.cluster.errors import ClusterError, LevelUnavailableError
from e2e.cluster.state import State


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TRIMTAB_KUBECONFIG", raising=False)
    return tmp_path


class Started(list[dict[str, Any]]):
    """Records what the embedded provider was asked to start."""

    def up(self, **arguments: Any) -> State:
        self.append(arguments)
        return State(
            name=arguments["name"],
            provider="embedded",
            level=arguments["level"],
            why=arguments["why"],
        )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    calls = Started()
    monkeypatch.setattr(embedded, "up", calls.up)
    return calls


def no_kind(monkeypatch: pytest.MonkeyPatch, problem: str | None) -> None:
    def up(*, name: str, state_dir: Path, report: object) -> Path:
        assert name
        assert report
        path = state_dir / "from-kind"
        path.write_text("{}")
        return path

    module = types.SimpleNamespace(available=lambda: problem, up=up)
    monkeypatch.setattr(providers, "kind", lambda: module)


def missing(monkeypatch: pytest.MonkeyPatch, **problems: list[str]) -> None:
    monkeypatch.setattr(
        embedded, "missing", lambda level: problems.get(level.replace("-", "_"), [])
    )


def test_a_given_kubeconfig_wins_over_everything(
    home: Path, monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    """`TRIMTAB_KUBECONFIG` is used as it is and nothing is started."""
    given = home / "config"
    given.write_text("{}")
    monkeypatch.setenv("TRIMTAB_KUBECONFIG", str(given))
    cluster = api.up(name="any", level="node")
    assert (cluster.provider, cluster.kubeconfig) == ("given", given)
    assert started == []


def test_a_given_kubeconfig_that_is_no_file_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped path is not silently replaced by another cluster."""
    monkeypatch.setenv("TRIMTAB_KUBECONFIG", "/no/such/config")
    with pytest.raises(ClusterError, match=r"/no/such/config .* is not a file"):
        api.up(name="any")


def test_kind_comes_before_the_embedded_cluster(
    monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    """Where an engine answers, `auto` takes kind, and its kubeconfig is found under the usual name."""
    no_kind(monkeypatch, None)
    cluster = api.up(name="any")
    assert cluster.provider == "kind"
    assert cluster.kubeconfig.read_text() == "{}"
    assert started == []


def test_the_highest_level_that_can_start_is_taken_and_the_rest_explained(
    monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    """The reason names what kind and the higher level lack."""
    no_kind(monkeypatch, "no docker command")
    missing(monkeypatch, node=["It needs root."])
    cluster = api.up(name="any")
    assert cluster.level == "process"
    assert started[0]["level"] == "process"
    assert "no docker command" in cluster.why
    assert "The node level cannot start: It needs root." in cluster.why


def test_a_machine_that_can_start_nothing_says_what_each_level_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing available is an error with a reason, not an attempt."""
    no_kind(monkeypatch, "no docker command")
    problems = ["It is a toaster."]
    missing(monkeypatch, node=problems, process=problems, control_plane=problems)
    with pytest.raises(LevelUnavailableError, match=r"It is a toaster\."):
        api.up(name="any")


def test_a_level_that_is_asked_for_is_not_replaced_by_a_lower_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An explicit level that cannot start is an error that names what is missing."""
    missing(monkeypatch, node=["It needs root."])
    with pytest.raises(LevelUnavailableError, match=r"node level cannot start .* It needs root\."):
        api.up(name="any", level="node")


def test_a_running_cluster_is_not_turned_into_another_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same name at another level is refused with the way out."""
    missing(monkeypatch)
    monkeypatch.setattr(embedded.build, "build_level", lambda *_, **__: {})
    State(name="any", provider="embedded", level="process").save()
    with pytest.raises(ClusterError, match=r"exists at level process .* down --name any"):
        api.up(name="any", level="control-plane")


def test_auto_takes_the_level_that_a_cluster_of_that_name_has(
    monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    """A second `up` without a level continues the first."""
    no_kind(monkeypatch, None)
    State(name="any", provider="embedded", level="control-plane").save()
    assert api.up(name="any").level == "control-plane"
    assert len(started) == 1


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a/b", "..", "x" * 41, "a b"])
def test_names_that_cannot_be_files_and_cgroups_are_refused(name: str) -> None:
    """A cluster's name becomes part of paths, so it is checked before any is made."""
    with pytest.raises(ClusterError, match="lower-case letters, digits and dashes"):
        state.state_dir(name)


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    """A typo in a level names the levels that exist."""
    with pytest.raises(ClusterError, match=r"'nodes'; there are auto, kind, control-plane"):
        api.up(name="any", level="nodes")


def test_down_of_a_cluster_that_never_was_is_nothing() -> None:
    """Removing what is not there succeeds and makes no folders."""
    assert not api.down("any")
    assert state.names() == []


def test_no_image_can_be_loaded_where_none_runs(home: Path) -> None:
    """A level without containers says so rather than accepting an archive."""
    archive = home / "a.tar"
    archive.write_bytes(b"")
    with pytest.raises(ClusterError, match="runs no images"):
        providers.load_image("any", archive, provider="embedded", level="control-plane")


def an_api_cluster(level: str, answers: dict[str, Any]) -> api.Cluster:
    class Answering(api.Cluster):
        def get(self, *arguments: str) -> Any:
            return answers[arguments[0]]

    return Answering(
        name="any",
        provider="embedded",
        level=level,
        why="",
        kubeconfig=Path("c"),
        state_dir=Path("s"),
    )


SERVICE = {"spec": {"clusterIP": "10.200.128.7", "ports": [{"name": "http", "port": 80}]}}
SLICES = {
    "items": [
        {
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["192.0.2.3"], "conditions": {"ready": False}},
                {"addresses": ["192.0.2.4"], "conditions": {"ready": True}},
            ],
        }
    ]
}


@pytest.mark.parametrize(
    ("level", "port", "url"),
    [
        ("node", 80, "http://10.200.128.7:80"),
        ("process", 80, "http://127.0.2.4:8080"),
        ("process", "http", "http://127.0.2.4:8080"),
    ],
)
def test_a_service_url_is_one_that_this_machine_reaches(
    level: str, port: int | str, url: str
) -> None:
    """ClusterIP with real networking; the listening address of a ready pod at the stand-in node."""
    cluster = an_api_cluster(level, {"service": SERVICE, "endpointslices": SLICES})
    assert cluster.service_url("ns", "web", port) == url


def test_a_service_without_the_port_or_a_ready_endpoint_is_an_error() -> None:
    """The message names the ports that exist, or says where to look for pods."""
    cluster = an_api_cluster("process", {"service": SERVICE, "endpointslices": {"items": []}})
    with pytest.raises(ClusterError, match=r"ns/web has no port 81; it has http/80"):
        cluster.service_url("ns", "web", 81)
    with pytest.raises(ClusterError, match=r"ns/web has no ready endpoint .* get pods -n ns"):
        cluster.service_url("ns", "web", 80)
