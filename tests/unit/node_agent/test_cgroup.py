"""Both versions of cgroups are read to the same figures; pods are found under every driver's names."""

from __future__ import annotations

import shutil

import pytest

from trimtab_workers.node_agent.cgroup import (
    GroupGoneError,
    Limits,
    NoCgroupsError,
    V2Reader,
    pod_cpu,
    reader,
)

UID = "0f6e9a1c-3b5d-4a7e-9c21-5d8f0b7a6e43"
STATIC = "9f86d081884c7d659a2feaa0c55ad015"
MIB = 2**20

PATHS = {
    "cgroupfs, Guaranteed": f"kubepods/pod{UID}",
    "cgroupfs, Burstable": f"kubepods/burstable/pod{UID}",
    "cgroupfs, below a root of its own": f"trimtab-x/kubepods/besteffort/pod{UID}",
    "systemd, Guaranteed": f"kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice",
    "systemd, Burstable": "kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod{UID.replace('-', '_')}.slice",
    "systemd, in kind": "kubelet.slice/kubelet-kubepods.slice/"
    f"kubelet-kubepods-pod{UID.replace('-', '_')}.slice",
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_pods_are_found_under_the_names_of_both_drivers(tree, version, path) -> None:
    """The UID comes out with hyphens; containers and the kubelet's own groups are no pods."""
    made = tree(version)
    made.group(path)
    made.group(f"{path}/cri-containerd-{'ab' * 32}.scope")
    made.group("system.slice/podman.service")
    assert list(reader(made.root).pods()) == [UID]


@pytest.mark.parametrize("version", [1, 2])
def test_static_pods_have_uids_without_hyphens(tree, version) -> None:
    """The hash that the kubelet gives a static pod is found as it is."""
    made = tree(version)
    made.group(f"kubepods/burstable/pod{STATIC}")
    assert list(reader(made.root).pods()) == [STATIC]


def test_the_version_is_seen_from_the_files(tree, tmp_path) -> None:
    """A unified hierarchy is version 2, one hierarchy per controller version 1, anything else is refused."""
    assert isinstance(reader(tree(2).root), V2Reader)
    with pytest.raises(NoCgroupsError, match=r"neither cgroup\.controllers"):
        reader(tmp_path / "nothing")


@pytest.mark.parametrize("version", [1, 2])
def test_figures_are_those_of_the_files(tree, version) -> None:
    """Times are microseconds in both; page cache and reclaimable slab are not held."""
    made = tree(version)
    made.group("g", kills=2)
    source = reader(made.root)
    group = source.group("g")
    found = source.cpu(group)
    assert (found.used_us, found.throttled_us, found.periods_throttled) == (1_500_000, 40_000, 3)
    # Version 2: anon 50 + shmem 2 + sock 1 + kernel 9 - reclaimable 4; version 1 cannot tell slab apart.
    assert source.held_bytes(group) == {2: 58, 1: 61}[version] * MIB
    assert source.oom_kills(group) == 2
    assert source.limits(group) == Limits(cpu_m=500, mem_mib=256)


def test_kernels_without_a_sum_of_kernel_memory_are_read_too(tree) -> None:
    """Before Linux 5.18 `kernel` is missing from memory.stat: its parts are added."""
    made = tree(2)
    made.group("g")
    file = made.root / "g" / "memory.stat"
    file.write_text(
        f"anon {MIB}\nkernel_stack {MIB}\npagetables {MIB}\nslab {3 * MIB}\nslab_reclaimable {MIB}\n"
    )
    assert reader(made.root).held_bytes(reader(made.root).group("g")) == 5 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_no_limit_is_none(tree, version) -> None:
    """An unlimited quota and unlimited memory are not numbers."""
    made = tree(version)
    made.group("g", **({"cpu_max": "max 100000"} if version == 2 else {"quota": -1}))
    folder = made.root / ("g" if version == 2 else "memory/g")
    name, text = (
        ("memory.max", "max") if version == 2 else ("memory.limit_in_bytes", str(2**63 - 4096))
    )
    (folder / name).write_text(f"{text}\n")
    source = reader(made.root)
    assert source.limits(source.group("g")) == Limits(cpu_m=None, mem_mib=None)


def test_kills_of_containers_count_for_their_pod_in_version_1(tree) -> None:
    """Version 1 counts a kill in the container's group alone, so the pod's is the sum."""
    made = tree(1)
    made.group("pod", kills=1)
    made.group("pod/a", kills=2)
    source = reader(made.root)
    assert source.oom_kills(source.group("pod")) == 3


@pytest.mark.parametrize("version", [1, 2])
def test_throttling_at_a_container_counts_for_its_pod(tree, version) -> None:
    """Pod and container have equal quotas: the one that ran out is the one that says so."""
    made = tree(version)
    made.group("pod", throttled=0, periods=0)
    made.group("pod/a")
    source = reader(made.root)
    found = pod_cpu(source, source.group("pod"))
    assert (found.used_us, found.throttled_us, found.periods_throttled) == (1_500_000, 40_000, 3)


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_that_ended_says_so(tree, version) -> None:
    """Every figure of a group that was removed raises one error that names its folder."""
    made = tree(version)
    made.group("g")
    source = reader(made.root)
    group = source.group("g")
    for folder in {group.cpu, group.cpuacct, group.memory}:
        shutil.rmtree(folder)
    for read in (source.cpu, source.held_bytes, source.oom_kills):
        with pytest.raises(GroupGoneError, match="/g/"):
            read(group)
