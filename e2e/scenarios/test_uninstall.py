"""Uninstalling keeps definitions and objects, and leaves nothing that hangs. Runs last: its name sorts last."""

from __future__ import annotations

from typing import Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]


@pytest.fixture
def uninstalled(stack: st.Stack, chat: dict[str, Any]) -> None:
    """The release removed, with its hooks."""
    stack.cluster.helm(
        "uninstall", st.RELEASE, "--namespace", st.SYSTEM, "--wait", "--timeout", "180s"
    )


def test_uninstall_keeps_definitions_and_objects_and_releases_them(
    uninstalled: None, stack: st.Stack
) -> None:
    """After `helm uninstall` CRDs and intents are there, no finalizer of ours is left, and deletion ends."""
    intent = stack.get("inferenceintent", "chat", TEAM)
    assert intent is not None
    assert "trimtab.dev/finalizer" not in intent["metadata"].get("finalizers", [])
    # Helm waits for what it deleted, a Deployment; the pods below it drain for some seconds more.
    for component in ("operator", "gateway"):
        stack.kubectl(
            "wait", "--for=delete", "pods", f"--selector=app.kubernetes.io/component={component}",
            f"--namespace={st.SYSTEM}", "--timeout=90s",
        )  # fmt: skip
    # A finished `helm test` pod stays until the next one, so that `helm test --logs` can read it.
    left = [
        pod["metadata"]["name"]
        for pod in stack.list("pods", st.SYSTEM)
        if "helm.sh/hook" not in pod["metadata"].get("annotations", {})
    ]
    assert left == []
    stack.kubectl("delete", "namespace", TEAM, "--wait=true", "--timeout=120s")
