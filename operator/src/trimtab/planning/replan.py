"""When a running plan is kept although another would score better, and how a change is made.

``plan_fleet`` says what is wanted; ``next_step`` says what may be done about it now, from what
exists and not from what was sent: so a crash between two steps loses nothing (planner.md §9).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from trimtab.planning.objectives import Judged, loss
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Assignment, Config, FleetSnapshot, IntentView

_SECOND_US = 1_000_000

Kind = Literal["Keep", "Create", "Scale", "Move"]
Cause = Literal["None", "New", "Lost", "Edit", "Pins", "Needed", "Missed", "Better", "Spare"]
Hold = Literal[
    "None",
    "NoPlan",
    "InFlight",
    "Dwell",
    "Measuring",
    "StillNeeded",
    "Lone",
    "NoRoom",
    "NotOurs",
    "Transition",
]
Mode = Literal["None", "MakeBeforeBreak", "OneByOne", "BreakBeforeMake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfiguration:
    """How long a replica of a fingerprint's key took to start, as measured; seconds."""

    key: str
    seconds: int


def switching_cost(
    snapshot: FleetSnapshot,
    key: str,
    *,
    policy: PlannerPolicy,
    measured: Iterable[Reconfiguration] = (),
) -> float:
    """Return the loss that a move must save: 0.05 + reconfiguration/1,800 s, doubled without anchors.

    Args:
        snapshot: With the anchors.
        key: Of the fingerprint of what runs.
        policy: The constants; 120 s until a reconfiguration was measured.
        measured: Reconfigurations seen; the longest of the key counts.
    """
    seconds = max(
        (m.seconds for m in measured if m.key == key), default=policy.reconfiguration_seconds
    )
    cost = policy.switching_cost_permille / 1000 + seconds / policy.reconfiguration_scale_seconds
    return cost if is_anchored(snapshot, key) else 2 * cost


def is_anchored(snapshot: FleetSnapshot, key: str) -> bool:
    """Tell whether a fingerprint's predictions were corrected by live replicas."""
    return any(anchor.key == key for anchor in snapshot.anchors)


def was_edited(intent: IntentView, assignment: Assignment) -> bool:
    """Tell whether the intent changed since its running plan was made: then it is chosen anew."""
    return assignment.generation != intent.generation


def keeps(current: Judged, best: Judged, *, cost: float) -> bool:
    """Tell whether a running option stays.

    It does not stay if it misses what the best meets. A measured option is never left for an
    estimate: the estimate is measured first.

    Args:
        current: What runs.
        best: What would be chosen if nothing ran.
        cost: Of switching, in units of loss; what anchors moved comes on top.
    """
    if best.meets and not current.meets:
        return False
    if best.option.fingerprint == "Roofline" and current.option.fingerprint != "Roofline":
        return True
    return loss(current, best) <= cost + uncalibrated(current, best)


def uncalibrated(current: Judged, other: Judged) -> float:
    """Return by how much anchors moved the prediction of what runs, relative, where those of another option are none.

    That one's prediction may be as wrong as that of what runs was: do not chase the uncalibrated
    (planner.md §7). What runs by a suspect fingerprint is off by more than is applied.
    """
    anchored = current.option.anchoring
    if anchored is None or other.option.anchoring is not None:
        return 0.0
    return abs(anchored.seen_permille - 1000) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What exists of an intent.

    Attributes:
        config: Of the newest template.
        replicas: Asked for.
        ready: Serving, of any template.
        generation: Of the intent, when this was planned.
        rolling: Replicas of the newest template are missing or old ones still there.
        changed_us: When the last change was made or first seen; None if long ago.
        progressed_us: When that change last got further than ever before: one more replica ready, or
            of the newest template; None if it did not.
        lost: Replicas have no machine any more: their device is gone or excluded.
        foreign: Somebody else sets the count of replicas (Dynamo #4420: it is not fought).
    """

    config: Config
    replicas: int
    ready: int
    generation: int
    rolling: bool = False
    changed_us: int | None = None
    progressed_us: int | None = None
    lost: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the fleet's plan gives an intent, and what was found out for the way there.

    Attributes:
        config: To run.
        replicas: How many.
        generation: Of the intent.
        least: Replicas that the intent pins at least.
        most: Replicas that it allows; None without a pin.
        meets: The wanted option meets the objective.
        running_meets: So does what runs, at the present load.
        fewest: Replicas of what runs that meet the target with margin + 10 points at the p95 load of
            30 min, for 10 min now; None while unknown.
        fewest_now: The same without those 10 min.
        lasts: The wanted option meets the target at that load, or what runs does not either.
        room: Replicas of the wanted configuration that fit beside everything that runs.
        swaps: One of them fits where one of those that run is taken away.
        needed: It takes less than what runs, and somebody who is not served yet is planned there.
        measuring: The plan asks for measurements that are on their way: what is better may turn out
            not to be.
    """

    config: Config
    replicas: int
    generation: int
    least: int = 1
    most: int | None = None
    meets: bool = True
    running_meets: bool = True
    fewest: int | None = None
    fewest_now: int | None = None
    lasts: bool = True
    room: int = 0
    swaps: bool = True
    needed: bool = False
    measuring: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do about one intent now.

    Attributes:
        kind: ``Keep`` what exists, ``Create``, ``Scale`` or ``Move`` to another configuration.
        config: To run after it.
        replicas: To ask for.
        cause: Why something is done.
        held: What a further change waits for; with ``Keep`` and ``None`` nothing is wanted.
        mode: How replicas are replaced in a move.
        again_us: When time alone may change this; None if it does not.
    """

    kind: Kind
    config: Config
    replicas: int
    cause: Cause = "None"
    held: Hold = "None"
    mode: Mode = "None"
    again_us: int | None = None


def next_step(  # noqa: PLR0911 - one line per rule
    current: Running | None,
    wanted: Wanted | None,
    *,
    now_us: int,
    policy: PlannerPolicy,
) -> Step | None:
    """Return the next bounded step towards what is wanted; None where there is nothing either way.

    Without a plan what serves stays: a prediction that worsened removes nothing.
    """
    if wanted is not None:
        wanted = replace(wanted, replicas=_within_pins(wanted.replicas, wanted))
    if current is None or current.replicas < 1:
        if wanted is None:
            return None
        return Step(kind="Create", config=wanted.config, replicas=wanted.replicas, cause="New")
    if wanted is None:
        return _keep(current, "NoPlan")
    if wanted.config != current.config:
        return _move(current, wanted, now_us=now_us, policy=policy)
    if current.foreign:
        return _keep(current, "NotOurs" if wanted.replicas != current.replicas else "None")
    pinned = _within_pins(current.replicas, wanted)
    if pinned != current.replicas:
        # A pin is no wish: it is kept at once (KAITO #1956).
        return Step(kind="Scale", config=current.config, replicas=pinned, cause="Pins")
    if wanted.replicas > current.replicas:
        return _up(current, wanted, now_us=now_us, policy=policy)
    if wanted.replicas < current.replicas:
        return _down(current, wanted, now_us=now_us, policy=policy)
    return _keep(current)


def bound(replicas: int, *, policy: PlannerPolicy) -> int:
    """Return by how many replicas one step may move: a quarter, at least one (Dynamo PR #14296)."""
    return max(1, replicas * policy.step_permille // 1000)


def _keep(current: Running, held: Hold = "None", *, again_us: int | None = None) -> Step:
    return Step(
        kind="Keep",
        config=current.config,
        replicas=current.replicas,
        held=held,
        again_us=again_us,
    )


def _cause(current: Running, wanted: Wanted) -> Cause:
    if current.lost:
        return "Lost"
    if current.generation != wanted.generation:
        return "Edit"
    if wanted.needed:
        return "Needed"
    if wanted.meets and not wanted.running_meets:
        return "Missed"
    return "Better"


def _dwells_until(current: Running, *, policy: PlannerPolicy) -> int:
    return (current.changed_us or 0) + policy.dwell_seconds * _SECOND_US


def _resting(current: Running, *, now_us: int, policy: PlannerPolicy) -> bool:
    """Tell whether the last change is too young for another; what does not serve needs no rest."""
    if current.changed_us is None or current.ready == 0:
        return False
    return now_us < _dwells_until(current, policy=policy)


def _up(current: Running, wanted: Wanted, *, now_us: int, policy: PlannerPolicy) -> Step:
    """Add replicas: a quarter of what is ready beside what is on its way."""
    cause = _cause(current, wanted)
    if cause == "Better" and _resting(current, now_us=now_us, policy=policy):
        return _keep(current, "Dwell", again_us=_dwells_until(current, policy=policy))
    # What is lost comes back by itself; a step counts from what serves.
    base = current.replicas if cause == "Lost" else min(current.ready, current.replicas)
    reach = base + bound(base, policy=policy)
    if reach <= current.replicas:
        return _keep(current, "InFlight")
    return Step(
        kind="Scale",
        config=current.config,
        replicas=_within_pins(min(wanted.replicas, reach), wanted),
        cause=cause,
    )


def _down(current: Running, wanted: Wanted, *, now_us: int, policy: PlannerPolicy) -> Step:
    """Take replicas away once the rest was found to carry the busy part of the last half hour."""
    cause = _cause(current, wanted)
    if cause in ("Edit", "Needed"):
        # The plan has judged it for who asked; replicas that are not ready go first.
        fewest = wanted.replicas if cause == "Needed" else wanted.fewest_now or wanted.replicas
    elif cause == "Lost":
        # A replica without a machine carries nothing, so none is missed.
        fewest = max(1, current.ready)
    else:
        cause = "Spare"
        if current.rolling or current.ready < current.replicas:
            return _keep(current, "InFlight")
        if _resting(current, now_us=now_us, policy=policy):
            return _keep(current, "Dwell", again_us=_dwells_until(current, policy=policy))
        fewest = wanted.fewest or current.replicas
    least = max(1, wanted.replicas, current.replicas - bound(current.replicas, policy=policy))
    target = _within_pins(max(least, fewest), wanted)
    if target >= current.replicas:
        return _keep(current, "StillNeeded")
    return Step(kind="Scale", config=current.config, replicas=target, cause=cause)


def _move(current: Running, wanted: Wanted, *, now_us: int, policy: PlannerPolicy) -> Step:
    """Change the configuration: one change in flight, make before break if slots exist."""
    cause = _cause(current, wanted)
    forced = cause in ("Lost", "Edit")
    if current.rolling and not forced:
        ends = (current.changed_us or now_us) + policy.change_seconds * _SECOND_US
        if now_us < ends:
            return _keep(current, "InFlight", again_us=ends)
    if cause == "Better" and _resting(current, now_us=now_us, policy=policy):
        return _keep(current, "Dwell", again_us=_dwells_until(current, policy=policy))
    if cause == "Better" and wanted.measuring and current.ready > 0:
        # Of two options one is measured and one estimated: that says which was measured first.
        return _keep(current, "Measuring")
    if cause == "Better" and not wanted.lasts and current.ready > 0:
        # Cheaper for the load of this minute: the next busy one would turn it back.
        return _keep(current, "StillNeeded")
    replicas, mode = wanted.replicas, _mode(current, wanted)
    if mode == "BreakBeforeMake" and not forced and current.ready > 0:
        return _keep(current, "Lone" if current.ready < 2 else "NoRoom")
    if current.foreign:
        replicas = current.replicas
    elif mode == "MakeBeforeBreak":
        # A Deployment that is asked for fewer ends old replicas before new ones are ready: first
        # as many as there are, as far as they fit, then fewer.
        replicas = max(replicas, min(current.replicas, wanted.room))
    return Step(
        kind="Move",
        config=wanted.config,
        replicas=replicas if current.foreign else _within_pins(replicas, wanted),
        cause=cause,
        mode=mode,
    )


def _mode(current: Running, wanted: Wanted) -> Mode:
    if wanted.room >= 1:
        return "MakeBeforeBreak"
    return "OneByOne" if current.ready >= 2 and wanted.swaps else "BreakBeforeMake"


def _within_pins(replicas: int, wanted: Wanted) -> int:
    capped = replicas if wanted.most is None else min(replicas, wanted.most)
    return max(1, wanted.least, capped)
