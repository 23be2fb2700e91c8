"""What needs all of the node's threads: a worker that is slowed down, and a model over two pipeline stages."""

from __future__ import annotations

import contextlib
import json
import os
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, an_intent
from trimtab.observe.quantities import millicores

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]
NAME = "split"
OPERATOR = "app.kubernetes.io/component=operator"
# One token per decode-only step; a window has 200.
OUTPUT_TOKENS = 128
WINDOW_STEPS = 200
DRIFT_WINDOWS = 3
# Steps take 1.5 times as long: more than any margin absorbs, less than the factor of two beyond
# which a fingerprint is suspect and corrects nothing.
THROTTLED = "650m"
# With less of a core than this it is not the quota that binds.
LEAST_SHARE = 0.55
QUESTIONS = (("What is the capital of France?", 8), ("What is two plus two?", 8))


def over(stages: int) -> dict[str, Any]:
    """The intent, in one replica of so many stages."""
    pins = {"tensorParallelSizes": [1, 2], "pipelineParallelSizes": [stages], "maxReplicas": 1}
    load = {"requestsPerSecond": "0.4", "promptTokens": 40, "outputTokens": OUTPUT_TOKENS}
    return an_intent(NAME, constraints=pins, load=load)


def worker(stack: st.Stack, *, stages: int, threads: str = "") -> dict[str, Any]:
    """Wait until one pod of so many stages is all that serves the intent, and return it.

    Args:
        stack: The installation.
        stages: Pipeline stages of the pod.
        threads: Its limit of CPU; any if empty.
    """

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
        if threads and found[0]["spec"]["containers"][0]["resources"]["limits"]["cpu"] != threads:
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


def serve(
    stack: st.Stack, *, stages: int, threads: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Apply the intent with so many stages, and return it with its worker once it serves."""
    stack.apply(over(stages))
    stack.wait_condition(NAME, TEAM, "Ready", seconds=300)
    pod = worker(stack, stages=stages, threads=threads)
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


def told(stack: st.Stack, event: str) -> list[dict[str, Any]]:
    """Return the lines of an event in the log of the newest operator."""
    pods = stack.list("pods", st.SYSTEM, OPERATOR)
    newest = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])
    text = stack.kubectl("logs", newest["metadata"]["name"], "-n", st.SYSTEM)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == event]


def drifts(stack: st.Stack) -> list[float]:
    """Return ln(measured/known) of each time that the intent's steps left their prediction."""
    lines = told(stack, "steps_drifted")
    return [line["log_ratio"] for line in lines if line["model"] == f"{TEAM}/{NAME}"]


def replans(stack: st.Stack) -> int:
    """Return how many plans were made because of anchors."""
    return sum("Anchors" in line["because"] for line in told(stack, "fleet_planned"))


def hurried(stack: st.Stack) -> dict[str, Any]:
    """Chart values that divide policy times, and keep all threads but one from being planned on.

    Nothing is measured for two threads then, beside the worker whose steps are timed.
    """
    nodes = json.loads(stack.kubectl("get", "nodes", "-o", "json"))["items"]
    threads = max(millicores(node["status"]["allocatable"]["cpu"]) for node in nodes)
    return {"operator": {"policyTimeDivisor": 60, "cpuReserveMillicores": threads - 1000}}


def plan(stack: st.Stack) -> dict[str, Any]:
    """Return the intent's plan as its status shows it."""
    intent = stack.get("inferenceintent", NAME, TEAM) or {}
    return dict(intent["status"]["plan"])


def limit(stack: st.Stack, pod: str, cpu: str) -> None:
    """Resize a worker in place, and wait until the kernel has its quota.

    It asks for as much as it may have: beside busy neighbours its quota is what slows it down, not they.
    """
    amounts = {"limits": {"cpu": cpu}, "requests": {"cpu": "600m"}}
    patch = {"spec": {"containers": [{"name": "worker", "resources": amounts}]}}
    stack.kubectl("patch", "pod", pod, "-n", TEAM, "--subresource=resize", "-p", json.dumps(patch))

    def actual() -> str:
        status = (stack.get("pod", pod, TEAM) or {})["status"]["containerStatuses"][0]
        return str(status["resources"]["limits"]["cpu"])

    st.wait_for(f"a limit of {cpu}", lambda: actual() == cpu, seconds=30, seen=actual)


def cpu_seconds(stack: st.Stack, pod: dict[str, Any]) -> float:
    """Return the CPU time that a pod of the embedded node has used."""
    own, tree = f"/pod{pod['metadata']['uid']}", f"/trimtab-{stack.cluster.name}/"
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if tree in folder and folder.endswith(own):
            if "cpuacct.usage" in files:
                return int(Path(folder, "cpuacct.usage").read_text()) / 1e9
            if "cpu.stat" in files and "cpu.max" in files:
                rows = dict(
                    row.split() for row in Path(folder, "cpu.stat").read_text().splitlines()
                )
                return int(rows["usage_usec"]) / 1e6
    pytest.skip("the time that the worker gets is read from the embedded node's cgroups")


def unlimited(stack: st.Stack, pod: dict[str, Any]) -> None:
    """Give a worker its thread back, unless another has taken its place."""
    now = stack.get("pod", pod["metadata"]["name"], TEAM) or {}
    metadata = now.get("metadata", {})
    if metadata.get("uid") == pod["metadata"]["uid"] and "deletionTimestamp" not in metadata:
        limit(stack, pod["metadata"]["name"], "1")


@pytest.fixture
def throttled(stack: st.Stack, alone: list[str]) -> Iterator[dict[str, Any]]:
    """The plan of one thread, whose worker then has two thirds of it; policy times are divided."""
    with contextlib.ExitStack() as undone:
        undone.callback(stack.install)
        stack.install(extra=(hurried(stack),))
        # On a busy machine two threads may have been measured as the cheaper choice before.
        st.wait_for(
            "a plan of one thread",
            lambda: plan(stack)["threadsPerReplica"] == 1,
            seconds=120,
            seen=lambda: plan(stack),
        )
        intent, pod = serve(stack, stages=1, threads="1")
        before = dict(intent["status"]["plan"])
        # What was seen of the throttled worker must not correct what others are told.
        none = {"data": {"anchors": None}}
        fingerprint = before["confidence"]["fingerprint"]
        undone.callback(stack.patch, "configmap", fingerprint, st.SYSTEM, none)
        undone.callback(unlimited, stack, pod)
        limit(stack, pod["metadata"]["name"], THROTTLED)
        yield before


def test_a_throttled_worker_asks_for_one_plan(
    stack: st.Stack, token: str, throttled: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its anchors change the prediction by exactly one plan, which moves nothing, and then all is quiet."""
    pod = worker(stack, stages=1)

    gateway, busy, used = stack.gateway, 0.0, cpu_seconds(stack, pod)

    def decode(steps: int) -> None:
        nonlocal busy
        for _ in range(-(-steps // OUTPUT_TOKENS)):
            begun = time.monotonic()
            st.stream_chat(
                gateway, token=token, model=NAME, prompt="Count.",
                max_tokens=OUTPUT_TOKENS, ignore_eos=True,
            )  # fmt: skip
            busy += time.monotonic() - begun

    def drifted() -> bool:
        decode(1)
        return bool(drifts(stack)) and "anchors" in plan(stack)["confidence"]

    assert throttled["confidence"]["source"] == "Measured"
    st.wait_for("a drift", drifted, seconds=180, seen=lambda: plan(stack))
    # As many windows again, and the part of one at each end, say nothing new.
    decode((DRIFT_WINDOWS + 2) * WINDOW_STEPS)
    after = plan(stack)
    share = (cpu_seconds(stack, pod) - used) / busy
    if share < LEAST_SHARE:
        pytest.skip(
            f"The worker got {share:.0%} of a core where its quota gives {THROTTLED}: neighbours "
            "slowed it down, and that changes from window to window. Repeat it on an idle machine."
        )
    assert (len(drifts(stack)), replans(stack)) == (1, 1), (drifts(stack), after["confidence"])
    anchors = after["confidence"]["anchors"]
    key = "timePerOutputTokenMilliseconds"
    with capsys.disabled():
        print(
            f"\nthrottled to {THROTTLED}: TPOT predicted {throttled['predicted'][key]} ms, after "
            f"{anchors['count']} anchors {after['predicted'][key]} ms (factor {anchors['factor']})"
        )
    assert anchors["count"] >= DRIFT_WINDOWS
    assert anchors["verdict"] != "Suspect"
    assert Decimal(anchors["factor"]) > 1
    assert Decimal(after["predicted"][key]) > Decimal(throttled["predicted"][key])
    assert worker(stack, stages=1)["metadata"]["uid"] == pod["metadata"]["uid"]
    same = ("precision", "threadsPerReplica", "replicas", "pipelineParallelSize")
    assert [after[field] for field in same] == [throttled[field] for field in same]


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
