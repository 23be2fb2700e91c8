"""Each condition of an intent as a pure function of what was observed."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.conditions import Condition, ConditionType, Truth
from trimtab.api.v1alpha1.names import PLAN_DIGEST_ANNOTATION
from trimtab.api.v1alpha1.reasons import Reason
from trimtab.observe.inspections import stated_refusal
from trimtab.observe.traffic import FEWEST_REQUESTS
from trimtab.observe.workers import SERVING_STATES
from trimtab.reconcile.group.rollout import GroupRollout
from trimtab.reconcile.inferenceintent.rollout import Rollout
from trimtab.reconcile.pods import mebibytes
from trimtab.reconcile.sealed import rollout_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trimtab.observe.inspections import Inspection
    from trimtab.observe.intents import ObservedIntent
    from trimtab.observe.records import DeploymentRecord, PodRecord
    from trimtab.planning.plan import IntentPlan
    from trimtab.reconcile.inferenceintent.policies import Violation

_PULL_FAILURES: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName"})
_CRASHES: Final = frozenset({"CrashLoopBackOff", "RunContainerError", "CreateContainerError"})
_OOM: Final = "OOMKilled"

NAMED: Final = {reason.value: reason for reason in Reason}
"""Reasons by the word that other processes and the planner use for them."""


def condition(
    observed: ObservedIntent, kind: ConditionType, status: Truth, reason: Reason, message: str
) -> Condition:
    """Return a condition whose message begins with the object's name."""
    record = observed.record
    prefix = f"InferenceIntent {record.namespace}/{record.name}: "
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message if message.startswith(prefix) else prefix + message,
    )


def fingerprinted(observed: ObservedIntent, *, violation: Violation | None) -> Condition:
    """Judge whether the model was read and measured."""
    kind = ConditionType.FINGERPRINTED
    if violation is not None:
        return condition(observed, kind, "False", violation.reason, violation.message)
    inspection = observed.inspection
    if inspection is None or inspection.state == "Absent":
        return condition(
            observed, kind, "False", Reason.INSPECTING, "The model is about to be read."
        )
    if inspection.state == "Failed" and inspection.refusal is not None:
        message = inspection.refusal.message + _retry(inspection)
        return condition(observed, kind, "False", NAMED[inspection.refusal.reason], message)
    if inspection.state == "Running":
        return _inspecting(observed, inspection)
    return _measured(observed)


def _retry(inspection: Inspection) -> str:
    ending = "" if inspection.refusal and inspection.refusal.message.endswith(".") else "."
    return f"{ending} Trimtab looks again by itself, or at once after an edit of the intent."


def _inspecting(observed: ObservedIntent, inspection: Inspection) -> Condition:
    kind = ConditionType.FINGERPRINTED
    if not inspection.obstacle:
        message = f"Job {inspection.job_name} is reading the model."
        return condition(observed, kind, "False", Reason.INSPECTING, message)
    reason = obstacle_reason(inspection.obstacle)
    message = f"Job {inspection.job_name} cannot read the model: {inspection.obstacle}"
    return condition(observed, kind, "False", reason, message)


def obstacle_reason(text: str) -> Reason:
    """Return the reason for a sentence of kubelet or scheduler about a pod that does not start."""
    lowered = text.lower()
    if "persistentvolumeclaim" in lowered and ("not found" in lowered or "unbound" in lowered):
        return Reason.SOURCE_NOT_BOUND
    if "run as root" in lowered or "runasnonroot" in lowered:
        return Reason.RUNS_AS_ROOT
    if any(word.lower() in lowered for word in _PULL_FAILURES) or "pull" in lowered:
        return Reason.IMAGE_PULL_FAILED
    return Reason.PENDING_REPLICAS


def _suspect(plan: IntentPlan | None) -> str:
    """Return what live steps say against the measurement; empty where nothing."""
    option = plan.option if plan is not None else None
    if option is None or option.anchoring is None or not option.anchoring.suspect:
        return ""
    return (
        f"Live steps take {option.anchoring.seen_permille / 1000:.2g} times what fp-"
        f"{option.fingerprint} predicts. Beyond a factor of two nothing is corrected; it is "
        "measured again. If it stays so, look for what else computes on the workers' nodes."
    )


def _measured(observed: ObservedIntent) -> Condition:  # noqa: PLR0911 - one line per verdict
    kind = ConditionType.FINGERPRINTED
    progress = observed.fingerprints
    plan = observed.plan
    suspect = _suspect(plan)
    if suspect:
        return condition(observed, kind, "False", Reason.FINGERPRINT_SUSPECT, suspect)
    if progress.running:
        message = f"Measuring in the engine: {', '.join(progress.running)}."
        return condition(observed, kind, "False", Reason.FINGERPRINTING, message)
    if progress.failures:
        message = " ".join(progress.failures)
        return condition(observed, kind, "False", Reason.FINGERPRINT_FAILED, message)
    if plan is None or plan.option is None:
        status: Truth = "True" if progress.wanted == 0 else "False"
        return condition(observed, kind, status, Reason.INSPECTED, "The model was read.")
    if progress.wanted:
        message = f"The model was read; {progress.wanted} measurement(s) wait for idle threads."
        return condition(observed, kind, "False", Reason.FINGERPRINTING, message)
    if plan.option.fingerprint == "Roofline":
        message = "The model was read; the plan rests on a roofline estimate."
        return condition(observed, kind, "False", Reason.ESTIMATED, message)
    message = f"The plan rests on the measurement fp-{plan.option.fingerprint}."
    return condition(observed, kind, "True", Reason.MEASURED, message)


def planned(observed: ObservedIntent, *, violation: Violation | None) -> Condition:  # noqa: PLR0911 - one line per verdict
    """Judge whether an option was chosen."""
    kind = ConditionType.PLANNED
    first = fingerprinted(observed, violation=violation)
    inspection = observed.inspection
    unread = inspection is None or inspection.facts is None
    if violation is not None or unread:
        return condition(observed, kind, "False", first.reason, first.message)
    if observed.planner_problem:
        return condition(observed, kind, "False", Reason.PLANNER_FAILED, observed.planner_problem)
    plan = observed.plan
    if plan is None:
        return condition(observed, kind, "False", Reason.PLANNING, "The planner is at work.")
    if plan.option is None:
        message = f"{plan.message}{_accuracy(observed)}"
        return condition(observed, kind, "False", NAMED[plan.reason], message)
    if plan.verdict == "PlannedNearest":
        message = f"{plan.message}{_accuracy(observed)}"
        return condition(observed, kind, "True", NAMED[plan.reason], message)
    said = f"{plan.message}{_accuracy(observed)}"
    if observed.price_problem:
        message = f"{said} {observed.price_problem}"
        return condition(observed, kind, "True", Reason.PRICE_BOOK_INVALID, message)
    reason = Reason.LOAD_ASSUMED if plan.load_assumed else Reason.CHOSEN
    return condition(observed, kind, "True", reason, said)


def _accuracy(observed: ObservedIntent) -> str:
    """Return what is known of precisions that are not measured, with a space before it."""
    progress = observed.accuracy
    if not progress.precisions:
        return ""
    if progress.failure and not progress.job:
        return f" {progress.failure}"
    names = " and ".join(progress.precisions)
    doing = f"Job {progress.job} measures" if progress.job else "a Job is about to measure"
    return f" What {names} would lose in accuracy is not known yet: {doing} it."


def placed(observed: ObservedIntent, *, wants_rollout: bool, plan_digest: str) -> Condition:
    """Judge whether the plan's objects exist and are up to date.

    Args:
        observed: The intent.
        wants_rollout: Whether the step applies a Deployment.
        plan_digest: Of that Deployment; empty without one.
    """
    kind = ConditionType.PLACED
    deployment = observed.deployment
    if deployment is None:
        if observed.former_pods:
            serves: Truth = "True" if any(p.ready for p in observed.former_pods) else "False"
            message = "It moves to another worker; the one it has serves until then."
            return condition(observed, kind, serves, Reason.ROLLING, message)
        if wants_rollout:
            return condition(
                observed, kind, "False", Reason.ROLLING, "The worker's objects are being created."
            )
        if observed.fingerprints.hold:
            message = (
                "The first roll-out waits for the first measurement of the model; after a bounded "
                "time it goes ahead on an estimate."
            )
            return condition(observed, kind, "False", Reason.FINGERPRINTING, message)
        if observed.plan is not None and observed.plan.option is None:
            message = "No option is planned, so nothing is created."
            return condition(observed, kind, "False", Reason.REFUSED, message)
        return condition(observed, kind, "False", Reason.WAITING_FOR_PLAN, "There is no plan yet.")
    return _rolled(observed, plan_digest=plan_digest)


def _rolled(observed: ObservedIntent, *, plan_digest: str) -> Condition:
    kind = ConditionType.PLACED
    deployment = observed.deployment
    if deployment is None:
        raise RuntimeError("_rolled is called without a Deployment; this is a bug.")
    name = f"Deployment {deployment.name}"
    outdated = bool(plan_digest) and deployment.plan_digest != plan_digest
    unseen = deployment.observed_generation < deployment.generation
    present = sum(not pod.deleting for pod in observed.pods)
    rolling = deployment.updated_replicas < deployment.replicas or present > deployment.replicas
    # Old replicas serve until new ones do, so a roll that waits takes nothing away.
    former = any(pod.ready for pod in observed.former_pods)
    serves: Truth = "True" if deployment.available_replicas or former else "False"
    stuck = _stuck(observed, deployment)
    if stuck is not None:
        message = f"Pod {stuck.name} cannot be scheduled: {stuck.unschedulable}{_room(deployment)}"
        return condition(observed, kind, "False", obstacle_reason(stuck.unschedulable), message)
    waiting = next((p for p in observed.pods if p.unschedulable and not p.deleting), None)
    if waiting is not None:
        message = f"Pod {waiting.name} cannot be scheduled: {waiting.unschedulable}"
        return condition(observed, kind, serves, obstacle_reason(waiting.unschedulable), message)
    if deployment.problem and deployment.ready_replicas < deployment.replicas:
        message = f"{name}: {deployment.problem}"
        return condition(observed, kind, "False", _refusal_reason(deployment.problem), message)
    if outdated or unseen or rolling:
        message = (
            f"{name} is rolling: {deployment.updated_replicas} of {deployment.replicas} replicas "
            "are of the new plan; old ones serve until then."
        )
        return condition(observed, kind, serves, Reason.ROLLING, message)
    if deployment.foreign_replicas_manager:
        message = (
            f"{name} has {deployment.replicas} replicas as set by "
            f"{deployment.foreign_replicas_manager}; Trimtab leaves them alone. Annotate the "
            "InferenceIntent with trimtab.dev/replicas: Trimtab to give them back."
        )
        return condition(observed, kind, "True", Reason.REPLICAS_NOT_OURS, message)
    message = f"{name} has {deployment.replicas} replicas as planned."
    return condition(observed, kind, "True", Reason.PLACED, message)


def _stuck(observed: ObservedIntent, deployment: DeploymentRecord) -> PodRecord | None:
    """Return a pod of the present template that waits for the scheduler for long.

    Old replicas keep serving and are routed to, which `Serving` says. `Placed` is False, and so
    `Ready`: the plan that the status shows is not what serves, and nothing but room changes that.
    """
    for pod in observed.pods:
        current = pod.annotations.get(PLAN_DIGEST_ANNOTATION) == deployment.plan_digest
        if pod.uid in observed.unplaced.long and pod.unschedulable and current:
            return pod
    return None


def _room(deployment: DeploymentRecord) -> str:
    """Say what would let the pod be scheduled."""
    text = rollout_text(deployment, ())
    own, shared = Rollout.from_json(text), GroupRollout.from_json(text)
    rollout = own or shared
    size = f" with {mebibytes(rollout.memory_bytes)} of free memory" if rollout else ""
    if shared is not None and shared.host_bytes:
        size += f" and {mebibytes(shared.host_bytes)} of free disk"
    serving = " Old replicas serve until then." if deployment.available_replicas else ""
    return (
        " New replicas start beside old ones, so that no request is lost: one node needs room for "
        f"one more{size}. Free it by scaling down other workloads, or add a node.{serving}"
    )


def _refusal_reason(text: str) -> Reason:
    if "exceeded quota" in text:
        return Reason.QUOTA_EXCEEDED
    if "violates PodSecurity" in text or "denied" in text:
        return Reason.POLICY_DENIED
    return Reason.PENDING_REPLICAS


def serving(observed: ObservedIntent, *, public_name: str) -> Condition:
    """Judge whether a worker has the model resident."""
    kind = ConditionType.SERVING
    pods = (*observed.pods, *observed.former_pods)
    good = [p for p in pods if p.ready and _resident(observed, p, public_name)]
    shared = observed.plan is not None and observed.plan.group is not None
    if good and shared and not observed.routed:
        # Who joins a worker that runs gets its route last; one of its own has it from the start.
        message = f"{public_name} is loaded; gateways are told of it."
        return condition(observed, kind, "False", Reason.LOADING, message)
    if good:
        message = f"{len(good)} worker(s) have {public_name} resident."
        return condition(observed, kind, "True", Reason.SERVING, message)
    for pod, reason, message in _troubles(observed, public_name):
        return condition(observed, kind, "False", reason, f"Pod {pod.name}: {message}")
    if observed.pods:
        return condition(observed, kind, "False", Reason.LOADING, "Workers are loading the model.")
    return condition(observed, kind, "False", Reason.NOT_READY, "There is no worker yet.")


def _resident(observed: ObservedIntent, pod: PodRecord, public_name: str) -> bool:
    state = observed.workers.get(pod.uid)
    return state is not None and any(
        m.name == public_name and m.state in SERVING_STATES for m in state.models
    )


def _troubles(
    observed: ObservedIntent, public_name: str
) -> Iterator[tuple[PodRecord, Reason, str]]:
    for pod in observed.pods:
        state = observed.workers.get(pod.uid)
        for model in state.models if state else ():
            if model.name == public_name and model.state == "Failed" and model.error:
                yield pod, _worker_reason(model.error[0]), model.error[1]
    for pod in observed.pods:
        ended = pod.ended
        if ended is not None and ended.reason == _OOM:
            message = (
                "the container was killed for using more memory than its limit. Lower "
                "spec.load.promptTokens, or report the plan's memory estimate as a bug."
            )
            yield pod, Reason.OUT_OF_MEMORY, message
        elif pod.waiting_reason in _CRASHES or (pod.restarts and not pod.ready and ended):
            stated = stated_refusal(ended.message) if ended else None
            if stated is not None:
                yield pod, NAMED[stated.reason], stated.message
            else:
                yield pod, Reason.WORKER_CRASHING, _exit(pod)
        elif pod.waiting_reason in _PULL_FAILURES:
            message = f"{pod.waiting_reason}: {pod.waiting_message}"
            yield pod, Reason.IMAGE_PULL_FAILED, message
        elif pod.waiting_reason == "CreateContainerConfigError":
            yield pod, obstacle_reason(pod.waiting_message), root_remedy(pod.waiting_message)


def _worker_reason(text: str) -> Reason:
    known = {"ModelCorrupt", "ModelNotFound", "UnsupportedModel", "OutOfMemory", "SlabMismatch"}
    return NAMED[text] if text in known else Reason.WORKER_CRASHING


def root_remedy(message: str) -> str:
    """Add what to do to kubelet's sentence about an image that would run as root."""
    if obstacle_reason(message) is not Reason.RUNS_AS_ROOT:
        return message
    return (
        f"{message}. Build the image with a numeric USER other than 0, or set podDefaults.image "
        "to one that has it."
    )


def _exit(pod: PodRecord) -> str:
    if pod.ended is None:
        return pod.waiting_message or pod.waiting_reason
    said = f": {pod.ended.message.strip()[-1500:]}" if pod.ended.message.strip() else ""
    return (
        f"the container ends again and again, last with exit code {pod.ended.exit_code} "
        f"({pod.ended.reason or 'no reason'}){said}"
    )


def within_target(observed: ObservedIntent) -> Condition:
    """Judge what the gateway saw against the targets."""
    kind = ConditionType.WITHIN_TARGET
    targets = observed.intent.spec.targets if observed.intent else None
    latency = targets is not None and (
        targets.time_to_first_token_milliseconds or targets.time_per_output_token_milliseconds
    )
    if targets is None or not latency:
        return condition(
            observed, kind, "Unknown", Reason.NO_TARGET, "The objective has no latency target."
        )
    if not observed.gateway_answers:
        message = "No gateway replica answers /-/observed, so nothing is known."
        return condition(observed, kind, "Unknown", Reason.GATEWAY_UNREACHABLE, message)
    shown = observed.shown
    if not shown.enough:
        message = f"Fewer than {FEWEST_REQUESTS} requests in five minutes: no verdict."
        return condition(observed, kind, "Unknown", Reason.TOO_FEW_REQUESTS, message)
    figures = shown.figures
    misses = [
        f"{name} is {figures[field]} ms, the target is {target} ms"
        for name, field, target in (
            ("TTFT", "timeToFirstTokenMilliseconds", targets.time_to_first_token_milliseconds),
            ("TPOT", "timePerOutputTokenMilliseconds", targets.time_per_output_token_milliseconds),
        )
        if target is not None and field in figures and Decimal(figures[field]) > target
    ]
    percentile = figures.get("percentile", 95)
    if misses:
        message = f"At the {percentile}th percentile {' and '.join(misses)}."
        return condition(observed, kind, "False", Reason.OUTSIDE_TARGET, message)
    message = f"The {percentile}th percentile meets every latency target."
    return condition(observed, kind, "True", Reason.WITHIN_TARGET, message)
