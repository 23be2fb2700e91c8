"""Every source of a model ends in a served token: hostPath, a hub on loopback's side of the cluster, an OCI image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.cluster import images
from e2e.hub.hub import Repository, ThreadedHub, pickle_only
from e2e.scenarios.builders import TEAM, an_intent

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

TINY = "glassllm-en"
HUB_TOKEN = "hub-token"


def _served(stack: st.Stack, token: str, name: str, source: dict[str, Any]) -> None:
    stack.apply(an_intent(name, model={"source": source}))
    try:
        stack.wait_condition(name, TEAM, "Ready", seconds=300)
        answer = st.stream_chat(
            stack.gateway, token=token, model=f"{TEAM}/{name}", prompt="the", max_tokens=8
        )
        assert answer.tokens
    finally:
        stack.kubectl("delete", "ii", name, "-n", TEAM, "--wait=true", "--timeout=60s")


def _node_address(stack: st.Stack) -> str:
    """Return an address of this machine that pods reach and that is the cluster's own."""
    slices = stack.list("endpointslices", "default", "kubernetes.io/service-name=kubernetes")
    return str(slices[0]["endpoints"][0]["addresses"][0])


def test_a_host_path_below_an_allowed_prefix_is_served(stack: st.Stack, token: str) -> None:
    """A hostPath source below an allowed prefix is served."""
    _served(stack, token, "from-host", {"hostPath": {"path": str(stack.models / TINY)}})


def test_a_hub_repository_is_served_though_the_connection_breaks(
    stack: st.Stack, token: str
) -> None:
    """A pinned repository of a hub is downloaded, resumed after a broken connection, and served; its token comes from a Secret."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub", "namespace": TEAM}}
    stack.apply(secret | {"stringData": {"token": HUB_TOKEN}})
    repository = Repository(folder=stack.models / TINY, token=HUB_TOKEN)
    with ThreadedHub({"acme/tiny": repository}, host=_node_address(stack)) as hub:
        hub.cut("model.safetensors", after_bytes=65536)
        stack.install(extra=({"sources": {"huggingFace": {"endpoint": hub.url}}},))
        source = {
            "repository": "acme/tiny",
            "revision": repository.commit,
            "tokenSecretRef": {"name": "hub", "key": "token"},
        }
        _served(stack, token, "from-hub", {"huggingFace": source})
        assert hub.cuts == 1
        assert any(request.range for request in hub.requests)
        assert hub.leaked_tokens == 0


def test_a_repository_of_pickles_is_refused(stack: st.Stack, tmp_path: Path) -> None:
    """A repository that holds pickles only ends in PickleRefused, and nothing of it is loaded."""
    repository = Repository(folder=pickle_only(tmp_path / "pickled"))
    with ThreadedHub({"acme/pickled": repository}, host=_node_address(stack)) as hub:
        stack.install(extra=({"sources": {"huggingFace": {"endpoint": hub.url}}},))
        source = {"huggingFace": {"repository": "acme/pickled", "revision": repository.commit}}
        stack.apply(an_intent("pickled", model={"source": source}))
        try:
            intent = stack.wait_condition(
                "pickled", TEAM, "Fingerprinted", "False", reason="PickleRefused", seconds=150
            )
            assert "pytorch_model.bin" in st.condition(intent, "Fingerprinted")["message"]
        finally:
            stack.kubectl("delete", "ii", "pickled", "-n", TEAM, "--wait=true", "--timeout=60s")


def test_an_image_volume_is_served(stack: st.Stack, token: str, tmp_path: Path) -> None:
    """A model inside a locally imported OCI image is mounted as a volume and served."""
    entries = {
        f"model/{path.name}": images.Entry(content=path.read_bytes(), mode=0o644)
        for path in (stack.models / TINY).iterdir()
        if path.is_file()
    }
    archive = tmp_path / "model.tar"
    images.write(
        archive,
        tags=["example.com/acme/tiny:1"],
        entries={"model": images.Entry()} | entries,
        config={},
    )
    stack.cluster.load_image(archive)
    _served(
        stack,
        token,
        "from-image",
        {"image": {"reference": "example.com/acme/tiny:1", "path": "model"}},
    )
