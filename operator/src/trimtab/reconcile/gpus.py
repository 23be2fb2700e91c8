"""GPUs of nodes as planning reads them, and what a pod that gets some of them asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trimtab.observe.gpus import vendor_of
from trimtab.planning.snapshot import GpuPool, LeftOut

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trimtab.kube.resources import Manifest
    from trimtab.observe.records import NodeRecord
    from trimtab.observe.requests import Requested
    from trimtab.planning.snapshot import Config
    from trimtab.settings import Settings

THREADS_PER_GPU: Final = 4
"""CPU threads of a pod beside each of its GPUs: a process of the engine, its tokenizer, the server."""
_SHARED_MEMORY: Final = "1Gi"
"""What the ranks of a pod exchange through /dev/shm; a container's own is 64 MiB."""


def tolerations(resource: str) -> tuple[Manifest, ...]:
    """Return what keeps other pods off nodes with GPUs, and lets those in that use them."""
    return ({"key": resource, "operator": "Exists", "effect": "NoSchedule"},)


def gpu_pools(
    nodes: Iterable[NodeRecord],
    *,
    foreign: Mapping[str, Requested],
    usable: Mapping[str, bool],
    settings: Settings,
) -> tuple[tuple[GpuPool, ...], tuple[LeftOut, ...]]:
    """Return the GPUs that plans may use, node by node, and those that none may, with the reason.

    Args:
        nodes: All nodes.
        foreign: What others' pods request, by node.
        usable: Whether pods may run there, by node.
        settings: For which kinds of GPUs there are images of workers.
    """
    pools: list[GpuPool] = []
    out: list[LeftOut] = []
    for node in sorted(nodes, key=lambda n: n.name):
        gpus = node.gpus
        if gpus is None:
            continue
        problem = gpus.problem
        if not problem and gpus.resource not in settings.gpu_images:
            problem = f"worker.gpuImages names no image for {gpus.resource}"
        if not problem and not usable[node.name]:
            problem = (
                "the node is not ready, cordoned, or has taints that podDefaults do not tolerate"
            )
        if problem:
            out.append(LeftOut(node=node.name, reason=problem))
            continue
        used = foreign.get(node.name)
        taken = min(gpus.count, used.gpus if used else 0)
        pools.append(
            GpuPool(
                node=node.name,
                product=gpus.product,
                gpus=gpus.count - taken,
                gpu_memory_bytes=gpus.memory_bytes,
                memory_bytes=max(0, node.allocatable_bytes - (used.memory_bytes if used else 0)),
                others=taken,
            )
        )
    return tuple(pools), tuple(out)


def threads(config: Config) -> int:
    """Return the CPU threads of one replica's pod."""
    return config.threads if config.product == "cpu" else THREADS_PER_GPU * config.devices


def image(config: Config, settings: Settings) -> str:
    """Return the worker's image for a configuration's device."""
    if config.product == "cpu":
        return settings.image
    return settings.gpu_images.get(vendor_of(config.product).resource, settings.image)


def on_gpus(template: Manifest, config: Config) -> Manifest:
    """Ask for a replica's GPUs in a worker's pod template, which is changed, and return it.

    The scheduler counts the resource; which of a node's GPUs a pod gets is the kubelet's choice.
    """
    if config.product == "cpu":
        return template
    vendor = vendor_of(config.product)
    spec = template["spec"]
    worker = spec["containers"][0]
    for amounts in worker["resources"].values():
        amounts[vendor.resource] = str(config.devices)
    spec["tolerations"] = [*spec.get("tolerations", ()), *tolerations(vendor.resource)]
    of_product = {"key": vendor.product_label, "operator": "In", "values": [config.product]}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [{"matchExpressions": [of_product]}]
    }
    if config.devices > 1:
        memory: dict[str, Any] = {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}
        spec["volumes"].append({"name": "shm", "emptyDir": memory})
        worker["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - the container's own
    return template
