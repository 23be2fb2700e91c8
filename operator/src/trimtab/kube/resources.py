"""The kinds Trimtab reads or writes, and their addresses at the API server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Manifest = dict[str, Any]
"""A Kubernetes object as JSON; its fields are the API server's, so they stay untyped."""


class UnknownKindError(LookupError):
    """A manifest names a kind that is not in the table below; that is a bug of its builder."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Group, version, plural and kind, as in `kubectl api-resources`."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1` or `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, *, namespace: str | None = None, name: str | None = None, subresource: str = ""
    ) -> str:
        """Return the URL path of the collection, or of one object."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


INTENT: Final = Resource("trimtab.dev", "v1alpha1", "inferenceintents", "InferenceIntent")
FUNCTION: Final = Resource("trimtab.dev", "v1alpha1", "serverlessfunctions", "ServerlessFunction")
PROFILE: Final = Resource("trimtab.dev", "v1alpha1", "gpuprofiles", "GPUProfile", namespaced=False)
DEPLOYMENT: Final = Resource("apps", "v1", "deployments", "Deployment")
SERVICE: Final = Resource("", "v1", "services", "Service")
CONFIG_MAP: Final = Resource("", "v1", "configmaps", "ConfigMap")
POD: Final = Resource("", "v1", "pods", "Pod")
NODE: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
JOB: Final = Resource("batch", "v1", "jobs", "Job")
NETWORK_POLICY: Final = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
DISRUPTION_BUDGET: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
CLAIM: Final = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
VOLUME: Final = Resource("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
LEASE: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENT: Final = Resource("events.k8s.io", "v1", "events", "Event")

CHILDREN: Final = (DEPLOYMENT, SERVICE, CONFIG_MAP, JOB, NETWORK_POLICY, DISRUPTION_BUDGET)
"""Kinds that Trimtab creates, and therefore sweeps."""

WATCHED: Final = (INTENT, *CHILDREN, POD, NODE)

_BY_KIND: Final = {(r.api_version, r.kind): r for r in (*WATCHED, FUNCTION, PROFILE, LEASE, EVENT)}


def resource_of(manifest: Manifest) -> Resource:
    """Return the table row of a manifest.

    Raises:
        UnknownKindError: Names apiVersion and kind.
    """
    key = (manifest.get("apiVersion", ""), manifest.get("kind", ""))
    try:
        return _BY_KIND[key]
    except KeyError:
        raise UnknownKindError(
            f"Trimtab has no address for {key[0]} {key[1]}; this is a bug: "
            "add the kind to trimtab.kube.resources."
        ) from None
