"""Ways to place models on a fleet's GPUs: ours, and those it is compared with.

All of them know the same: thin-grid step models, declared rates, targets. Every one of them is given all GPUs:
what a strategy leaves over becomes further engines where the most is asked of one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.bench.fleet_scenario import BURSTS, OUTPUT, PROMPT, TPOT_MS, TTFT_MS, Engine
from trimtab.bench.production import Asked, planned
from trimtab.planning.columns import Column, Member
from trimtab.planning.greedy import solve_greedy
from trimtab.planning.joint import choose
from trimtab.planning.slots import Need, Node
from trimtab.planning.snapshot import Load, Targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from trimtab.bench.fleet_scenario import Placement, Scenario, Wish
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.workload import Arrival

_POOL: Final = "gpu"
_NODE: Final = 8
_HEADROOM: Final = 1.15
# Planner.md §9: without a history of requests, 1.5 times the declared rate.
_FASTER: Final = 1.5
_ENOUGH: Final = 0.9995
_PLANNED_SALT: Final = 1
_PLANNED_REQUESTS: Final = 256
_COUNTS: Final = (1, 2, 3, 4, 6, 8, 12, 16)
_GROUP_COLUMNS: Final = 4
_MOST_MEMBERS: Final = 4


def first_fit(s: Scenario) -> Placement:
    """Place wishes as they came: the fewest GPUs each, as many engines as its mean rate takes."""
    placed: list[Engine] = []
    for wish in s.wishes:
        for size in s.sizes(wish)[:1]:
            for _ in range(_engines_for(s, wish, size)):
                if _used(placed) + size <= s.gpus:
                    placed.append(Engine(size=size, names=(wish.name,)))
    return filled(s, placed)


def static(s: Scenario) -> Placement:
    """Give every wish an equal part of the GPUs, in engines of the fewest GPUs that it fits."""
    placed: list[Engine] = []
    part = s.gpus // len(s.wishes)
    for wish in s.wishes:
        for size in s.sizes(wish)[:1]:
            placed += [Engine(size=size, names=(wish.name,))] * max(1, part // size)
    while _used(placed) > s.gpus:
        placed.remove(max(placed, key=lambda e: (placed.count(e), e.size, e.names)))
    return filled(s, placed)


def alpaserve(s: Scenario) -> Placement:
    """AlpaServe's fast heuristic (arXiv 2302.11665): equal groups, each model where least is asked.

    For each group size: simulate, take the model with the most requests that miss, put it on the group that
    is least busy and has room, until all attain or nothing fits. The best size by simulation is taken.
    """
    arrivals = _planned(s)
    best: tuple[float, Placement] | None = None
    for size in sorted({size for _, size in s.setups}):
        groups: list[tuple[str, ...]] = [()] * (s.gpus // size)
        while True:
            placement = tuple(Engine(size=size, names=names) for names in groups if names)
            attained = s.attained(placement, arrivals, view="seen")
            total = _weighted(s, attained)
            if best is None or total > best[0]:
                best = (total, placement)
            missed = sorted(
                (name for name, share in attained.items() if share < _ENOUGH),
                key=lambda n: (-(1 - attained[n]) * s.by_name[n].rate, n),
            )
            place = next(
                (found for name in missed if (found := _roomiest(s, groups, name, size))), None
            )
            if place is None:
                break
            name, where = place
            groups[where] = (*groups[where], name)
    return filled(s, best[1] if best else ())


def _roomiest(
    s: Scenario, groups: Sequence[tuple[str, ...]], name: str, size: int
) -> tuple[str, int] | None:
    """Return the least busy group that a model can join."""
    copies = Counter(n for names in groups for n in names)

    def asked(where: int) -> float:
        return sum(s.busy(s.by_name[n], size) / copies[n] for n in groups[where])

    open_ = [
        where
        for where, names in enumerate(groups)
        if name not in names and s.kv_tokens(size, (*names, name))
    ]
    return (name, min(open_, key=lambda w: (asked(w), w))) if open_ else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What may be chosen, and which engines each stands for."""

    every: tuple[Column, ...]
    engines: Mapping[str, Placement]


def columns(s: Scenario) -> Columns:
    """Return every wish's own engines, and engines that some of them share (planner.md §9).

    The loss of a column is the predicted percentage of all requests that miss, at 1.5 times the rate.
    """
    arrivals = _planned(s)
    drafts = [*_own(s), *_shared(s)]
    found: list[Column] = []
    engines: dict[str, Placement] = {}
    enough: set[tuple[tuple[str, ...], int]] = set()
    for names, size, count in drafts:
        if (names, size) in enough:
            continue
        placement = (Engine(size=size, names=names),) * count
        mine = {name: arrivals[name] for name in names}
        attained = s.attained(placement, mine, view="seen")
        if min(attained.values()) >= _ENOUGH:
            enough.add((names, size))
        id_ = f"{'+'.join(names)}/{size}x{count}"
        engines[id_] = placement
        found.append(
            Column(
                id=id_,
                members=tuple(Member(uid=name) for name in names),
                need=Need(pool=_POOL, group=size, count=count),
                loss=100 * sum((1 - attained[n]) * _share(s, n) for n in names),
                largest=s.gpus,
            )
        )
    return Columns(every=tuple(found), engines=engines)


def planner(s: Scenario, *, policy: PlannerPolicy) -> Placement:
    """Ask the operator's planner, which on GPUs shares no engine yet: rates and bursts as observed, targets at p95."""
    targets = Targets(ttft_us=round(1000 * TTFT_MS), tpot_us=round(1000 * TPOT_MS), percentile=95)
    asked = [
        Asked(
            name=wish.name,
            model=wish.model,
            objective="TargetLatency",
            load=Load(
                requests_per_second=wish.rate,
                prompt_tokens=PROMPT,
                output_tokens=OUTPUT,
                variation=BURSTS,
            ),
            targets=targets,
        )
        for wish in s.wishes
    ]
    found = planned(asked, list(s.setups.values()), gpus=s.gpus, policy=policy)
    engines = [
        Engine(size=one.setup.size, names=(name,))
        for name, one in sorted(found.items())
        for _ in range(one.replicas)
    ]
    return filled(s, engines)


def with_sharing(s: Scenario, asked: Columns) -> Placement:
    """Choose jointly among these columns by the planner's solver: what plans of shared GPUs could be."""
    placed = [column for column, _ in choose(asked.every, nodes(s)).placed]
    return filled(s, [engine for column in placed for engine in asked.engines[column.id]])


def greedy(s: Scenario, asked: Columns) -> Placement:
    """Choose among the same columns by the greedy alone."""
    placed = solve_greedy(asked.every, nodes(s)).chosen()
    return filled(s, [engine for column in placed for engine in asked.engines[column.id]])


BASELINES: Final[Mapping[str, Callable[[Scenario], Placement]]] = {
    "first_fit": first_fit,
    "static": static,
    "alpaserve": alpaserve,
}


def nodes(s: Scenario) -> tuple[Node, ...]:
    """Return the fleet's nodes of eight GPUs."""
    return tuple(
        Node(name=f"node-{n}", pool=_POOL, devices=min(_NODE, s.gpus - n * _NODE))
        for n in range(-(-s.gpus // _NODE))
    )


def filled(s: Scenario, placed: Sequence[Engine]) -> Placement:
    """Return a placement with engines added on what is left, where the most is asked of one."""
    engines = list(placed)
    while True:
        left = s.gpus - _used(engines)
        open_ = [
            (-s.busy(wish, size) / (1 + _count(engines, wish.name)), wish.name, size)
            for wish in s.wishes
            for size in {e.size for e in engines if wish.name in e.names} or s.sizes(wish)[:1]
            if size <= left
        ]
        if not open_:
            return tuple(engines)
        _, name, size = min(open_)
        engines.append(Engine(size=size, names=(name,)))


def _own(s: Scenario) -> Iterator[tuple[tuple[str, ...], int, int]]:
    for wish in s.wishes:
        for size in s.sizes(wish):
            for count in _COUNTS:
                if size * count <= s.gpus:
                    yield (wish.name,), size, count


def _shared(s: Scenario) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yield groups of two to four that are least busy together, at most four per wish and size."""
    for size in sorted({size for _, size in s.setups}):
        taken: Counter[str] = Counter()
        fitting = [w for w in s.wishes if (w.model, size) in s.setups]
        candidates = sorted(
            (sum(s.busy(w, size) for w in group), -len(group), tuple(w.name for w in group))
            for count in range(2, _MOST_MEMBERS + 1)
            for group in itertools.combinations(fitting, count)
        )
        for busy, _, names in candidates:
            if max(taken[n] for n in names) >= _GROUP_COLUMNS or s.kv_tokens(size, names) is None:
                continue
            taken.update(names)
            for count in (1, 2):
                if busy <= count and size * count <= s.gpus:
                    yield names, size, count


def _planned(s: Scenario) -> dict[str, list[Arrival]]:
    """Return the requests that placements are planned with: other than those that then come."""
    rate = sum(wish.rate for wish in s.wishes) / len(s.wishes) * _FASTER
    seconds = _PLANNED_REQUESTS / rate
    return s.arrivals(salt=_PLANNED_SALT, faster=_FASTER, seconds=seconds)


def _engines_for(s: Scenario, wish: Wish, size: int) -> int:
    return max(1, -(-round(1000 * _HEADROOM * s.busy(wish, size)) // 1000))


def _used(engines: Sequence[Engine]) -> int:
    return sum(engine.size for engine in engines)


def _count(engines: Sequence[Engine], name: str) -> int:
    return sum(name in engine.names for engine in engines)


def _share(s: Scenario, name: str) -> float:
    return s.by_name[name].rate / sum(wish.rate for wish in s.wishes)


def _weighted(s: Scenario, attained: Mapping[str, float]) -> float:
    return sum(share * _share(s, name) for name, share in attained.items())
