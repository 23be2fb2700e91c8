"""Two models in one worker: one joins while the other streams, the founder leaves, and no pod restarts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, Client, a_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

GROUPED = "trimtab.dev/group"


def _pods(stack: st.Stack) -> dict[str, tuple[str, int]]:
    """Return uid and restarts of the group's pods by name."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            pod["status"]["containerStatuses"][0]["restartCount"],
        )
        for pod in stack.list("pods", TEAM, GROUPED)
    }


def _answer(stack: st.Stack, token: str, language: str) -> st.Answer:
    """Return the first answer; the gateway learns of a new route a moment after the intent is Ready."""

    def ask() -> st.Answer | None:
        try:
            return st.stream_chat(
                stack.gateway, token=token, model=f"glass-{language}", prompt="the", max_tokens=8
            )
        except st.StreamFailedError as exc:
            if "model_not_found" not in str(exc):
                raise
            return None

    return st.wait_for(f"an answer of {language}", ask, seconds=15)


@pytest.fixture(scope="module")
def group(stack: st.Stack) -> Iterator[dict[str, tuple[str, int]]]:
    """A group that one intent founded; its pods as they are then."""
    st.import_model("package:glassllm", "glassllm-en")
    st.import_model("package:glassllm/pt", "glassllm-pt")
    stack.apply(a_shared("en"))
    stack.wait_condition("glass-en", TEAM, "Ready", seconds=300)
    yield _pods(stack)
    stack.kubectl("delete", "ii", "glass-en", "glass-pt", "-n", TEAM, "--ignore-not-found")


def test_an_intent_joins_while_the_other_streams(
    stack: st.Stack, group: dict[str, tuple[str, int]], token: str
) -> None:
    """The second model is loaded by the pod that runs: same uid, no restart, and no stream of the first fails."""
    client = Client(stack, token=token, model="glass-en")
    client.start()
    st.wait_for("a first answer", lambda: client.answers or client.failures, seconds=60)
    stack.apply(a_shared("pt"))
    intent = stack.wait_condition("glass-pt", TEAM, "Ready", seconds=300)
    served = len(client.answers)
    assert _answer(stack, token, "pt").tokens > 0
    st.wait_for(
        "an answer of the first model beside it",
        lambda: len(client.answers) > served or client.failures,
        seconds=60,
    )
    client.stop()
    assert client.failures == []
    assert len(group) == 1
    assert _pods(stack) == group
    assert intent["status"]["plan"]["group"]


def test_why_names_the_group_and_its_members(
    stack: st.Stack, group: dict[str, tuple[str, int]]
) -> None:
    """`trimtab why` tells who shares the worker, in which state, and what is lent."""
    text = stack.trimtab("why", "ii/glass-pt", "-n", TEAM)
    for expected in (f"{TEAM}/glass-en ", f"{TEAM}/glass-pt ", "Group ", "Remapping: "):
        assert expected in text, text
    status = json.loads(stack.trimtab("why", "ii/glass-pt", "-n", TEAM, "-o", "json"))
    assert status["plan"]["remap"]["verdict"] in ("IdleOnly", "IdleAndActive", "DoNotRemap")


def test_the_founder_leaves_and_nobody_restarts(
    stack: st.Stack, group: dict[str, tuple[str, int]], token: str
) -> None:
    """After the first intent's deletion the second streams on from the same pod, in a group of the same name."""
    before = (stack.get("inferenceintent", "glass-pt", TEAM) or {})["status"]["plan"]["group"]
    client = Client(stack, token=token, model="glass-pt")
    client.start()
    st.wait_for("a first answer", lambda: client.answers or client.failures, seconds=60)
    stack.kubectl("delete", "ii", "glass-en", "-n", TEAM, "--wait=true", "--timeout=60s")

    def alone() -> bool:
        sets = stack.list("configmaps", TEAM, GROUPED)
        models = [m["name"] for s in sets for m in json.loads(s["data"]["models.json"])["models"]]
        return models == [f"{TEAM}/glass-pt"]

    st.wait_for("the founder's model to go", alone, seconds=60)
    served = len(client.answers)
    st.wait_for(
        "an answer after it", lambda: len(client.answers) > served or client.failures, seconds=60
    )
    client.stop()
    assert client.failures == []
    assert _pods(stack) == group
    after = (stack.get("inferenceintent", "glass-pt", TEAM) or {})["status"]["plan"]["group"]
    assert after == before
