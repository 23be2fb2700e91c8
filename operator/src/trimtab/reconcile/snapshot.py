"""The fleet's snapshot from the caches: what exists, in the planner's own values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
from trimtab.api.v1alpha1.names import COMPONENT_LABEL, GROUP_LABEL, REPLICAS_ANNOTATION
from trimtab.kube import names as object_names
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.inspections import INSPECTION_KEY, ModelFacts, parse_verdict
from trimtab.observe.requests import Requested
from trimtab.observe.volumes import nodes_of
from trimtab.planning.accuracy import TEXT_DIGEST, AccuracyInvalidError
from trimtab.planning.accuracy import parse as parse_accuracy
from trimtab.planning.prices import PriceBook
from trimtab.planning.snapshot import (
    Anchor,
    Assignment,
    Constraints,
    CpuPool,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    Load,
    Targets,
)
from trimtab.planning.variation import Variation
from trimtab.reconcile.fingerprint_book import FingerprintBook
from trimtab.reconcile.gpus import gpu_pools, tolerations
from trimtab.reconcile.group.rollout import GroupRollout
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.inferenceintent.rollout import in_force
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.sealed import rollout_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trimtab.kube.resources import Manifest
    from trimtab.observe.caches import Caches
    from trimtab.observe.loads import LoadBook
    from trimtab.observe.records import DeploymentRecord, IntentRecord, NodeRecord
    from trimtab.planning.snapshot import Config, ModelView
    from trimtab.settings import Settings

ACCURACY_KEY: Final = "accuracy.json"
_ASSUMED_PROMPT, _ASSUMED_OUTPUT = 1024, 256
_STEP_MILLICORES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the caches do not hold."""

    prices: PriceBook = field(default_factory=PriceBook)
    capabilities: EngineCapabilities
    foreign: Mapping[str, Requested] = field(default_factory=dict)
    """Requests of others' pods by node."""
    ages: Mapping[str, int] = field(default_factory=dict)
    """Seconds that each intent's configuration is in force, by uid."""
    gateway_overhead_us: int = 0
    anchors: tuple[Anchor, ...] = ()
    """Of live replicas, of each fingerprint the newest last."""
    volumes: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    """PersistentVolumes of models, by namespace and claim."""
    fixed: frozenset[str] = frozenset()
    """Uids of intents whose objects nobody touches now."""
    fingerprints: FingerprintBook = field(default_factory=FingerprintBook)


def fleet_snapshot(
    caches: Caches, *, loads: LoadBook, settings: Settings, surroundings: Surroundings
) -> FleetSnapshot:
    """Return the snapshot; everything is sorted, so equal states give equal snapshots."""
    views = []
    for record in sorted(caches.inferenceintents, key=lambda r: r.uid):
        view = _view(record, caches, loads=loads, settings=settings, volumes=surroundings.volumes)
        if view is not None:
            views.append(view)
    gpus, left_out = gpu_pools(
        caches.nodes,
        foreign=surroundings.foreign,
        usable={n.name: usable(n, settings=settings, gpus=True) for n in caches.nodes},
        settings=settings,
    )
    fed = frozenset(pool.node for pool in gpus)
    return FleetSnapshot(
        intents=tuple(views),
        pools=_pools(caches, fed, settings=settings, surroundings=surroundings),
        gpu_pools=gpus,
        left_out=left_out,
        capabilities=surroundings.capabilities,
        fingerprints=surroundings.fingerprints.read(caches, settings=settings),
        prices=surroundings.prices,
        assignments=_assignments(caches, surroundings),
        gateway_overhead_us=surroundings.gateway_overhead_us,
        anchors=surroundings.anchors,
        headroom_models=settings.sharing_headroom_models,
    )


def parse_intent(record: IntentRecord) -> InferenceIntent:
    """Return the typed object of a record.

    Raises:
        pydantic.ValidationError: It was stored under another schema.
    """
    return InferenceIntent.from_cluster(
        {
            "apiVersion": "trimtab.dev/v1alpha1",
            "kind": "InferenceIntent",
            "metadata": {
                "name": record.name,
                "namespace": record.namespace,
                "uid": record.uid,
                "generation": record.generation,
            },
            "spec": record.spec,
        }
    )


def facts_of(
    record: IntentRecord, intent: InferenceIntent, caches: Caches, *, settings: Settings
) -> ModelFacts | None:
    """Return what the inspection of the intent's present source found, None before that."""
    owner = Owner(namespace=record.namespace, name=record.name, uid=record.uid)
    source = jobs.source_digest(intent.spec.model.source)
    kept = caches.configmaps.get(settings.system_namespace, jobs.facts_name(owner, source=source))
    if kept is None:
        return None
    verdict = parse_verdict(kept.data.get(INSPECTION_KEY, ""))
    return verdict if isinstance(verdict, ModelFacts) else None


def declared_load(intent: InferenceIntent) -> Load | None:
    """Return the load that the intent declares, None without one or with a rate of 0."""
    load = intent.spec.load
    if load is None or Decimal(load.requests_per_second) == 0:
        return None
    return Load(
        requests_per_second=float(load.requests_per_second),
        prompt_tokens=load.prompt_tokens or _ASSUMED_PROMPT,
        output_tokens=load.output_tokens or _ASSUMED_OUTPUT,
    )


def planned_load(record: IntentRecord) -> Load | None:
    """Return the observed load that the present status was planned for, None otherwise.

    A restarted operator goes on with it: back to the declared load would be a change of plan.
    """
    load = (record.status.get("plan") or {}).get("load") or {}
    judged = record.status.get("observedGeneration") == record.generation
    if not judged or load.get("source") != "Observed" or not load.get("outputTokens"):
        return None
    return Load(
        requests_per_second=float(load.get("requestsPerSecond") or 0),
        prompt_tokens=int(load.get("promptTokens") or 1),
        output_tokens=int(load["outputTokens"]),
        variation=planned_variation(record),
    )


def planned_variation(record: IntentRecord) -> Variation:
    """Return how uneven the requests are that the present status was planned for.

    An edit since then says nothing of it.
    """
    load = (record.status.get("plan") or {}).get("load") or {}
    return Variation(
        gap=float(load.get("gapVariation") or 1),
        prompt=float(load.get("promptVariation") or 1),
        output=float(load.get("outputVariation") or 1),
    )


def _view(
    record: IntentRecord,
    caches: Caches,
    *,
    loads: LoadBook,
    settings: Settings,
    volumes: Mapping[tuple[str, str], Manifest],
) -> IntentView | None:
    if record.deleting:
        return None
    try:
        intent = parse_intent(record)
    except ValueError:
        return None
    facts = facts_of(record, intent, caches, settings=settings)
    if facts is None:
        # Nothing can be planned for it, and it should not make other intents' snapshots differ.
        return None
    load = loads.planned(record.uid, declared=declared_load(intent))
    model = _with_losses(record, intent, facts.model, caches, settings=settings)
    view = replace(
        intent_view(record, intent, model=model, load=load), busy_load=loads.busy(record.uid)
    )
    claim = intent.spec.model.source.persistent_volume_claim
    volume = volumes.get((record.namespace, claim.claim_name)) if claim else None
    if volume is None:
        return view
    return replace(view, volume_nodes=nodes_of(volume, caches.nodes))


def _with_losses(
    record: IntentRecord,
    intent: InferenceIntent,
    model: ModelView,
    caches: Caches,
    *,
    settings: Settings,
) -> ModelView:
    """Return a model with what its precisions were measured to lose."""
    source = jobs.source_digest(intent.spec.model.source)
    # Jobs run this release's image, whatever workers of the last one say of themselves.
    parts = (record.namespace, source, model.source, model.precision, ASSUMED.version, TEXT_DIGEST)
    identity = object_names.short_hash(*parts, length=16)
    losses = []
    for precision in ASSUMED.precisions:
        name = accuracy_map(identity, precision)
        kept = caches.configmaps.get(settings.system_namespace, name)
        try:
            found = parse_accuracy(kept.data.get(ACCURACY_KEY, "")) if kept else ()
        except AccuracyInvalidError:
            found = ()
        losses += [loss for loss in found if loss.precision == precision]
    return replace(model, losses=tuple(losses), identity=identity)


def accuracy_map(identity: str, precision: str) -> str:
    """Return the name of the ConfigMap that keeps what a model loses at a precision."""
    return f"acc-{identity}-{precision}"


def intent_view(
    record: IntentRecord, intent: InferenceIntent, *, model: ModelView | None, load: Load | None
) -> IntentView:
    """Return an intent as planning reads it."""
    spec = intent.spec
    return IntentView(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        generation=record.generation,
        created_seconds=epoch(record.created),
        model=model,
        objective=spec.objective.value,
        targets=_targets(intent),
        load=load,
        constraints=_constraints(intent),
        sharing=spec.sharing.value,
        infeasible=spec.infeasible.value,
        priority=spec.priority,
        group_id=object_names.group(record.namespace, record.uid),
    )


def epoch(text: str) -> int:
    """Return a time of the API server as Unix seconds, 0 where it cannot be read."""
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    except ValueError:
        return 0


def _micro(money: str | None) -> int | None:
    return None if money is None else int(Decimal(money) * 1_000_000)


def _targets(intent: InferenceIntent) -> Targets:
    targets = intent.spec.targets
    if targets is None:
        return Targets()
    ttft = targets.time_to_first_token_milliseconds
    tpot = targets.time_per_output_token_milliseconds
    return Targets(
        ttft_us=None if ttft is None else ttft * 1000,
        tpot_us=None if tpot is None else tpot * 1000,
        percentile=targets.percentile or 95,
        cost_per_hour_micro_usd=_micro(targets.cost_per_hour),
        cost_per_million_output_tokens_micro_usd=_micro(targets.cost_per_million_output_tokens),
    )


def _constraints(intent: InferenceIntent) -> Constraints:
    given = intent.spec.constraints
    if given is None:
        return Constraints()
    return Constraints(
        gpu_products=given.gpu_products,
        precisions=tuple(p.value for p in given.precisions) if given.precisions else None,
        max_accuracy_loss_percent=given.max_accuracy_loss_percent,
        tensor_parallel_sizes=given.tensor_parallel_sizes,
        pipeline_parallel_sizes=given.pipeline_parallel_sizes,
        min_replicas=given.min_replicas,
        max_replicas=given.max_replicas,
    )


def _pools(
    caches: Caches, fed: frozenset[str], *, settings: Settings, surroundings: Surroundings
) -> tuple[CpuPool, ...]:
    """Return the CPUs that plans may use; those of ``fed`` nodes feed GPUs."""
    models = cpu_models(caches, settings=settings)
    usual = Counter(models.values()).most_common(1)
    pools = []
    for node in sorted(caches.nodes, key=lambda n: n.name):
        if node.name in fed or not usable(node, settings=settings):
            continue
        theirs = surroundings.foreign.get(node.name, Requested())
        # Others' use is rounded up: a pod of 10 millicores more is no reason to plan anew.
        used = -(-theirs.millicores // _STEP_MILLICORES) * _STEP_MILLICORES
        free = node.allocatable_millicores - used - settings.cpu_reserve_millicores
        pools.append(
            CpuPool(
                node=node.name,
                cpu_model=node.cpu_model
                or models.get(node.name, "")
                or (usual[0][0] if usual else ""),
                millicores=max(0, free),
                memory_bytes=max(0, node.allocatable_bytes - theirs.memory_bytes),
            )
        )
    return tuple(pools)


def usable(node: NodeRecord, *, settings: Settings, gpus: bool = False) -> bool:
    """Whether pods with podDefaults may run on a node; with ``gpus``, those that ask for its GPUs."""
    defaults = settings.pod_defaults
    allowed = [*defaults.tolerations]
    if gpus and node.gpus is not None:
        allowed += tolerations(node.gpus.resource)
    matches = all(node.labels.get(k) == v for k, v in defaults.nodeSelector.items())
    tolerated = all(
        any(_tolerates(toleration, taint) for toleration in allowed)
        for taint in node.taints
        # What node conditions put on shows in `ready` and `cordoned` as well.
        if not taint[0].startswith("node.kubernetes.io/")
    )
    return node.ready and not node.cordoned and matches and tolerated


def several_nodes(nodes: Iterable[NodeRecord], *, settings: Settings) -> bool:
    """Whether there is a choice of nodes for workers, on CPUs or on GPUs."""
    return sum(usable(node, settings=settings, gpus=True) for node in nodes) > 1


def _tolerates(toleration: Mapping[str, Any], taint: tuple[str, str, str]) -> bool:
    key, value, effect = taint
    if toleration.get("effect") not in (None, "", effect):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key", "") in ("", key)
    return toleration.get("key") == key and toleration.get("value", "") == value


def cpu_models(caches: Caches, *, settings: Settings) -> dict[str, str]:
    """Return CPU models by node, as inspection Jobs found them.

    Only what the operator keeps in its own namespace counts: tenants write ConfigMaps too.
    """
    found: dict[str, str] = {}
    for record in caches.configmaps:
        if record.namespace != settings.system_namespace or INSPECTION_KEY not in record.data:
            continue
        node = record.annotations.get(jobs.NODE_ANNOTATION)
        verdict = parse_verdict(record.data[INSPECTION_KEY])
        if node and isinstance(verdict, ModelFacts) and verdict.cpu_model:
            found[node] = verdict.cpu_model
    return found


def _assignments(caches: Caches, surroundings: Surroundings) -> tuple[Assignment, ...]:
    found, ages = [], surroundings.ages
    for intent in sorted(caches.inferenceintents, key=lambda r: r.uid):
        for deployment in caches.deployments.owned_by(intent.uid):
            if deployment.deleting or deployment.namespace != intent.namespace:
                continue
            assignment = (
                _shared(intent, deployment, caches, ages=ages)
                if GROUP_LABEL in deployment.labels
                else _alone(intent, deployment, caches, ages=ages)
            )
            if assignment is not None:
                found.append(replace(assignment, fixed=intent.uid in surroundings.fixed))
    # Who moves into a group is a member already: its own worker goes once the group's serves it.
    return tuple(sorted(found, key=lambda a: (a.intent_uid, not a.group)))


def running_config(intent: IntentRecord, deployment: DeploymentRecord) -> Config | None:
    """Return how a Deployment runs an intent's model; None if it does not say so."""
    if GROUP_LABEL in deployment.labels:
        shared = GroupRollout.from_json(rollout_text(deployment, ()))
        return shared.config(intent.uid) if shared else None
    alone = in_force(deployment, ())
    return alone.config if alone else None


def _alone(
    intent: IntentRecord, deployment: DeploymentRecord, caches: Caches, *, ages: Mapping[str, int]
) -> Assignment | None:
    rollout = in_force(deployment, caches.configmaps.owned_by(intent.uid))
    if rollout is None:
        return None
    return Assignment(
        intent_uid=intent.uid,
        config=rollout.config,
        replicas=deployment.replicas,
        nodes=_nodes(intent.uid, "", caches),
        generation=rollout.generation,
        age_seconds=ages.get(intent.uid, 0),
        memory_bytes=rollout.memory_bytes,
        ready=min(deployment.ready_replicas, deployment.replicas),
        counted=bool(deployment.foreign_replicas_manager)
        and intent.annotations.get(REPLICAS_ANNOTATION) != "Trimtab",
    )


def _shared(
    intent: IntentRecord, deployment: DeploymentRecord, caches: Caches, *, ages: Mapping[str, int]
) -> Assignment | None:
    group = deployment.labels[GROUP_LABEL]
    rollout = GroupRollout.from_json(rollout_text(deployment, caches.configmaps.owned_by(group)))
    config = rollout.config(intent.uid) if rollout else None
    if rollout is None or config is None:
        return None
    return Assignment(
        intent_uid=intent.uid,
        config=config,
        replicas=deployment.replicas,
        nodes=_nodes(group, group, caches),
        generation=rollout.members[intent.uid].generation,
        age_seconds=ages.get(intent.uid, 0),
        memory_bytes=rollout.memory_bytes,
        group=group,
    )


def _nodes(owner: str, group: str, caches: Caches) -> tuple[tuple[str, int], ...]:
    """Return where worker pods are, by node."""
    found = Counter(
        pod.node
        for pod in caches.pods.owned_by(owner)
        if pod.node
        and pod.labels.get(COMPONENT_LABEL) == "worker"
        and pod.labels.get(GROUP_LABEL, "") == group
        and not pod.deleting
    )
    return tuple(sorted(found.items()))
