"""The chart's life: lint, upgrade, `helm test`; what an upgrade must not touch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, Client, an_intent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]


def _worker_pods(stack: st.Stack) -> set[str]:
    pods = stack.list("pods", TEAM, "app.kubernetes.io/component=worker")
    return {pod["metadata"]["uid"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}


def _plans(stack: st.Stack) -> list[str]:
    """Return what is planned for each intent, for who has to find out why a worker moved."""
    intents = stack.list("inferenceintents", TEAM)
    return [f"{i['metadata']['name']}: {i['status']['plan']['message']}" for i in intents]


@pytest.fixture
def settled(stack: st.Stack, chat: dict[str, Any], token: str) -> Iterator[Client]:
    """A client that streams from `chat`, while no intent has anything left to be measured or moved for."""
    # An objective that a measurement still to come cannot change the answer to.
    stack.apply(an_intent("chat"))
    intents = stack.list("inferenceintents", TEAM)
    served = [i for i in intents if st.condition(i, "Ready").get("status") == "True"]
    for name in {"chat", *(intent["metadata"]["name"] for intent in served)}:
        stack.wait_condition(name, TEAM, "Fingerprinted", seconds=300)
        stack.wait_condition(name, TEAM, "Ready", seconds=300)
    st.wait_for(
        "one generation of workers",
        lambda: all(
            d["status"].get("replicas") == d["status"].get("readyReplicas") == d["spec"]["replicas"]
            for d in stack.list("deployments", TEAM)
        ),
        seconds=120,
        seen=lambda: [d["status"] for d in stack.list("deployments", TEAM)],
    )
    streaming = Client(stack, token=token, model="chat")
    streaming.start()
    st.wait_for(
        "the client's first answer", lambda: streaming.answers or streaming.failures, seconds=90
    )
    yield streaming
    streaming.stop()


def test_lint_is_strict_and_clean(stack: st.Stack) -> None:
    """`helm lint --strict` finds nothing."""
    assert "0 chart(s) failed" in stack.cluster.helm("lint", "--strict", str(st.CHART))


def test_an_upgrade_restarts_no_worker_and_fails_no_request(
    stack: st.Stack, settled: Client
) -> None:
    """Upgrading the release, even with a restarted operator, leaves the workers and their streams alone."""
    client, before = settled, _worker_pods(stack)
    stack.install(extra=({"operator": {"podAnnotations": {"restarted": "once"}}},))
    served = len(client.answers)
    st.wait_for(
        "answers after the upgrade",
        lambda: len(client.answers) > served or client.failures,
        seconds=90,
    )
    client.stop()
    assert _worker_pods(stack) == before, _plans(stack)
    assert client.failures == []


def test_helm_test_passes(stack: st.Stack) -> None:
    """`helm test` ends well on the running release."""
    out = stack.cluster.helm("test", st.RELEASE, "--namespace", st.SYSTEM, "--timeout", "180s")
    assert "Succeeded" in out


def test_the_gateway_serves_without_the_operator(
    stack: st.Stack, chat: dict[str, Any], token: str
) -> None:
    """With no operator at all, a restarted gateway still routes from what the cluster holds."""
    stack.kubectl("scale", "deployment", "trimtab-operator", "-n", st.SYSTEM, "--replicas=0")
    try:
        st.wait_for(
            "the operator's pods to be gone",
            lambda: not stack.list("pods", st.SYSTEM, "app.kubernetes.io/component=operator"),
            seconds=90,
        )
        stack.kubectl("rollout", "restart", "deployment/trimtab-gateway", "-n", st.SYSTEM)
        stack.kubectl(
            "rollout", "status", "deployment/trimtab-gateway", "-n", st.SYSTEM, "--timeout=120s"
        )
        answer = st.stream_chat(
            stack.gateway, token=token, model="chat", prompt="Say hello.", max_tokens=8
        )
        assert answer.tokens
    finally:
        stack.kubectl("scale", "deployment", "trimtab-operator", "-n", st.SYSTEM, "--replicas=1")
        stack.kubectl(
            "rollout", "status", "deployment/trimtab-operator", "-n", st.SYSTEM, "--timeout=120s"
        )


def test_callers_without_a_token_or_a_right_are_told_so(
    stack: st.Stack, chat: dict[str, Any]
) -> None:
    """No token is 401, a token without the verb `invoke` is 403, each an OpenAI error that says what to do."""
    with pytest.raises(st.StreamFailedError, match="401") as missing:
        st.stream_chat(stack.gateway, token=None, model="chat", prompt="x")
    assert json.loads(str(missing.value).partition(": ")[2])["error"]["code"] == "invalid_api_key"
    stack.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "stranger", "namespace": TEAM},
        }
    )
    stranger = stack.token(TEAM, "stranger")
    with pytest.raises(st.StreamFailedError, match="403") as refused:
        st.stream_chat(stack.gateway, token=stranger, model=f"{TEAM}/chat", prompt="x")
    assert json.loads(str(refused.value).partition(": ")[2])["error"]["code"] == "permission_denied"
