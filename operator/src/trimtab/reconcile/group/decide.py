"""One step of a sharing group: from what was observed to its worker's objects; pure.

Who writes, when, and why nobody is lost: docs/design/20261123-sharing-groups.md.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1.inferenceintent_spec import ModelSource
from trimtab.api.v1alpha1.names import PLAN_DIGEST_ANNOTATION
from trimtab.kube import names as object_names
from trimtab.observe.capabilities import SHARED_PRESSURE
from trimtab.observe.digests import digest
from trimtab.planning.snapshot import Config
from trimtab.reconcile.group.removal import ended, outdated
from trimtab.reconcile.group.rollout import GroupRollout, Joined, Present, next_rollout
from trimtab.reconcile.inferenceintent.children import (
    MODELS_KEY,
    Built,
    Home,
    Worker,
    assemble,
    model_set_map,
    pod_template,
)
from trimtab.reconcile.inferenceintent.policies import source_allowed
from trimtab.reconcile.inferenceintent.sources import (
    identity,
    mount_shared,
    shared_folder,
    shared_path,
    shared_volume,
)
from trimtab.reconcile.labels import Owner, group_labels, group_selector
from trimtab.reconcile.sealed import rollout_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.kube.resources import Manifest
    from trimtab.observe.groups import ObservedGroup, ObservedMember
    from trimtab.observe.records import ConfigMapRecord, PodRecord
    from trimtab.planning.plan import GroupPlan
    from trimtab.reconcile.plan import Deletion
    from trimtab.settings import Settings

REFUSALS: Final = frozenset({"SlabMismatch", "OutOfMemory"})
"""Reasons with which a worker refuses a model that a worker made for it would take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """What one step of a group wants; `built` is None where its pods stay as they are."""

    desired: tuple[Manifest, ...] = ()
    deletions: tuple[Deletion, ...] = ()
    built: Built | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """One member that is in the set, with its entry."""

    member: ObservedMember
    entry: dict[str, Any]
    volume: str
    """Canonical JSON; empty for one that only stays."""
    joined: Joined


def decide_group(group: ObservedGroup, *, settings: Settings) -> GroupStep:
    """Return the step of a group; equal observations give equal steps."""
    live = live_set(group)
    before = rollout_of(group)
    found = [s for m in group.members if (s := _serve(m, live, before, settings)) is not None]
    before, held = _allowed(before, found, settings=settings)
    frozen = held or any(s.member.paused for s in found)
    served = _held(found, live, before) if frozen else found
    if not served:
        return GroupStep(deletions=ended(group))
    if group.plan is None or not any(s.volume for s in served):
        # Only those are left who are about to leave: the pods stay as they are, the set shrinks.
        return _shrunk(group, live, served)
    if before is None and not all(s.volume for s in served):
        # Somebody spoilt the annotation, so nobody knows what is mounted for those who only stay.
        return GroupStep()
    return _placed(group, group.plan, live, before, served, frozen=frozen, settings=settings)


def live_set(group: ObservedGroup) -> Mapping[str, Any]:
    """Return the model set that the present template names; empty where there is none."""
    record = _set_in_force(group)
    return parse_set(record) if record is not None else {}


def parse_set(record: ConfigMapRecord) -> dict[str, Any]:
    """Return a model set's document; empty where it cannot be read."""
    try:
        document = json.loads(record.data.get(MODELS_KEY, ""))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def rollout_of(group: ObservedGroup) -> GroupRollout | None:
    """Return the roll-out in force."""
    if group.deployment is None:
        return None
    return GroupRollout.from_json(rollout_text(group.deployment, group.model_sets))


def _set_in_force(group: ObservedGroup) -> ConfigMapRecord | None:
    if group.deployment is None:
        return None
    name = object_names.model_set(group.deployment.name, group.deployment.plan_digest)
    return next((record for record in group.model_sets if record.name == name), None)


def _serve(
    member: ObservedMember,
    live: Mapping[str, Any],
    before: GroupRollout | None,
    settings: Settings,
) -> _Served | None:
    """Return a member's entry: a fresh one where its plan names the group, else the one it has."""
    intent, plan = member.intent, member.plan
    if intent is None:
        return None
    old = next((e for e in _entries(live) if e.get("name") == intent.public_name), None)
    joined = before.members.get(member.uid) if before else None
    if member.joins and plan is not None and plan.option is not None and not member.paused:
        precision = plan.option.config.precision
        volume = shared_volume(intent.spec.model.source, settings=settings)
        return _Served(
            member=member,
            entry={
                "name": intent.public_name,
                "path": shared_path(intent.spec.model.source, settings=settings),
                "dtype": precision,
                "chat_template": None,
            },
            volume=_canonical(identity(volume)),
            joined=Joined(name=member.name, precision=precision, generation=plan.generation),
        )
    if old is None or member.moved:
        return None
    joined = joined or Joined(name=member.name, precision=str(old.get("dtype")), generation=0)
    return _Served(member=member, entry=dict(old), volume="", joined=joined)


def _allowed(
    before: GroupRollout | None, served: Sequence[_Served], *, settings: Settings
) -> tuple[GroupRollout | None, bool]:
    """Return the roll-out without volumes that are not allowed (any more), and whether pods must stay.

    Whoever only stays and lies on such a volume is served as before, and nothing mounts it anew.
    """
    refused = {
        text: source
        for text in (before.volumes if before else ())
        if not source_allowed(source := ModelSource.model_validate_json(text), settings=settings)
    }
    if before is None or not refused:
        return before, False
    folders = {shared_folder(source) for source in refused.values()}
    if any(str(s.entry.get("path")).split("/")[0] in folders for s in served if not s.volume):
        return before, True
    rest = tuple(text for text in before.volumes if text not in refused)
    return dataclasses.replace(before, volumes=rest), False


def _held(
    served: Sequence[_Served], live: Mapping[str, Any], before: GroupRollout | None
) -> list[_Served]:
    """Return what pods that stay as they are can serve: present entries, and joiners they can reach.

    A worker that is told of a changed entry takes the model out, and only new pods bring it back.
    """
    if before is None:
        return list(served)
    entries = {entry.get("name"): entry for entry in _entries(live)}
    found = []
    for one in served:
        old, joined = entries.get(one.entry["name"]), before.members.get(one.member.uid)
        if old is not None and joined is not None and _text(old) != _text(one.entry):
            found.append(_Served(member=one.member, entry=dict(old), volume="", joined=joined))
        elif old is not None or one.volume in before.volumes:
            found.append(one)
    return found


def _entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = document.get("models")
    found = models if isinstance(models, list) else []
    return [entry for entry in found if isinstance(entry, dict)]


def _canonical(value: Any) -> str:  # any: JSON
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _text(entry: Mapping[str, Any]) -> str:
    return _canonical({key: entry.get(key) for key in ("name", "path", "dtype", "chat_template")})


def _placed(
    group: ObservedGroup,
    plan: GroupPlan,
    live: Mapping[str, Any],
    before: GroupRollout | None,
    served: Sequence[_Served],
    *,
    frozen: bool,
    settings: Settings,
) -> GroupStep:
    present = Present(
        entries=tuple(_text(s.entry) for s in served),
        names=tuple(str(s.entry["name"]) for s in served),
        volumes=_volumes(served, before),
        members={s.member.uid: s.joined for s in served},
    )
    rollout = next_rollout(
        plan,
        present,
        before=before,
        live={str(e.get("name")): _text(e) for e in _entries(live)},
        nodes=_nodes(group, served),
        refused=_refused(group),
        stuck=_stuck(group),
        frozen=frozen,
    )
    worker = Worker(
        home=_home(group, served),
        config=Config(
            product=rollout.product,
            cpu_model=rollout.cpu_model,
            precision="",
            threads=rollout.threads,
        ),
        memory_bytes=rollout.memory_bytes,
        host_bytes=rollout.host_bytes,
        drain_seconds=rollout.drain_seconds,
        nodes=rollout.nodes,
        mounted=mount_shared(
            [ModelSource.model_validate(json.loads(v)) for v in rollout.volumes],
            settings=settings,
        ),
        replicas=_replicas(group),
        several=group.deployment is not None and group.deployment.replicas > 1,
        rollout=rollout.to_json(),
        settings=settings,
    )
    fixed = _fixed_part(rollout)
    template = pod_template(worker)
    plan_digest = digest([template, fixed, list(rollout.shaped_for)])
    content = fixed | {
        "limits": {"min_resident_units": 2, "active_cap": 0.0},
        "advice": {"verdict": plan.advice.verdict},
        "models": [s.entry for s in served],
    }
    rolls = group.deployment is None or group.deployment.plan_digest != plan_digest
    if rolls and group.deployment is not None and frozen:
        # A new release of the worker, say; who is not in the set yet waits as well.
        here = {entry.get("name") for entry in _entries(live)}
        return _shrunk(group, live, [s for s in served if s.entry["name"] in here])
    built = assemble(
        worker,
        template,
        plan_digest=plan_digest,
        model_set=_revised(group, content, name=_set_name(group, plan_digest)),
        set_last=not rolls,
    )
    return GroupStep(desired=built.manifests, deletions=outdated(group, built), built=built)


def _volumes(served: Sequence[_Served], before: GroupRollout | None) -> tuple[str, ...]:
    """Return what must be mounted; who only stays may lie on any of what is mounted now."""
    kept = before.volumes if before and not all(s.volume for s in served) else ()
    return tuple(dict.fromkeys((*kept, *(s.volume for s in served if s.volume))))


def _fixed_part(rollout: GroupRollout) -> dict[str, Any]:
    """Return what of a model set a running worker cannot change."""
    return {
        "v": 1,
        "device": "cpu",
        "threads": rollout.threads,
        "memory_bytes": rollout.arena_bytes,
        "max_model_len": rollout.max_model_len,
        "max_batch_tokens": rollout.max_batch_tokens,
        "max_seqs": rollout.max_seqs,
        "pressure": SHARED_PRESSURE,
    }


def _revised(group: ObservedGroup, content: dict[str, Any], *, name: str) -> dict[str, Any]:
    """Return a set with its revision: the one it has, or the next one of the group."""
    documents = {record.name: parse_set(record) for record in group.model_sets}
    own = documents.get(name, {})
    revisions = [r for d in documents.values() if type(r := d.get("revision")) is int]
    # Somebody may have deleted the sets; a worker takes over only what is newer than what it has.
    revisions += [state.revision for state in group.workers.values()]
    if {**own, "revision": None} == {**content, "revision": None} and own:
        return content | {"revision": own["revision"]}
    return content | {"revision": max(revisions, default=0) + 1}


def _set_name(group: ObservedGroup, plan_digest: str) -> str:
    return object_names.model_set(object_names.group_worker(group.id), plan_digest)


def _nodes(group: ObservedGroup, served: Sequence[_Served]) -> tuple[str, ...]:
    plans = [s.member.plan for s in served if s.volume and s.member.plan]
    return tuple(sorted(n for n, _ in plans[0].nodes)) if group.several_nodes and plans else ()


def _refused(group: ObservedGroup) -> tuple[str, ...]:
    """Return the models that a present pod could not take in."""
    states = [group.workers[p.uid] for p in _present(group) if p.uid in group.workers]
    return tuple(
        model.name
        for state in states
        for model in state.models
        if model.state == "Failed" and model.error and model.error[0] in REFUSALS
    )


def _stuck(group: ObservedGroup) -> bool:
    """Whether a present pod finds no node and none serves."""
    pods = [pod for pod in _present(group) if not pod.deleting]
    return any(pod.unschedulable for pod in pods) and not any(pod.ready for pod in pods)


def _present(group: ObservedGroup) -> list[PodRecord]:
    """Return the pods of the template in force."""
    current = group.deployment.plan_digest if group.deployment else ""
    return [pod for pod in group.pods if pod.annotations.get(PLAN_DIGEST_ANNOTATION) == current]


def _replicas(group: ObservedGroup) -> int | None:
    """Leave replicas to whoever else set them, until a member's annotation takes them back."""
    foreign = group.deployment is not None and bool(group.deployment.foreign_replicas_manager)
    return None if foreign and not any(m.takes_replicas for m in group.members) else 1


def _home(group: ObservedGroup, served: Sequence[_Served]) -> Home:
    owners = sorted((s.member for s in served), key=lambda m: m.uid)
    return Home(
        namespace=group.namespace,
        name=object_names.group_worker(group.id),
        labels=group_labels(group.id),
        selector=group_selector(group.id),
        owners=tuple(Owner(namespace=m.namespace, name=m.name, uid=m.uid).share() for m in owners),
    )


def _shrunk(group: ObservedGroup, live: Mapping[str, Any], served: Sequence[_Served]) -> GroupStep:
    record = _set_in_force(group)
    if record is None:
        return GroupStep()
    content = {**live, "models": [s.entry for s in served]}
    manifest = model_set_map(
        _home(group, served),
        record.name,
        _revised(group, content, name=record.name),
        rollout=rollout_text(group.deployment, group.model_sets) if group.deployment else "",
    )
    return GroupStep(desired=(manifest,))
