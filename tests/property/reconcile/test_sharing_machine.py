"""Whatever joins, leaves, is deleted or killed when: who is served stays served, and all ends as wanted.

The operator's own gathering, deciding and routing against an API server, garbage collector, Deployment
controller and workers that are played here in a few lines each.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.reconcile.builders import SETTINGS, VERDICT, a_plan, an_option
from tests.unit.reconcile.test_groups import a_group_plan
from trimtab.kube import names
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.intents import AccuracyProgress, FingerprintProgress
from trimtab.observe.workers import ModelState, WorkerState
from trimtab.reconcile.group.reload import ReloadKeeper
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.gather import gather
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.routes import RoutesKeeper, models
from trimtab.reconcile.snapshot import parse_intent
from trimtab.reconcile.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("a", "b", "c")
PLURALS = {
    "Deployment": "deployments",
    "Service": "services",
    "ConfigMap": "configmaps",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Job": "jobs",
}
MIB = 2**20
CEILING = 1000 * MIB


class Sharing(RuleBasedStateMachine):
    """Three intents that may want to share, a group whose ceiling holds two, and crashes anywhere."""

    @initialize()
    def begin(self) -> None:
        self.caches = Caches()
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.version = 0
        self.pods: dict[str, dict[str, Any]] = {}
        self.loaded: dict[str, dict[str, Any]] = {}
        self.wants: dict[str, bool] = {}
        self.claims: dict[str, str] = {}
        self.born: dict[str, int] = {}
        self.births = 0
        self.plans: dict[str, Any] = {}
        self.world = World(
            settings=SETTINGS,
            caches=self.caches,
            clock=lambda: float(self.version),
            utcnow=lambda: None,  # type: ignore[arg-type,return-value] - nothing here has a time
            capabilities=ASSUMED,
        )
        self.world.fleet = SimpleNamespace(  # type: ignore[assignment] - what gathering reads of it
            current=SimpleNamespace(by_uid=self.plans, revision=1, problem=""),
            of=self._plan,
        )
        self.world.fingerprints = SimpleNamespace(  # type: ignore[assignment] - as above
            progress=lambda *_, **__: FingerprintProgress()
        )
        self.world.accuracy = SimpleNamespace(  # type: ignore[assignment] - as above
            progress=lambda *_: AccuracyProgress()
        )
        self.served: dict[str, str] = {}

    def _plan(self, uid: str, *, generation: int) -> Any:
        del generation
        return self.plans.get(uid)

    # The cluster, played.

    def put(self, plural: str, body: dict[str, Any]) -> None:
        meta = body["metadata"]
        key = (plural, meta["namespace"], meta["name"])
        old = self.objects.get(key)
        self.version += 1
        uid = old["metadata"]["uid"] if old else meta.get("uid") or f"{plural}-{self.version}"
        meta = meta | {"uid": uid, "resourceVersion": str(self.version), "generation": 1}
        status = {"observedGeneration": 1}
        if plural == "deployments":
            status |= {"updatedReplicas": 1, "availableReplicas": 1}
        self.objects[key] = {"status": status} | body | {"metadata": meta}
        self.caches.by_plural()[plural].put(self.objects[key])

    def remove(self, key: tuple[str, str, str]) -> None:
        body = self.objects.pop(key)
        self.caches.by_plural()[key[0]].forget(body["metadata"]["uid"])
        if key[0] == "deployments":
            for name in [n for n, p in self.pods.items() if p["deployment"] == key[2]]:
                self.lose(name)

    def lose(self, name: str) -> None:
        self.pods.pop(name)
        self.loaded.pop(name, None)
        self.world.worker_states.pop(name, None)
        self.remove(("pods", "team-a", name))

    def collect(self) -> None:
        """Delete what has owners and none that is left, as the garbage collector does."""
        alive = {f"uid-{n}-{self.born[n]}" for n in self.wants}
        for key in list(self.objects):
            body = self.objects.get(key)
            owners = (body or {}).get("metadata", {}).get("ownerReferences") or []
            uids = {o["uid"] for o in owners if o.get("kind") == "InferenceIntent"}
            if uids and not uids & alive:
                self.remove(key)

    def document(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Return the set that a pod's template names, or what it had if that is gone."""
        name = names.model_set(pod["deployment"], pod["digest"])
        found = self.objects.get(("configmaps", "team-a", name))
        return json.loads(found["data"]["models.json"]) if found else {}

    def load(self, name: str) -> None:
        """A worker takes its set over; a group's arena holds two models, more are refused."""
        document = self.document(self.pods[name])
        if document:
            self.loaded[name] = document
        document = self.loaded.get(name, {"revision": 0, "models": []})
        self.world.worker_states[name] = WorkerState(
            pod_uid=name,
            revision=document["revision"],
            errors=(),
            models=tuple(ModelState(name=m["name"], state="Resident") for m in document["models"]),
        )

    @rule()
    def kubelet(self) -> None:
        """New pods of present templates start beside old ones, which go once those are ready."""
        for key, body in list(self.objects.items()):
            if key[0] != "deployments":
                continue
            template = body["spec"]["template"]
            digest = template["metadata"]["annotations"]["trimtab.dev/plan-digest"]
            mine = {n: p for n, p in self.pods.items() if p["deployment"] == key[2]}
            if any(p["digest"] == digest for p in mine.values()):
                for name, pod in mine.items():
                    if pod["digest"] != digest:
                        self.lose(name)
                continue
            name = f"{key[2]}-{self.version}"
            self.pods[name] = {"deployment": key[2], "digest": digest}
            self.put(
                "pods",
                {
                    "metadata": {
                        "name": name, "namespace": "team-a", "uid": name, **template["metadata"]
                    },
                    "status": {
                        "podIP": "192.0.2.1",
                        "conditions": [{"type": "Ready", "status": "True"}],
                        "containerStatuses": [{"state": {"running": {}}}],
                    },
                },
            )  # fmt: skip
            self.load(name)

    # The user.

    @rule(
        name=st.sampled_from(NAMES),
        share=st.booleans(),
        claim=st.sampled_from(["x", "y"]),
        settled=st.booleans(),
    )
    def apply(self, *, name: str, share: bool, claim: str, settled: bool) -> None:
        """Apply an intent, after a while in which nothing went wrong or in the middle of all."""
        if settled:
            self.calm(rounds=3)
        if name not in self.wants:
            self.births += 1
            self.born[name] = self.births
            self.claims[name] = claim
        self.wants[name] = share
        source = {"persistentVolumeClaim": {"claimName": self.claims[name], "path": name}}
        uid = f"uid-{name}-{self.born[name]}"
        body = {
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "uid": uid,
                "creationTimestamp": f"2026-11-23T00:00:{self.born[name] % 60:02d}Z",
            },
            "spec": {
                "model": {"source": source},
                "objective": "MinCost",
                "sharing": "Shared" if share else "Exclusive",
            },
        }
        self.put("inferenceintents", body)
        record = self.caches.inferenceintents.get("team-a", name)
        assert record is not None
        owner = Owner(namespace="team-a", name=name, uid=uid)
        facts = jobs.facts_name(
            owner, source=jobs.source_digest(parse_intent(record).spec.model.source)
        )
        self.put(
            "configmaps",
            {
                "metadata": {"name": facts, "namespace": "trimtab-system"},
                "data": {"inspection.json": VERDICT},
            },
        )
        self.replan()

    @rule(name=st.sampled_from(NAMES), settled=st.booleans())
    def delete(self, *, name: str, settled: bool) -> None:
        if settled:
            self.calm(rounds=3)
        if name in self.wants:
            del self.wants[name]
            self.served.pop(name, None)
            self.remove(("inferenceintents", "team-a", name))
            self.replan()
            self.collect()
            # A namesake that comes later is not served by what its predecessor left in the table.
            self.route()

    def replan(self) -> None:
        """Plan as the planner does: sharers together, the group's name kept, memory for its members."""
        sharers = sorted((n for n in self.wants if self.wants[n]), key=lambda n: self.born[n])
        uids = {n: f"uid-{n}-{self.born[n]}" for n in self.wants}
        running = [
            body["metadata"]["labels"]["trimtab.dev/group"]
            for key, body in self.objects.items()
            if key[0] == "deployments"
            and "trimtab.dev/group" in body["metadata"]["labels"]
            and {o["uid"] for o in body["metadata"]["ownerReferences"]} & {uids[n] for n in sharers}
        ]
        group = None
        if sharers:
            group = a_group_plan(
                id=min(running, default=names.group("team-a", uids[sharers[0]])),
                members=tuple(uids[n] for n in sharers),
                arena_bytes=max(CEILING, 500 * MIB * len(sharers)),
                least_arena_bytes=500 * MIB * len(sharers),
            )
        self.plans.clear()
        self.world.names_changed()
        for name, uid in uids.items():
            record = self.caches.inferenceintents.get("team-a", name)
            assert record is not None
            self.plans[uid] = dataclasses.replace(
                a_plan(record), option=an_option(), group=group if self.wants[name] else None
            )

    @rule()
    def planner_is_away(self) -> None:
        """For a while nobody has a plan, as after a failure of the planner."""
        self.plans.clear()

    @rule()
    def planner_is_back(self) -> None:
        self.replan()

    # The operator.

    def writes(self, name: str) -> Iterator[Any]:
        """Yield one step's writes, to be carried out one by one."""
        record = self.caches.inferenceintents.get("team-a", name)
        if record is None:
            return
        plan = decide(gather(record, world=self.world), settings=SETTINGS)
        for manifest in plan.desired:
            yield lambda m=manifest: self.put(PLURALS[m["kind"]], m)
        for deletion in plan.deletions:
            key = (deletion.resource.plural, deletion.namespace, deletion.name)
            yield lambda k=key: self.remove(k) if k in self.objects else None

    @rule(name=st.sampled_from(NAMES), killed_after=st.integers(0, 12))
    def step(self, name: str, killed_after: int) -> None:
        """Step one intent; the process may be killed after any write."""
        for number, write in enumerate(self.writes(name)):
            if number >= killed_after:
                return
            write()

    @rule()
    def route(self) -> None:
        keeper = RoutesKeeper(
            world=self.world,
            executor=SimpleNamespace(),  # type: ignore[arg-type] - written below
            wake=lambda *_: None,
        )
        content = models("team-a", self.caches, service=keeper._service, grants_bare_names=False)
        self.put(
            "configmaps",
            {
                "metadata": {"name": names.routes("team-a"), "namespace": "trimtab-system"},
                "data": {"routes.json": json.dumps({"models": content})},
            },
        )

    @rule()
    def reload(self) -> None:
        asked: list[str] = []

        async def annotate(*_: Any) -> None:
            pass

        async def post(address: str, path: str) -> bool:
            asked.append(path)
            return True

        keeper = ReloadKeeper(
            self.world,
            SimpleNamespace(post=post),  # type: ignore[arg-type] - all that it uses
            annotate=annotate,
            poll=lambda: None,
        )
        asyncio.run(keeper.step())
        if asked:
            for name in self.pods:
                self.load(name)

    @rule()
    def restart(self) -> None:
        """A new process has asked no worker yet."""
        self.world.worker_states.clear()

    @rule()
    def poll(self) -> None:
        for name in self.pods:
            if name in self.loaded:
                document = self.loaded[name]
                self.world.worker_states[name] = WorkerState(
                    pod_uid=name,
                    revision=document["revision"],
                    errors=(),
                    models=tuple(
                        ModelState(name=m["name"], state="Resident") for m in document["models"]
                    ),
                )

    def calm(self, *, rounds: int) -> None:
        for _ in range(rounds):
            self.poll()
            for name in NAMES:
                self.step(name, killed_after=99)
                self.who_is_served_stays_served()
            for rule_ in (self.kubelet, self.reload, self.poll, self.route, self.kubelet):
                rule_()
                self.who_is_served_stays_served()

    # What must hold.

    def answering(self, name: str) -> bool:
        """Whether requests for a model reach a pod that has it loaded."""
        service = self.world.routed("team-a", name)
        return any(
            pod["deployment"] == service
            and any(m["name"] == f"team-a/{name}" for m in self.loaded[uid]["models"])
            for uid, pod in self.pods.items()
            if uid in self.loaded
        )

    @invariant()
    def who_is_served_stays_served(self) -> None:
        if not hasattr(self, "served"):
            return
        for name in self.wants:
            if name in self.served:
                assert self.answering(name), f"{name} was served and is not any more"
            elif self.answering(name):
                self.served[name] = "yes"

    def teardown(self) -> None:
        """Undisturbed, everybody ends served as wanted and nothing is left over."""
        if not hasattr(self, "served"):
            return
        self.replan()
        self.calm(rounds=12)
        shared = {n for n in self.wants if self.wants[n]}
        assert all(self.answering(name) for name in self.wants)
        deployments = [body for key, body in self.objects.items() if key[0] == "deployments"]
        groups = [d for d in deployments if "trimtab.dev/group" in d["metadata"]["labels"]]
        assert len(groups) == bool(shared)
        assert len(deployments) == len(self.wants) - len(shared) + bool(shared)
        for group in groups:
            owners = {o["name"] for o in group["metadata"]["ownerReferences"]}
            assert owners == shared
            (document,) = [
                self.loaded[n]
                for n, p in self.pods.items()
                if p["deployment"] == group["metadata"]["name"]
            ]
            assert {m["name"] for m in document["models"]} == {f"team-a/{n}" for n in shared}


TestSharing = Sharing.TestCase
TestSharing.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    # Shrinking a run of this machine takes minutes; the failing run is printed as it was.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
