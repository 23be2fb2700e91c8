"""From a worker's counters to anchors in plans, and to what survives a restart."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.planning.builders import POLICY, SMOLLM2, a_fingerprint, a_fleet, a_key, an_intent
from tests.unit.reconcile.builders import SETTINGS, a_plan, a_record, an_observed, an_option
from trimtab.kube.errors import ApiError
from trimtab.observe.anchors import AnchorBook
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import newest
from trimtab.observe.records import pod
from trimtab.planning.fingerprint import dump
from trimtab.planning.plan import Anchoring, FingerprintNeed
from trimtab.reconcile.anchors import AnchorKeeper
from trimtab.reconcile.fingerprints import FingerprintKeeper
from trimtab.reconcile.fleet import Planned
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.rollout import next_rollout
from trimtab.reconcile.operator import recall_all
from trimtab.reconcile.pollers import WorkerPoller
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION

FINGERPRINT = a_fingerprint(key=a_key())
KEY = FINGERPRINT.key.digest()
LABELS = {"app.kubernetes.io/component": "fingerprint"}


class Town:
    """One intent with one worker, its fingerprint, and what was asked and written."""

    def __init__(self, caches: Caches | None = None, *, stages: int = 1) -> None:
        self.caches = caches or Caches()
        self.now = 0.0
        self.drifts = 0
        self.applied: list[Any] = []
        self.forced: list[bool] = []
        self.counted = {"steps": 0, "seconds": 0.0, "sequences": 0, "context_tokens": 0}
        record = a_record()
        view = dataclasses.replace(an_intent(), uid=record.uid)
        snapshot = a_fleet(view, fingerprints=(FINGERPRINT,))
        plan = a_plan(record)
        assert plan.option is not None
        # A stage of so many threads is what the fingerprint is of.
        config = dataclasses.replace(
            plan.option.config,
            cpu_model=FINGERPRINT.key.cpu_model,
            threads=stages * plan.option.config.threads,
            pipeline_parallel_size=stages,
        )
        plan = dataclasses.replace(plan, option=dataclasses.replace(plan.option, config=config))
        rollout = next_rollout(plan, before=None, several_nodes=False)
        assert rollout is not None
        if caches is None:
            self.caches.inferenceintents._store(record)
            self._deployment(rollout.to_json())
            self._fingerprint()
        self.book = AnchorBook()
        world: Any = SimpleNamespace(
            caches=self.caches,
            settings=SETTINGS,
            anchors=self.book,
            clock=lambda: self.now,
            capabilities=snapshot.capabilities,
            oldest_namesake=lambda ns, name: record if (ns, name) == ("team-a", "chat") else None,
        )
        self.planned = Planned(revision=1, snapshot=snapshot, by_uid={record.uid: plan})
        self.keeper = AnchorKeeper(
            world,
            executor=self,  # type: ignore[arg-type] - adds
            current=lambda: self.planned,
            drifted=self._drifted,
            policy=POLICY,
        )

    def _deployment(self, rollout: str) -> None:
        meta = {
            "name": "chat-1",
            "namespace": "team-a",
            "uid": "d",
            "labels": {"trimtab.dev/owner-uid": "uid-chat"},
            "annotations": {ROLLOUT_ANNOTATION: rollout},
        }
        template = {"metadata": {"annotations": {"trimtab.dev/plan-digest": "new"}}}
        self.caches.deployments.put(
            {"metadata": meta, "spec": {"replicas": 1, "template": template}}
        )

    def _fingerprint(self) -> None:
        meta = {
            "name": f"fp-{KEY}",
            "namespace": SETTINGS.system_namespace,
            "uid": "f",
            "resourceVersion": "1",
            "labels": LABELS,
            "annotations": {"trimtab.dev/answers": KEY},
        }
        self.caches.configmaps.put(
            {"metadata": meta, "data": {"fingerprint.json": dump(FINGERPRINT)}}
        )

    def _drifted(self) -> None:
        self.drifts += 1

    async def add(self, manifest: Any, *, manager: str, force: bool) -> None:
        """Merge the keys into what is there, as the API server does."""
        self.forced.append(force)
        assert manager == "trimtab-anchors"
        await self.apply(manifest)

    async def apply(self, manifest: Any) -> None:
        self.applied.append(manifest)
        meta = manifest["metadata"]
        live = self.caches.configmaps.get(meta["namespace"], meta["name"])
        assert live is not None
        whole = {
            "labels": dict(live.labels),
            "annotations": dict(live.annotations),
            **meta,
            "uid": live.uid,
            "resourceVersion": str(9 + len(self.applied)),
        }
        data = {**live.data, **manifest["data"]}
        self.caches.configmaps.put({"metadata": whole, "data": data})

    def kept(self) -> dict[str, str]:
        """Return the data of the fingerprint's ConfigMap."""
        live = self.caches.configmaps.get(SETTINGS.system_namespace, f"fp-{KEY}")
        assert live is not None
        return dict(live.data)

    async def delete(self, deletion: Any) -> None:
        """Jobs go; nothing here asks for them again."""

    def minute(self, *, step_us: float, digest: str = "new", model: str = "team-a/chat") -> None:
        """Let a minute pass in which two sequences decoded at a time."""
        self.now += 61.0
        self.counted = {
            "steps": self.counted["steps"] + 1000,
            "seconds": self.counted["seconds"] + 1000 * step_us / 1e6,
            "sequences": self.counted["sequences"] + 2000,
            "context_tokens": self.counted["context_tokens"] + 400_000,
        }
        record = pod(
            {
                "metadata": {
                    "name": "chat-1-a",
                    "namespace": "team-a",
                    "uid": "p",
                    "annotations": {"trimtab.dev/plan-digest": digest},
                }
            }
        )
        self.keeper.take(record, {"decode_only": {model: dict(self.counted)}})


def predicted() -> float:
    from tests.unit.planning.test_anchors import an_anchor

    return an_anchor(1.0, batch=2.0, context=200.0).step_us


def test_a_throttled_worker_asks_for_exactly_one_plan() -> None:
    """Three slow minutes are a drift; what they were is known from then on, though it goes on."""
    town = Town()
    for _ in range(5):
        town.minute(step_us=predicted())
    assert town.drifts == 0
    for _ in range(3):
        town.minute(step_us=1.7 * predicted())
    assert town.drifts == 1
    assert [round(a.step_us / predicted(), 1) for a in town.book.all()] == [1.7] * 3
    for _ in range(20):
        town.minute(step_us=1.7 * predicted())
    assert town.drifts == 1


async def test_anchors_are_kept_beside_the_fingerprint_and_read_after_a_restart() -> None:
    """Written once per change, and nothing else with them; a new operator plans from the same."""
    town = Town()
    await town.keeper.step()
    assert town.applied == []
    for _ in range(4):
        town.minute(step_us=1.05 * predicted())
    assert town.book.all() == ()
    await town.keeper.step()
    await town.keeper.step()
    (written,) = town.applied
    assert written["data"].keys() == {"anchors"}
    assert written["metadata"].keys() == {"name", "namespace", "uid"}
    assert town.forced == [True]
    assert town.kept()["fingerprint.json"] == dump(FINGERPRINT)
    assert len(json.loads(written["data"]["anchors"])["anchors"]) == 3
    again = Town(town.caches)
    again.keeper.recall()
    assert again.book.all() == town.book.all()


def test_pods_of_an_old_template_and_of_others_models_say_nothing() -> None:
    """What they run is not what is planned; neither is a model of another namespace."""
    town = Town()
    for _ in range(5):
        town.minute(step_us=1.7 * predicted(), digest="old")
    for _ in range(5):
        town.minute(step_us=1.7 * predicted(), model="team-b/chat")
    town.book.publish()
    assert town.book.all() == ()


@pytest.mark.parametrize(("stages", "seen"), [(1, 4), (2, 0)])
def test_a_worker_of_several_stages_says_nothing_of_one_process(stages: int, seen: int) -> None:
    """Its steps are handed on from stage to stage; the fingerprint predicts workers of one too."""
    town = Town(stages=stages)
    for _ in range(5):
        town.minute(step_us=1.05 * predicted())
    town.book.publish()
    assert len(town.book.all()) == seen
    for _ in range(3):
        town.minute(step_us=1.7 * predicted())
    assert town.drifts == (stages == 1)


@pytest.mark.parametrize(("divisor", "rest"), [(1.0, 15.0), (20.0, 3.0), (600.0, 1.0)])
async def test_workers_are_polled_as_often_as_hurried_windows_end(
    divisor: float, rest: float
) -> None:
    """With undivided policy times every 15 s; a divisor brings polls closer, to a second at most."""

    async def nobody(*_: object) -> dict[str, Any]:
        return {}

    world: Any = SimpleNamespace(
        caches=Caches(),
        settings=SETTINGS.model_copy(update={"policy_time_divisor": divisor}),
        worker_states={},
        capabilities=newest(()),
    )
    poller = WorkerPoller(
        world,
        SimpleNamespace(get_all=nobody),  # type: ignore[arg-type] - there is nobody to ask
        wake=lambda *_: None,
        replan=lambda: None,
        moved=lambda: None,
        anchors=SimpleNamespace(keep_pods=lambda _: None),  # type: ignore[arg-type] - hears nobody
    )
    assert await poller.step() == rest


def test_garbled_answers_and_old_workers_are_passed_over() -> None:
    """A worker of another release has no counters, and nonsense becomes no anchor."""
    town = Town()
    town.minute(step_us=predicted())
    record: Any = SimpleNamespace(uid="p", name="n", namespace="team-a", annotations={})
    for document in ({}, {"decode_only": 3}, {"decode_only": {"team-a/chat": "x"}}):
        town.keeper.take(record, document)
    town.minute(step_us=predicted())
    town.book.publish()
    assert len(town.book.all()) == 1


def test_nonsense_of_one_model_keeps_no_other_from_being_heard() -> None:
    """A sum beyond all floats, or one that comes to no window, is passed over and told."""
    town = Town()
    town.minute(step_us=predicted())
    record: Any = SimpleNamespace(uid="p", name="n", namespace="team-a", annotations={})
    huge = {"steps": 1, "seconds": 1.0, "sequences": 10**400, "context_tokens": 1}
    late = {"steps": 1, "seconds": 1e308, "sequences": 1, "context_tokens": 1}
    heard: list[str] = []
    window = town.book.window

    def listen(pod_uid: str, model: str, counters: Any, *, now: float) -> Any:
        heard.append(model)
        if model == "odd":
            raise OverflowError
        return window(pod_uid, model, counters, now=now)

    town.book.window = listen  # type: ignore[method-assign]
    counted = {"huge": huge, "late": late, "odd": town.counted, "team-a/chat": town.counted}
    town.keeper.take(record, {"decode_only": counted})
    assert heard == ["odd", "team-a/chat"]


def test_one_recall_that_fails_keeps_no_other_from_happening() -> None:
    """An operator that ended at a bad document would do so at every start."""
    done: list[str] = []

    def broken() -> None:
        raise RecursionError

    recall_all(broken, lambda: done.append("anchors"))
    assert done == ["anchors"]


@pytest.mark.parametrize("how", ["object", "key", "gone"])
async def test_anchors_go_with_the_fingerprint_that_they_corrected(how: str) -> None:
    """Deleted and measured anew, without its key, or gone: what was seen of the old one is forgotten."""
    town = Town()
    for _ in range(4):
        town.minute(step_us=1.05 * predicted())
    await town.keeper.step()
    await town.keeper.step()
    assert len(town.book.all()) == 3
    (written,) = town.applied
    bare = {"fingerprint.json": dump(FINGERPRINT)}
    uid = "f" if how == "key" else "g"
    if how != "key":
        town.caches.configmaps.forget("f")
    if how != "gone":
        town.caches.configmaps.put(
            {
                "metadata": written["metadata"]
                | {"uid": uid, "resourceVersion": "99", "labels": LABELS},
                "data": bare,
            }
        )
    await town.keeper.step()
    assert town.book.all() == ()
    assert len(town.applied) == 1


async def test_what_cannot_be_read_is_collected_anew() -> None:
    """Somebody's edit of the document takes nothing but the past away."""
    town = Town()
    for _ in range(3):
        town.minute(step_us=predicted())
    await town.keeper.step()
    broken = town.applied[0] | {"data": town.applied[0]["data"] | {"anchors": "nonsense"}}
    await town.apply(broken)
    again = Town(town.caches)
    again.keeper.recall()
    assert again.book.all() == ()


@pytest.mark.parametrize(
    ("anchoring", "shown", "reason"),
    [
        (
            Anchoring(count=8, good=True, suspect=False, factor_permille=1350, seen_permille=1400),
            {"count": 8, "factor": "1.35", "verdict": "Good"},
            "Measured",
        ),
        (
            Anchoring(count=3, good=False, suspect=True, factor_permille=1000, seen_permille=2500),
            {"count": 3, "factor": "1", "verdict": "Suspect"},
            "FingerprintSuspect",
        ),
    ],
)
def test_a_status_shows_what_anchors_made_of_the_prediction(
    anchoring: Anchoring, shown: dict[str, Any], reason: str
) -> None:
    """Source, number and factor; a suspect fingerprint is told with how far off it is."""
    record = a_record()
    observed = an_observed(record, plan=a_plan(record, option=an_option(anchoring=anchoring)))
    plan = decide(observed, settings=SETTINGS)
    confidence = plan.status["plan"]["confidence"]
    assert (confidence["source"], confidence["anchors"]) == ("Measured", shown)
    told = next(c for c in plan.conditions if str(c.type) == "Fingerprinted")
    assert str(told.reason) == reason
    assert ("2.5 times" in told.message) == anchoring.suspect


async def test_a_suspect_fingerprint_is_measured_again_once_an_hour() -> None:
    """The kept document does not count as an answer, the new one does, and leaves anchors to their manager."""
    town = Town()
    await town.keeper.step()
    for _ in range(3):
        town.minute(step_us=2.5 * predicted())
    await town.keeper.step()
    now = 0.0
    need = FingerprintNeed(
        key=KEY,
        architecture=SMOLLM2,
        product="cpu",
        cpu_model=FINGERPRINT.key.cpu_model,
        threads=1,
        precision="bf16",
        kv_precision="bf16",
        tensor_parallel_size=1,
        priority=0,
        again=True,
    )
    plan = dataclasses.replace(a_plan(a_record()), needs=(need,))
    keeper = FingerprintKeeper(
        caches=town.caches,
        executor=town,  # type: ignore[arg-type] - applies and deletes
        fleet=SimpleNamespace(  # type: ignore[arg-type]
            ask=lambda: None, current=dataclasses.replace(town.planned, by_uid={"u": plan})
        ),
        settings=SETTINGS,
        clock=lambda: now,
        changed=lambda _: None,
    )
    assert keeper._wanted() == [need]
    meta = {"name": f"fp-{KEY}", "namespace": SETTINGS.system_namespace, "uid": "j"}
    job, _ = town.caches.jobs.put({"metadata": meta})
    await keeper._keep(job, KEY, dump(FINGERPRINT))
    assert town.applied[-1]["data"].keys() == {"fingerprint.json"}
    assert keeper._wanted() == []
    now = 3601.0
    assert keeper._wanted() == [need]


async def test_a_fingerprint_that_went_or_changed_meanwhile_is_not_written_over() -> None:
    """What was read before is not written; with its uid, what went is not created again."""
    town = Town()
    for _ in range(4):
        town.minute(step_us=predicted())
    [(record, _)] = town.keeper._kept()
    changed = {"fingerprint.json": dump(FINGERPRINT), "more": "x"}
    meta = {"name": record.name, "namespace": record.namespace, "labels": dict(record.labels)}
    await town.apply({"metadata": meta, "data": changed})
    await town.keeper._keep(record, "old")
    assert len(town.applied) == 1
    await town.keeper.step()
    assert town.applied[-1]["metadata"]["uid"] == "f"
    assert town.kept().keys() == {"fingerprint.json", "more", "anchors"}
    [(record, _)] = town.keeper._kept()
    town.caches.configmaps.forget("f")
    await town.keeper._keep(record, "old")
    assert len(town.applied) == 2


async def test_anchors_that_a_user_keeps_with_an_import_stay_his() -> None:
    """A document that no Job measured may come from a file that has anchors: nothing of it is taken by force."""
    town = Town()
    live = town.caches.configmaps.get(SETTINGS.system_namespace, f"fp-{KEY}")
    assert live is not None
    meta = {"name": live.name, "namespace": live.namespace, "uid": "f", "resourceVersion": "2"}
    town.caches.configmaps.put(
        {"metadata": meta | {"labels": LABELS}, "data": {"fingerprint.json": dump(FINGERPRINT)}}
    )
    for _ in range(4):
        town.minute(step_us=predicted())
    await town.keeper.step()
    assert town.forced == [False]


async def test_an_immutable_fingerprint_keeps_no_other_from_being_kept() -> None:
    """Its refusal is logged, and the step goes on to the next name."""
    town = Town()
    for _ in range(4):
        town.minute(step_us=predicted())
    tried: list[str] = []

    async def add(manifest: Any, **_: Any) -> None:
        tried.append(manifest["metadata"]["name"])
        status = {"message": "field is immutable when `immutable` is set"}
        raise ApiError(method="PATCH", path="/x", code=422, status=status)

    [(record, _)] = town.keeper._kept()
    twin = {"name": f"{record.name}-b", "namespace": record.namespace, "uid": "g"}
    twin |= {"labels": dict(record.labels)}
    town.caches.configmaps.put({"metadata": twin, "data": dict(record.data)})
    town.add = add  # type: ignore[method-assign]
    await town.keeper.step()
    assert tried == [record.name, f"{record.name}-b"]
