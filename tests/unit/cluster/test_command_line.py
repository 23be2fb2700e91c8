"""The command line's answers where nothing runs, and in both output formats."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from e2e.cluster import __main__ as cli
from e2e.cluster import build, requirements
from e2e.cluster.errors import ClusterError
from e2e.cluster.state import State

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TRIMTAB_KUBECONFIG", raising=False)


def test_status_of_no_cluster_is_not_success(capsys: pytest.CaptureFixture[str]) -> None:
    """A script sees by the exit status that there is nothing to use."""
    assert cli.main(["status", "--name", "none", "-o", "json"]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "name": "none",
        "cluster": None,
        "components": [],
    }


def test_kubeconfig_of_no_cluster_names_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """The error says how to start the cluster that was asked for."""
    assert cli.main(["kubeconfig", "--name", "none"]) == 2
    assert "up --name none" in " ".join(capsys.readouterr().err.split())


def test_a_cluster_that_never_became_ready_is_not_offered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The kubeconfig of a half-made cluster is not given to anybody."""
    State(name="half", provider="embedded", level="node").save()
    assert cli.main(["kubeconfig", "--name", "half"]) == 2
    assert "no running cluster half" in " ".join(capsys.readouterr().err.split())


def test_down_all_removes_every_cluster_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    """Two recorded clusters are both gone afterwards, and a second time there is nothing."""
    for name in ("one", "two"):
        State(name=name, provider="embedded", level="process").save()
    assert cli.main(["down", "--all", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": ["one", "two"]}
    assert cli.main(["down", "--all", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": []}


def test_missing_packages_are_installed_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`build` alone changes nothing on the system."""
    installed: list[list[str]] = []
    monkeypatch.setattr(requirements, "missing_packages", lambda: ["nftables"])
    monkeypatch.setattr(requirements, "install", installed.append)
    monkeypatch.setattr(build, "build_level", lambda *_, **__: {})
    assert cli.main(["build", "--level", "control-plane"]) == 0
    assert installed == []
    assert cli.main(["build", "--level", "control-plane", "--install-missing"]) == 0
    assert installed == [["nftables"]]


def test_installing_without_root_shows_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user gets the line for sudo."""
    monkeypatch.setattr(requirements.os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"sudo apt-get install -y .* nftables"):
        requirements.install(["nftables"])
