"""Two hundred fake GPU nodes of three products, the real scheduler, the real planner."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.control_plane.operator.fleet_lab import (
    A100,
    FLEET_LABEL,
    H100,
    L40S,
    PRICES,
    Fleet,
    Recorder,
    together,
)
from tests.control_plane.operator.lab import prices, running
from trimtab.kube.resources import CLAIM, VOLUME
from trimtab.planning.snapshot import Load
from trimtab.settings import PodDefaults, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.control_plane.operator.lab import Lab, Running

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(900)]

DIVISOR: Final = 60
FLEET: Final = {H100: (80, 8), A100: (60, 8), L40S: (60, 4)}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "chat": {"objective": "MinCost", "load": ("4", 512, 128)},
    "fast": {
        "objective": "TargetLatency",
        "targets": {"timePerOutputTokenMilliseconds": 30, "percentile": 95},
        "load": ("6", 512, 128),
    },
    "large": {"model": "70b", "objective": "MinCost", "load": ("1", 512, 128)},
    "small": {
        "objective": "MinCost",
        "load": ("2", 512, 128),
        "constraints": {"gpuProducts": [L40S]},
    },
    "paid": {
        "model": "70b",
        "objective": "TargetCost",
        "targets": {"costPerHour": "20"},
        "load": ("1", 512, 128),
        "constraints": {"gpuProducts": [A100, L40S]},
    },
    "quick": {
        "objective": "MinLatency",
        "load": ("1", 512, 128),
        "constraints": {"gpuProducts": [H100], "maxReplicas": 2},
    },
}
ONE_CARRIES: Final = 11
"""Requests per second of 512 + 128 tokens about which one L40S carries an 8B with headroom, or not quite."""
BLOCKS: Final = {"NoCapacity", "NoFit", "TargetNeedsMoreGPUs"}
HELPS: Final = ("Add a node", "Add nodes", "add nodes", "raise spec.priority")


def _spec(kind: str, **changes: Any) -> dict[str, Any]:
    """Return the arguments of `Fleet.apply` for an intent of a kind."""
    spec = {**KINDS[kind], **changes}
    rate, prompt, output = spec["load"]
    spec["load"] = {"requestsPerSecond": rate, "promptTokens": prompt, "outputTokens": output}
    return spec


STEADY: Final = "chat-0"


@pytest.fixture
async def fleet(lab: Lab) -> AsyncIterator[Fleet]:
    found = Fleet(lab, Settings(system_namespace=lab.system))
    await lab.client.request("POST", VOLUME.path(), body=_volume(lab))
    await lab.client.request("POST", CLAIM.path(namespace=lab.namespace), body=_claim(lab))
    await lab.apply(prices(lab, PRICES))
    try:
        await found.build(FLEET)
        yield found
    finally:
        # Other tests' operators and schedulers see the whole cluster.
        await found.remove()
        await lab.delete(VOLUME, "", lab.namespace)


async def test_intents_are_placed_edited_starved_given_gpus_back_lose_a_node_and_follow_loads(
    fleet: Fleet,
) -> None:
    """The planner's life on a fleet: every replica where it is planned, nobody moved without a cause."""
    await _life(fleet, each=3, minutes=9)


@pytest.mark.long
async def test_sixty_intents_live_through_an_hour_of_changing_loads(fleet: Fleet) -> None:
    """The same with sixty intents and an hour: noise turns nothing back, what surges is followed."""
    await _life(fleet, each=10, minutes=60)


async def _life(fleet: Fleet, *, each: int, minutes: int) -> None:
    uids = await _apply_all(fleet, each=each)
    async with _operated(fleet) as (run, planner):
        await fleet.served(uids)
        await _placed_as_planned(fleet, planner, count=len(uids))
        await _edited(fleet)
        await _starved(fleet, run)
        await _without_a_node(fleet, run)
        await _loaded(fleet, run, planner, uids, minutes=minutes)
    solvers = Counter(plan.solver for _, plan in planner.plans)
    print(f"{len(uids)} intents, {len(planner.plans)} plans, solvers {dict(solvers)}")


@asynccontextmanager
async def _operated(fleet: Fleet) -> AsyncIterator[tuple[Running, Recorder]]:
    planner = Recorder()
    images = {"nvidia.com/gpu": "worker-cuda:test"}
    async with running(
        fleet.lab,
        planner=planner,
        loads=fleet.loads,
        policy_time_divisor=DIVISOR,
        gpu_images=images,
        pod_defaults=PodDefaults(nodeSelector={FLEET_LABEL: fleet.lab.namespace}),
    ) as run:
        yield run, planner


async def _apply_all(fleet: Fleet, *, each: int) -> dict[str, str]:
    """Apply so many intents of each kind; return their uids by name."""
    uids: dict[str, str] = {}

    async def one(name: str, kind: str) -> None:
        uids[name] = await fleet.apply(name, **_spec(kind))

    await together(one(f"{kind}-{n}", kind) for kind in KINDS for n in range(each))
    return uids


async def _placed_as_planned(fleet: Fleet, planner: Recorder, *, count: int) -> None:
    """Every pod is on a node of its plan's product, with all GPUs of its group, and fits there."""
    plans = {plan.name: plan.option for plan in planner.plans[-1][1].intents if plan.option}
    assert len(plans) == count
    pods = await fleet.pods()
    for pod in pods:
        config = plans[pod.intent].config
        assert (fleet.nodes[pod.node][0], pod.gpus) == (config.product, config.devices), pod
    replicas = Counter(pod.intent for pod in pods)
    assert replicas == {name: option.replicas for name, option in plans.items()}
    assert all(used <= fleet.nodes[node][1] for node, used in (await fleet.taken()).items())
    assert {option.config.product for option in plans.values()} == set(FLEET), "one idle product"
    for name, conditions in (await fleet.statuses()).items():
        assert conditions["Planned"]["status"] == "True", (name, conditions["Planned"])


async def _edited(fleet: Fleet) -> None:
    """Three intents name another product: they move there, and no other Deployment changes."""
    before = await fleet.templates()
    edited = [f"chat-{n}" for n in range(3)]
    for name in edited:
        await fleet.apply(name, **_spec("chat", constraints={"gpuProducts": [A100]}))

    async def moved() -> bool:
        pods = [pod for pod in await fleet.pods() if pod.intent in edited]
        products = {fleet.nodes[pod.node][0] for pod in pods}
        return {pod.intent for pod in pods} == set(edited) and products == {A100}

    await fleet.wait("edited intents on A100", moved)
    await fleet.served(edited)
    after = await fleet.templates()
    assert {name for name in after if after[name] != before[name]} == set(edited)


async def _starved(fleet: Fleet, run: Running) -> None:
    """Strangers take every free GPU: what serves stays, newcomers wait and are told why; then they serve."""
    before = await fleet.templates()
    strangers = await fleet.starve(fleet.lab.system)
    assert strangers
    await run.poll("foreign")
    newcomers = [f"late-{n}" for n in range(3)]
    for name in newcomers:
        await fleet.apply(name, **_spec("chat"))

    async def told() -> Any:
        found = await fleet.statuses()
        waiting = [found[name].get("Planned", {}) for name in newcomers]
        return waiting if all(c.get("reason") in BLOCKS for c in waiting) else None

    for condition in await fleet.wait("newcomers blocked", told):
        assert condition["status"] == "False", condition
        assert any(word in condition["message"] for word in HELPS), condition["message"]
        assert "GPU" in condition["message"]
    kept = await fleet.templates()
    assert {name: kept[name] for name in before} == before
    await fleet.release(fleet.lab.system, strangers)
    await run.poll("foreign")
    await fleet.served(newcomers)
    kept = await fleet.templates()
    assert {name: kept[name] for name in before} == before


async def _loaded(
    fleet: Fleet, run: Running, planner: Recorder, uids: dict[str, str], *, minutes: int
) -> None:
    """Loads change each simulated minute: some are about what one replica carries, three surge.

    A turn is a change of replicas or configuration that takes an earlier one back.
    """
    noisy = {name for name in uids if name.startswith("small-")}
    surging = {f"fast-{n}" for n in range(3)}
    history: dict[str, list[Any]] = {}
    seen_plans = len(planner.plans)
    began = time.monotonic()
    for minute in range(minutes):
        for n, name in enumerate(sorted(noisy)):
            rate = ONE_CARRIES * (1 + 0.15 * math.sin(minute * (2 + n / 7)))
            fleet.loads.minute(
                uids[name],
                Load(requests_per_second=rate, prompt_tokens=512, output_tokens=128),
            )
        for name in surging:
            rate = 60 if minutes / 4 <= minute < 3 * minutes / 4 else 6
            fleet.loads.minute(
                uids[name],
                Load(requests_per_second=rate, prompt_tokens=512, output_tokens=128),
            )
        assert run.operator is not None
        run.operator.fleet.ask()
        await fleet.lab.wait("a plan for these loads", lambda: _planned(fleet, planner))
        _note(history, await fleet.templates())
        await asyncio.sleep(max(0.0, began + (minute + 1) * 60 / DIVISOR - time.monotonic()))
    await fleet.served(history)
    _note(history, await fleet.templates())
    turns = {name: _turns(changes) for name, changes in history.items()}
    changed = {name for name, changes in history.items() if len(changes) > 1}
    wishes: dict[str, list[Any]] = {}
    for _, plan in planner.plans[seen_plans:]:
        _note(
            wishes,
            {p.name: p.option and (p.option.config, p.option.replicas) for p in plan.intents},
        )
    print(
        f"{minutes} simulated minutes, times / {DIVISOR}: {len(planner.plans) - seen_plans} plans with "
        f"{sum(len(w) - 1 for w in wishes.values())} changed wishes, of which "
        f"{sum(_turns(w) for w in wishes.values())} turned back; what was done: "
        f"{sum(len(c) - 1 for c in history.values())} changes of {len(changed)} of {len(history)} "
        f"intents, {sum(turns.values())} turned back"
    )
    assert surging <= changed, "a surge that nothing follows shows nothing"
    assert changed & noisy, "loads that are far from any change show nothing"
    assert changed <= noisy | surging, changed
    assert all(turns[name] == 0 for name in turns if name not in surging), turns
    assert all(turns[name] <= 1 for name in surging), turns


async def _planned(fleet: Fleet, planner: Recorder) -> bool:
    """Tell whether the last plan is for the loads of the script: a busy machine skips none."""
    loads = {intent.uid: intent.load for intent in planner.plans[-1][0].intents}
    return all(loads.get(uid) == load for uid, load in fleet.loads.script.items())


def _note(history: dict[str, list[Any]], states: Mapping[str, Any]) -> None:
    """Add to every history the state that it has come to, if it is another."""
    for name, state in states.items():
        seen = history.setdefault(name, [])
        if not seen or seen[-1] != state:
            seen.append(state)


def _turns(changes: list[Any]) -> int:
    """Return how often a state that was left was taken up again."""
    return sum(one in changes[: n - 1] for n, one in enumerate(changes) if n >= 2)


async def _without_a_node(fleet: Fleet, run: Running) -> None:
    """A node goes: whoever had a replica there gets it back elsewhere, and no plan changes."""
    node = next(pod.node for pod in await fleet.pods() if pod.intent == STEADY)
    lost = {pod.intent for pod in await fleet.pods() if pod.node == node}
    before = await fleet.templates()
    await fleet.lose(node)

    async def back() -> bool:
        pods = await fleet.pods()
        return all(pod.node != node for pod in pods) and lost <= {pod.intent for pod in pods}

    await fleet.wait("replicas of the lost node elsewhere", back)
    await fleet.served(before)
    await run.quiet()
    assert await fleet.templates() == before


def _volume(lab: Lab) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": lab.namespace},
        "spec": {
            "capacity": {"storage": "1Ti"},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "fake",
            "hostPath": {"path": "/srv/models"},
            "claimRef": {"name": "models", "namespace": lab.namespace},
        },
    }


def _claim(lab: Lab) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": lab.namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "fake",
            "volumeName": lab.namespace,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
