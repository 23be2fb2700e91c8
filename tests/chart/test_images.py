"""Dockerfiles: small, non-root, from any base; and what their build without an engine needs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from e2e.images import build

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))


def dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}


def requirements(image: str) -> set[str]:
    text = (ROOT / "images" / image / "requirements.txt").read_text()
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def closure(names: set[str]) -> set[str]:
    """Return the distributions and all that they need."""
    needed, new = set(), names
    while new:
        needed |= new
        lines = [line for name in new for line in importlib.metadata.requires(name) or []]
        new = {
            re.split(r"[<>=!;~\[ ]", line)[0] for line in lines if "extra ==" not in line
        } - needed
        new = {name for name in new if installed(name)}
    return {name.lower() for name in needed}


def installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_there_is_an_image_for_every_process() -> None:
    """Operator, gateway, function runner, node agent, workers for CPUs and for CUDA, and the catalogue apart from all of them."""
    names = [path.parent.name for path in DOCKERFILES]
    assert names == [
        "catalogue",
        "gateway",
        "node-agent",
        "operator",
        "runner",
        "worker",
        "worker-cuda",
    ]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_are_built_in_two_stages_and_run_as_nobody(path: Path) -> None:
    """The base is one build argument for both stages, the user is 65532, versions come from the constraints."""
    text = path.read_text()
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE} AS build", "${BASE}"]
    final = text.rpartition("FROM ${BASE}")[2]
    assert "USER 65532:65532" in final
    assert "COPY --from=build /opt/trimtab /opt/trimtab" in final
    assert "RUN" not in final
    # kopf and torch ask for the user's name, which an arbitrary uid has only in the environment.
    assert "HOME=/tmp USER=trimtab" in final
    assert "-c constraints.txt" in text
    assert not re.search(r"https?://", text)
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for source in copied.split():
            assert (ROOT / source).exists(), source


def test_the_gpu_image_can_compile_and_claims_no_gpu() -> None:
    """Triton needs a compiler, which slim bases lack, and a writable cache; a pod without a claim sees no GPU."""
    text = (ROOT / "images" / "worker-cuda" / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE=(.*)$", text, re.MULTILINE)
    assert base is not None
    assert "slim" not in base[1]
    environment = dict(re.findall(r"(TRITON_CACHE_DIR|NVIDIA_\w+)=(\S+)", text))
    assert environment == {
        "TRITON_CACHE_DIR": "/tmp/triton",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }


def test_only_the_catalogues_image_contains_the_catalogue() -> None:
    """The extra is installed in one image, and no dependency of the distribution brings it into another."""
    extra = re.compile(r"\[[^]]*catalogue|aiconfigurator")
    having = [path.parent.name for path in DOCKERFILES if extra.search(path.read_text())]
    assert having == ["catalogue"]
    assert "aiconfigurator" not in dependencies() | requirements("gateway")


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("gateway", "trimtab_workers.gateway.__main__"),
        ("node-agent", "trimtab_workers.node_agent.__main__"),
        ("runner", "trimtab_workers.runner.__main__, trimtab_workers.runner.lifecycle"),
    ],
)
def test_a_process_needs_only_what_its_image_installs(image: str, modules: str) -> None:
    """With every other dependency of the distribution hidden, gateway, node agent and runner still import."""
    hidden = sorted(
        name.replace("-", "_") for name in dependencies() - closure(requirements(image))
    )
    assert {"kopf", "numpy", "highspy", "structlog"} <= set(hidden)
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import {modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_debian_mirror_is_the_one_apt_uses() -> None:
    """Both formats of apt's sources are read; security archives and comments are passed over."""
    deb822 = "Types: deb\n# http://old.example/debian\nURIs: http://mirror.example/debian\nSuites: bookworm\n"
    one_line = "# deb http://old.example/debian x main\ndeb [signed-by=/k] https://m.example/debian bookworm main\n"
    security = "Types: deb\nURIs: http://mirror.example/debian-security\n"
    assert build.mirror(iter([security, deb822])) == "http://mirror.example/debian"
    assert build.mirror(iter([one_line])) == "https://m.example/debian"
    with pytest.raises(build.ImageToolsMissingError, match="TRIMTAB_DEBIAN_MIRROR"):
        build.mirror(iter([security]))


def test_an_ordinary_user_is_told_what_building_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the error says why root is needed and what to do instead."""
    monkeypatch.setattr(build.os, "geteuid", lambda: 1000)
    with pytest.raises(build.ImageToolsMissingError, match="needs root on Linux"):
        build.check_tools()


def test_missing_programs_are_named_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root without buildah is told what to install."""
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    monkeypatch.setattr(build.shutil, "which", lambda name: None if name == "buildah" else name)
    with pytest.raises(build.ImageToolsMissingError, match="apt-get install buildah"):
        build.check_tools()


def test_an_image_is_built_again_when_its_inputs_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A changed line of the sources or of one Dockerfile changes the name of the archive, an equal tree does not."""
    for part in (*build.INPUTS, "images/operator", "images/gateway"):
        folder = tmp_path / part
        folder.mkdir(parents=True) if "." not in folder.name else folder.write_text("x")
    (tmp_path / "images/operator/Dockerfile").write_text("FROM a")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    before = {name: build.digest(name) for name in build.NAMES}
    assert before == {name: build.digest(name) for name in build.NAMES}
    (tmp_path / "images/operator/Dockerfile").write_text("FROM b")
    assert build.digest("operator") != before["operator"]
    assert build.digest("gateway") == before["gateway"]
    (tmp_path / "workers/src/new.py").write_text("pass")
    assert build.digest("gateway") != before["gateway"]


def test_the_public_workflow_builds_the_images_that_exist_and_calls_targets_that_exist() -> None:
    """The workflow parses, its matrix is the folder of Dockerfiles, and every `make` target in it is in the Makefile."""
    text = (ROOT / ".github" / "workflows" / "ci.yaml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert set(jobs) == {"fast", "kind", "images"}
    assert set(jobs["images"]["strategy"]["matrix"]["image"]) == {
        p.parent.name for p in DOCKERFILES
    }
    makefile = (ROOT / "Makefile").read_text()
    used = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert {"test-fast", "setup", "demo", "down"} <= used
    for target in used:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
