"""From an event to whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.reconcile.builders import SETTINGS
from trimtab.observe.caches import Caches
from trimtab.reconcile.routes import models
from trimtab.reconcile.waking import Waker

if TYPE_CHECKING:
    from trimtab.observe.records import Record


def _first(_: object, services: tuple[Record, ...]) -> str:
    return services[0].name


class Bench:
    def __init__(self) -> None:
        self.caches = Caches()
        self.told: list[tuple[str, ...]] = []
        self.waker = Waker(
            caches=self.caches,
            wake=lambda uid, cause: self.told.append(("wake", uid, cause)),
            wake_needing=lambda key: self.told.append(("needing", key)),
            replan=lambda: self.told.append(("replan",)),
            run=lambda job: self.told.append(("run", job)),
            relisted=lambda plural: self.told.append(("relisted", plural)),
            renamed=lambda: None,
            load_edited=lambda uid: self.told.append(("load", uid)),
            forget_load=lambda uid: self.told.append(("forget", uid)),
            gone=lambda plural, record: self.told.append(("gone", plural, record.name)),
            settings=SETTINGS,
        )
        self.version = 0

    def event(self, plural: str, kind: str | None, body: dict[str, Any]) -> list[tuple[str, ...]]:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.told.clear()
        self.waker.event(plural, kind, body, past_barrier=True)
        return list(self.told)


def an_intent(name: str = "chat", **changes: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "team-a", "uid": f"uid-{name}", "generation": 1}
    meta |= {"creationTimestamp": "2026-11-23T00:00:00Z"} | changes.pop("meta", {})
    return {"metadata": meta, "spec": {"model": {"name": "m"}}} | changes


def test_an_edit_wakes_its_loop_and_asks_for_a_plan() -> None:
    """A new generation is news for the loop, the planner and the routes."""
    bench = Bench()
    bench.event("inferenceintents", "ADDED", an_intent())
    told = bench.event("inferenceintents", "MODIFIED", an_intent(meta={"generation": 2}))
    assert ("wake", "uid-chat", "spec") in told
    assert ("replan",) in told
    assert ("run", "routes") in told


def test_the_echo_of_our_status_wakes_nobody() -> None:
    """A change of status alone is our own writing."""
    bench = Bench()
    bench.event("inferenceintents", "ADDED", an_intent())
    assert bench.event("inferenceintents", "MODIFIED", an_intent(status={"endpoint": "x"})) == []


def test_an_annotation_is_heard() -> None:
    """Pausing and giving replicas back are annotations."""
    bench = Bench()
    bench.event("inferenceintents", "ADDED", an_intent())
    paused = an_intent(meta={"annotations": {"trimtab.dev/paused": "true"}})
    told = bench.event("inferenceintents", "MODIFIED", paused)
    assert told == [("wake", "uid-chat", "spec"), ("run", "steps"), ("replan",)]


def test_a_deletion_frees_the_name() -> None:
    """Whoever waited for the model name steps, the planner and the sweeper run."""
    bench = Bench()
    bench.event("inferenceintents", "ADDED", an_intent())
    bench.event("inferenceintents", "ADDED", an_intent("other"))
    told = bench.event("inferenceintents", "DELETED", an_intent())
    assert ("wake", "uid-other", "name") in told
    assert ("replan",) in told
    assert ("run", "sweep") in told


def test_a_child_wakes_every_owner() -> None:
    """Owners by reference and by label are woken."""
    bench = Bench()
    meta = {
        "name": "x", "namespace": "team-a", "uid": "u", "generation": 1,
        "ownerReferences": [{"uid": "o1"}], "labels": {"trimtab.dev/owner-uid": "o2"},
    }  # fmt: skip
    told = bench.event("deployments", "ADDED", {"metadata": meta})
    assert told == [("wake", "o1", "deployments"), ("wake", "o2", "deployments")]


def test_a_worker_that_becomes_ready_can_be_routed_to() -> None:
    """Who joins a group waits for a ready pod: readiness alone moves routes, a heart beat does not."""
    bench = Bench()
    meta = {"name": "w", "namespace": "team-a", "uid": "u"}
    meta["labels"] = {"app.kubernetes.io/component": "worker"}

    def pod(**status: Any) -> dict[str, Any]:
        return {"metadata": dict(meta), "status": status}

    ready = [{"type": "Ready", "status": "True"}]
    assert ("run", "routes") not in bench.event("pods", "ADDED", pod(phase="Running"))
    assert ("run", "routes") in bench.event("pods", "MODIFIED", pod(conditions=ready))
    told = bench.event("pods", "MODIFIED", pod(conditions=ready, podIP="10.0.0.1"))
    assert ("run", "routes") not in told
    assert ("run", "routes") in bench.event("pods", "DELETED", pod(conditions=ready))


def test_a_fingerprint_wakes_whoever_needs_it() -> None:
    """Jobs and documents of measurements belong to no intent, and concern those that asked."""
    bench = Bench()
    meta = {
        "name": "fp-00ff", "namespace": "trimtab-system", "uid": "u",
        "labels": {"app.kubernetes.io/component": "fingerprint"},
    }  # fmt: skip
    told = bench.event("configmaps", "ADDED", {"metadata": meta, "data": {}})
    assert ("needing", "00ff") in told
    assert ("run", "fingerprints") in told
    assert ("replan",) in told


def test_a_heart_beat_of_a_node_is_no_news() -> None:
    """Capacity is planned with, life signs are not."""
    bench = Bench()
    body = {"metadata": {"name": "n", "uid": "u"}, "status": {"allocatable": {"cpu": "2"}}}
    assert bench.event("nodes", "ADDED", body) == [("replan",)]
    assert bench.event("nodes", "MODIFIED", body) == []


def test_a_new_list_is_audited() -> None:
    """An event of a list past the barrier means that kopf listed again."""
    bench = Bench()
    meta = {"name": "x", "namespace": "team-a", "uid": "u"}
    assert ("relisted", "services") in bench.event("services", None, {"metadata": meta})


def test_bare_names_go_to_the_oldest_where_nobody_is_authenticated() -> None:
    """With `gateway.auth: None` one intent of all namespaces holds a bare name."""
    caches = Caches()
    for namespace, created in (
        ("team-b", "2026-01-01T00:00:00Z"),
        ("team-a", "2026-02-01T00:00:00Z"),
    ):
        meta = {"namespace": namespace, "uid": namespace, "creationTimestamp": created}
        caches.inferenceintents.put(an_intent(meta=meta))
        owner = {"trimtab.dev/owner-uid": namespace}
        caches.services.put(
            {
                "metadata": {
                    "name": "s",
                    "namespace": namespace,
                    "uid": f"s-{namespace}",
                    "labels": owner,
                }
            }
        )
    of_a = models("team-a", caches, service=_first, grants_bare_names=True)
    of_b = models("team-b", caches, service=_first, grants_bare_names=True)
    assert [m["bare"] for m in of_a + of_b] == [False, True]
    assert not models("team-b", caches, service=_first, grants_bare_names=False)[0]["bare"]


def test_a_service_of_another_namespace_is_no_route() -> None:
    """A label claims an owner, but a tenant cannot answer for another one's model."""
    caches = Caches()
    caches.inferenceintents.put(an_intent())
    owner = {"trimtab.dev/owner-uid": "uid-chat"}
    meta = {"name": "s", "namespace": "a-thief", "uid": "s", "labels": owner}
    caches.services.put({"metadata": meta})
    assert models("team-a", caches, service=_first, grants_bare_names=True) == []


def test_an_object_that_is_gone_is_told_of_once() -> None:
    """Garbage collection takes a group's objects without a write of ours; what is remembered of them goes too."""
    bench = Bench()
    group = {"metadata": {"name": "g", "namespace": "team-a", "uid": "g"}}
    assert bench.event("deployments", "ADDED", group) == []
    assert bench.event("deployments", "DELETED", group) == [("gone", "deployments", "g")]
    assert bench.event("deployments", "DELETED", group) == []


def test_an_edited_load_replaces_the_observed_one() -> None:
    """Whoever edits spec.load says something newer than the last hour; other edits do not."""
    bench = Bench()
    bench.event("inferenceintents", "ADDED", an_intent())
    renamed = an_intent(meta={"generation": 2}, spec={"model": {"name": "n"}})
    assert ("load", "uid-chat") not in bench.event("inferenceintents", "MODIFIED", renamed)
    spec = {"model": {"name": "n"}, "load": {"requestsPerSecond": "9"}}
    busier = an_intent(meta={"generation": 3}, spec=spec)
    assert ("load", "uid-chat") in bench.event("inferenceintents", "MODIFIED", busier)
    assert ("forget", "uid-chat") in bench.event("inferenceintents", "DELETED", busier)


def test_the_note_of_a_documents_use_asks_for_no_plan() -> None:
    """It is written once a day; an edit of the same document is heard."""
    bench = Bench()

    def document(text: str, used: str) -> dict[str, Any]:
        meta: dict[str, Any] = {"name": "fp-k", "namespace": SETTINGS.system_namespace, "uid": "f"}
        meta["labels"] = {"app.kubernetes.io/component": "fingerprint"}
        meta["annotations"] = {"trimtab.dev/last-used": used, "trimtab.dev/seal": "s"}
        return {"metadata": meta, "data": {"fingerprint.json": text}}

    bench.event("configmaps", "ADDED", document("a", "2026-11-23T00:00:00Z"))
    assert bench.event("configmaps", "MODIFIED", document("a", "2026-11-24T00:00:00Z")) == []
    told = bench.event("configmaps", "MODIFIED", document("b", "2026-11-25T00:00:00Z"))
    assert ("replan",) in told
