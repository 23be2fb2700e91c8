"""Which conditions each kind has, which of them gate `Ready`, and how their times move.

`Ready` copies the first *gating* condition that is not True; all others inform. A condition of
negative polarity is good when False, like a node's pressure conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from trimtab.api.v1alpha1.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

Truth = Literal["True", "False", "Unknown"]
MESSAGE_LIMIT: Final = 4096


class ConditionType(StrEnum):
    """Every condition type of the three kinds."""

    READY = "Ready"
    FINGERPRINTED = "Fingerprinted"
    PLANNED = "Planned"
    PLACED = "Placed"
    SERVING = "Serving"
    WITHIN_TARGET = "WithinTarget"
    ACCEPTED = "Accepted"
    MODEL_LOADED = "ModelLoaded"
    USAGE_AVAILABLE = "UsageAvailable"
    SIZABLE = "Sizable"
    WITHIN_DEADLINE = "WithinDeadline"
    MEASURED = "Measured"
    RELIABLE = "Reliable"
    FRESH = "Fresh"
    OUTLIERS_FOUND = "OutliersFound"
    COMMON_CAUSE = "CommonCause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One condition that a kind declares: `gating` decides Ready, `positive` means good when True."""

    type: ConditionType
    doc: str
    gating: bool = False
    positive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One verdict, without times: the writer adds `lastTransitionTime` and `observedGeneration`."""

    type: ConditionType
    status: Truth
    reason: Reason
    message: str


_READY: Final = Declared(
    type=ConditionType.READY,
    doc="Ready copies the first gating condition that is not True.",
)

CONDITIONS: Final[Mapping[str, tuple[Declared, ...]]] = {
    "InferenceIntent": (
        _READY,
        Declared(
            type=ConditionType.FINGERPRINTED,
            doc="Fingerprinted says whether the model was read and measured.",
        ),
        Declared(
            type=ConditionType.PLANNED,
            gating=True,
            doc="Planned says whether an option was chosen.",
        ),
        Declared(
            type=ConditionType.PLACED,
            gating=True,
            doc="Placed says whether the plan's objects exist and have their devices.",
        ),
        Declared(
            type=ConditionType.SERVING,
            gating=True,
            doc="Serving says whether a worker has the model resident.",
        ),
        Declared(
            type=ConditionType.WITHIN_TARGET,
            doc="WithinTarget says whether what the gateway observed meets the targets.",
        ),
    ),
    "ServerlessFunction": (
        _READY,
        Declared(
            type=ConditionType.ACCEPTED,
            gating=True,
            doc="Accepted says whether the function is valid, has rights and is seen by the gateway.",
        ),
        Declared(
            type=ConditionType.MODEL_LOADED,
            doc="ModelLoaded says whether a learned sizing model is in force.",
        ),
        Declared(
            type=ConditionType.USAGE_AVAILABLE,
            doc="UsageAvailable says whether each invocation's use is known.",
        ),
        Declared(
            type=ConditionType.SIZABLE, doc="Sizable says whether sizes are decided per invocation."
        ),
        Declared(
            type=ConditionType.WITHIN_DEADLINE,
            doc="WithinDeadline says whether invocations end before their deadline.",
        ),
    ),
    "GPUProfile": (
        _READY,
        Declared(
            type=ConditionType.MEASURED,
            gating=True,
            doc="Measured says whether the pool's GPUs were measured.",
        ),
        Declared(
            type=ConditionType.RELIABLE,
            doc="Reliable says whether the GPUs differ by more than the noise.",
        ),
        Declared(type=ConditionType.FRESH, doc="Fresh says whether the scores are recent."),
        Declared(
            type=ConditionType.OUTLIERS_FOUND,
            positive=False,
            doc="OutliersFound says whether GPUs are confirmed as slow.",
        ),
        Declared(
            type=ConditionType.COMMON_CAUSE,
            positive=False,
            doc="CommonCause says whether so many GPUs are slow that the cause is common.",
        ),
    ),
}


def at_first_sight(kind: str) -> tuple[Condition, ...]:
    """Return every condition of a kind as Unknown/Pending, Ready first.

    Raises:
        KeyError: The kind is none of ours.
    """
    return tuple(
        Condition(
            type=declared.type,
            status="Unknown",
            reason=Reason.PENDING,
            message="Not judged yet.",
        )
        for declared in CONDITIONS[kind]
    )


def ready(kind: str, conditions: Iterable[Condition]) -> Condition:
    """Return `Ready`: a copy of the first gating condition that is not True, else of the last gating one.

    A gating condition that is missing counts as Unknown/Pending.

    Raises:
        KeyError: The kind is none of ours.
    """
    found = {condition.type: condition for condition in conditions}
    copied: Condition | None = None
    for declared in CONDITIONS[kind]:
        if not declared.gating:
            continue
        copied = found.get(declared.type)
        if copied is None:
            copied = Condition(
                type=declared.type,
                status="Unknown",
                reason=Reason.PENDING,
                message=f"{declared.type} is not judged yet.",
            )
        if copied.status != "True":
            break
    if copied is None:
        raise KeyError(f"{kind} declares no gating condition: this is a bug in CONDITIONS.")
    return Condition(
        type=ConditionType.READY,
        status=copied.status,
        reason=copied.reason,
        message=copied.message,
    )


def with_ready(kind: str, conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the given conditions in the kind's declared order, Ready computed and put first."""
    given = {condition.type: condition for condition in conditions}
    given[ConditionType.READY] = ready(kind, given.values())
    return tuple(given[declared.type] for declared in CONDITIONS[kind] if declared.type in given)


def stamp(
    conditions: Sequence[Condition],
    *,
    previous: Iterable[Mapping[str, Any]],  # any: a status read from the API server
    generation: int,
    now: datetime,
) -> list[dict[str, str | int]]:
    """Return conditions as they stand in a status: lastTransitionTime moves only with `status`.

    Only our own types are returned, so a server-side apply never touches another manager's.

    Args:
        conditions: In the order to be written.
        previous: The status's present conditions, ours and others'.
        generation: `metadata.generation` that was judged.
        now: Aware; written with whole seconds in UTC.
    """
    before = {str(entry.get("type")): entry for entry in previous}
    moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stamped: list[dict[str, str | int]] = []
    for condition in conditions:
        old = before.get(condition.type, {})
        unchanged = old.get("status") == condition.status and "lastTransitionTime" in old
        stamped.append(
            {
                "type": str(condition.type),
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": str(old["lastTransitionTime"]) if unchanged else moment,
                "reason": str(condition.reason),
                "message": condition.message[:MESSAGE_LIMIT],
            }
        )
    return stamped
