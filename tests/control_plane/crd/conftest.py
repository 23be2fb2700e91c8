"""A real API server with Trimtab's definitions, asked in plain JSON."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes import client, config

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
PLURALS = {
    "InferenceIntent": "inferenceintents",
    "ServerlessFunction": "serverlessfunctions",
    "GPUProfile": "gpuprofiles",
}


@dataclass(frozen=True)
class Answer:
    """Status code and JSON of one answer."""

    code: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))

    @property
    def causes(self) -> list[dict[str, str]]:
        return self.body.get("details", {}).get("causes", [])


class Api:
    """Requests to the API server as the administrator."""

    def __init__(self, kubeconfig: str) -> None:
        self._client: client.ApiClient = config.new_client_from_config(kubeconfig)

    def close(self) -> None:
        self._client.rest_client.pool_manager.clear()
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request; refusals are answers too."""
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        call = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*call, _request_timeout=30)
        return Answer(answer.status, json.loads(answer.read()))

    def collection(self, manifest: dict[str, Any]) -> str:
        plural = PLURALS[manifest["kind"]]
        namespace = manifest["metadata"].get("namespace")
        middle = f"namespaces/{namespace}/" if namespace else ""
        return f"/apis/trimtab.dev/v1alpha1/{middle}{plural}"

    def try_create(self, manifest: dict[str, Any]) -> Answer:
        """Create with a dry run, so that nothing is left behind; unknown fields are refused."""
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        return self.request("POST", self.collection(manifest), manifest, query=query)

    def apply(self, manifest: dict[str, Any], **query: str) -> Answer:
        path = f"{self.collection(manifest)}/{manifest['metadata']['name']}"
        return self.request(
            "PATCH",
            path,
            manifest,
            query={"fieldManager": "test", "fieldValidation": "Strict", **query},
            content_type=APPLY,
        )

    def define(self, definition: dict[str, Any]) -> Answer:
        """Create a CustomResourceDefinition."""
        return self.request(
            "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition
        )

    def definition(self, name: str) -> Answer:
        return self.request(
            "GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        )

    def await_served(self, name: str, path: str, *, seconds: float = 30) -> None:
        """Return when a definition is established and its collection answers."""
        deadline = time.monotonic() + seconds
        seen = None
        while time.monotonic() < deadline:
            seen = self.definition(name).body.get("status", {}).get("conditions")
            done = {c["type"]: c["status"] for c in seen or ()}
            if done.get("Established") == "True" and self.request("GET", path).code == 200:
                return
            time.sleep(0.05)
        pytest.fail(f"{name} is not served after {seconds} s: {seen}")


@pytest.fixture(scope="session")
def bare_api(control_plane: Any) -> Iterator[Api]:
    """Yield requests to the API server."""
    api = Api(str(control_plane.kubeconfig))
    yield api
    api.close()


@pytest.fixture(scope="session")
def api(bare_api: Api) -> Api:
    """Apply Trimtab's definitions, strictly, and give requests to the API server that serves them."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())
        name = definition["metadata"]["name"]
        answer = bare_api.request(
            "PATCH",
            f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}",
            definition,
            query={"fieldManager": "test", "fieldValidation": "Strict", "force": "true"},
            content_type=APPLY,
        )
        assert answer.code in {200, 201}, answer.message
        plural = definition["spec"]["names"]["plural"]
        bare_api.await_served(name, f"/apis/trimtab.dev/v1alpha1/{plural}")
    return bare_api
