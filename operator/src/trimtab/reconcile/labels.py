"""Labels and owners of everything the operator creates (contracts §2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trimtab.api.v1alpha1 import names

if TYPE_CHECKING:
    from trimtab.kube.resources import Manifest

Component = Literal["worker", "inspection", "fingerprint", "accuracy", "routes", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The intent that an object belongs to."""

    namespace: str
    name: str
    uid: str

    def share(self) -> Manifest:
        """Return the ownerReference for objects of a group, one of several: none controls.

        Garbage collection deletes such an object only after its last owner.
        """
        return {
            "apiVersion": names.API_VERSION,
            "kind": "InferenceIntent",
            "name": self.name,
            "uid": self.uid,
        }

    def reference(self) -> Manifest:
        """Return the ownerReference for children in the intent's own namespace."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": "InferenceIntent",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def group_labels(group_id: str) -> dict[str, str]:
    """Return the labels of the objects of a sharing group: they belong to no single intent."""
    return {
        names.NAME_LABEL: "trimtab",
        names.INSTANCE_LABEL: group_id,
        names.COMPONENT_LABEL: "worker",
        names.PART_OF_LABEL: "trimtab",
        names.MANAGED_BY_LABEL: names.OPERATOR,
        names.GROUP_LABEL: group_id,
    }


def group_selector(group_id: str) -> dict[str, str]:
    """Return what tells a group's worker pods from all others."""
    return {names.COMPONENT_LABEL: "worker", names.GROUP_LABEL: group_id}


def labels(component: Component, *, owner: Owner, outside: bool = False) -> dict[str, str]:
    """Return the labels of an intent's object; `outside` of the intent's namespace it is named."""
    found = {
        names.NAME_LABEL: "trimtab",
        names.INSTANCE_LABEL: owner.name[:63],
        names.COMPONENT_LABEL: component,
        names.PART_OF_LABEL: "trimtab",
        names.MANAGED_BY_LABEL: names.OPERATOR,
        names.OWNER_UID_LABEL: owner.uid,
        names.INTENT_LABEL: owner.name[:63],
    }
    if outside:
        found[names.INTENT_NAMESPACE_LABEL] = owner.namespace
    return found


def shared_labels(component: Component, *, instance: str) -> dict[str, str]:
    """Return the labels of an object that belongs to no single intent."""
    return {
        names.NAME_LABEL: "trimtab",
        names.INSTANCE_LABEL: instance[:63],
        names.COMPONENT_LABEL: component,
        names.PART_OF_LABEL: "trimtab",
        names.MANAGED_BY_LABEL: names.OPERATOR,
    }
