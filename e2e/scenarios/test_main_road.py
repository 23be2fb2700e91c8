"""From `kubectl apply` to a token, with real pods and a real model."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, an_intent

if TYPE_CHECKING:
    from e2e.scenarios.builders import Client

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]


def test_the_answer_names_paris(stack: st.Stack, chat: dict[str, Any], token: str) -> None:
    """An applied intent ends in a streamed answer of the real model through the gateway."""
    answer = st.stream_chat(
        stack.gateway, token=token, model="chat", prompt="What is the capital of France?"
    )
    assert "Paris" in answer.text
    assert answer.tokens > 1


def test_unchanged_clients_work_through_the_gateway(
    stack: st.Stack, chat: dict[str, Any], token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The `openai` package and a load generator built on it find what they find at any endpoint."""
    url = f"{stack.gateway}/v1"
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    with openai.OpenAI(base_url=url, api_key=token, max_retries=0) as client:
        assert f"{TEAM}/chat" in {model.id for model in client.models.list()}
        ask = {"model": "chat", "messages": talk, "max_tokens": 6, "temperature": 0}
        whole = client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=2)
        assert [len(choice.logprobs.content) for choice in whole.choices] == [6, 6]
        plain = list(client.chat.completions.create(**ask, stream=True))
        assert all(chunk.usage is None for chunk in plain)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in plain)
        assert text == whole.choices[0].message.content
        options = {"include_usage": True}
        *_, last = client.chat.completions.create(**ask, stream=True, stream_options=options)
        assert last.usage.completion_tokens == 6
        with pytest.raises(openai.BadRequestError, match="context"):
            client.chat.completions.create(**ask | {"max_tokens": 1_000_000})
        with pytest.raises(openai.BadRequestError, match="tools is not supported"):
            client.chat.completions.create(**ask, tools=[{"type": "function"}])
    load = (sys.executable, "-m", "e2e.load", "--url", url, "--model", "chat", "-o", "json")
    shape = ("--rate", "1", "--seconds", "6", "--prompt-tokens", "16", "--output-tokens", "8")
    environment = os.environ | {"OPENAI_API_KEY": token}
    done = subprocess.run(
        [*load, *shape], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print(f"\nopen-loop load through the gateway: {done.stdout.strip()}")


def test_kubectl_get_shows_what_a_person_asks_first(stack: st.Stack, chat: dict[str, Any]) -> None:
    """`kubectl get ii` shows Ready, reason, model, product, replicas, cost and age."""
    header, row = stack.kubectl("get", "ii", "chat", "-n", TEAM).splitlines()
    assert header.split() == [
        "NAME",
        "READY",
        "REASON",
        "MODEL",
        "PRODUCT",
        "REPLICAS",
        "COST/H",
        "AGE",
    ]
    assert row.split()[0:2] == ["chat", "True"]
    assert "cpu" in row.split()


def test_kubectl_describe_reads_like_an_explanation(stack: st.Stack, chat: dict[str, Any]) -> None:
    """`kubectl describe` names the plan, its prediction, the alternatives and the events."""
    text = stack.kubectl("describe", "ii", "chat", "-n", TEAM)
    for word in (
        "Plan:",
        "Predicted:",
        "Alternatives:",
        "Confidence:",
        "Margin",
        "Events:",
        "Planned",
    ):
        assert word in text


def test_why_lists_the_options_and_why_each_lost(stack: st.Stack, chat: dict[str, Any]) -> None:
    """`trimtab why` gives every option with predicted TTFT, TPOT, cost, margin and the reason it lost."""
    answer = json.loads(stack.trimtab("why", "ii/chat", "-n", TEAM, "-o", "json"))
    text = stack.trimtab("why", "ii/chat", "-n", TEAM)
    assert answer["plan"]["precision"] in ("bf16", "fp32")
    assert answer["alternatives"]
    assert all(option["reason"] for option in answer["alternatives"])
    for word in ("TTFT", "TPOT", "cost", "margin"):
        assert word.lower() in text.lower()


def test_prediction_and_observation_stand_side_by_side(
    stack: st.Stack, chat: dict[str, Any], token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """TPOT predicted from a measured fingerprint is printed beside TPOT seen through the gateway; no speed is asserted here."""
    answers = [
        st.stream_chat(
            stack.gateway,
            token=token,
            model="chat",
            prompt=f"Tell me about the number {n}.",
            max_tokens=48,
        )
        for n in range(4)
    ]
    observed = statistics.median(a.tpot_seconds for a in answers if a.tpot_seconds) * 1000
    intent = stack.get("inferenceintent", "chat", TEAM) or {}
    predicted = float(intent["status"]["plan"]["predicted"]["timePerOutputTokenMilliseconds"])
    with capsys.disabled():
        print(
            f"\nTPOT predicted {predicted:.1f} ms, observed {observed:.1f} ms ({(observed / predicted - 1) * 100:+.0f} %)"
        )
    assert intent["status"]["plan"]["confidence"]["source"] == "Measured"
    assert min(predicted, observed) > 0


def test_a_new_objective_rolls_without_a_failed_request(
    stack: st.Stack, chat: dict[str, Any], client: Client
) -> None:
    """Changing objective and precision re-plans and rolls while a client streams, and no request fails."""
    before = (stack.get("inferenceintent", "chat", TEAM) or {})["status"]["plan"]["precision"]
    after = "fp32" if before == "bf16" else "bf16"
    stack.apply(an_intent("chat", objective="MinLatency", constraints={"precisions": [after]}))
    intent = stack.wait_condition("chat", TEAM, "Ready", seconds=300)
    served = len(client.answers)
    st.wait_for(
        "answers from the new plan",
        lambda: len(client.answers) > served + 1 or client.failures,
        seconds=120,
    )
    client.stop()
    assert intent["status"]["plan"]["precision"] == after
    assert client.failures == []


def test_two_intents_with_two_models_serve_at_once(
    stack: st.Stack, chat: dict[str, Any], token: str
) -> None:
    """A second intent with another model serves beside the first, each under its own name."""
    source = {"persistentVolumeClaim": {"claimName": "models", "path": "glassllm-en"}}
    stack.apply(an_intent("tiny", model={"source": source}))
    stack.wait_condition("tiny", TEAM, "Ready", seconds=300)
    small = st.stream_chat(stack.gateway, token=token, model="tiny", prompt="the", max_tokens=8)
    large = st.stream_chat(
        stack.gateway, token=token, model=f"{TEAM}/chat", prompt="Say hello.", max_tokens=8
    )
    assert small.tokens
    assert large.tokens


def test_deleting_an_intent_removes_every_child(stack: st.Stack, chat: dict[str, Any]) -> None:
    """After `kubectl delete` nothing of the intent is left, in its namespace or in Trimtab's."""
    intent = stack.get("inferenceintent", "tiny", TEAM)
    assert intent is not None
    selector = f"trimtab.dev/owner-uid={intent['metadata']['uid']}"
    kinds = "deployments,services,configmaps,jobs,pods,networkpolicies,poddisruptionbudgets"
    assert stack.list(kinds, TEAM, selector)
    stack.kubectl("delete", "ii", "tiny", "-n", TEAM, "--wait=true", "--timeout=60s")
    st.wait_for(
        "the children of tiny to be gone",
        lambda: (
            not stack.list(kinds, TEAM, selector) and not stack.list(kinds, st.SYSTEM, selector)
        ),
        seconds=90,
        seen=lambda: [i["metadata"]["name"] for i in stack.list(kinds, TEAM, selector)],
    )
    routes = json.dumps(stack.list("configmaps", st.SYSTEM, "trimtab.dev/intent-namespace=" + TEAM))
    assert '"intent\\":\\"tiny' not in routes
