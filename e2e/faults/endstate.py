"""What an intent came to: its children and conditions, with everything that differs by chance removed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KINDS = ("deployments", "services", "networkpolicies", "configmaps", "jobs", "poddisruptionbudgets")
_HEX = re.compile(
    r"(?<![0-9a-zA-Z])([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8,64})(?![0-9a-zA-Z])"
)
_GENERATION = re.compile(r'"generation":\d+')
"""The roll-out annotation tells for which generation of the intent a child was made."""
_DECISION = (
    "product", "tensorParallelSize", "pipelineParallelSize", "precision", "threadsPerReplica",
    "replicas", "costPerHour",
)  # fmt: skip
"""What of a plan must be equal: a prediction is as old as the plan, so it depends on what was known then."""
_CHANCE = frozenset(
    {"uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "status",
     "clusterIP", "clusterIPs", "selfLink", "deployment.kubernetes.io/revision"}
)  # fmt: skip


def normal(value: Any, *, namespace: str = "") -> Any:
    """Return a value without what is made of uids, times and the namespace's name."""
    if isinstance(value, dict):
        return {
            normal(key, namespace=namespace): normal(item, namespace=namespace)
            for key, item in sorted(value.items())
            if key not in _CHANCE
        }
    if isinstance(value, list):
        return [normal(item, namespace=namespace) for item in value]
    if isinstance(value, str):
        value = _GENERATION.sub('"generation":"#"', value)
        return _HEX.sub("#", value.replace(namespace, "NAMESPACE") if namespace else value)
    return value


def end_state(get: Callable[..., Any], *, namespace: str, name: str) -> dict[str, Any]:
    """Return the normalised children of an intent and its settled conditions.

    Args:
        get: `Cluster.get`.
        namespace: Where the intent is.
        name: Its name.
    """
    intent = get("inferenceintent", name, "-n", namespace)
    plan = intent["status"].get("plan", {})
    uid = intent["metadata"]["uid"]
    children = []
    for item in get(",".join(KINDS), "-n", namespace)["items"]:
        owners = [ref["uid"] for ref in item["metadata"].get("ownerReferences", [])]
        if uid in owners:
            children.append(normal(item, namespace=namespace))
    conditions = {
        c["type"]: (c["status"], c["reason"]) for c in intent["status"].get("conditions", [])
    }
    return {
        "children": sorted(children, key=lambda c: (c["kind"], json.dumps(c, sort_keys=True))),
        "conditions": conditions,
        "observed": intent["status"].get("observedGeneration") == intent["metadata"]["generation"],
        "plan": {key: plan[key] for key in _DECISION if key in plan},
    }


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the lines in which two end states differ; empty if they are equal."""
    import difflib

    texts = [json.dumps(value, indent=1, sort_keys=True).splitlines() for value in (one, other)]
    return "\n".join(difflib.unified_diff(*texts, "undisturbed", "disturbed", n=1, lineterm=""))
