"""What a group's roll-out consists of, and which changes of its members need none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.inferenceintent_spec import ModelSource
from trimtab.planning.precision import PRECISIONS
from trimtab.planning.snapshot import Config
from trimtab.reconcile.inferenceintent.rollout import MOST, drain_seconds
from trimtab.reconcile.sealed import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.planning.plan import GroupPlan

_SLACK: Final = 0.8
_MEMORY_GROWTH: Final = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A member as it was applied: its name, the precision of its weights, its generation."""

    name: str
    precision: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRollout:
    """The sizes of a group's worker, kept on its Deployment.

    Attributes:
        shaped_for: Entries of the models that the arena's slabs were chosen for.
        volumes: Sources that are mounted, as canonical JSON; they stay when their intent leaves.
        members: By uid.
        host_bytes: Of the node's disk, for host copies; 0 where an older release wrote this.
    """

    product: str
    cpu_model: str
    threads: int
    memory_bytes: int
    arena_bytes: int
    max_model_len: int
    max_seqs: int
    max_batch_tokens: int
    drain_seconds: int
    nodes: tuple[str, ...] = ()
    shaped_for: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    members: Mapping[str, Joined] = field(default_factory=dict)
    host_bytes: int = 0

    def to_json(self) -> str:
        """Return the annotation's text."""
        return seal(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GroupRollout | None:
        """Read the annotation; None where it is absent, edited or of another release."""
        data = unseal(text)
        if data is None:
            return None
        try:
            members = {str(u): Joined(**m) for u, m in data.pop("members").items()}
            data |= {name: tuple(data[name]) for name in ("nodes", "shaped_for", "volumes")}
            read = cls(members=members, **data)
            return read if _sane(read) else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def config(self, uid: str) -> Config | None:
        """Return the configuration that a member runs with, None for who is none."""
        member = self.members.get(uid)
        if member is None:
            return None
        return Config(
            product=self.product,
            cpu_model=self.cpu_model,
            precision=member.precision,
            threads=self.threads,
        )


def _sane(rollout: GroupRollout) -> bool:
    """Whether an annotation, which anybody may edit, holds what plans can be made from."""
    sizes = (
        rollout.memory_bytes,
        rollout.arena_bytes,
        rollout.max_model_len,
        rollout.max_seqs,
        rollout.max_batch_tokens,
        rollout.drain_seconds,
        rollout.host_bytes,
    )
    words = (rollout.product, rollout.cpu_model)
    texts = (*words, *rollout.nodes, *rollout.shaped_for, *rollout.volumes)
    return (
        all(type(size) is int and 0 <= size <= MOST for size in sizes)
        and type(rollout.threads) is int
        and 1 <= rollout.threads <= MOST
        and all(isinstance(text, str) for text in texts)
        and all(_is_source(text) for text in rollout.volumes)
        and all(
            type(m.generation) is int and 0 <= m.generation <= MOST and m.precision in PRECISIONS
            for m in rollout.members.values()
        )
    )


def _is_source(text: str) -> bool:
    """Whether a volume names exactly one source, as the CRD's rule has it."""
    return len(ModelSource.model_validate_json(text).model_dump(exclude_none=True)) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What the worker has to serve now.

    Attributes:
        entries: One text per model: changes with anything but its presence in the set.
        names: Of the models, in the order of the entries.
        volumes: That the models lie on, as canonical JSON.
        members: By uid.
    """

    entries: tuple[str, ...]
    names: tuple[str, ...]
    volumes: tuple[str, ...]
    members: Mapping[str, Joined]


def next_rollout(
    plan: GroupPlan,
    present: Present,
    *,
    before: GroupRollout | None,
    live: Mapping[str, str],
    nodes: tuple[str, ...] = (),
    refused: Sequence[str] = (),
    stuck: bool = False,
    frozen: bool = False,
) -> GroupRollout:
    """Return what to run: what runs now wherever that takes the members in.

    Args:
        plan: The fleet's decision.
        present: What is to be served.
        before: What runs now.
        live: Entries of the model set in force, by name.
        nodes: That are preferred.
        refused: Names of models that running workers could not take in.
        stuck: A pod of what runs now finds no node.
        frozen: A member is paused: what runs stays.
    """
    after = GroupRollout(
        product=plan.config.product,
        cpu_model=plan.config.cpu_model,
        threads=plan.config.threads,
        memory_bytes=plan.memory_bytes,
        arena_bytes=plan.arena_bytes,
        max_model_len=plan.max_model_len,
        max_seqs=plan.max_seqs,
        max_batch_tokens=plan.max_batch_tokens,
        drain_seconds=drain_seconds(
            max_output_tokens=plan.max_model_len, tpot_us=plan.slowest_tpot_us
        ),
        nodes=nodes,
        shaped_for=present.entries,
        volumes=present.volumes,
        members=present.members,
        host_bytes=plan.host_bytes,
    )
    if before is None:
        return after
    kept = dataclasses.replace(before, members=present.members)
    # A volume that nobody uses any more may be what keeps the pod from every node.
    sheds = stuck and set(after.volumes) < set(before.volumes)
    changed = sheds or _reshaped(present, before, live, refused)
    return kept if frozen or (_suffices(plan, before, after) and not changed) else after


def _suffices(plan: GroupPlan, before: GroupRollout, after: GroupRollout) -> bool:
    """Whether volumes and ceiling of what runs hold the members."""
    same = (before.product, before.cpu_model, before.threads) == (
        after.product,
        after.cpu_model,
        after.threads,
    )
    # A new figure for those who run already is noise up to a point; a newcomer's is not.
    joined = not after.members.keys() <= before.members.keys()
    slack, growth = (1.0, 1.0) if joined else (_SLACK, _MEMORY_GROWTH)
    return (
        same
        and set(after.volumes) <= set(before.volumes)
        and before.arena_bytes >= slack * plan.least_arena_bytes
        and growth * before.memory_bytes >= plan.least_memory_bytes
        and (not before.host_bytes or growth * before.host_bytes >= plan.least_host_bytes)
        and before.max_model_len >= _SLACK * after.max_model_len
        and before.max_seqs >= _SLACK * after.max_seqs
    )


def _reshaped(
    present: Present, before: GroupRollout, live: Mapping[str, str], refused: Sequence[str]
) -> bool:
    """Whether a model changed in place, or was refused by an arena that was made without it."""
    entries = dict(zip(present.names, present.entries, strict=True))
    shaped = set(before.shaped_for)
    changed = any(live.get(name, entry) != entry for name, entry in entries.items())
    return changed or any(name in entries and entries[name] not in shaped for name in refused)
