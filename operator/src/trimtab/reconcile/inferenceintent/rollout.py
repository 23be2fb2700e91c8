"""What a roll-out consists of: kept on the Deployment, so that it can be read back after a crash."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.planning.precision import PRECISIONS
from trimtab.planning.snapshot import Config
from trimtab.reconcile.sealed import rollout_text, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab.observe.records import ConfigMapRecord, DeploymentRecord
    from trimtab.planning.plan import IntentPlan

_SLACK: Final = 0.8
# A measurement that differs by its noise rolls nothing; more than that, and the limit would kill.
_MEMORY_GROWTH: Final = 1.05
_MIN_DRAIN_SECONDS, _MAX_DRAIN_SECONDS = 45, 600
MOST: Final = 2**53
"""Largest size that is believed: the planner computes with floats, which a longer number overflows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The sizes of one replica, and for which generation of the intent they were chosen.

    Without ``surge`` an old replica goes before a new one comes: no device is free beside them.
    """

    generation: int
    config: Config
    memory_bytes: int
    arena_bytes: int
    max_model_len: int
    max_seqs: int
    max_batch_tokens: int
    drain_seconds: int
    nodes: tuple[str, ...] = ()
    surge: bool = True

    def to_json(self) -> str:
        """Return the annotation's text."""
        return seal(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Rollout | None:
        """Read the annotation; None where it is absent, edited or of another release."""
        return _read(text)


# Every Deployment's is read whenever one of them changes.
@functools.lru_cache(maxsize=8192)
def _read(text: str) -> Rollout | None:
    data = unseal(text)
    if data is None:
        return None
    try:
        config = Config(**data.pop("config"))
        nodes = tuple(data.pop("nodes"))
        read = Rollout(config=config, nodes=nodes, **data)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return read if _sane(read) else None


def _sane(rollout: Rollout) -> bool:
    """Whether an annotation, which anybody may edit, holds what plans can be made from."""
    config = rollout.config
    sizes = dataclasses.asdict(rollout)
    del sizes["config"], sizes["nodes"], sizes["surge"]
    counts = [config.tensor_parallel_size, config.pipeline_parallel_size]
    # Threads are chosen on cpu only.
    counts += [config.threads] if config.product == "cpu" else []
    return (
        type(rollout.surge) is bool
        and type(config.threads) is int
        and 0 <= config.threads <= MOST
        and all(type(size) is int and 0 <= size <= MOST for size in sizes.values())
        and all(type(count) is int and 1 <= count <= MOST for count in counts)
        and config.precision in PRECISIONS
        and all(isinstance(t, str) for t in (config.product, config.cpu_model, *rollout.nodes))
    )


def in_force(deployment: DeploymentRecord, model_sets: Iterable[ConfigMapRecord]) -> Rollout | None:
    """Return the roll-out that a Deployment's pods are of, None where nobody knows it."""
    return Rollout.from_json(rollout_text(deployment, model_sets))


def next_rollout(
    plan: IntentPlan, *, before: Rollout | None, several_nodes: bool
) -> Rollout | None:
    """Return what to run for a plan; None if it has no option.

    Within a generation of the intent, a plan that keeps the configuration and needs no larger
    arena keeps the running sizes too: a little more or less load is no reason to roll. What the
    process needs beside its arena does not depend on the load: the limit must hold it. But what
    serves is no worse known than an estimate.
    """
    option = plan.option
    if option is None:
        return None
    after = Rollout(
        generation=plan.generation,
        config=option.config,
        memory_bytes=option.memory_bytes,
        arena_bytes=option.arena_bytes,
        max_model_len=option.max_model_len,
        max_seqs=option.max_seqs,
        max_batch_tokens=option.max_batch_tokens,
        drain_seconds=drain_seconds(
            max_output_tokens=option.max_model_len,
            tpot_us=option.predicted.tpot.mean_us,
        ),
        nodes=tuple(sorted(node for node, _ in plan.nodes)) if several_nodes else (),
    )
    if before is None or before.config != after.config:
        return after
    before = dataclasses.replace(before, surge=True)
    sizes_do = (
        before.arena_bytes >= _SLACK * after.arena_bytes
        and before.max_model_len >= _SLACK * after.max_model_len
        and before.max_seqs >= _SLACK * after.max_seqs
        and (
            option.fingerprint == "Roofline"
            or _beside_arena(after) <= _MEMORY_GROWTH * _beside_arena(before)
        )
    )
    if before.generation == after.generation and sizes_do:
        return before
    # A spec edit that leaves every size as it is rolls nothing either: compare without origin.
    if dataclasses.replace(before, generation=0, nodes=()) == dataclasses.replace(
        after, generation=0, nodes=()
    ):
        return dataclasses.replace(after, nodes=before.nodes)
    return after


def _beside_arena(rollout: Rollout) -> int:
    return rollout.memory_bytes - rollout.arena_bytes


def drain_seconds(*, max_output_tokens: int, tpot_us: int) -> int:
    """Return how long a worker may finish running requests: cap x TPOT x 1.5, 45 to 600 s.

    Rounded up to 15 s, so that a slightly different prediction is no different pod.
    """
    seconds = max_output_tokens * tpot_us * 1.5 / 1e6
    rounded = -(-int(seconds) // 15) * 15
    return max(_MIN_DRAIN_SECONDS, min(_MAX_DRAIN_SECONDS, rounded))
