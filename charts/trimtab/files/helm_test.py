"""What `helm test` runs in a pod: operator leading, gateways answering and, given a model, a token.

Everything it needs to know is JSON in TRIMTAB_TEST; it exits 0, or 1 with the sentence that says what was seen last.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
from kubernetes import client, config

from trimtab.net import pod_connector

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = ("trimtab.dev", "v1alpha1")
KINDS = "inferenceintents"
PAUSE_SECONDS = 1.0


class TestFailedError(Exception):
    """The release does not do what it should; the message says what was expected and seen."""


def wait_for(what: str, look: Callable[[], str], *, seconds: float) -> None:
    """Call `look` until it returns an empty string; what it returns before is what is missing."""
    deadline = time.monotonic() + seconds
    said = ""
    while missing := look():
        if missing != said:
            print(f"waiting for {what}: {missing}")
            said = missing
        if time.monotonic() > deadline:
            raise TestFailedError(f"{what}: not within {seconds:g} s; last seen: {missing}")
        time.sleep(PAUSE_SECONDS)
    print(f"ok: {what}")


def available(namespace: str, name: str) -> str:
    """Say what keeps a Deployment from being available, or nothing."""
    status = client.AppsV1Api().read_namespaced_deployment(name, namespace).status
    return "" if status.available_replicas else f"{status.ready_replicas or 0} pods are ready"


def led(namespace: str, name: str) -> str:
    """Say why nobody leads, or nothing."""
    try:
        lease = client.CoordinationV1Api().read_namespaced_lease(name, namespace).spec
    except client.ApiException as exc:
        return f"Lease {name}: {exc.status} {exc.reason}"
    if not lease.holder_identity or lease.renew_time is None:
        return f"Lease {name} has no holder"
    age = (dt.datetime.now(dt.UTC) - lease.renew_time).total_seconds()
    limit = 2 * lease.lease_duration_seconds
    return "" if age < limit else f"{lease.holder_identity} renewed Lease {name} {age:.0f} s ago"


def addresses(namespace: str, service: str) -> list[str]:
    """Return host:port of every ready gateway: each is asked, whichever a Service would pick."""
    slices = client.DiscoveryV1Api().list_namespaced_endpoint_slice(
        namespace, label_selector=f"kubernetes.io/service-name={service}"
    )
    return [
        f"{address}:{port.port}"
        for piece in slices.items
        for port in piece.ports or []
        if port.name == "http"
        for endpoint in piece.endpoints or []
        if endpoint.conditions.ready is not False
        for address in endpoint.addresses
    ]


async def ask(
    address: str, *, path: str, body: object = None, token: str = ""
) -> tuple[int, dict[str, Any]]:
    """Send one request to a gateway; return the status and the JSON that came back."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    limit = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(connector=pod_connector(), timeout=limit) as session,
        session.request(
            "GET" if body is None else "POST", f"http://{address}{path}", json=body, headers=headers
        ) as response,
    ):
        text = await response.text()
    with contextlib.suppress(json.JSONDecodeError):
        answer = json.loads(text)
        if isinstance(answer, dict):
            return response.status, answer
    return response.status, {"text": text}


def serving(intents: client.CustomObjectsApi, namespace: str, name: str) -> str:
    """Say what the intent's condition Ready says while it is not True, or nothing."""
    status = intents.get_namespaced_custom_object(*GROUP, namespace, KINDS, name).get("status", {})
    ready = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)
    if ready is None:
        return "no condition Ready yet"
    return "" if ready["status"] == "True" else f"{ready['reason']}: {ready['message']}"


def check_model(namespace: str, settings: dict[str, Any], gateways: list[str]) -> None:
    """Apply an intent on product `cpu`, wait until it serves, and get one token from every gateway."""
    intents, name = client.CustomObjectsApi(), settings["name"]
    intent = {
        "apiVersion": "/".join(GROUP),
        "kind": "InferenceIntent",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {**settings["model"], "name": name},
            "objective": "MinLatency",
            "load": {"requestsPerSecond": "0.1", "promptTokens": 16, "outputTokens": 1},
            "constraints": {"gpuProducts": ["cpu"], "maxReplicas": 1},
        },
    }
    token = ""
    if settings["auth"] == "Kubernetes":
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=["trimtab"], expiration_seconds=3600)
        )
        account = client.CoreV1Api().create_namespaced_service_account_token(
            name, namespace, request
        )
        token = account.status.token
    try:
        intents.create_namespaced_custom_object(*GROUP, namespace, KINDS, intent)
    except client.ApiException as exc:
        if exc.status != HTTPStatus.CONFLICT:  # an interrupted run left it
            raise
    try:
        wait_for(
            f"InferenceIntent {namespace}/{name} serves",
            lambda: serving(intents, namespace, name),
            seconds=settings["timeoutSeconds"],
        )
        body = {"model": f"{namespace}/{name}", "prompt": "The capital of France is"}
        for address in gateways:
            seen: list[str] = []

            def tokens(address: str = address, seen: list[str] = seen) -> str:
                status, answer = asyncio.run(
                    ask(
                        address,
                        path="/v1/completions",
                        body={**body, "max_tokens": 1, "temperature": 0},
                        token=token,
                    )
                )
                if status != HTTPStatus.OK or not answer.get("choices"):
                    return f"{status} {json.dumps(answer)}"
                seen.append(answer["choices"][0]["text"])
                return ""

            wait_for(f"a token through {address}", tokens, seconds=60)
            print(f"the model's answer: {seen[-1]!r}")
    finally:
        intents.delete_namespaced_custom_object(*GROUP, namespace, KINDS, name)


def main() -> None:
    """Check the release that TRIMTAB_TEST describes."""
    config.load_config()
    settings = json.loads(os.environ["TRIMTAB_TEST"])
    namespace = os.environ["TRIMTAB_SYSTEM_NAMESPACE"]
    for name in (settings["operator"], settings["gateway"]):
        wait_for(f"Deployment {name}", lambda name=name: available(namespace, name), seconds=120)
    wait_for("a leading operator", lambda: led(namespace, settings["lease"]), seconds=60)
    gateways = addresses(namespace, settings["gateway"])
    if not gateways:
        raise TestFailedError(f"Service {settings['gateway']} has no ready address.")
    for address in gateways:
        status, _ = asyncio.run(ask(address, path="/healthz"))
        if status != HTTPStatus.OK:
            raise TestFailedError(f"gateway {address} answered {status} to GET /healthz, not 200.")
        print(f"ok: gateway {address} answers")
    if settings["model"]:
        check_model(namespace, settings, gateways)
    else:
        print("test.model is not set, so no intent was applied")


if __name__ == "__main__":
    try:
        main()
    except (TestFailedError, client.ApiException, aiohttp.ClientError, TimeoutError) as failure:
        sys.exit(f"helm test failed: {failure}")
