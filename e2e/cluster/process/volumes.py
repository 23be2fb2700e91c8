"""A pod's volumes as folders; those made of API objects are replaced atomically, as by a kubelet."""

from __future__ import annotations

import base64
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.cluster.process.environment import expand, field, resource
from e2e.cluster.process.images import UnknownImageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from e2e.cluster.process.api import Api
    from e2e.cluster.process.environment import Machine
    from e2e.cluster.process.images import Images


class MountError(Exception):
    """A volume cannot be provided yet; the message is what `kubectl describe pod` shows."""


def write_payload(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Make `folder` show exactly `files` at once, by a kubelet's `..data` symlink; return if it changed.

    A reader that holds the old files keeps reading them; no reader sees half of an update.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    current = folder / "..data"
    if current.is_symlink() and _payload(current) == dict(files):
        return False
    old = current.readlink() if current.is_symlink() else None
    fresh = f"..{time.time_ns()}"
    for name, content in files.items():
        path = folder / fresh / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(content)
        path.chmod(0o600)
    (folder / fresh).mkdir(exist_ok=True, mode=0o700)
    swap = folder / "..data_tmp"
    swap.unlink(missing_ok=True)
    swap.symlink_to(fresh)
    swap.replace(current)
    tops = {name.partition("/")[0] for name in files}
    for top in tops:
        link = folder / top
        if not link.is_symlink():
            link.symlink_to(f"..data/{top}")
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old:
        shutil.rmtree(folder / old, ignore_errors=True)
    return True


def _payload(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def pick(
    data: Mapping[str, bytes], items: list[dict[str, Any]] | None, *, what: str, optional: bool
) -> dict[str, bytes]:
    """Return the files that a ConfigMap's or Secret's `items` select: all of them without `items`.

    Raises:
        MountError: A key is missing and the source is not optional.
    """
    if not items:
        return dict(data)
    files = {}
    for item in items:
        if item["key"] in data:
            files[item["path"]] = data[item["key"]]
        elif not optional:
            raise MountError(f"{what} has no key {item['key']!r}")
    return files


class Volumes:
    """The volumes of one pod, kept under `folder`."""

    def __init__(
        self, folder: Path, *, api: Api, images: Images, machine: Machine, address: str
    ) -> None:
        self._folder = folder
        self._api = api
        self._images = images
        self._machine = machine
        self._address = address
        self._renewals: dict[Path, float] = {}

    @property
    def token_renewal(self) -> float | None:
        """When a ServiceAccount token has to be fetched again, as a Unix time; None for never."""
        return min(self._renewals.values(), default=None)

    async def mount(self, pod: Mapping[str, Any]) -> dict[str, Path]:
        """Provide every volume, or bring it up to date, and return their folders by name.

        Raises:
            MountError: A volume's source is missing; the caller tries again.
            ApiError, aiohttp.ClientError, TimeoutError: The API server refused or did not answer.
        """
        return {
            volume["name"]: await self._mount(volume, pod)
            for volume in pod["spec"].get("volumes") or ()
        }

    async def _mount(self, volume: Mapping[str, Any], pod: Mapping[str, Any]) -> Path:
        name = volume["name"]
        kind = next((key for key in volume if key != "name"), "emptyDir")
        source = volume.get(kind) or {}
        folder = self._folder / name
        if kind == "emptyDir":
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return folder
        if kind == "hostPath":
            return _host_path(source, name=name)
        if kind == "persistentVolumeClaim":
            return await self._claim(source["claimName"], pod["metadata"]["namespace"])
        if kind == "image":
            return self._image(source.get("reference", ""))
        if kind == "projected":
            files: dict[str, bytes] = {}
            for part in source.get("sources") or ():
                part_kind = next(iter(part))
                files |= await self._files(part_kind, part[part_kind], pod, folder)
        else:
            files = await self._files(kind, source, pod, folder)
        write_payload(folder, files)
        return folder

    async def _files(
        self, kind: str, source: Mapping[str, Any], pod: Mapping[str, Any], folder: Path
    ) -> dict[str, bytes]:
        namespace = pod["metadata"]["namespace"]
        if kind in {"configMap", "secret"}:
            name = source.get("name") or source["secretName"]
            return await self._object(kind, name, source, namespace)
        if kind == "downwardAPI":
            return {item["path"]: self._downward(item, pod) for item in source.get("items") or ()}
        if kind == "serviceAccountToken":
            return {source["path"]: await self._token(source, pod, folder)}
        raise MountError(f"volume kind {kind!r} is not known to the stand-in node")

    async def _object(
        self, kind: str, name: str, source: Mapping[str, Any], namespace: str
    ) -> dict[str, bytes]:
        what = f'{kind} "{name}"'
        plural = {"configMap": "configmaps", "secret": "secrets"}[kind]
        found = await self._api.get(f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        optional = bool(source.get("optional"))
        authority = self._api.config.authority()
        if found is None and name == "kube-root-ca.crt" and authority:
            found = {"data": {"ca.crt": authority.decode()}}  # its publisher may be switched off
        if found is None and not optional:
            raise MountError(f"{what} not found")
        data = decoded(found or {}, kind=kind)
        return pick(data, source.get("items"), what=what, optional=optional)

    def _downward(self, item: Mapping[str, Any], pod: Mapping[str, Any]) -> bytes:
        if "fieldRef" in item:
            path = item["fieldRef"]["fieldPath"]
            return field(pod, path, pod_ip=self._address, host_ip="127.0.0.1").encode()
        reference = item["resourceFieldRef"]
        chosen = next(
            c for c in pod["spec"]["containers"] if c["name"] == reference["containerName"]
        )
        return resource(chosen, reference, machine=self._machine).encode()

    async def _token(
        self, source: Mapping[str, Any], pod: Mapping[str, Any], folder: Path
    ) -> bytes:
        meta = pod["metadata"]
        kept = folder / "..data" / source["path"]
        if kept.exists() and time.time() < self._renewals.get(kept, 0):
            return kept.read_bytes()
        account = pod["spec"].get("serviceAccountName", "default")
        seconds = int(source.get("expirationSeconds") or 3600)
        spec: dict[str, Any] = {
            "expirationSeconds": seconds,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"],
            },
        }  # fmt: skip
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        answer = await self._api.request(
            "POST",
            f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token",
            body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        self._renewals[kept] = time.time() + 0.8 * seconds
        return str(answer["status"]["token"]).encode()

    async def _claim(self, name: str, namespace: str) -> Path:
        what = f'persistentvolumeclaim "{name}"'
        claim = await self._api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        if claim is None:
            raise MountError(f"{what} not found")
        if claim.get("status", {}).get("phase") != "Bound":
            raise MountError(f"{what} is not bound")
        volume = await self._api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        spec = (volume or {}).get("spec", {})
        for kind in ("hostPath", "local"):
            if kind in spec:
                return _host_path(spec[kind], name=name)
        raise MountError(
            f"{what}: its volume has neither hostPath nor local, the stand-in node's only kinds"
        )

    def _image(self, reference: str) -> Path:
        try:
            folder = self._images.find(reference).folder
        except UnknownImageError as error:
            raise MountError(str(error)) from error
        if folder is None:
            raise MountError(f'image "{reference}" stands for a command, not for a folder')
        return folder


def decoded(found: Mapping[str, Any], *, kind: str) -> dict[str, bytes]:
    """Return the data of a ConfigMap or Secret as bytes by key."""
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    binary = found.get("binaryData") or {}
    return plain | {key: base64.b64decode(value) for key, value in binary.items()}


def _host_path(source: Mapping[str, Any], *, name: str) -> Path:
    path = Path(source["path"])
    kind = source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    wanted = {"Directory": path.is_dir, "File": path.is_file}.get(kind, lambda: True)
    if not wanted() or not path.exists():
        raise MountError(f'volume "{name}": hostPath {path} is no {kind or "file or folder"}')
    return path


def mounts(
    container: Mapping[str, Any], *, volumes: Mapping[str, Path], variables: Mapping[str, str]
) -> dict[str, Path]:
    """Return where each mount path of a container is on this machine; nothing is made read-only."""
    result = {}
    for mount in container.get("volumeMounts") or ():
        target = volumes[mount["name"]]
        part = mount.get("subPath") or expand(mount.get("subPathExpr") or "", variables=variables)
        if part:
            if ".." in Path(part).parts or part.startswith("/"):
                raise MountError(f"subPath {part!r} leaves its volume {mount['name']!r}")
            target /= part
            if not target.exists():
                target.mkdir(parents=True)
        result[mount["mountPath"]] = target
    return result


def kubeconfig(*, server: str, authority: bytes | None, folder: Path) -> str:
    """Return a kubeconfig that uses the token which a kubelet would have mounted at `folder`."""
    cluster: dict[str, Any] = {"server": server}
    if authority:
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
    namespace = folder / "namespace"
    context = {"cluster": "stand-in", "user": "pod"}
    if namespace.exists():
        context["namespace"] = namespace.read_text()
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "pod",
            "clusters": [{"name": "stand-in", "cluster": cluster}],
            "users": [{"name": "pod", "user": {"tokenFile": str(folder / "token")}}],
            "contexts": [{"name": "pod", "context": context}],
        }
    )
