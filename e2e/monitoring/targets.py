"""The metrics ports of a running Trimtab, as the chart's PodMonitors would find them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from e2e.monitoring.prometheus import Target

if TYPE_CHECKING:
    from e2e.cluster.api import Cluster

METRICS_PORT = 8002
COMPONENTS = ("operator", "gateway", "worker")
SELECTOR = (
    f"app.kubernetes.io/part-of=trimtab,app.kubernetes.io/component in ({','.join(COMPONENTS)})"
)


def of_cluster(cluster: Cluster) -> list[Target]:
    """Return the running pods' metrics ports, at the addresses where this machine reaches them."""
    text = cluster.kubectl("get", "pods", "--all-namespaces", "-l", SELECTOR, "-o", "json")
    found = []
    for pod in json.loads(text)["items"]:
        address = pod["status"].get("podIP")
        if not address or pod["metadata"].get("deletionTimestamp"):
            continue
        labels = pod["metadata"]["labels"]
        found.append(
            Target(
                job=f"trimtab-{labels['app.kubernetes.io/component']}",
                address=f"{cluster.host_address(address)}:{METRICS_PORT}",
                labels=(
                    ("namespace", pod["metadata"]["namespace"]),
                    ("pod", pod["metadata"]["name"]),
                ),
            )
        )
    return found
