from __future__ import annotations

import pytest

from trimtab.observe.gpus import of_node, vendor_of
from trimtab.observe.records import node
from trimtab.observe.requests import Requested, requests

LABELS = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}


def test_nvidia_gpus_are_read_from_feature_discoverys_labels() -> None:
    """Product, count of healthy GPUs and memory of each."""
    found = of_node(LABELS, {"nvidia.com/gpu": "7"})
    assert found is not None
    assert (found.product, found.count, found.problem) == ("NVIDIA-H100-80GB-HBM3", 7, "")
    assert found.memory_bytes == 81559 * 2**20


def test_amd_gpus_are_read_from_the_node_labellers_labels() -> None:
    """AMD's memory label is in GiB."""
    labels = {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"}
    found = of_node(labels, {"amd.com/gpu": 8})
    assert found is not None
    assert (found.resource, found.memory_bytes) == ("amd.com/gpu", 192 * 2**30)
    assert vendor_of(found.product).resource == "amd.com/gpu"


def test_a_node_without_gpus_has_none() -> None:
    """Labels alone are no GPUs."""
    assert of_node(LABELS, {"cpu": "8"}) is None


@pytest.mark.parametrize(
    ("labels", "allocatable", "said"),
    [
        ({}, {"nvidia.com/gpu": "8"}, "nvidia.com/gpu.product is missing; run GPU feature"),
        (LABELS | {"nvidia.com/gpu.memory": "x"}, {"nvidia.com/gpu": "8"}, "gpu.memory is missing"),
        (LABELS, {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"}, "MIG cuts them"),
        (
            LABELS | {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"},
            {"nvidia.com/gpu": "56"},
            "MIG cuts them",
        ),
        (
            LABELS | {"nvidia.com/gpu.product": "NVIDIA-L4-SHARED"},
            {"nvidia.com/gpu": "4"},
            "several pods share",
        ),
        (
            LABELS | {"nvidia.com/gpu.sharing-strategy": "mps"},
            {"nvidia.com/gpu": "4"},
            "several pods share",
        ),
        (LABELS, {"nvidia.com/gpu": "8", "amd.com/gpu": "1"}, "several kinds"),
        (
            {"amd.com/gpu.product-name": "Radeon", "amd.com/gpu.vram": "16G"},
            {"amd.com/gpu": "1"},
            "names no product of its vendor",
        ),
        (
            {
                "amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM",
                "amd.com/compute-memory-partition": "cpx_nps4",
            },
            {"amd.com/gpu": "64"},
            "partitioned",
        ),
    ],
)
def test_gpus_that_no_plan_can_use_say_why(
    labels: dict[str, str], allocatable: dict[str, str], said: str
) -> None:
    """Slices, shared and unlabelled GPUs are no whole GPUs of a known product."""
    found = of_node(labels, allocatable)
    assert found is not None
    assert (found.count, said in found.problem) == (0, True), found.problem


def test_a_node_changes_when_a_gpu_falls_ill() -> None:
    """The device plugin takes an unhealthy GPU out of what can be allocated."""

    def with_gpus(count: int) -> str:
        allocatable = {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": str(count)}
        body = {"metadata": {"name": "n", "labels": LABELS}, "status": {"allocatable": allocatable}}
        return node(body).fingerprint

    assert with_gpus(8) != with_gpus(7)
    assert with_gpus(8) == with_gpus(8)


def test_a_pod_requests_what_the_scheduler_counts() -> None:
    """Containers are summed, init containers count at their largest; limits of GPUs are requests."""
    gpu = {"limits": {"nvidia.com/gpu": 2}}
    spec = {
        "containers": [
            {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, **gpu}},
            {"resources": {"requests": {"cpu": "1"}, "limits": {"amd.com/gpu": "1"}}},
        ],
        "initContainers": [{"resources": {"requests": {"cpu": "2"}}}],
    }
    assert requests(spec) == Requested(millicores=2000, memory_bytes=2**30, gpus=3)
    assert requests({}) == Requested()


def test_a_resource_that_a_plugin_left_behind_is_no_gpu() -> None:
    """A count of 0 makes neither a node with GPUs nor a second kind beside another vendor's."""
    assert of_node(LABELS, {"nvidia.com/gpu": "0"}) is None
    found = of_node(LABELS, {"nvidia.com/gpu": "8", "amd.com/gpu": "0"})
    assert found is not None
    assert (found.resource, found.count) == ("nvidia.com/gpu", 8)


def _asking(**requested: str) -> dict[str, object]:
    return {"resources": {"requests": requested}}


def test_sidecars_and_overhead_are_requested_too() -> None:
    """A sidecar runs beside the containers and the init containers after it; overhead comes on top."""
    spec = {
        "initContainers": [
            _asking(cpu="3"),
            {**_asking(cpu="1", memory="1Gi"), "restartPolicy": "Always"},
            _asking(cpu="2500m"),
        ],
        "containers": [_asking(cpu="2", memory="2Gi")],
        "overhead": {"cpu": "250m", "memory": "1Gi"},
    }
    assert requests(spec) == Requested(millicores=3750, memory_bytes=4 * 2**30)


def test_an_amount_that_cannot_be_read_takes_no_other_with_it() -> None:
    """A pod's GPUs count whatever its cpu says."""
    asked = {"cpu": "much", "memory": "1Gi", "nvidia.com/gpu": "2"}
    spec = {"containers": [_asking(**asked)]}
    assert requests(spec) == Requested(memory_bytes=2**30, gpus=2)
