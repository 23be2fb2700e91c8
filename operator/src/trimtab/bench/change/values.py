"""The values of a simulated fleet's life: what happens, what is decided, what comes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trimtab.planning.replan import Running, Step
from trimtab.planning.snapshot import Config, FleetSnapshot, IntentView


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a planner says about one intent: ``next_step``'s input without what time adds."""

    config: Config
    replicas: int
    memory_bytes: int
    meets: bool
    running_meets: bool
    fewest: int
    lasts: bool = True


class Planner(Protocol):
    """Makes decisions, by uid, and tells how many seconds it took."""

    def __call__(self, snapshot: FleetSnapshot) -> tuple[Mapping[str, Decision], float]:
        """Plan."""


class Sustains(Protocol):
    """The truth: requests per second that one replica serves within the intent's targets."""

    def __call__(self, intent: IntentView, config: Config) -> float:
        """Look up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to the fleet at a time after the start."""

    at_seconds: int
    name: str
    change: Callable[[FleetSnapshot], FleetSnapshot]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A scenario: a fleet, what happens to it, and the true load of every intent over time.

    Attributes:
        name: For the report.
        fleet: Intents, nodes, prices and fingerprints at the start.
        rates: True requests per second by uid, of the seconds since the start.
        events: In any order.
        seconds: How long it lasts.
    """

    name: str
    fleet: FleetSnapshot
    rates: Mapping[str, Callable[[int], float]]
    events: tuple[Event, ...] = ()
    seconds: int = 7200


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One step that was taken."""

    at_seconds: int
    uid: str
    step: Step
    before: Running | None


@dataclass(slots=True)
class Life:
    """What came out of a story."""

    taken: list[Taken] = field(default_factory=list)
    plans: list[tuple[int, tuple[str, ...], float, float]] = field(default_factory=list)
    """Second, triggers, seconds from the first cause until it was due, seconds it took."""
    arrived: int = 0
    within: int = 0
    device_seconds: int = 0
    starting_device_seconds: int = 0
    least_ready: int = 1 << 30
    """Of any intent, from its first ready replica on, while no machine is lost."""
    most_in_transition: float = 0.0
    """Share of a product's devices, beyond which one intent alone never goes."""
