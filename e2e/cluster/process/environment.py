"""What a container's command, arguments and variables become, as a kubelet would make them."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from e2e.cluster.process.quantity import in_units

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Lookup = Callable[[str, str], Awaitable[Mapping[str, str] | None]]
    """(kind, name) to the data of a ConfigMap or Secret of the pod's namespace, None if absent."""

_REFERENCE = re.compile(r"\$(?:\$|\(([A-Za-z_.\-][A-Za-z0-9_.\-]*)\))")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class CreateContainerConfigError(ValueError):
    """A container's environment names something that does not exist; it is tried again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the stand-in node offers: the defaults of `resourceFieldRef`, as quantities."""

    cpu: str
    memory: str
    ephemeral_storage: str


def expand(text: str, *, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value; `$$` is a dollar, an unknown name is left as it stands."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def field(pod: Mapping[str, Any], path: str, *, pod_ip: str, host_ip: str) -> str:
    """Return a field of the downward API.

    Raises:
        CreateContainerConfigError: The stand-in does not know the path; names it.
    """
    meta = pod["metadata"]
    keyed = _KEYED.fullmatch(path)
    if keyed:
        return str((meta.get(keyed[1]) or {}).get(keyed[2], ""))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
    }
    if path in known:
        return str(known[path])
    for name in ("labels", "annotations"):
        if path == f"metadata.{name}":
            values = meta.get(name) or {}
            return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))
    raise CreateContainerConfigError(f"fieldRef {path!r} is not known to the stand-in node")


def resource(
    container: Mapping[str, Any], reference: Mapping[str, str], *, machine: Machine
) -> str:
    """Return a `resourceFieldRef`: limits default to the node's capacity, requests to limits."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    capacity = {"cpu": machine.cpu, "memory": machine.memory}
    capacity["ephemeral-storage"] = machine.ephemeral_storage
    limits = resources.get("limits") or {}
    found = (resources.get(kind) or {}).get(name) or limits.get(name) or capacity.get(name, "0")
    return in_units(str(found), divisor=str(reference.get("divisor") or "1"))


async def variables(
    container: Mapping[str, Any],
    *,
    pod: Mapping[str, Any],
    pod_ip: str,
    host_ip: str,
    machine: Machine,
    lookup: Lookup,
) -> dict[str, str]:
    """Return the variables that a container's `envFrom` and `env` define, references expanded.

    Raises:
        CreateContainerConfigError: A ConfigMap, Secret or key is missing and not optional.
    """
    result: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        for kind, ref in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if ref in source:
                data = await lookup(kind, source[ref]["name"])
                if data is None and not source[ref].get("optional"):
                    raise CreateContainerConfigError(f'{kind} "{source[ref]["name"]}" not found')
                prefix = source.get("prefix", "")
                result.update({prefix + key: value for key, value in (data or {}).items()})
    for entry in container.get("env") or ():
        source = entry.get("valueFrom")
        if not source:
            result[entry["name"]] = expand(entry.get("value", ""), variables=result)
            continue
        value = await _from_source(
            source, container=container, pod=pod, pod_ip=pod_ip, host_ip=host_ip, machine=machine,
            lookup=lookup,
        )  # fmt: skip
        if value is not None:
            result[entry["name"]] = value
    return result


async def _from_source(
    source: Mapping[str, Any],
    *,
    container: Mapping[str, Any],
    pod: Mapping[str, Any],
    pod_ip: str,
    host_ip: str,
    machine: Machine,
    lookup: Lookup,
) -> str | None:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"], pod_ip=pod_ip, host_ip=host_ip)
    if "resourceFieldRef" in source:
        return resource(container, source["resourceFieldRef"], machine=machine)
    for kind, name in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if name in source:
            ref = source[name]
            data = await lookup(kind, ref["name"])
            if data is not None and ref["key"] in data:
                return data[ref["key"]]
            if ref.get("optional"):
                return None
            missing = "not found" if data is None else f"has no key {ref['key']!r}"
            raise CreateContainerConfigError(f'{kind} "{ref["name"]}" {missing}')
    raise CreateContainerConfigError(f"valueFrom {sorted(source)} is not known to the stand-in")


def arguments(
    container: Mapping[str, Any], *, entrypoint: Sequence[str], variables: Mapping[str, str]
) -> list[str]:
    """Return the command line: `command` replaces the image's entrypoint, `args` follow it."""
    command = container.get("command") or ()
    line = [*(command or entrypoint), *(container.get("args") or ())]
    if not line:
        raise CreateContainerConfigError(
            f"container {container['name']!r}: its image is mapped to no entrypoint; give a command"
        )
    return [expand(word, variables=variables) for word in line]
