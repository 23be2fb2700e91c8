"""One intent with everything its step decides from: frozen, gathered once, without a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
    from trimtab.observe.groups import ObservedGroup
    from trimtab.observe.inspections import Inspection
    from trimtab.observe.records import (
        ConfigMapRecord,
        DeploymentRecord,
        IntentRecord,
        JobRecord,
        PodRecord,
        Record,
    )
    from trimtab.observe.workers import EngineView, WorkerState
    from trimtab.planning.plan import IntentPlan
    from trimtab.planning.replan import Step
    from trimtab.planning.snapshot import Load

LoadSource = Literal["Declared", "Observed", "Assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintProgress:
    """Where the measurements stand that an intent's plan asked for."""

    wanted: int = 0
    running: tuple[str, ...] = ()
    """Names of Jobs."""
    failures: tuple[str, ...] = ()
    """Sentences about Jobs that failed and are to be repeated."""
    pending: bool = False
    """Whether one of them is on its way, and not for the second time."""
    hold: bool = False
    """Whether the first roll-out still waits for the first measurement."""
    hold_ends_in_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyProgress:
    """Where measuring stands what precisions of an intent's plan lose."""

    precisions: tuple[str, ...] = ()
    """Those that are not measured yet."""
    job: str = ""
    """That measures the model now; empty where none does."""
    failure: str = ""
    """A sentence about the last Job, if it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """Pods that no node has room for.

    `long` are the uids of those that wait longer than a roll usually does; the first of the others
    joins them in `next_in_seconds`.
    """

    long: frozenset[str] = frozenset()
    next_in_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Observed figures as a status shows them: two digits, moved at most once a minute.

    `figures` are the fields of `status.observed`; `enough` says whether they allow a verdict.
    """

    figures: Mapping[str, str | int] = field(default_factory=dict)
    enough: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedIntent:
    """What one step of an intent decides from.

    Attributes:
        record: The intent as stored.
        intent: The same, parsed; None where it does not parse, with the reason in `parse_error`.
        name_taken_by: An older intent of the namespace with the same model name.
        inspection: Where reading the model stands.
        plan: The fleet's decision for this generation, None while there is none.
        planner_problem: Why planning fails, empty where it does not.
        price_problem: Why the price book in force is not the stored one.
        load: The load planned for, with its source.
        fingerprints: Where measuring stands.
        accuracy: Where measuring what precisions lose stands.
        deployment: The Deployment that its plan wants: its own, or its group's once it owns that.
        pods: Worker pods of that Deployment.
        former_pods: Worker pods of another one, which serve until requests go to the new one.
        workers: What they say, by pod uid.
        unplaced: Which pods wait for the scheduler for long.
        model_sets: ConfigMaps of plans, present and past.
        jobs: Inspection Jobs of this intent.
        facts: ConfigMaps `model-…` of this intent.
        budget: The disruption budget.
        several_nodes: Whether there is a choice of nodes.
        gateway_answers: Whether any gateway replica reports what it sees.
        shown: What they saw of this intent.
        fleet_revision: Of the plan.
        own: Deployment, Service, NetworkPolicy, model sets and disruption budget of a worker of its
            own, by plural.
        routed: The Service that gateways send its requests to.
        charges: Groups whose objects this intent's step writes.
        engine: What its worker says of itself and of the models in it.
        step: What it may do about its plan now; None where the plan is followed as it is.
    """

    record: IntentRecord
    intent: InferenceIntent | None
    parse_error: str = ""
    name_taken_by: str = ""
    inspection: Inspection | None = None
    plan: IntentPlan | None = None
    planner_problem: str = ""
    price_problem: str = ""
    load: Load | None = None
    load_source: LoadSource = "Assumed"
    fingerprints: FingerprintProgress = FingerprintProgress()
    accuracy: AccuracyProgress = AccuracyProgress()
    deployment: DeploymentRecord | None = None
    pods: tuple[PodRecord, ...] = ()
    workers: Mapping[str, WorkerState] = field(default_factory=dict)
    unplaced: Unplaced = Unplaced()
    model_sets: tuple[ConfigMapRecord, ...] = ()
    jobs: tuple[JobRecord, ...] = ()
    facts: tuple[ConfigMapRecord, ...] = ()
    budget: Record | None = None
    several_nodes: bool = False
    gateway_answers: bool = False
    shown: Shown = Shown()
    fleet_revision: int = 0
    former_pods: tuple[PodRecord, ...] = ()
    own: tuple[tuple[str, Record], ...] = ()
    routed: str = ""
    charges: tuple[ObservedGroup, ...] = ()
    engine: EngineView | None = None
    step: Step | None = None
