"""The operator's and gateway's own images on the node, without anything of the host's mounted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.images import build

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(1800)]


@pytest.fixture
def images(stack: st.Stack) -> Iterator[list[build.Image]]:
    """The two images, built, and known to the node; afterwards the usual installation is back."""
    try:
        built = build.build(report=lambda line: print(line, flush=True))
    except build.ImageToolsMissingError as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    for image in built:
        stack.cluster.load_image(image.archive)
    yield built
    stack.install()


def test_own_images_serve_without_host_mounts(
    stack: st.Stack, chat: dict[str, Any], token: str, images: list[build.Image]
) -> None:
    """Operator and gateway from their Dockerfiles become Ready as nobody, lead, route and answer."""
    values = {}
    for image in images:
        repository, _, tag = image.reference.rpartition(":")
        values[image.name] = {
            "image": {"repository": repository, "tag": tag},
            "inheritPodDefaults": False,
        }
    stack.install(extra=(values,))
    for image in images:
        pods = stack.list("pods", st.SYSTEM, f"app.kubernetes.io/component={image.name}")
        alive = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        assert alive
        for pod in alive:
            assert pod["spec"]["containers"][0]["image"] == image.reference
            assert not [v for v in pod["spec"]["volumes"] if "hostPath" in v]
    answer = st.stream_chat(
        stack.gateway, token=token, model=chat["metadata"]["name"], prompt="Hello", max_tokens=4
    )
    assert answer.tokens
    out = stack.cluster.helm("test", st.RELEASE, "--namespace", st.SYSTEM, "--timeout", "180s")
    assert "Succeeded" in out
