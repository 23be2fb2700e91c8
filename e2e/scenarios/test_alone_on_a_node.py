"""What needs all of the node's threads: a model over two pipeline stages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, an_intent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]
NAME = "split"
OUTPUT_TOKENS = 128
QUESTIONS = (("What is the capital of France?", 8), ("What is two plus two?", 8))


def over(stages: int) -> dict[str, Any]:
    """The intent, in one replica of so many stages."""
    pins = {"tensorParallelSizes": [1, 2], "pipelineParallelSizes": [stages], "maxReplicas": 1}
    load = {"requestsPerSecond": "0.4", "promptTokens": 40, "outputTokens": OUTPUT_TOKENS}
    return an_intent(NAME, constraints=pins, load=load)


def worker(stack: st.Stack, *, stages: int) -> dict[str, Any]:
    """Wait until one pod of so many stages is all that serves the intent, and return it."""

    def pods() -> list[dict[str, Any]]:
        intent = stack.get("inferenceintent", NAME, TEAM) or {}
        uid = intent.get("metadata", {}).get("uid")
        return stack.list(
            "pods", TEAM, f"app.kubernetes.io/component=worker,trimtab.dev/owner-uid={uid}"
        )

    def alone() -> dict[str, Any] | None:
        found = pods()
        if len(found) != 1 or st.condition(found[0], "Ready").get("status") != "True":
            return None
        volumes = found[0]["spec"]["volumes"]
        name = next(v["configMap"]["name"] for v in volumes if v["name"] == "model-set")
        content = stack.get("configmap", name, TEAM)
        models = json.loads(content["data"]["models.json"]) if content else {}
        return found[0] if models.get("pipeline_parallel_size", 1) == stages else None

    return st.wait_for(
        f"one worker of {stages} stages",
        alone,
        seconds=120,
        seen=lambda: [(p["metadata"]["name"], p["status"]) for p in pods()],
    )


def serve(stack: st.Stack, *, stages: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Apply the intent with so many stages, and return it with its worker once it serves."""
    stack.apply(over(stages))
    stack.wait_condition(NAME, TEAM, "Ready", seconds=300)
    pod = worker(stack, stages=stages)
    return stack.wait_condition(NAME, TEAM, "Ready", seconds=60), pod


def answer(stack: st.Stack, token: str, prompt: str, *, most: int) -> str:
    """Return what the model says to a prompt, word for word."""

    def ask() -> str | None:
        try:
            return st.stream_chat(
                stack.gateway, token=token, model=NAME, prompt=prompt, max_tokens=most
            ).text
        except st.StreamFailedError as exc:
            # The gateway learns of a new route a moment after the intent is Ready.
            if "model_not_found" not in str(exc):
                raise
            return None

    return st.wait_for(f"an answer to {prompt!r}", ask, seconds=30)


@pytest.fixture(scope="module")
def alone(stack: st.Stack, undivided: None, token: str) -> Iterator[list[str]]:
    """What one process answers; the intent is there for the module."""
    try:
        serve(stack, stages=1)
        yield [answer(stack, token, prompt, most=most) for prompt, most in QUESTIONS]
    finally:
        stack.kubectl(
            "delete", "ii", NAME, "-n", TEAM, "--wait=true", "--timeout=120s", "--ignore-not-found"
        )


def test_two_stages_are_planned_where_nothing_else_is_admitted_and_answer_as_one(
    stack: st.Stack, token: str, alone: list[str]
) -> None:
    """Nine heads do not divide over two ranks and one stage is pinned out: what is left serves, word for word."""
    intent, pod = serve(stack, stages=2)
    chosen = intent["status"]["plan"]
    sizes = ("tensorParallelSize", "pipelineParallelSize", "threadsPerReplica")
    assert [chosen[size] for size in sizes] == [1, 2, 2]
    assert "pipeline stages predicted from one" in chosen["confidence"]["reasons"]
    others = intent["status"]["alternatives"]
    assert {other["reason"] for other in others} == {"ParallelismUnsupported"}
    assert any("9 attention heads" in other["message"] for other in others)
    log = stack.kubectl("logs", pod["metadata"]["name"], "-n", TEAM)
    assert '"ranks_met"' in log
    assert [answer(stack, token, prompt, most=most) for prompt, most in QUESTIONS] == alone
