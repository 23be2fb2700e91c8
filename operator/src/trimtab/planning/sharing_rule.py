"""Who may share a worker with whom, and what that worker is given (planner.md §9)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from trimtab.planning.case import Case
from trimtab.planning.group_memory import GroupMemory
from trimtab.planning.objectives import Judged, judge
from trimtab.planning.plan import Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.remap import RemapAdvice
from trimtab.planning.shared_worker import advise, beside, worker_memory
from trimtab.planning.snapshot import Config, FleetSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A Shared intent and the option that it would run alone."""

    case: Case
    judged: Judged

    @property
    def uid(self) -> str:
        """Of the intent."""
        return self.case.intent.uid

    @property
    def group(self) -> str:
        """The running group that it is a member of; empty where it is of none."""
        return self.case.assignment.group if self.case.assignment else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One way to run a group's worker.

    Attributes:
        option: What is asked of the fleet.
        memory: Of the worker.
        members: With the options that they would run alone on this configuration.
        advice: Whether idle members lend.
    """

    option: Option
    memory: GroupMemory
    members: tuple[Candidate, ...]
    advice: RemapAdvice


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWorker:
    """One group: its members, and the place that it asks of the fleet.

    Attributes:
        id: Of the group.
        members: Oldest first.
        sizes: What its worker may be given, the preferred first: with room for joiners before
            without, then other configurations that suit all members.
    """

    id: str
    members: tuple[Candidate, ...]
    sizes: tuple[Size, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may join whom, and what the worker of a group would be."""

    snapshot: FleetSnapshot
    policy: PlannerPolicy

    def refusal(self, candidate: Candidate, members: Sequence[Candidate]) -> str:
        """Return why a candidate cannot join these members; empty if it can."""
        if not members:
            return ""
        together = (*members, candidate)
        stays = all(m.group and m.group == candidate.group for m in members)
        checks = (
            self._crowded(together),
            _apart(candidate, members),
            self._unknown_load(together),
            self._busy(together, stays=stays),
            self._missed(together),
            self._memory(together, stays=stays),
            "" if stays else self._unlent(together),
        )
        return next((refusal for refusal in checks if refusal), "")

    def _crowded(self, together: Sequence[Candidate]) -> str:
        most = self.policy.shared_members
        if len(together) <= most:
            return ""
        return f"GroupFull: the group has {most} members, the most that share a worker."

    def _unknown_load(self, together: Sequence[Candidate]) -> str:
        unknown = [m for m in together if m.case.load is None or m.case.load.assumed]
        if not unknown:
            return ""
        return (
            f"LoadUnknown: no load of {_names(unknown)} is declared or observed, so nobody can say "
            "whether one worker carries them all. Declare spec.load."
        )

    def _busy(self, together: Sequence[Candidate], *, stays: bool) -> str:
        limit = (
            self.policy.kept_utilisation_permille
            if stays
            else self.policy.shared_utilisation_permille
        )
        used = sum(m.judged.option.predicted.utilisation_permille for m in together)
        if used <= limit:
            return ""
        return (
            f"TooBusy: with {_names(together)} one worker would be busy for {used / 10:.0f} % of the "
            f"time, over {limit / 10:.0f} %."
        )

    def _missed(self, together: Sequence[Candidate]) -> str:
        for member in together:
            load = member.case.load
            if load is None or not member.judged.meets:
                continue
            judged = judge(
                member.case.intent,
                beside(member, together),
                load=load,
                priced=False,
                policy=self.policy,
            )
            worst = judged.worst
            if not judged.meets and worst is not None:
                return (
                    f"ObjectiveMissed: beside {_names([m for m in together if m is not member])} "
                    f"{member.case.intent.name} would miss {worst.name} by {100 * worst.value - 100:.0f} %."
                )
        return ""

    def _memory(self, together: Sequence[Candidate], *, stays: bool) -> str:
        memory = self._of(together, headroom=0)
        permille = 1000 * memory.waste
        if permille > self.policy.shared_waste_permille and not stays:
            return (
                f"SlabMismatch: layers of {_names(together)} differ so much in size that slabs for "
                f"both would waste {permille / 10:.0f} %."
            )
        alone = sum(m.judged.option.memory_bytes for m in together)
        if memory.least_total <= alone or stays:
            return ""
        return (
            f"NoSaving: one worker for {_names(together)} needs {memory.least_total >> 20} MiB, "
            f"workers of their own {alone >> 20} MiB."
        )

    def _unlent(self, together: Sequence[Candidate]) -> str:
        advice = self._advice(together)
        if advice.verdict != "DoNotRemap":
            return ""
        return advice.reasons[0] if advice.reasons else "DoNotRemap: idle weights cannot be lent."

    def worker(self, name: str, members: tuple[Candidate, ...]) -> SharedWorker:
        """Return the group of these members, with every configuration that would do for all."""
        sizes = [*self._sizes(name, members)]
        wanted = _shape(members[0].judged)
        for judged in members[0].case.options:
            if _shape(judged) == wanted or judged.option.replicas != 1:
                continue
            others = tuple(m for c in members if (m := _on(c, _shape(judged))) is not None)
            refused = any(self.refusal(m, others[:n]) for n, m in enumerate(others))
            if len(others) == len(members) and not refused:
                sizes += self._sizes(name, others)
        return SharedWorker(id=name, members=members, sizes=tuple(sizes))

    def _sizes(self, name: str, members: tuple[Candidate, ...]) -> Iterator[Size]:
        """Yield the sizes of one configuration: with room for joiners, then without."""
        config = members[0].judged.option.config
        ran = next((m.case.assignment for m in members if m.group == name), None)
        advice = self._advice(members)
        for headroom in dict.fromkeys((self.snapshot.headroom_models, 0)):
            memory = self._of(members, headroom=headroom)
            option = self._option(members, memory, config=config)
            if ran is not None and ran.memory_bytes >= memory.least_total:
                # What runs suffices: its size is no reason to roll.
                option = replace(
                    option,
                    memory_bytes=ran.memory_bytes,
                    arena_bytes=memory.arena_within(ran.memory_bytes),
                )
            yield Size(option=option, memory=memory, members=members, advice=advice)

    def _option(
        self, members: Sequence[Candidate], memory: GroupMemory, *, config: Config
    ) -> Option:
        options = [m.judged.option for m in members]
        return replace(
            options[0],
            config=config,
            replicas=1,
            memory_bytes=memory.total,
            arena_bytes=memory.arena,
            max_model_len=max(o.max_model_len for o in options),
            max_seqs=max(o.max_seqs for o in options),
            max_batch_tokens=max(o.max_batch_tokens for o in options),
        )

    def least_memory(self, members: Sequence[Candidate]) -> int:
        """Return what the worker of these members requests at least, bytes."""
        return self._of(members, headroom=0).least_total

    def _of(self, members: Sequence[Candidate], *, headroom: int) -> GroupMemory:
        return worker_memory(
            members,
            headroom_models=headroom,
            block_tokens=self.snapshot.capabilities.block_tokens,
            policy=self.policy,
        )

    def _advice(self, members: Sequence[Candidate]) -> RemapAdvice:
        return advise(
            members,
            memory=self._of(members, headroom=0),
            block_tokens=self.snapshot.capabilities.block_tokens,
            policy=self.policy,
        )


def _shape(judged: Judged) -> Config:
    """Return a configuration without precision: each model of a worker has its own."""
    return replace(judged.option.config, precision="")


def _on(candidate: Candidate, shape: Config) -> Candidate | None:
    """Return a candidate with its best option of one replica on a configuration."""
    refuse = candidate.case.intent.infeasible == "Refuse"
    for judged in candidate.case.options:
        fits = _shape(judged) == shape and judged.option.replicas == 1
        if fits and (judged.meets or not refuse):
            return replace(candidate, judged=judged)
    return None


def _apart(candidate: Candidate, members: Sequence[Candidate]) -> str:
    """Return why one pod cannot mount all members' files where the group runs; empty if it can.

    A pod that asks for volumes of two nodes is never scheduled, and the others wait for it.
    """
    bound = [m for m in (*members, candidate) if m.case.intent.volume_nodes is not None]
    if not bound:
        return ""
    common = set.intersection(*(set(m.case.intent.volume_nodes or ()) for m in bound))
    if not common:
        return f"VolumesApart: no node can mount the volumes of {_names(bound)} together."
    stays = candidate.group and candidate.group in {m.group for m in members}
    runs = {
        node
        for m in members
        if m.group and m.case.assignment is not None
        for node, _ in m.case.assignment.nodes
    }
    if stays or not runs or common & runs:
        return ""
    return (
        f"VolumesApart: the volume of {candidate.case.intent.name} can be mounted on "
        f"{_few(common)}, and the group's worker runs on {_few(runs)}."
    )


def _few(nodes: Iterable[str]) -> str:
    """Return node names for a sentence, three at most."""
    names = sorted(nodes)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _names(members: Sequence[Candidate]) -> str:
    return ", ".join(sorted(m.case.intent.name for m in members))
