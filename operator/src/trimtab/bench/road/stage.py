"""A namespace of the user's cluster for one benchmark: what is created in it is deleted again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab.api.v1alpha1.names import (
    COMPONENT_LABEL,
    GROUP,
    INTENT_LABEL,
    MANAGED_BY_LABEL,
    OPERATOR,
    PAUSED_ANNOTATION,
)
from trimtab.bench.open_loop import Endpoint
from trimtab.cli.output import CommandError
from trimtab.kube.client import APPLY, MERGE
from trimtab.kube.errors import ApiError
from trimtab.kube.resources import CONFIG_MAP, INTENT, JOB, POD, SERVICE, Manifest, Resource
from trimtab.net import pod_connector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trimtab.kube.client import KubeClient

BENCH_LABEL: Final = f"{GROUP}/bench"
_NAME: Final = "planner-cpu"
_ACCOUNT: Final = "trimtab-bench"
_AUDIENCE: Final = "trimtab"
_TOKEN_SECONDS: Final = 3600
_NAMESPACE: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
_ROLE: Final = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
_BINDING: Final = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
_REFUSED_SECONDS: Final = 30.0
_GONE_SECONDS: Final = 180.0
_METRICS_PORT, _ADMIN_PORT = 8002, 8001


class CannotServeError(CommandError):
    """A way cannot be served on this cluster; the others may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An intent that serves, and what the operator planned for it."""

    name: str
    public_name: str
    body: Manifest


class Stage:
    """What a benchmark does with the cluster."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        system_namespace: str,
        source: Mapping[str, Any],
        gateway: str = "",
        ready_seconds: float,
        poll_seconds: float = 1.0,
        say: Callable[[str], None],
    ) -> None:
        """Prepare; nothing is created yet.

        Args:
            client: Of the user's own cluster, with the user's own rights.
            namespace: Created if it does not exist, and then deleted at the end.
            system_namespace: Where the chart is installed.
            source: `spec.model.source` of the intents.
            gateway: URL without `/v1`; empty to find it.
            ready_seconds: How long an intent may take to be served, measurements included.
            poll_seconds: Between two looks.
            say: Told what is waited for.
        """
        self._client = client
        self._namespace = namespace
        self._system = system_namespace
        self._source = source
        self._gateway = gateway
        self._ready_seconds = ready_seconds
        self._poll_seconds = poll_seconds
        self._say = say
        self._own_namespace = False

    async def prepare(self) -> None:
        """Create namespace, account and rights; remove what an earlier benchmark left.

        Raises:
            CommandError: The model is on a claim that the namespace does not have.
        """
        claim = (self._source.get("persistentVolumeClaim") or {}).get("claimName")
        there = await self._client.get(_NAMESPACE, namespace=None, name=self._namespace)
        if there is None and claim:
            raise CommandError(
                f"Namespace {self._namespace} does not exist, and the model is on its claim "
                f"{claim}. Give --namespace with such a claim, or another --source."
            )
        if there is None:
            await self._apply(_NAMESPACE, {"metadata": self._meta(self._namespace, bound=False)})
            self._own_namespace = True
        else:
            labels = there["metadata"].get("labels") or {}
            self._own_namespace = labels.get(BENCH_LABEL) == _NAME
        for intent in await self._list(INTENT, f"{BENCH_LABEL}={_NAME}"):
            await self.remove(intent["metadata"]["name"])
        await self._let_in()

    async def endpoint(self) -> Endpoint:
        """Return where the gateway answers this machine, with a fresh token.

        Raises:
            CommandError: It does not.
        """
        path = f"{_ACCOUNTS.path(namespace=self._namespace, name=_ACCOUNT)}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [_AUDIENCE], "expirationSeconds": _TOKEN_SECONDS},
        }
        answer = await self._client.request("POST", path, body=body)
        if not self._gateway:
            self._gateway = await self._find_gateway()
        return Endpoint(url=self._gateway.rstrip("/"), token=answer["status"]["token"])

    async def serve(self, name: str, spec: Mapping[str, Any]) -> Served:
        """Create an intent, wait until it is served as planned and measured, and freeze it.

        It is frozen (`trimtab.dev/paused`), because the load that is about to come would make the
        operator plan anew.

        Raises:
            CannotServeError: It is not served in time, or the operator refuses it.
        """
        body = {"metadata": self._meta(name), "spec": {"model": {"source": self._source}, **spec}}
        await self._apply(INTENT, body)
        found = await self._ready(name)
        path = INTENT.path(namespace=self._namespace, name=name)
        paused = {"metadata": {"annotations": {PAUSED_ANNOTATION: "true"}}}
        await self._client.request("PATCH", path, body=paused, content_type=MERGE)
        return Served(name=name, public_name=found["status"]["model"]["name"], body=found)

    async def remove(self, name: str) -> None:
        """Delete an intent and wait until it and its pods are gone.

        Raises:
            CommandError: They do not go.
        """
        with contextlib.suppress(_GoneError):
            await self._delete(INTENT, name)
        deadline = time.monotonic() + _GONE_SECONDS
        while True:
            left = await self._client.get(INTENT, namespace=self._namespace, name=name)
            pods = await self._list(POD, f"{INTENT_LABEL}={name}")
            if left is None and not pods:
                return
            if time.monotonic() > deadline:
                raise CommandError(
                    f"InferenceIntent {self._namespace}/{name} is not gone after "
                    f"{_GONE_SECONDS:g} s ({len(pods)} pods left): is the operator running?"
                )
            await asyncio.sleep(self._poll_seconds)

    async def clean(self) -> None:
        """Delete everything that was created; what was there before stays."""
        for intent in await self._list(INTENT, f"{BENCH_LABEL}={_NAME}"):
            await self.remove(intent["metadata"]["name"])
        for resource in (_BINDING, _ROLE, _ACCOUNTS):
            with contextlib.suppress(_GoneError):
                await self._delete(resource, _ACCOUNT)
        if self._own_namespace:
            with contextlib.suppress(_GoneError):
                await self._delete(_NAMESPACE, self._namespace)

    async def config_map(self, name: str, key: str) -> str:
        """Return one entry of a ConfigMap of the system namespace; empty if there is none."""
        found = await self._client.get(CONFIG_MAP, namespace=self._system, name=name)
        return str(((found or {}).get("data") or {}).get(key) or "")

    async def nodes(self, name: str) -> list[str]:
        """Return the nodes that an intent's pods run on."""
        pods = await self._list(POD, f"{INTENT_LABEL}={name},{COMPONENT_LABEL}=worker")
        return sorted({str(pod["spec"].get("nodeName") or "") for pod in pods})

    async def counters(self, name: str) -> dict[str, float] | None:
        """Return every sample of an intent's workers summed by name; None if one does not answer.

        They are read through the API server's proxy, as `kubectl get --raw` does.
        """
        pods = await self._list(POD, f"{INTENT_LABEL}={name},{COMPONENT_LABEL}=worker")
        total: dict[str, float] = {}
        try:
            for pod in pods:
                path = self._proxied(self._namespace, pod, _METRICS_PORT, "/metrics")
                _add(total, await self._client.text(path))
        except (ApiError, aiohttp.ClientError, TimeoutError):
            return None
        return total if pods else None

    async def overhead_us(self, public_name: str) -> int:
        """Return the gateway's own time for an intent's requests, µs; 0 if it does not say."""
        selector = {"labelSelector": f"{COMPONENT_LABEL}=gateway"}
        listed = await self._client.request("GET", POD.path(namespace=self._system), query=selector)
        found = []
        for pod in listed.get("items") or ():
            path = self._proxied(self._system, pod, _ADMIN_PORT, "/-/observed")
            with contextlib.suppress(ApiError, aiohttp.ClientError, TimeoutError):
                seen = (await self._client.request("GET", path)).get("intents") or {}
                value = (seen.get(public_name) or {}).get("overhead_ms_p50")
                found += [float(value)] if value else []
        return round(1000 * max(found, default=0.0))

    # What is waited for.

    async def _ready(self, name: str) -> Manifest:
        deadline = time.monotonic() + self._ready_seconds
        refused_since: float | None = None
        said = ""
        while True:
            body = await self._client.get(INTENT, namespace=self._namespace, name=name) or {}
            conditions = {c["type"]: c for c in (body.get("status") or {}).get("conditions") or ()}
            measuring = await self._measuring()
            if (
                _holds(conditions, "Ready")
                and _holds(conditions, "Fingerprinted")
                and not measuring
            ):
                return body
            now = time.monotonic()
            planned = conditions.get("Planned") or {}
            refused = planned.get("status") == "False" and not measuring
            refused_since = (refused_since or now) if refused else None
            waiting = next((c for c in conditions.values() if c["status"] != "True"), planned)
            told = f"{waiting.get('type', 'Planned')}: {waiting.get('message', 'not seen yet')}"
            if now > deadline or (refused_since and now - refused_since > _REFUSED_SECONDS):
                raise CannotServeError(f"InferenceIntent {self._namespace}/{name}: {told}")
            if told != said:
                self._say(f"{name}: {told}")
                said = told
            await asyncio.sleep(self._poll_seconds)

    async def _measuring(self) -> bool:
        """Return whether a Job of the operator runs: it would take the workers' cores."""
        ours = {"labelSelector": f"{MANAGED_BY_LABEL}={OPERATOR}"}
        for namespace in (self._system, self._namespace):
            path = JOB.path(namespace=namespace)
            found = await self._client.request("GET", path, query=ours)
            if any((job.get("status") or {}).get("active") for job in found.get("items") or ()):
                return True
        return False

    async def _find_gateway(self) -> str:
        selector = {"labelSelector": f"{COMPONENT_LABEL}=gateway"}
        services = await self._client.request(
            "GET", SERVICE.path(namespace=self._system), query=selector
        )
        pods = await self._client.request("GET", POD.path(namespace=self._system), query=selector)
        tried = [url for service in services.get("items") or () for url in _addresses(service)]
        tried += [
            f"http://{pod['status']['podIP']}:8080"
            for pod in pods.get("items") or ()
            if (pod.get("status") or {}).get("podIP")
        ]
        for url in tried:
            if await _answers(url):
                return url
        raise CommandError(
            f"The gateway does not answer this machine at {', '.join(tried) or 'any address'}. Run "
            f"`kubectl -n {self._system} port-forward service/trimtab-gateway 8080:80` beside this "
            "and give --gateway http://127.0.0.1:8080, or run inside the cluster."
        )

    # What is written.

    async def _let_in(self) -> None:
        rule = {"apiGroups": [GROUP], "resources": ["inferenceintents"], "verbs": ["invoke"]}
        await self._apply(_ACCOUNTS, {"metadata": self._meta(_ACCOUNT)})
        await self._apply(_ROLE, {"metadata": self._meta(_ACCOUNT), "rules": [rule]})
        await self._apply(
            _BINDING,
            {
                "metadata": self._meta(_ACCOUNT),
                "roleRef": {"apiGroup": _ROLE.group, "kind": "Role", "name": _ACCOUNT},
                "subjects": [
                    {"kind": "ServiceAccount", "name": _ACCOUNT, "namespace": self._namespace}
                ],
            },
        )

    def _meta(self, name: str, *, bound: bool = True) -> Manifest:
        meta: Manifest = {"name": name, "labels": {BENCH_LABEL: _NAME}}
        return meta | ({"namespace": self._namespace} if bound else {})

    async def _apply(self, resource: Resource, manifest: Manifest) -> None:
        meta = manifest["metadata"]
        await self._client.request(
            "PATCH",
            resource.path(namespace=meta.get("namespace"), name=meta["name"]),
            query={"fieldManager": self._client.manager, "force": "true"},
            body={"apiVersion": resource.api_version, "kind": resource.kind, **manifest},
            content_type=APPLY,
        )

    async def _delete(self, resource: Resource, name: str) -> None:
        namespace = self._namespace if resource.namespaced else None
        try:
            await self._client.request("DELETE", resource.path(namespace=namespace, name=name))
        except ApiError as error:
            if error.code == 404:
                raise _GoneError from error
            raise

    async def _list(self, resource: Resource, selector: str) -> list[Manifest]:
        items = self._client.items(resource, namespace=self._namespace, label_selector=selector)
        return [item async for item in items]

    @staticmethod
    def _proxied(namespace: str, pod: Manifest, port: int, path: str) -> str:
        name = pod["metadata"]["name"]
        return f"{POD.path(namespace=namespace, name=f'{name}:{port}')}/proxy{path}"


class _GoneError(Exception):
    """What was to be deleted is gone."""


def _holds(conditions: Mapping[str, Mapping[str, Any]], kind: str) -> bool:
    return (conditions.get(kind) or {}).get("status") == "True"


def _addresses(service: Manifest) -> list[str]:
    port = service["spec"]["ports"][0]["port"]
    status = (service.get("status") or {}).get("loadBalancer") or {}
    hosts = [i.get("ip") or i.get("hostname") for i in status.get("ingress") or ()]
    hosts.append(service["spec"].get("clusterIP"))
    return [f"http://{host}:{port}" for host in hosts if host and host != "None"]


async def _answers(url: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=3)
    try:
        async with (
            aiohttp.ClientSession(connector=pod_connector(), timeout=timeout) as session,
            session.get(f"{url}/healthz") as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _add(total: dict[str, float], text: str) -> None:
    """Add the samples of a page in Prometheus' text format, whatever their labels."""
    from prometheus_client.parser import (  # noqa: PLC0415 - only where a worker was asked
        text_string_to_metric_families,
    )

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_total")
            total[name] = total.get(name, 0.0) + sample.value
