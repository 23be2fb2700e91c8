"""A sharing group with everything that its step decides from: frozen, gathered once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
    from trimtab.observe.records import ConfigMapRecord, DeploymentRecord, PodRecord, Record
    from trimtab.observe.workers import WorkerState
    from trimtab.planning.plan import GroupPlan, IntentPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedMember:
    """One intent that is planned in a group, or that owns its objects.

    Attributes:
        intent: As stored and parsed; None where it does not parse.
        plan: The fleet's decision for its generation, None while there is none.
        joins: Its plan names this group and nothing holds it back.
        moved: Requests for it go to another worker already.
        paused: Nothing of it may change.
        hold_ends_in_seconds: Until it joins although its model is not measured.
        takes_replicas: Its annotation takes the number of replicas back from other managers.
    """

    uid: str
    namespace: str
    name: str
    intent: InferenceIntent | None
    plan: IntentPlan | None
    joins: bool
    moved: bool
    paused: bool = False
    takes_replicas: bool = False
    hold_ends_in_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGroup:
    """What one step of a group decides from.

    Attributes:
        id: Of the group.
        plan: The fleet's decision, None where it plans nobody in it any more.
        members: Planned ones and owners that exist, oldest first.
        deployment: Of its worker.
        pods: Of its worker.
        workers: What they say, by pod uid.
        model_sets: ConfigMaps, present and past.
        others: Service, NetworkPolicy and disruption budget, by kind.
        several_nodes: Whether there is a choice of nodes.
    """

    id: str
    namespace: str
    plan: GroupPlan | None
    members: tuple[ObservedMember, ...]
    deployment: DeploymentRecord | None = None
    pods: tuple[PodRecord, ...] = ()
    workers: Mapping[str, WorkerState] = field(default_factory=dict)
    model_sets: tuple[ConfigMapRecord, ...] = ()
    others: Mapping[str, Record] = field(default_factory=dict)
    several_nodes: bool = False
