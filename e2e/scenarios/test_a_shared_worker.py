"""Models in one worker: one joins while another streams, the founder leaves, a third one comes, load rises.

Runs first, while no other intent holds threads: its name sorts first.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, Client, a_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

GROUPED = "trimtab.dev/group"
EN, PT, COPY = NAMES = ("glass-en", "glass-pt", "glass-copy")
# Slow answers are good enough, so the cheapest option, one thread, is taken whatever is asked.
LAX = {"objective": "TargetLatency", "targets": {"timePerOutputTokenMilliseconds": 60_000}}


def _manifest(name: str, *, rate: float = 0.2) -> dict[str, Any]:
    """An intent of requests so short that a worker's cache need not grow with their rate."""
    load = {"requestsPerSecond": f"{rate:.3f}", "promptTokens": 4, "outputTokens": 4}
    return a_shared("pt" if name == PT else "en", name=name, load=load, **LAX)


def _pods(stack: st.Stack) -> dict[str, tuple[str, int]]:
    """Return uid and restarts of the group's pods by name."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            pod["status"]["containerStatuses"][0]["restartCount"],
        )
        for pod in stack.list("pods", TEAM, GROUPED)
    }


def _answer(stack: st.Stack, token: str, name: str) -> st.Answer:
    """Return the first answer; the gateway learns of a new route a moment after the intent is Ready."""

    def ask() -> st.Answer | None:
        try:
            return st.stream_chat(
                stack.gateway, token=token, model=name, prompt="the", max_tokens=8
            )
        except st.StreamFailedError as exc:
            if "model_not_found" not in str(exc):
                raise
            return None

    return st.wait_for(f"an answer of {name}", ask, seconds=15)


def _plan(stack: st.Stack, name: str) -> dict[str, Any]:
    found = stack.get("inferenceintent", name, TEAM) or {}
    return dict(found.get("status", {}).get("plan", {}))


def _states(stack: st.Stack) -> dict[str, dict[str, Any]]:
    """Return what every worker of a group that is ready to stay says at `/-/state`, by its pod's uid."""
    found = {}
    for pod in stack.list("pods", TEAM, GROUPED):
        ready = st.condition(pod, "Ready").get("status") == "True"
        if ready and not pod["metadata"].get("deletionTimestamp"):
            url = f"http://{stack.cluster.host_address(pod['status']['podIP'])}:8001/-/state"
            # One that has just been told to stop does not answer any more.
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                found[pod["metadata"]["uid"]] = json.load(answer)
    return found


def _served(stack: st.Stack) -> dict[str, list[str]]:
    """Return the models that every worker of a group answers for, by its pod's uid."""
    return {
        uid: sorted(
            model["name"].removeprefix(f"{TEAM}/")
            for model in state["models"]
            if model["state"] in ("Resident", "Lent", "Waking")
        )
        for uid, state in _states(stack).items()
    }


@pytest.fixture(scope="module")
def models(stack: st.Stack, undivided: None) -> Iterator[None]:
    """The models' files, and none of this module's intents afterwards."""
    st.import_model("package:glassllm", "glassllm-en")
    st.import_model("package:glassllm/pt", "glassllm-pt")
    yield
    stack.kubectl(
        "delete", "ii", *NAMES, "-n", TEAM, "--ignore-not-found", "--wait=true", "--timeout=120s"
    )


@pytest.fixture(scope="module")
def group(stack: st.Stack, models: None) -> dict[str, tuple[str, int]]:
    """A group that one intent founded; its pods as they are then."""
    stack.apply(_manifest(EN))
    stack.wait_condition(EN, TEAM, "Ready", seconds=300)
    return _pods(stack)


@pytest.fixture(scope="module")
def three(stack: st.Stack, models: None) -> None:
    """Three intents that one worker serves, planned on measurements."""
    for name in NAMES:
        stack.apply(_manifest(name))
    for name in NAMES:
        stack.wait_condition(name, TEAM, "Fingerprinted", reason="Measured", seconds=300)
        stack.wait_condition(name, TEAM, "Ready", seconds=120)
    st.wait_for(
        "one worker for three",
        lambda: list(_served(stack).values()) == [sorted(NAMES)],
        seconds=120,
        seen=lambda: (_served(stack), {name: _plan(stack, name) for name in NAMES}),
    )


def test_an_intent_joins_while_the_other_streams(
    stack: st.Stack, group: dict[str, tuple[str, int]], token: str
) -> None:
    """The second model is loaded by the pod that runs: same uid, no restart, and no stream of the first fails."""
    client = Client(stack, token=token, model=EN)
    client.start()
    st.wait_for("a first answer", lambda: client.answers or client.failures, seconds=60)
    stack.apply(_manifest(PT))
    intent = stack.wait_condition(PT, TEAM, "Ready", seconds=300)
    served = len(client.answers)
    assert _answer(stack, token, PT).tokens > 0
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
    before = (stack.get("inferenceintent", PT, TEAM) or {})["status"]["plan"]["group"]
    client = Client(stack, token=token, model=PT)
    client.start()
    st.wait_for("a first answer", lambda: client.answers or client.failures, seconds=60)
    stack.kubectl("delete", "ii", EN, "-n", TEAM, "--wait=true", "--timeout=60s")

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
    after = (stack.get("inferenceintent", PT, TEAM) or {})["status"]["plan"]["group"]
    assert after == before


def test_three_are_served_by_one_worker_whose_idle_models_lend(
    stack: st.Stack, three: None, token: str
) -> None:
    """One pod answers for three models, in one group, and the engine says that the idle ones give layers."""
    assert all(_answer(stack, token, name).tokens > 0 for name in NAMES)
    assert list(_served(stack).values()) == [sorted(NAMES)]
    plans = {name: _plan(stack, name) for name in NAMES}
    assert len({plan["group"] for plan in plans.values()}) == 1, plans
    assert {plan["remap"]["verdict"] for plan in plans.values()} == {"IdleOnly"}, plans


def test_statuses_tell_the_engines_kv_budget_and_advice(stack: st.Stack, three: None) -> None:
    """What `status.plan.remap` of every member says is what their worker says at `/-/state`."""

    def told() -> dict[str, Any]:
        (state,) = _states(stack).values()
        advice = state["advice"]
        assert advice["source"] == "live"
        lent = [{"model": m, "units": n} for m, n in sorted(advice["lend_units"].items()) if n]
        return {
            "verdict": advice["verdict"],
            "reasons": advice["reasons"],
            "lendUnits": lent,
            "switchMilliseconds": pytest.approx(1000 * advice["switch_s"], rel=0.01),
            "kvTokensBefore": advice["kv_tokens_before"],
            "kvTokensAfter": advice["kv_tokens_after"],
            "source": "Engine",
        }

    def shown() -> list[dict[str, Any]]:
        found = [dict(_plan(stack, name).get("remap", {})) for name in NAMES]
        return [
            remap
            | {"reasons": remap.get("reasons", [])}
            | {"switchMilliseconds": float(remap.get("switchMilliseconds", 0))}
            for remap in found
        ]

    st.wait_for(
        "statuses that say what the engine says",
        lambda: shown() == [told()] * len(NAMES),
        seconds=180,
        seen=lambda: (told(), shown()),
    )
    advice = told()
    assert {lent["model"] for lent in advice["lendUnits"]} == {f"{TEAM}/{name}" for name in NAMES}
    assert 0 < advice["kvTokensBefore"] < advice["kvTokensAfter"]
    (state,) = _states(stack).values()
    given = [json.loads(s["data"]["models.json"]) for s in stack.list("configmaps", TEAM, GROUPED)]
    (budget,) = [one for one in given if one["revision"] == state["revision"]]
    assert state["config"]["memory_bytes"] == budget["memory_bytes"]
    assert state["config"]["limits"] == budget["limits"]


def _parts(stack: st.Stack, *, rate: float) -> bool:
    """Let two of three ask for so much each, and return whether the plan for that parts them."""
    stack.apply(*(_manifest(name, rate=rate) for name in (EN, PT)))
    for name in (EN, PT):
        stack.wait_condition(name, TEAM, "Planned", seconds=90)

    def apart() -> bool:
        one, two = (_plan(stack, name)["group"] for name in (EN, PT))
        return bool(one != two)

    def alike() -> bool:
        # Equal loads leave each other equally much, unless one status is still of the plan before.
        one, two = (_capacity(stack, name) for name in (EN, PT))
        return abs(one / two - 1) < 0.01

    st.wait_for(
        "a plan for both loads",
        lambda: apart() or alike(),
        seconds=90,
        seen=lambda: [_plan(stack, name) for name in (EN, PT)],
    )
    return apart()


def _capacity(stack: st.Stack, name: str) -> float:
    return float(_plan(stack, name)["predicted"]["capacityRequestsPerSecond"])


def test_rising_load_splits_the_group_without_a_failed_request(
    stack: st.Stack, three: None, token: str
) -> None:
    """Two of three ask for more and more, until one gets a worker of its own before it leaves the others'."""
    group = _plan(stack, EN)["group"]
    clients = {name: Client(stack, token=token, model=name, pause_seconds=0.1) for name in NAMES}
    for client in clients.values():
        client.start()
    st.wait_for(
        "answers of all",
        lambda: all(c.answers or c.failures for c in clients.values()),
        seconds=90,
    )
    asked = {name: len(client.answers) for name, client in clients.items()}
    # A worker that is planned for more also carries more, so what is half of it is found in steps.
    rate, steps = 0.4 * _capacity(stack, EN), 0
    while not _parts(stack, rate=rate):
        steps += 1
        assert steps < 8, f"{rate} requests per second of each do not part them"
        rate = 0.5 * (rate + _capacity(stack, EN))

    def split() -> bool:
        served = _served(stack)
        listed = [name for names in served.values() for name in names]
        return len(served) == 2 and sorted(listed) == sorted(NAMES)

    st.wait_for(
        "two workers that share out the three",
        split,
        seconds=240,
        seen=lambda: (_served(stack), {name: _plan(stack, name) for name in NAMES}),
    )
    during = {name: len(client.answers) - asked[name] for name, client in clients.items()}
    for name in NAMES:
        stack.wait_condition(name, TEAM, "Ready", seconds=120)
    counted = {name: len(client.answers) for name, client in clients.items()}
    st.wait_for(
        "answers of all afterwards",
        lambda: all(len(c.answers) > counted[n] + 2 or c.failures for n, c in clients.items()),
        seconds=90,
    )
    for client in clients.values():
        client.stop()
    assert {name: client.failures for name, client in clients.items()} == {n: [] for n in NAMES}
    assert all(during.values()), "somebody was not asked while the group was split"
    (left,) = [name for name in NAMES if _plan(stack, name)["group"] != group]
    assert [left] in _served(stack).values()
    st.wait_for(
        "the reason",
        lambda: _plan(stack, left)["remap"]["reasons"][0].startswith("TooBusy: "),
        seconds=60,
        seen=lambda: _plan(stack, left),
    )
