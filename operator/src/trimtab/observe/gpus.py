"""A node's GPUs as device plugins count them and as their labellers name them.

NVIDIA: the device plugin's `nvidia.com/gpu`, labels by GPU feature discovery. AMD: `amd.com/gpu`, labels
by the node labeller. Allocatable counts leave unhealthy devices out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB, _GIB = 2**20, 2**30
_VRAM: Final = re.compile(r"(\d{1,6})G")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """Names that a vendor's device plugin and labeller use.

    Attributes:
        resource: Extended resource of a whole GPU.
        product_label: Holds the product.
        memory_label: Holds the memory of one GPU.
        setter: Who sets the labels.
    """

    resource: str
    product_label: str
    memory_label: str
    setter: str


NVIDIA: Final = Vendor(
    resource="nvidia.com/gpu",
    product_label="nvidia.com/gpu.product",
    memory_label="nvidia.com/gpu.memory",
    setter="GPU feature discovery",
)
AMD: Final = Vendor(
    resource="amd.com/gpu",
    product_label="amd.com/gpu.product-name",
    memory_label="amd.com/gpu.vram",
    setter="AMD's node labeller with -product-name and -vram",
)
VENDORS: Final = (NVIDIA, AMD)
RESOURCES: Final = tuple(vendor.resource for vendor in VENDORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """The GPUs of one node.

    Attributes:
        resource: That a pod requests; empty where there are several kinds.
        product: As labelled; a value of a label holds no spaces.
        count: Healthy ones.
        memory_bytes: Of each.
        problem: Why no plan can use them, as the end of "… are left out because"; empty if one can.
    """

    resource: str
    product: str
    count: int
    memory_bytes: int
    problem: str = ""


def vendor_of(product: str) -> Vendor:
    """Return whose product it is: AMD's labels begin with its name, NVIDIA's older ones with anything."""
    return AMD if product.upper().startswith("AMD") else NVIDIA


def of_node(labels: Mapping[str, str], allocatable: Mapping[str, Any]) -> NodeGpus | None:
    """Return a node's GPUs, None where it has none."""
    slices = sorted(
        k for k in allocatable if k.startswith("nvidia.com/mig-") and _count(allocatable, k)
    )
    # A plugin that was taken away leaves its resource behind, at 0.
    vendors = [v for v in VENDORS if _count(allocatable, v.resource)]
    if not vendors and not slices:
        return None
    if len(vendors) > 1:
        return _out("", f"they are of several kinds ({', '.join(RESOURCES)})")
    vendor = vendors[0] if vendors else NVIDIA
    product = labels.get(vendor.product_label, "")
    problem = _problem(vendor, product, labels, slices)
    if problem:
        return _out(vendor.resource, problem)
    memory = _memory(vendor, labels.get(vendor.memory_label, ""))
    if not memory:
        return _out(
            vendor.resource, f"label {vendor.memory_label} is missing or no size; {_run(vendor)}"
        )
    return NodeGpus(
        resource=vendor.resource,
        product=product,
        count=_count(allocatable, vendor.resource),
        memory_bytes=memory,
    )


def requested(containers: Mapping[str, Any]) -> int:
    """Return the whole GPUs that one container asks for; limits are requests of extended resources."""
    resources = containers.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return sum(_count(asked, resource) for resource in RESOURCES)


def _problem(vendor: Vendor, product: str, labels: Mapping[str, str], slices: list[str]) -> str:
    if slices or "-MIG-" in product:
        return f"MIG cuts them into slices ({slices[0] if slices else product})"
    shared = labels.get("nvidia.com/gpu.sharing-strategy", "none") not in ("", "none")
    if shared or product.endswith("-SHARED"):
        return "several pods share each of them (nvidia.com/gpu.sharing-strategy)"
    partition = labels.get("amd.com/compute-memory-partition", "spx")
    if not partition.startswith("spx"):
        return f"they are partitioned (amd.com/compute-memory-partition is {partition})"
    if not product:
        return f"label {vendor.product_label} is missing; {_run(vendor)}"
    if vendor_of(product) != vendor:
        return f"label {vendor.product_label} names no product of its vendor ({product})"
    return ""


def _run(vendor: Vendor) -> str:
    return f"run {vendor.setter}"


def _out(resource: str, problem: str) -> NodeGpus:
    return NodeGpus(resource=resource, product="", count=0, memory_bytes=0, problem=problem)


def _count(amounts: Mapping[str, Any], name: str) -> int:
    """Return a whole number of devices; what cannot be read counts as none."""
    text = str(amounts.get(name, "0"))
    return int(text) if text.isdigit() else 0


def _memory(vendor: Vendor, text: str) -> int:
    """Return bytes: NVIDIA's label is in MiB, AMD's in GiB with a G."""
    if vendor is NVIDIA:
        return int(text) * _MIB if text.isdigit() else 0
    found = _VRAM.fullmatch(text)
    return int(found.group(1)) * _GIB if found else 0
