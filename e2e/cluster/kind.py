"""The kind provider: a cluster in containers, where a Docker engine answers.

kind itself is taken from the PATH or built from its Go module. Every command goes through one injected
function, so that what we ask of docker and kind is tested against recorded answers on machines
without an engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Protocol

from e2e.cluster import paths, toolchain
from e2e.cluster.errors import BuildError, ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

VERSION = "v0.33.0"
"""Starts Kubernetes 1.37 by default; its node image is pinned by digest inside kind."""
PREFIX = "trimtab-"
WAIT = "180s"
CREATE_SECONDS = 900.0
"""Pulling the node image is most of it."""
SHORT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str = ""
    stderr: str = ""


class Run(Protocol):
    """Runs a command: (command, standard input, extra environment, seconds) to how it ended.

    A program that does not exist, or does not end in time, ends with code 127 or 124.
    """

    def __call__(
        self,
        command: Sequence[str],
        *,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        seconds: float = SHORT_SECONDS,
    ) -> Done: ...


def run(
    command: Sequence[str],
    *,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    seconds: float = SHORT_SECONDS,
) -> Done:
    """Run a command on this machine."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except FileNotFoundError:
        return Done(code=127, stderr=f"{command[0]}: not found")
    except subprocess.TimeoutExpired:
        return Done(code=124, stderr=f"{command[0]}: no end within {seconds:g} s")
    return Done(code=done.returncode, stdout=done.stdout, stderr=done.stderr)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """kind clusters of this machine, through `run`."""

    run: Run = run
    which: Callable[[str], str | None] = shutil.which
    built: Path = dataclasses.field(
        default_factory=lambda: paths.cache() / "kind" / VERSION / "kind"
    )
    models: Path = dataclasses.field(default_factory=lambda: paths.cache() / "models")
    """Where `trimtab model import` puts models; the node sees it at the same path."""

    def available(self) -> str | None:
        """Return None if a Docker engine answers, else one sentence that says what is missing."""
        if not self.which("docker"):
            return "There is no docker command on the PATH."
        done = self.run(["docker", "version", "--format", "{{.Server.Version}}"], seconds=15)
        if done.code == 0 and done.stdout.strip():
            return None
        why = (done.stderr or done.stdout).strip().splitlines()
        return (
            f"The docker command is here but no engine answers: {why[-1] if why else 'no output'}"
        )

    def program(self, *, report: Callable[[str], None]) -> str:
        """Return kind's path, building it where neither the PATH nor the cache has it.

        Raises:
            ClusterError: It could not be built; holds the compiler's last lines.
        """
        if found := self.which("kind"):
            return found
        if self.built.exists():
            return str(self.built)
        try:
            go = toolchain.find(report=report)
        except BuildError as error:
            raise ClusterError(f"kind is not on the PATH and cannot be built: {error}") from error
        report(f"building kind {VERSION} from its Go module (about a minute)")
        target = {"GOBIN": str(self.built.parent), "GOFLAGS": "", "CGO_ENABLED": "0"}
        done = self.run(
            [str(go.binary), "install", f"sigs.k8s.io/kind@{VERSION}"],
            environment={**target, "GOTOOLCHAIN": "local"}, seconds=CREATE_SECONDS,
        )  # fmt: skip
        if done.code:
            raise ClusterError(
                f"kind {VERSION} could not be built: {done.stderr.strip()[-500:]} "
                "Remedy: put a kind binary on the PATH."
            )
        return str(self.built)

    def config(self) -> dict[str, object]:
        """Return the cluster's configuration: one node that sees the folder of models, read-only."""
        mount = {
            "hostPath": str(self.models),
            "containerPath": str(self.models),
            "readOnly": True,
        }
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [{"role": "control-plane", "extraMounts": [mount]}],
        }

    def names(self, program: str) -> list[str]:
        """Return the kind clusters of this machine, ours and others'."""
        done = self._kind([program, "get", "clusters"])
        return done.stdout.split()

    def up(self, *, name: str, state_dir: Path, report: Callable[[str], None]) -> Path:
        """Start the cluster, or find the running one, and return its kubeconfig.

        Raises:
            ClusterError: kind could not start it; holds what kind said.
        """
        program = self.program(report=report)
        state_dir.mkdir(parents=True, exist_ok=True)
        kubeconfig = state_dir / "kind.kubeconfig"
        if PREFIX + name in self.names(program):
            report(f"the kind cluster {PREFIX}{name} runs already")
            arguments = ["export", "kubeconfig", "--name", PREFIX + name]
            self._kind([program, *arguments, "--kubeconfig", str(kubeconfig)])
            return kubeconfig
        report(f"kind starts the cluster {PREFIX}{name} (the first time it pulls its node image)")
        self.models.mkdir(parents=True, exist_ok=True)
        command = [program, "create", "cluster", "--name", PREFIX + name, "--wait", WAIT]
        command += ["--kubeconfig", str(kubeconfig), "--config", "-"]
        self._kind(command, stdin=json.dumps(self.config()), seconds=CREATE_SECONDS)
        return kubeconfig

    def down(self, *, name: str, state_dir: Path) -> None:
        """Remove the cluster; one that is not there is no error."""
        program = self.program(report=lambda _: None)
        kubeconfig = state_dir / "kind.kubeconfig"
        command = [program, "delete", "cluster", "--name", PREFIX + name]
        self._kind([*command, "--kubeconfig", str(kubeconfig)], seconds=CREATE_SECONDS)
        kubeconfig.unlink(missing_ok=True)

    def load_image(self, *, name: str, archive: Path) -> None:
        """Import a docker-archive tar into the cluster's node."""
        program = self.program(report=lambda _: None)
        command = [program, "load", "image-archive", str(archive), "--name", PREFIX + name]
        self._kind(command, seconds=CREATE_SECONDS)

    def load_images(self, *, name: str, references: Sequence[str]) -> None:
        """Import images that the Docker engine holds into the cluster's node."""
        program = self.program(report=lambda _: None)
        command = [program, "load", "docker-image", *references, "--name", PREFIX + name]
        self._kind(command, seconds=CREATE_SECONDS)

    def _kind(
        self, command: Sequence[str], *, stdin: str = "", seconds: float = SHORT_SECONDS
    ) -> Done:
        done = self.run(command, stdin=stdin, seconds=seconds)
        if done.code:
            said = (done.stderr or done.stdout).strip()[-1000:]
            raise ClusterError(
                f"`kind {' '.join(command[1:])}` ended with {done.code}: {said} "
                f"Remedy: `docker info` shows whether the engine answers; `kind delete cluster --name` "
                "removes one that was left half-made."
            )
        return done


def available() -> str | None:
    """Return None if kind can be used here, else one sentence that says what is missing."""
    return Kind().available()


def up(*, name: str, state_dir: Path, report: Callable[[str], None]) -> Path:
    """Start the cluster `name`, or find it, and return its kubeconfig.

    Raises:
        ClusterError: It could not be started.
    """
    return Kind().up(name=name, state_dir=state_dir, report=report)


def down(*, name: str, state_dir: Path) -> None:
    """Remove the cluster `name`; idempotent."""
    Kind().down(name=name, state_dir=state_dir)


def load_image(*, name: str, archive: Path) -> None:
    """Import a docker-archive tar into the cluster's node."""
    Kind().load_image(name=name, archive=archive)


def helm_values(*, name: str, state_dir: Path) -> dict[str, object]:
    """Return the chart values for a kind cluster: loaded images are used, never pulled."""
    del name, state_dir
    return {"podDefaults": {"imagePullPolicy": "Never"}}
