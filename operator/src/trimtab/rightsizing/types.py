"""What the right-sizer speaks: sizes, what an invocation used, and what was decided for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_CLASSES: Final = 32
LEAST_CPU_STEP_M: Final = 100
LEAST_MEMORY_STEP_MIB: Final = 128


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """What a pod is given: requests and limits alike.

    Attributes:
        cpu_m: Thousandths of a vCPU.
        mem_mib: Memory in MiB.
    """

    cpu_m: int
    mem_mib: int

    def covers(self, other: Size) -> bool:
        """Return whether it has at least as much of both."""
        return self.cpu_m >= other.cpu_m and self.mem_mib >= other.mem_mib


class LadderError(ValueError):
    """A ladder of sizes cannot be used; the message names field, value and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The classes to choose from, ascending, and the size that is used while nothing is known.

    Attributes:
        cpu_m: CPU classes in thousandths of a vCPU, 1 to 32.
        mem_mib: Memory classes in MiB, 1 to 32.
        default: A class of each.

    Raises:
        LadderError: Classes are missing, too many, not ascending or not positive, or the default is
            none of them.
    """

    cpu_m: tuple[int, ...]
    mem_mib: tuple[int, ...]
    default: Size

    def __post_init__(self) -> None:
        """Refuse what no decision could be made with."""
        for name, classes, default in (
            ("cpu", self.cpu_m, self.default.cpu_m),
            ("memory", self.mem_mib, self.default.mem_mib),
        ):
            if not 1 <= len(classes) <= MOST_CLASSES:
                raise LadderError(
                    f"resources.{name} has {len(classes)} classes. Choose min, max and step so that "
                    f"there are 1 to {MOST_CLASSES}."
                )
            if classes[0] < 1 or any(low >= high for low, high in pairwise(classes)):
                raise LadderError(
                    f"resources.{name} has classes {classes}, which are not positive and ascending. "
                    "Write min below max and a positive step."
                )
            if default not in classes:
                raise LadderError(
                    f"resources.{name}.default is {default}, none of {classes}. Choose one of them."
                )

    @classmethod
    def of(
        cls,
        *,
        cpu_m: tuple[int, int, int],
        mem_mib: tuple[int, int, int],
        default_cpu_m: int | None = None,
        default_mem_mib: int | None = None,
    ) -> Ladder:
        """Return the ladder of two ranges (min, max, step); max is a class even where it is no step.

        A default that is no class is rounded up to one; without one it is the largest size.

        Raises:
            LadderError: A step is below 100m or 128 MiB, min is above max, a default is above max, or
                there are more than 32 classes.
        """
        cpus = _classes(cpu_m, least=LEAST_CPU_STEP_M, name="cpu", unit="m")
        mems = _classes(mem_mib, least=LEAST_MEMORY_STEP_MIB, name="memory", unit="Mi")
        return cls(
            cpu_m=cpus,
            mem_mib=mems,
            default=Size(
                _default(cpus, default_cpu_m, name="cpu", unit="m"),
                _default(mems, default_mem_mib, name="memory", unit="Mi"),
            ),
        )

    @property
    def largest(self) -> Size:
        """The largest size."""
        return Size(self.cpu_m[-1], self.mem_mib[-1])


def _classes(span: tuple[int, int, int], *, least: int, name: str, unit: str) -> tuple[int, ...]:
    low, high, step = span
    if step < least:
        raise LadderError(
            f"resources.{name}.step is {step}{unit}, but pods cannot be told apart below {least}{unit} "
            f"(the cgroup driver rounds). Write {least}{unit} or more."
        )
    if not 0 < low <= high:
        raise LadderError(
            f"resources.{name}.min is {low}{unit} and max is {high}{unit}. Write a positive min that is "
            "not above max."
        )
    count = -(-(high - low) // step) + 1
    if count > MOST_CLASSES:
        raise LadderError(
            f"resources.{name} has {count} classes from {low}{unit} to {high}{unit} by {step}{unit}; "
            f"at most {MOST_CLASSES} are learned apart. Write a larger step."
        )
    return (*range(low, high, step), high)


def _default(classes: tuple[int, ...], wanted: int | None, *, name: str, unit: str) -> int:
    if wanted is None:
        return classes[-1]
    if wanted > classes[-1]:
        raise LadderError(
            f"resources.{name}.default is {wanted}{unit}, above max {classes[-1]}{unit}. Write a "
            "default between min and max."
        )
    return next(value for value in classes if value >= wanted)


class PeakKind(StrEnum):
    """How a peak of memory was seen, and so what it can teach."""

    RESET = "Reset"
    """The peak of this invocation alone."""
    SAMPLED = "Sampled"
    """The highest of samples: the true peak may be higher."""
    CUMULATIVE = "Cumulative"
    """Since the pod began, page cache included: an upper bound that never asks for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one invocation used, from runner or node agent.

    Attributes:
        cpu_s: CPU seconds of all threads.
        wall_s: Seconds from the request's arrival in the pod to the end of its answer.
        throttled_s: Seconds for which the CPU quota held it back; on several CPUs this may pass wall_s.
        periods_throttled: Quota periods in which it was held back.
        peak_anon_mib: Highest anonymous + kernel memory, without page cache, in MiB.
        peak_kind: How that was seen.
        oom: Whether it was killed for its memory.
        alloc: What the pod really had at the end.
        alloc_changed: Whether the pod was resized meanwhile.
    """

    cpu_s: float
    wall_s: float
    throttled_s: float
    periods_throttled: int
    peak_anon_mib: float
    peak_kind: PeakKind
    oom: bool
    alloc: Size
    alloc_changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What else is known about an invocation: whether its usage can teach anything.

    Attributes:
        status: HTTP status of the answer, 0 if there was none.
        client_gone: The client hung up before the answer ended.
        timed_out: The invocation was ended by its time-out.
        excluded: The function said `Trimtab-Exclude: true`.
        first_call: It was its pod's first.
        transfer_s: Seconds that the client took to send the body.
        overlapping: Another invocation's window in the same pod overlaps.
        length_differs: The body was not as long as its Content-Length said.
        retried: It ran at the largest size after a kill for memory at a smaller one.
    """

    status: int = 200
    client_gone: bool = False
    timed_out: bool = False
    excluded: bool = False
    first_call: bool = False
    transfer_s: float = 0.0
    overlapping: bool = False
    length_differs: bool = False
    retried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What is known about an input before it runs.

    Attributes:
        numbers: One per numeric feature of the plan, finite and not negative; the first two make the
            bucket.
        categories: `name=value`, sorted.
        missing: Name of the feature that could not be had, and why, in the form `name:why`.
        length: Bytes of the body, for the least memory that can hold it.
    """

    numbers: tuple[float, ...]
    categories: tuple[str, ...] = ()
    missing: str | None = None
    length: int = 0


class Gate(StrEnum):
    """Why the default size was used."""

    FEATURE_MISSING = "FeatureMissing"
    WARMING_UP = "WarmingUp"
    NOVEL_INPUT = "NovelInput"
    OFF = "Off"


class Source(StrEnum):
    """Who said how much."""

    DEFAULT = "default"
    BUCKET = "bucket"
    """The 90th percentile (memory: the maximum) of like inputs."""
    RAISED = "raised"
    """The learner, at least the bucket's."""
    LEARNED = "learned"
    """The learner alone."""
    TOO_SHORT = "short"
    """One class for the function: its invocations are too short for a quota to bind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The decision for one resource.

    Attributes:
        index: The class that is wanted.
        source: Who said so.
        gate: Why it is the default, if it is.
        costs: The learner's predicted cost of each class; empty where gated.
        candidates: The class that each candidate says; empty where gated.
    """

    index: int
    source: Source
    gate: Gate | None = None
    costs: tuple[float, ...] = ()
    candidates: Mapping[Source, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an invocation is given.

    Attributes:
        want: What is predicted to suffice, on the ladder.
        size: The size in use that covers it.
        cpu: How the CPU was decided.
        memory: How the memory was decided.
        infeasible: Whether no class is expected to meet the deadline.
    """

    want: Size
    size: Size
    cpu: Choice
    memory: Choice
    infeasible: bool = False
