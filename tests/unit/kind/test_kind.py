"""What we ask of docker and kind, against recorded answers; no engine is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.cluster import kind as provider
from e2e.cluster.errors import ClusterError
from e2e.cluster.kind import Done, Kind

RECORDED = json.loads(Path(__file__).with_name("recordings.json").read_text())
WITH, WITHOUT = RECORDED["with engine"], RECORDED["without engine"]
VERSION = "docker version --format {{.Server.Version}}"


class Recorder:
    """Answers commands by their beginning and remembers what was asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def __call__(self, command, *, stdin="", environment=None, seconds=60.0):
        line = " ".join([Path(command[0]).name, *command[1:]])
        self.asked.append((line, stdin, environment or {}))
        return Done(**next(value for key, value in self.answers.items() if line.startswith(key)))


def a_kind(answers, tmp_path, *, path=("docker", "kind")):
    return Kind(
        run=Recorder(answers),
        which=lambda name: f"/bin/{name}" if name in path else None,
        built=tmp_path / "kind",
        models=tmp_path / "models",
    )


def with_engine(clusters):
    answers = dict(WITH)
    answers["kind get clusters"] = answers.pop(f"kind get clusters ({clusters})")
    return answers


def test_engine_that_answers_makes_kind_available(tmp_path):
    """An engine's version is all that is needed; kind itself can be built."""
    assert a_kind(WITH, tmp_path, path=("docker",)).available() is None


def test_docker_without_an_engine_is_said_in_one_sentence(tmp_path):
    """A docker command without an engine counts as missing, with docker's own words."""
    said = a_kind(WITHOUT, tmp_path).available()
    assert said.startswith("The docker command is here but no engine answers: Cannot connect")
    assert "\n" not in said


def test_no_docker_at_all_is_said(tmp_path):
    """Without a docker command nothing is run."""
    kind = a_kind({}, tmp_path, path=())
    assert kind.available() == "There is no docker command on the PATH."
    assert not kind.run.asked


def test_up_creates_a_cluster_that_sees_the_models(tmp_path):
    """A new cluster gets its own kubeconfig file and the models' folder at the same path."""
    kind = a_kind(with_engine("none"), tmp_path)
    told = []
    path = kind.up(name="demo", state_dir=tmp_path / "state", report=told.append)
    line, stdin, _ = kind.run.asked[-1]
    assert line == (
        f"kind create cluster --name trimtab-demo --wait 180s --kubeconfig {path} --config -"
    )
    mounts = json.loads(stdin)["nodes"][0]["extraMounts"]
    assert mounts == [
        {"hostPath": str(kind.models), "containerPath": str(kind.models), "readOnly": True}
    ]
    assert kind.models.is_dir()
    assert "trimtab-demo" in told[-1]


def test_up_finds_a_running_cluster(tmp_path):
    """A cluster that runs is not created again; its kubeconfig is written anew."""
    kind = a_kind(with_engine("ours"), tmp_path)
    path = kind.up(name="demo", state_dir=tmp_path, report=lambda _: None)
    lines = [line for line, *_ in kind.run.asked]
    assert lines == [
        "kind get clusters",
        f"kind export kubeconfig --name trimtab-demo --kubeconfig {path}",
    ]


def test_failure_of_kind_is_an_error_with_its_words(tmp_path):
    """What kind says on failure reaches the user, with a remedy."""
    kind = a_kind(WITHOUT, tmp_path)
    with pytest.raises(
        ClusterError, match=r"(?s)`kind get clusters` ended with 1.*Docker daemon.*Remedy"
    ):
        kind.up(name="demo", state_dir=tmp_path, report=lambda _: None)


def test_down_deletes_by_name_and_forgets_the_kubeconfig(tmp_path):
    """Only the cluster of our prefix and name goes, and deleting twice is no error."""
    kind = a_kind(WITH, tmp_path)
    (tmp_path / "kind.kubeconfig").touch()
    for _ in range(2):
        kind.down(name="demo", state_dir=tmp_path)
    assert kind.run.asked[-1][0].startswith("kind delete cluster --name trimtab-demo --kubeconfig")
    assert not (tmp_path / "kind.kubeconfig").exists()


def test_images_are_loaded_from_archives_and_from_the_engine(tmp_path):
    """Both ways name the cluster, so that another kind cluster is left alone."""
    kind = a_kind(WITH, tmp_path)
    kind.load_image(name="demo", archive=tmp_path / "a.tar")
    kind.load_images(name="demo", references=["trimtab-operator:1", "trimtab-gateway:1"])
    assert [line for line, *_ in kind.run.asked] == [
        f"kind load image-archive {tmp_path}/a.tar --name trimtab-demo",
        "kind load docker-image trimtab-operator:1 trimtab-gateway:1 --name trimtab-demo",
    ]


def test_kind_is_built_where_it_is_missing(tmp_path, monkeypatch):
    """Without kind on the PATH its Go module is installed at the pinned version, once."""
    go = provider.toolchain.Go(binary=Path("/sdk/bin/go"), version="go1.26.8 linux/amd64")
    monkeypatch.setattr(provider.toolchain, "find", lambda **_: go)
    kind = a_kind({"go install": {"code": 0}}, tmp_path, path=("docker",))
    assert kind.program(report=lambda _: None) == str(tmp_path / "kind")
    line, _, environment = kind.run.asked[0]
    assert line == f"go install sigs.k8s.io/kind@{provider.VERSION}"
    assert environment["GOBIN"] == str(tmp_path)
    (tmp_path / "kind").touch()
    kind.program(report=lambda _: None)
    assert len(kind.run.asked) == 1


def test_failed_build_names_the_remedy(tmp_path, monkeypatch):
    """A build that fails shows the compiler's words and says what else helps."""
    go = provider.toolchain.Go(binary=Path("/sdk/bin/go"), version="go1.26.8 linux/amd64")
    monkeypatch.setattr(provider.toolchain, "find", lambda **_: go)
    kind = a_kind({"go install": {"code": 1, "stderr": "no network"}}, tmp_path, path=("docker",))
    with pytest.raises(ClusterError, match="could not be built: no network Remedy: put a kind"):
        kind.program(report=lambda _: None)


def test_loaded_images_are_never_pulled(tmp_path):
    """The chart's values for kind forbid pulling: what was loaded is what runs."""
    values = provider.helm_values(name="demo", state_dir=tmp_path)
    assert values == {"podDefaults": {"imagePullPolicy": "Never"}}


def test_missing_program_and_endless_command_are_codes():
    """The real runner turns a missing program and a time-out into exit codes with words."""
    assert provider.run(["/no/such/program"]).code == 127
    done = provider.run(["sleep", "5"], seconds=0.1)
    assert (done.code, done.stderr) == (124, "sleep: no end within 0.1 s")
    assert provider.run(["cat"], stdin="x").stdout == "x"
