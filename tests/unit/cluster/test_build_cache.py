"""The build cache: what its keys depend on, and what a failing or absent compiler says."""

from __future__ import annotations

import dataclasses
import itertools
import re
import stat
from typing import TYPE_CHECKING

import pytest

from e2e.cluster import build, paths, toolchain
from e2e.cluster.errors import BuildError
from e2e.cluster.toolchain import Go
from e2e.cluster.versions import GO_FOLDER, KUBERNETES, LEVELS, NEEDED, PARTS

if TYPE_CHECKING:
    from pathlib import Path

ETCD = PARTS["etcd"]
GO_VERSION = "go1.26.8 linux/amd64"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trimtab"


def a_go(folder: Path, body: str) -> Go:
    """A stand-in for the compiler: a shell script that finds the value of -o in $out."""
    binary = folder / "go"
    binary.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done\n' + body + "\n"
    )
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    return Go(binary=binary, version=GO_VERSION)


def test_a_key_names_the_version_and_is_stable() -> None:
    """Equal inputs give an equal key, and a person sees the version in it."""
    key = build.cache_key(ETCD, go_version=GO_VERSION)
    assert key == build.cache_key(ETCD, go_version=GO_VERSION)
    assert re.fullmatch(r"v3\.7\.3-[0-9a-f]{16}", key)


@pytest.mark.parametrize(
    "change", [{"version": "v9"}, {"ldflags": ("-X a=b",)}, {"tags": ("other",)}, {"cgo": True}]
)
def test_whatever_changes_the_binary_changes_its_key(change: dict[str, object]) -> None:
    """An upgrade or another flag never meets an old binary."""
    changed = dataclasses.replace(ETCD, **change)
    key = build.cache_key(changed, go_version=GO_VERSION)
    assert key != build.cache_key(ETCD, go_version=GO_VERSION)


def test_another_compiler_changes_the_key() -> None:
    """Binaries of two Go versions live side by side."""
    assert build.cache_key(ETCD, go_version="go1.26.9") != build.cache_key(
        ETCD, go_version=GO_VERSION
    )


def test_a_binary_is_built_once_and_found_again(tmp_path: Path, cache: Path) -> None:
    """The second request takes the cached file and runs no compiler."""
    go = a_go(tmp_path, f'echo run >> {tmp_path}/runs; echo binary > "$out"')
    first = build.build_one(go, ETCD, "etcd")
    second = build.build_one(go, ETCD, "etcd")
    assert first.path == second.path
    assert first.path.is_relative_to(cache / "etcd")
    assert (tmp_path / "runs").read_text() == "run\n"
    assert second.seconds == 0


def test_a_failed_build_leaves_no_binary_and_shows_the_compilers_words(tmp_path: Path) -> None:
    """A build that fails half-way is never taken for a finished one."""
    go = a_go(tmp_path, 'echo half > "$out"; echo "main.go:3: undefined: x"; exit 1')
    with pytest.raises(BuildError, match=r"go build of etcd .*status 1(.|\n)*undefined: x"):
        build.build_one(go, ETCD, "etcd")
    folder = build.binary_path(ETCD, "etcd", go_version=GO_VERSION).parent
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_c_code_without_a_compiler_names_the_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is missing to build runc is said with the line that installs it, before anything runs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"C compiler.*apt-get install gcc .*libseccomp-dev"):
        build.build_one(Go(binary=tmp_path / "go", version=GO_VERSION), PARTS["runc"], "runc")


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("go version go1.26.0 linux/amd64", True),
        ("go version go1.25.9 linux/amd64", False),
        ("go version go1.260.1 linux/amd64", False),
        ("", False),
    ],
)
def test_only_a_compiler_of_the_right_line_is_taken_from_the_path(
    tmp_path: Path, line: str, *, taken: bool
) -> None:
    """Another line of Go would build other binaries, so it is left alone."""
    binary = tmp_path / "go"
    binary.write_text(f"#!/bin/sh\necho '{line}'\n")
    binary.chmod(0o755)
    assert (toolchain.from_path(str(tmp_path)) is not None) is taken


def test_every_level_builds_only_parts_that_exist_and_higher_ones_build_more() -> None:
    """A level's list names real binaries, and includes those of the level below."""
    for below, level in itertools.pairwise(LEVELS):
        assert set(NEEDED[below]) <= set(NEEDED[level])
    for part, binary in NEEDED["node"]:
        assert binary in PARTS[part].binaries


@pytest.mark.parametrize("part", PARTS.values(), ids=lambda part: part.name)
def test_the_wrapper_module_requires_the_version_of_the_table(part: object) -> None:
    """The table of versions and the go.mod files, which decide, say the same."""
    text = (GO_FOLDER / part.name / "go.mod").read_text()
    if part.version == "own":
        assert "require" not in text
    else:
        required = dict(
            re.findall(r"^(?:require)?\s+(\S+) (v\S+)(?: // indirect)?$", text, re.MULTILINE)
        )
        package = next(iter(part.binaries.values())).replace("./", "").strip(".")
        modules = [
            name for name in required if (package or "github.com/coredns/coredns").startswith(name)
        ]
        assert part.version in {required[name] for name in modules}
        assert (GO_FOLDER / part.name / "go.sum").exists()


def test_every_staging_module_is_replaced_by_the_matching_release() -> None:
    """Kubernetes' own modules are pinned to the release that belongs to the server's version."""
    text = (GO_FOLDER / "kubernetes" / "go.mod").read_text()
    replaced = re.findall(r"^\tk8s\.io/(\S+) => k8s\.io/(\S+) (\S+)$", text, re.MULTILINE)
    assert len(replaced) == 33
    assert all(old == new for old, new, _ in replaced)
    assert {version for _, _, version in replaced} == {KUBERNETES.replace("v1.", "v0.", 1)}


def test_a_lock_survives_the_removal_of_its_file(tmp_path: Path) -> None:
    """Whoever holds a lock on a removed file takes a new file and not the ghost of the old one."""
    lock = tmp_path / "lock"
    with paths.locked(lock, remove=True):
        assert lock.exists()
    assert not lock.exists()
    with paths.locked(lock):
        assert lock.exists()
