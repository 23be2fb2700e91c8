"""Accuracy Jobs: who gets one, whose answers count, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.planning.builders import a_loss
from tests.unit.reconcile.builders import SETTINGS, VERDICT, a_plan, a_record, an_observed
from trimtab.kube.errors import ApiError, NotLeadingError
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.intents import AccuracyProgress
from trimtab.observe.loads import LoadBook
from trimtab.planning.accuracy import dump
from trimtab.planning.snapshot import CpuPool, FleetSnapshot
from trimtab.reconcile.accuracy import AccuracyKeeper
from trimtab.reconcile.fleet import Planned
from trimtab.reconcile.inferenceintent import jobs, status, verdicts
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.snapshot import Surroundings, fleet_snapshot, parse_intent

SYSTEM = SETTINGS.system_namespace


class Executor:
    """Writes into the caches, as the API server's events would."""

    def __init__(self, caches: Caches) -> None:
        self.caches = caches
        self.applied: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.refusals: list[Exception] = []

    async def apply(self, manifest: dict[str, Any]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.applied.append(manifest)
        cache = self.caches.by_plural()[f"{manifest['kind'].lower()}s".replace("ys", "ies")]
        meta = manifest["metadata"] | {"uid": f"u-{len(self.applied)}"}
        cache.put(manifest | {"metadata": meta | {"resourceVersion": "1"}})

    async def delete(self, deletion: Any) -> None:
        self.deleted.append(deletion.name)
        self.caches.by_plural()[deletion.resource.plural].forget(deletion.uid)


class Bench:
    """One inspected intent, and a keeper whose plan asks about int8 and int4."""

    def __init__(self, **spec: Any) -> None:
        self.caches = Caches()
        record = a_record(**spec)
        self.caches.inferenceintents._store(record)
        owner = Owner(namespace="team-a", name="chat", uid="uid-chat")
        source = jobs.source_digest(parse_intent(record).spec.model.source)
        facts = jobs.facts_config_map(
            owner=owner,
            source=source,
            message=json.dumps(json.loads(VERDICT) | {"source": "abc"}),
            node="n",
            settings=SETTINGS,
        )
        self.caches.configmaps.put(facts | {"metadata": facts["metadata"] | {"uid": "facts"}})
        self.executor = Executor(self.caches)
        self.told: list[str] = []
        self.asked = 0
        self.unmeasured: tuple[str, ...] = ("int4", "int8")
        self.keeper = AccuracyKeeper(
            caches=self.caches,
            executor=self.executor,  # type: ignore[arg-type]
            fleet=self,  # type: ignore[arg-type]
            settings=SETTINGS,
            clock=lambda: 0.0,
            changed=self.told.append,
        )

    @property
    def current(self) -> Planned:
        pool = CpuPool(node="n", cpu_model="Test CPU", millicores=2000, memory_bytes=2**34)
        plan = replace(a_plan(a_record()), unmeasured=self.unmeasured)
        return Planned(
            revision=1,
            snapshot=replace(self.snapshot(), pools=(pool,)),
            by_uid={"uid-chat": plan},
        )

    def ask(self) -> None:
        self.asked += 1

    def snapshot(self) -> FleetSnapshot:
        return fleet_snapshot(
            self.caches,
            loads=LoadBook(),
            settings=SETTINGS,
            surroundings=Surroundings(capabilities=ASSUMED),
        )

    @property
    def model(self) -> Any:
        [view] = self.snapshot().intents
        return view.model

    def end(self, message: str, *, namespace: str = "team-a", code: int = 0) -> None:
        """Play the kubelet: the Job's pod ends."""
        name = f"acc-{self.model.identity}"
        ended = {"exitCode": code, "reason": "Completed", "message": message}
        self.caches.pods.put(
            {
                "metadata": {
                    "name": f"{name}-x",
                    "namespace": namespace,
                    "uid": "p",
                    "labels": {"batch.kubernetes.io/job-name": name},
                },
                "status": {"containerStatuses": [{"state": {"terminated": ended}}]},
            }
        )


DOCUMENT = dump([a_loss("int8", percent=0.4), a_loss("int4", percent=6.0)])


async def test_the_job_reads_the_model_beside_the_intent() -> None:
    """It mounts the source in the intent's namespace, belongs to the intent, and talks to nobody."""
    bench = Bench()
    await bench.keeper.step()
    policy, job = bench.executor.applied
    assert (job["kind"], job["metadata"]["namespace"]) == ("Job", "team-a")
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid-chat"
    pod = job["spec"]["template"]
    [container] = pod["spec"]["containers"]
    command = " ".join(container["command"])
    assert "--path /models/m0/smollm2 --threads 1 --precision int4 --precision int8" in command
    assert container["volumeMounts"][1]["readOnly"] is True
    assert pod["spec"]["volumes"][1]["persistentVolumeClaim"]["readOnly"] is True
    [apart] = pod["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart["namespaces"] == [SYSTEM]
    assert policy["kind"] == "NetworkPolicy"
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= pod["metadata"]["labels"].items()
    assert "egress" not in policy["spec"]
    assert len(job["metadata"]["name"]) <= 63
    await bench.keeper.step()
    assert len(bench.executor.applied) == 2
    assert bench.keeper.running() == 1
    name = job["metadata"]["name"]
    found = bench.keeper.progress("uid-chat", bench.current.by_uid["uid-chat"])
    assert found == AccuracyProgress(precisions=("int4", "int8"), job=name)


async def test_what_it_finds_is_kept_per_precision_and_planned_with() -> None:
    """Each precision has its document in the system namespace; the next snapshot has the losses."""
    bench = Bench()
    await bench.keeper.step()
    bench.end(DOCUMENT)
    await bench.keeper.step()
    identity = bench.model.identity
    kept = {r.name for r in bench.caches.configmaps if r.name.startswith("acc-")}
    assert kept == {f"acc-{identity}-int8", f"acc-{identity}-int4"}
    assert {r.namespace for r in bench.caches.configmaps if r.name in kept} == {SYSTEM}
    assert {loss.precision: str(loss.percent) for loss in bench.model.losses} == {
        "int8": "0.400",
        "int4": "6.000",
    }
    assert bench.executor.deleted == [f"acc-{identity}"]
    assert (bench.asked, bench.keeper.running()) == (1, 0)
    # The plan has not been made anew yet, and still asks: what is kept is not measured again.
    await bench.keeper.step()
    assert sum(m["kind"] == "Job" for m in bench.executor.applied) == 1


async def test_a_precision_that_is_added_is_measured_alone() -> None:
    """What is known stays; only what is missing is asked for."""
    bench = Bench()
    bench.unmeasured = ("int8",)
    await bench.keeper.step()
    bench.end(dump([a_loss("int8", percent=0.4)]))
    await bench.keeper.step()
    bench.caches.pods.forget("p")  # type: ignore[arg-type]
    bench.unmeasured = ("int4",)
    await bench.keeper.step()
    command = bench.executor.applied[-1]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-2:] == ["--precision", "int4"]
    assert "int8" not in command


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (dump([a_loss("int8", percent=1, text="0" * 16)]), "measured on text '0000000000000000'"),
        (DOCUMENT.replace('"abc"', '"other"'), "measured on model 'other', not on 'abc'"),
        (DOCUMENT.replace('"int8"', '"A/B"'), "measured precision 'A/B', but the engine has"),
        (DOCUMENT.replace('"own":"bf16"', f'"own":"{"é" * 1500}"'), "Measure fewer precisions"),
        ("{}", "field v is None"),
    ],
)
async def test_an_answer_to_another_question_is_not_kept(message: str, said: str) -> None:
    """Another text, other files and nonsense fail the measurement, with the reason, and are repeated."""
    bench = Bench()
    await bench.keeper.step()
    bench.end(message)
    await bench.keeper.step()
    assert bench.model.losses == ()
    failure = bench.keeper.progress("uid-chat", bench.current.by_uid["uid-chat"]).failure
    assert said in failure
    assert failure.endswith("It is repeated; until then its loss of accuracy is unknown.")
    assert bench.told[-1] == bench.model.identity


async def test_a_job_of_another_namespace_misleads_nobody() -> None:
    """A tenant who knows another's identity and forges Job and message is not heard."""
    bench = Bench()
    name = f"acc-{bench.model.identity}"
    forged = {
        "metadata": {
            "name": name,
            "namespace": "team-b",
            "uid": "j",
            "labels": {"app.kubernetes.io/component": "accuracy"},
        },
        "status": {"conditions": [{"type": "Complete", "status": "True"}]},
    }
    bench.caches.jobs.put(forged)
    bench.end(DOCUMENT, namespace="team-b")
    await bench.keeper.step()
    assert bench.model.losses == ()
    assert bench.executor.deleted == []
    assert bench.keeper.running() == 1


async def test_what_is_not_admitted_gets_no_job() -> None:
    """A paused intent, and one whose source is not allowed, mount nothing."""
    paused = Bench(annotations={"trimtab.dev/paused": "true"})
    await paused.keeper.step()
    assert paused.executor.applied == []
    outside = Bench(model={"source": {"hostPath": {"path": "/etc"}}})
    await outside.keeper.step()
    assert outside.executor.applied == []


async def test_a_node_that_measures_is_left_alone() -> None:
    """While another measurement runs on the only node, none begins."""
    bench = Bench()
    bench.keeper._others = lambda: 1
    await bench.keeper.step()
    assert bench.executor.applied == []


def written_by(manager: str) -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": {"f:data": {"f:accuracy.json": {}}}}


async def test_what_no_release_can_use_any_more_is_removed() -> None:
    """Documents of another text, another engine version, or none at all go; the others stay."""
    bench = Bench()
    old = a_loss("int8", percent=1.0)
    stale = replace(old, key=replace(old.key, engine_version="0.0.1"))
    for name, text in (("good", dump([old])), ("stale", dump([stale])), ("bad", "x")):
        labels = {"app.kubernetes.io/component": "accuracy"}
        meta = {"name": f"acc-{name}", "namespace": SYSTEM, "uid": name, "labels": labels}
        meta["managedFields"] = [written_by("trimtab-operator")]
        bench.caches.configmaps.put({"metadata": meta, "data": {"accuracy.json": text}})
        meta = meta | {"namespace": "team-a", "uid": f"theirs-{name}"}
        bench.caches.configmaps.put({"metadata": meta, "data": {"accuracy.json": text}})
    bench.unmeasured = ()
    await bench.keeper.step()
    assert sorted(bench.executor.deleted) == ["acc-bad", "acc-stale"]


async def test_a_users_document_that_no_release_can_use_stays_and_is_named() -> None:
    """Imported or edited, it is not deleted; the condition says what to do about it."""
    bench = Bench()
    name = f"acc-{bench.model.identity}-int8"
    meta = {
        "name": name,
        "namespace": SYSTEM,
        "uid": "x",
        "labels": {"app.kubernetes.io/component": "accuracy"},
        "managedFields": [written_by("trimtab-operator"), written_by("kubectl-edit")],
    }
    bench.caches.configmaps.put({"metadata": meta, "data": {"accuracy.json": "x"}})
    await bench.keeper.step()
    assert bench.executor.deleted == []
    failure = bench.keeper.progress("uid-chat", bench.current.by_uid["uid-chat"]).failure
    assert f"ConfigMap {SYSTEM}/{name}, key accuracy.json, is no accuracy measurement" in failure


async def test_a_removal_holds_for_what_was_seen_and_its_refusal_stops_nothing() -> None:
    """Somebody may edit a document as it is removed: the server then refuses, and Jobs begin all the same."""
    bench = Bench()
    meta = {
        "name": "acc-bad",
        "namespace": SYSTEM,
        "uid": "x",
        "resourceVersion": "7",
        "labels": {"app.kubernetes.io/component": "accuracy"},
        "managedFields": [written_by("trimtab-operator")],
    }
    bench.caches.configmaps.put({"metadata": meta, "data": {"accuracy.json": "x"}})
    seen: list[str] = []

    async def refuse(deletion: Any) -> None:
        seen.append(deletion.resource_version)
        raise ApiError(method="DELETE", path="/x", code=409, status={"message": "changed"})

    bench.executor.delete = refuse  # type: ignore[method-assign]
    await bench.keeper.step()
    assert seen == ["7"]
    assert bench.executor.applied


def test_the_status_shows_loss_and_error() -> None:
    """Each option has its precision's loss with the standard error; an unmeasured one has neither."""
    plan = replace(a_plan(a_record()), losses=(a_loss("int8", percent=-0.05, error_percent=0.2),))
    config = replace(plan.option.config, precision="int8") if plan.option else None
    assert config is not None
    assert status.accuracy_loss(plan, config) == {
        "accuracyLossPercent": "-0.05",
        "accuracyLossErrorPercent": "0.2",
    }
    assert status.accuracy_loss(plan, replace(config, precision="int4")) == {}


def test_another_namespace_or_source_is_another_model() -> None:
    """Equal headers are no proof of equal weights, so what was measured is not shared across them."""
    here = Bench().model.identity
    assert Bench().model.identity == here
    other = {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "tuned"}}}
    assert Bench(model=other).model.identity != here


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (AccuracyProgress(), "carries the load."),
        (AccuracyProgress(precisions=("int8",)), "a Job is about to measure it."),
        (AccuracyProgress(precisions=("int8",), job="acc-1"), "int8 would lose in accuracy is not"),
        (AccuracyProgress(precisions=("int8",), failure="No memory."), "load. No memory."),
        (
            AccuracyProgress(precisions=("int8",), job="acc-1", failure="x"),
            "Job acc-1 measures it.",
        ),
    ],
)
def test_the_condition_says_where_measuring_stands(progress: AccuracyProgress, said: str) -> None:
    """Whether a Job measures, is about to, or failed is the end of Planned's message, plan or none."""
    observed = an_observed(accuracy=progress)
    found = verdicts.planned(observed, violation=None)
    assert (found.status, found.message.count(said)) == ("True", 1)
    none = replace(observed.plan, option=None) if observed.plan else None
    found = verdicts.planned(replace(observed, plan=none), violation=None)
    assert (found.status, found.message.count(said)) == ("False", 1)


def a_refusal(code: int = 403, message: str = "exceeded quota: jobs, requested: 1") -> ApiError:
    return ApiError(method="PATCH", path="/jobs/x", code=code, status={"message": message})


async def test_what_is_refused_for_one_is_its_own_failure_and_the_next_is_started() -> None:
    """A quota without Jobs in one namespace is told there, paced, and stops nobody else's measuring."""
    bench = Bench()
    [need] = bench.keeper._wanted()
    other = replace(need, key="0" * 16)
    bench.keeper._wanted = lambda: [need, other]  # type: ignore[method-assign]
    bench.keeper._others = lambda: -1
    bench.executor.refusals = [a_refusal()]
    assert await bench.keeper.step() == pytest.approx(SETTINGS.policy_seconds(60.0))
    assert [m["metadata"]["name"] for m in bench.executor.applied if m["kind"] == "Job"] == [
        f"acc-{other.key}"
    ]
    failure = bench.keeper._failures[need.key].message
    assert "was not created: ResourceQuota jobs is used up" in failure
    assert failure.endswith("It is repeated; until then its loss of accuracy is unknown.")


@pytest.mark.parametrize(
    "error",
    [
        NotLeadingError("another leads"),
        OSError("away"),
        a_refusal(429, "slow down"),
        a_refusal(500, "etcdserver: request timed out"),
    ],
)
async def test_what_concerns_everybody_is_raised(error: Exception) -> None:
    """Without the lease or the server, no other write would do better, and no measurement failed."""
    bench = Bench()
    bench.executor.refusals = [error]
    with pytest.raises(type(error)):
        await bench.keeper.step()
    assert bench.keeper._failures == {}


async def test_two_writes_at_once_are_no_failure() -> None:
    """A conflict is tried again soon, and nobody is told of it."""
    bench = Bench()
    bench.executor.refusals = [a_refusal(409, "please apply your changes to the latest version")]
    assert await bench.keeper.step() == pytest.approx(2.0)
    assert bench.keeper._failures == {}


async def test_a_result_that_is_not_taken_is_kept_in_its_job_and_harvested_later() -> None:
    """A webhook that is away costs no second measurement, and is not asked again at once."""
    bench = Bench()
    await bench.keeper.step()
    bench.end(DOCUMENT)
    bench.executor.refusals = [a_refusal(500, "failed calling webhook x")]
    await bench.keeper.step()
    await bench.keeper.step()
    assert (bench.model.losses, bench.executor.deleted) == ((), [])
    failure = bench.keeper.progress("uid-chat", bench.current.by_uid["uid-chat"]).failure
    assert "found was not kept: failed calling webhook x" in failure
    bench.keeper._clock = lambda: 3600.0
    await bench.keeper.step()
    assert len(bench.model.losses) == 2
    assert bench.keeper._failures == {}
