"""Carrying a plan out: order, faults, and nothing that changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.reconcile.builders import SETTINGS, a_record, an_observed
from trimtab.kube.errors import ApiError, NotLeadingError
from trimtab.kube.resources import CONFIG_MAP
from trimtab.observe.caches import Caches
from trimtab.reconcile.execute import Executor
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.plan import Deletion, Plan

if TYPE_CHECKING:
    from trimtab.observe.cache import Change


class PlayedWriter:
    """Answers like the API server: the applied object with the next resourceVersion."""

    manager = "trimtab-operator"

    def __init__(self) -> None:
        self.version = 10
        self.generation = 1
        self.writes: list[tuple[str, str, str]] = []
        self.refuse: dict[str, Exception] = {}
        self.status: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.how: dict[str, Any] = {}

    def _answer(self, verb: str, manifest: dict[str, Any]) -> dict[str, Any]:
        kind = manifest["kind"]
        self.writes.append((verb, kind, manifest["metadata"].get("name", "")))
        if kind in self.refuse:
            raise self.refuse[kind]
        self.version += 1
        name = manifest["metadata"]["name"]
        meta = manifest["metadata"] | {
            "resourceVersion": str(self.version),
            "generation": self.generation,
            "uid": manifest["metadata"].get("uid") or f"uid-{name}",
        }
        return manifest | {"metadata": meta}

    async def apply(self, manifest: dict[str, Any], **how: Any) -> dict[str, Any]:
        self.how = how
        return self._answer("apply", manifest)

    async def apply_status(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.status = manifest["status"]
        return self._answer("status", manifest)

    async def post_event(self, manifest: dict[str, Any]) -> bool:
        self._answer("event", manifest)
        return True

    async def delete(
        self, resource: Any, *, name: str, resource_version: str = "", **_: Any
    ) -> bool:
        present = self.versions.get(resource.kind, resource_version)
        if resource_version and resource_version != present:
            raise an_error(409, f"the object has resourceVersion {present}")
        self.writes.append(("delete", resource.kind, name))
        return True


class Bench:
    def __init__(self) -> None:
        self.caches = Caches()
        self.writer = PlayedWriter()
        self.changes: list[str] = []
        self.seen: list[Change[Any]] = []
        self.record = a_record()
        self.caches.inferenceintents._store(self.record)
        self.executor = Executor(
            self.writer,  # type: ignore[arg-type]
            self.caches,
            utcnow=lambda: datetime(2026, 11, 23, tzinfo=UTC),
            instance="op-1",
            changed=self._changed,
        )

    def _changed(self, plural: str, change: Change[Any]) -> None:
        self.changes.append(plural)
        self.seen.append(change)

    def plan(self, **changes: Any) -> Plan:
        return decide(an_observed(self.record, **changes), settings=SETTINGS)

    async def run(self, plan: Plan | None = None) -> Any:
        current = self.caches.inferenceintents.by_uid(self.record.uid)
        assert current is not None
        return await self.executor.execute(plan or self.plan(), subject=current)


def an_error(code: int, message: str = "") -> ApiError:
    return ApiError(method="PATCH", path="/x", code=code, status={"message": message})


async def test_children_then_status_then_events() -> None:
    """A step writes in the order in which a crash between two writes hurts least."""
    bench = Bench()
    outcome = await bench.run()
    assert not outcome.failed
    verbs = [verb for verb, _, _ in bench.writer.writes]
    assert verbs == sorted(verbs, key=["apply", "status", "event"].index)
    assert [kind for verb, kind, _ in bench.writer.writes if verb == "apply"] == [
        "NetworkPolicy",
        "ConfigMap",
        "Service",
        "Deployment",
    ]


async def test_a_second_equal_step_writes_nothing() -> None:
    """What is as wanted costs no request."""
    bench = Bench()
    plan = bench.plan()
    await bench.run(plan)
    bench.writer.writes.clear()
    await bench.run(plan)
    assert bench.writer.writes == []


async def test_an_edit_that_a_status_write_brings_is_passed_on() -> None:
    """The answer holds an edit made meanwhile; its event comes too late to wake anybody."""
    bench = Bench()
    bench.writer.generation = 2
    await bench.run()
    edits = [c for c in bench.seen if c.before and c.before.generation != c.record.generation]
    assert [c.record.name for c in edits if c.record.uid == bench.record.uid] == ["chat"]


async def test_an_edited_child_is_applied_again() -> None:
    """A child whose generation moved is written again, and it alone."""
    bench = Bench()
    plan = bench.plan()
    await bench.run(plan)
    bench.writer.writes.clear()
    deployment = next(m for m in plan.desired if m["kind"] == "Deployment")
    meta = deployment["metadata"] | {
        "uid": f"uid-{deployment['metadata']['name']}",
        "generation": 2,
        "resourceVersion": "99",
    }
    bench.caches.deployments.apply_event("MODIFIED", deployment | {"metadata": meta})
    await bench.run(plan)
    assert [kind for _, kind, _ in bench.writer.writes] == ["Deployment"]


async def test_own_writes_are_told_like_events() -> None:
    """Whoever waits for an object hears of it from the write, for its event is no news any more."""
    bench = Bench()
    await bench.run()
    assert {"deployments", "services", "configmaps"} <= set(bench.changes)


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (an_error(403, "exceeded quota: small"), "QuotaExceeded", "small"),
        (an_error(403, 'cannot patch resource "services" in API group "" in the namespace "team-a"'), "MissingPermission", "patch services"),
        (an_error(422, "spec.ports is wrong"), "InvalidObject", "spec.ports"),
    ],
)  # fmt: skip
async def test_a_refused_child_is_a_condition(error: ApiError, reason: str, words: str) -> None:
    """What the server refuses stands in Placed and Ready with its remedy; earlier children stay."""
    bench = Bench()
    bench.writer.refuse["Service"] = error
    outcome = await bench.run()
    assert outcome.failed
    assert [k for v, k, _ in bench.writer.writes if v == "apply"] == [
        "NetworkPolicy",
        "ConfigMap",
        "Service",
    ]
    found = {c["type"]: c for c in bench.writer.status["conditions"]}
    assert (found["Placed"]["status"], found["Placed"]["reason"]) == ("False", reason)
    assert words in found["Ready"]["message"]


@pytest.mark.parametrize("error", [an_error(503), TimeoutError(), NotLeadingError("late")])
async def test_an_outage_writes_no_status(error: Exception) -> None:
    """A server that does not answer, or a lost lead, is paced; nothing is said about the intent."""
    bench = Bench()
    bench.writer.refuse["Service"] = error
    outcome = await bench.run()
    assert outcome.failed
    assert bench.writer.status == {}


async def test_a_namespace_that_goes_is_left_alone() -> None:
    """A child refused because its namespace terminates is neither failure nor news."""
    bench = Bench()
    text = "namespace team-a is forbidden because it is being terminated"
    bench.writer.refuse["NetworkPolicy"] = an_error(403, text)
    outcome = await bench.run()
    assert not outcome.failed
    assert bench.writer.status == {}


async def test_times_of_conditions_move_with_their_status_only() -> None:
    """A changed message keeps lastTransitionTime."""
    bench = Bench()
    stored = {
        "type": "Planned", "status": "True", "reason": "Chosen", "message": "old",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    bench.record = a_record(status={"conditions": [stored]})
    bench.caches.inferenceintents._store(bench.record)
    await bench.run()
    found = {c["type"]: c for c in bench.writer.status["conditions"]}
    assert found["Planned"]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert found["Serving"]["lastTransitionTime"] == "2026-11-23T00:00:00Z"


async def test_a_bug_ends_the_step_loudly() -> None:
    """What is no API failure is raised, to be logged with its trace."""
    bench = Bench()
    bench.writer.refuse["Service"] = KeyError("bug")
    with pytest.raises(KeyError):
        await bench.run()


async def test_a_deleted_child_leaves_the_cache_at_once() -> None:
    """The next step does not see what was just deleted."""
    bench = Bench()
    await bench.executor.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "n"}}
    )
    gone = Deletion(resource=CONFIG_MAP, namespace="n", name="x", uid="uid-x")
    await bench.executor.delete(gone)
    assert bench.caches.configmaps.get("n", "x") is None


async def test_nothing_is_remembered_of_an_intent_that_is_gone() -> None:
    """Garbage collection takes the children; an operator that lives long keeps none of them."""
    bench = Bench()
    await bench.run()
    assert bench.executor._children
    bench.executor.forget(bench.record.uid)
    assert not bench.executor._children
    assert not bench.executor._children_by_owner


A_GROUPS_SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "g", "namespace": "n", "labels": {"trimtab.dev/group": "g"}},
}


async def test_an_object_in_place_of_the_one_that_was_written_is_written_again() -> None:
    """Somebody else's object of that name, equal in generation and labels, is not taken for our own."""
    bench = Bench()
    await bench.executor.apply(A_GROUPS_SERVICE)
    assert not await bench.executor.apply(A_GROUPS_SERVICE)
    written = bench.caches.services.get("n", "g")
    assert written is not None
    meta = A_GROUPS_SERVICE["metadata"] | {"generation": 1, "resourceVersion": "99"}
    bench.caches.services.put(A_GROUPS_SERVICE | {"metadata": meta | {"uid": "restored"}})
    found = bench.caches.services.get("n", "g")
    assert found is not None
    assert (found.uid, found.fingerprint) == ("restored", written.fingerprint)
    assert await bench.executor.apply(A_GROUPS_SERVICE)


async def test_nothing_is_remembered_of_a_groups_objects_that_are_gone() -> None:
    """They have no intent that takes their memory along when it ends."""
    bench = Bench()
    await bench.executor.apply(A_GROUPS_SERVICE)
    change = bench.caches.services.forget("uid-g")
    assert change is not None
    bench.executor.gone("services", change.record)
    assert not bench.executor._children


async def test_fields_beside_those_of_others_have_their_own_manager() -> None:
    """Nothing is taken by force, the cache knows the answer at once, and whom it concerns is told."""
    bench = Bench()
    part = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "fp-x", "namespace": "trimtab-system", "uid": "f"},
        "data": {"anchors": "a"},
    }
    await bench.executor.add(part, manager="trimtab-anchors", force=False)
    assert bench.writer.how == {"manager": "trimtab-anchors", "force": False}
    known = bench.caches.configmaps.get("trimtab-system", "fp-x")
    assert known is not None
    assert known.data == {"anchors": "a"}
    assert bench.changes == ["configmaps"]
