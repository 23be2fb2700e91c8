"""A sharing group on a real API server: joins and leaves without a new pod, the founder's deletion, a move."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.control_plane.operator.lab import VERDICT, an_intent, config_map, grouped, running
from trimtab.kube.names import routes
from trimtab.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    INTENT,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Manifest,
)

if TYPE_CHECKING:
    from tests.control_plane.operator.lab import Lab

pytestmark = pytest.mark.control_plane

GROUPED = "trimtab.dev/group"


async def _add(lab: Lab, run: Any, name: str, *, after: Manifest | None = None) -> Manifest:
    """Apply an intent, play its inspection, and let the workers have its model."""
    await lab.apply(an_intent(lab.namespace, name, sharing="Shared"))
    job = await lab.end_job(lab.namespace, "inspection", VERDICT, after=after)
    await lab.condition("Planned", "Chosen", name)
    run.admin.models.append(f"{lab.namespace}/{name}")
    return job


async def _serving(lab: Lab, name: str) -> None:
    async def look() -> bool:
        conditions = (await lab.intent(name))["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    await lab.wait(f"{name} Ready", look)


async def _set(lab: Lab) -> dict[str, Any]:
    """Return the group's only model set."""
    found = await lab.list(CONFIG_MAP, lab.namespace, GROUPED)
    assert len(found) == 1, [m["metadata"]["name"] for m in found]
    document: dict[str, Any] = json.loads(found[0]["data"]["models.json"])
    return document


async def _has(lab: Lab, *names: str) -> Any:
    async def look() -> Any:
        document = await _set(lab)
        wanted = [f"{lab.namespace}/{name}" for name in names]
        return document if [m["name"] for m in document["models"]] == wanted else None

    return await lab.wait(f"a set of {names}", look)


async def _routed(lab: Lab, *names: str) -> None:
    async def look() -> bool:
        found = await config_map(lab, routes(lab.namespace))
        models = json.loads(found["data"]["routes.json"])["models"] if found else []
        services = {m["service"] for m in models}
        return [m["name"] for m in models] == list(names) and len(services) == 1

    await lab.wait(f"{names} routed to one Service", look)


def _owners(manifest: Manifest) -> list[str]:
    return sorted(owner["name"] for owner in manifest["metadata"]["ownerReferences"])


async def test_an_intent_joins_and_the_founder_goes_and_the_pod_stays(lab: Lab) -> None:
    """The second model comes into the running worker; the first one's deletion ends neither group nor pod."""
    async with running(lab) as run:
        run.planner.group = grouped("chat", "tiny")
        first = await _add(lab, run, "chat")
        (pod,) = await lab.start_workers()
        await _serving(lab, "chat")
        await _routed(lab, "chat")
        (before,) = await lab.list(DEPLOYMENT, lab.namespace)
        assert (await _set(lab))["revision"] == 1

        await _add(lab, run, "tiny", after=first)
        assert (await _has(lab, "chat", "tiny"))["revision"] == 2

        async def annotated() -> bool:
            (found,) = await lab.list(POD, lab.namespace, GROUPED)
            notes = found["metadata"].get("annotations") or {}
            return notes.get("trimtab.dev/model-set-revision") == "2"

        await lab.wait("the pod annotated", annotated)

        async def asked() -> bool:
            return "/-/reload?revision=2" in run.admin.asked

        await lab.wait("the worker asked", asked)
        run.admin.revision = 2
        await _serving(lab, "tiny")
        await _routed(lab, "chat", "tiny")
        for resource in (DEPLOYMENT, SERVICE, NETWORK_POLICY, CONFIG_MAP):
            (child,) = await lab.list(resource, lab.namespace, GROUPED)
            assert _owners(child) == ["chat", "tiny"]
        (joined,) = await lab.list(DEPLOYMENT, lab.namespace)
        assert joined["spec"] == before["spec"]
        group = joined["metadata"]["labels"][GROUPED]
        for name in ("chat", "tiny"):
            assert (await lab.intent(name))["status"]["plan"]["group"] == group
        await run.quiet()

        await lab.delete(INTENT, lab.namespace, "chat")
        run.admin.models.remove(f"{lab.namespace}/chat")
        run.planner.group = grouped("tiny")
        assert (await _has(lab, "tiny"))["revision"] == 3
        await _routed(lab, "tiny")
        run.admin.revision = 3
        await run.quiet()
        (left,) = await lab.list(DEPLOYMENT, lab.namespace)
        assert _owners(left) == ["tiny"]
        assert left["metadata"]["uid"] == before["metadata"]["uid"]
        assert left["metadata"]["labels"][GROUPED] == group
        assert left["spec"] == before["spec"]
        (still,) = await lab.list(POD, lab.namespace, GROUPED)
        assert still["metadata"]["uid"] == pod["metadata"]["uid"]

        await lab.delete(INTENT, lab.namespace, "tiny")

        async def gone() -> bool:
            kinds = (DEPLOYMENT, SERVICE, NETWORK_POLICY, CONFIG_MAP)
            return not [c for kind in kinds for c in await lab.list(kind, lab.namespace, GROUPED)]

        await lab.wait("the group to go with its last member", gone, seconds=60)


async def test_a_worker_of_its_own_goes_only_after_requests_moved_to_the_group(lab: Lab) -> None:
    """An intent that comes to share keeps its worker until the group's has the model and the route."""
    async with running(lab) as run:
        await _add(lab, run, "chat")
        await lab.start_workers()
        await _serving(lab, "chat")
        (own,) = await lab.list(DEPLOYMENT, lab.namespace)
        assert GROUPED not in own["metadata"]["labels"]
        await run.quiet()

        run.planner.group = grouped("chat")
        assert run.operator is not None
        run.operator.fleet.ask()
        run.operator.fleet.current.by_uid.clear()
        run.operator.fleet.open()

        async def both() -> bool:
            return len(await lab.list(DEPLOYMENT, lab.namespace)) == 2

        await lab.wait("the group's Deployment beside the old one", both)
        await run.quiet()
        assert await both(), "the old worker went before the new one was there"
        found = await config_map(lab, routes(lab.namespace))
        assert found is not None
        service = json.loads(found["data"]["routes.json"])["models"][0]["service"]
        assert service == own["metadata"]["name"]
        # Not Ready: this cluster has no node, and a pod that waits for long to be placed says so.
        assert (await lab.condition("Serving", "Serving"))["status"] == "True"

        await lab.start_workers(count=2)

        async def moved() -> bool:
            left = await lab.list(DEPLOYMENT, lab.namespace)
            return [GROUPED in d["metadata"]["labels"] for d in left] == [True]

        await lab.wait("the old worker to go", moved)
        found = await config_map(lab, routes(lab.namespace))
        assert found is not None
        service = json.loads(found["data"]["routes.json"])["models"][0]["service"]
        (left,) = await lab.list(DEPLOYMENT, lab.namespace)
        assert service == left["metadata"]["name"]
        await _serving(lab, "chat")


async def test_a_restarted_operator_leaves_a_group_as_it_is(lab: Lab) -> None:
    """Nothing of a served group is written again by an operator that starts anew."""
    async with running(lab) as run:
        run.planner.group = grouped("chat", "tiny")
        first = await _add(lab, run, "chat")
        await lab.start_workers()
        await _serving(lab, "chat")
        await _add(lab, run, "tiny", after=first)
        run.admin.revision = (await _has(lab, "chat", "tiny"))["revision"]
        await _serving(lab, "tiny")
        await run.quiet()
    versions = await lab.versions()
    async with running(lab) as again:
        again.planner.group = grouped("chat", "tiny")
        again.admin.models = [f"{lab.namespace}/chat", f"{lab.namespace}/tiny"]
        again.admin.revision = 2
        uid = (await lab.intent("tiny"))["metadata"]["uid"]
        await lab.wait("a step", lambda: again.stepped_past(uid, 0))
        await again.quiet()
        assert await lab.versions() == versions
