"""A simulated fleet that is slow to change: replicas take time to start, and machines get lost.

What a Deployment does, with what it costs: a replica that starts or that a roll keeps beside the
old one takes its devices from the first second. Pure; the clock is an argument, in µs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from trimtab.planning.replan import Mode, Running, Step
from trimtab.planning.snapshot import Assignment, Config, CpuPool
from trimtab.planning.transition import devices


@dataclass(slots=True)
class Replica:
    """One process: where it is and when it serves."""

    config: Config
    node: str
    memory_bytes: int
    ready_us: int


@dataclass(slots=True)
class Served:
    """One intent's replicas and what was asked for last."""

    config: Config
    memory_bytes: int
    wanted: int
    generation: int
    changed_us: int
    mode: Mode = "MakeBeforeBreak"
    lost: bool = False
    replicas: list[Replica] = field(default_factory=list)


class Plant:
    """Nodes and the replicas on them."""

    def __init__(self, pools: Iterable[CpuPool], *, start_us: int) -> None:
        """Prepare; ``start_us`` is how long a replica takes until it serves."""
        self.pools = {pool.node: pool for pool in pools}
        self.served: dict[str, Served] = {}
        self._start_us = start_us

    def set_pools(self, pools: Iterable[CpuPool]) -> None:
        """Replace the nodes; what ran on those that are gone is gone too."""
        self.pools = {pool.node: pool for pool in pools}
        for one in self.served.values():
            kept = [r for r in one.replicas if r.node in self.pools]
            one.lost = one.lost or len(kept) < len(one.replicas)
            one.replicas = kept

    def apply(
        self, uid: str, step: Step, *, memory_bytes: int, generation: int, now_us: int
    ) -> None:
        """Ask for what a step says; time does the rest."""
        one = self.served.get(uid)
        if one is None:
            one = Served(step.config, memory_bytes, step.replicas, generation, now_us)
            self.served[uid] = one
        if step.kind in ("Move", "Create"):
            one.config, one.memory_bytes = step.config, memory_bytes
            one.mode = step.mode if step.kind == "Move" else "MakeBeforeBreak"
        one.wanted, one.generation, one.changed_us = step.replicas, generation, now_us
        self.advance(now_us)

    def advance(self, now_us: int) -> None:
        """Let every roll and every start go as far as it can."""
        for _, one in sorted(self.served.items()):
            self._roll(one, now_us)
            if self._settled(one, now_us):
                one.lost = False

    def running(self, uid: str, *, now_us: int) -> Running | None:
        """Return what exists of an intent, as ``next_step`` reads it."""
        one = self.served.get(uid)
        if one is None:
            return None
        current = [r for r in one.replicas if r.config == one.config]
        old = len(one.replicas) - len(current)
        return Running(
            config=one.config,
            replicas=one.wanted,
            ready=self.ready(uid, now_us=now_us),
            generation=one.generation,
            rolling=old > 0 or len(current) > one.wanted,
            changed_us=one.changed_us,
            lost=one.lost,
        )

    def ready(self, uid: str, *, now_us: int) -> int:
        """Return how many replicas serve."""
        one = self.served.get(uid)
        return 0 if one is None else sum(r.ready_us <= now_us for r in one.replicas)

    def ready_by_config(self, uid: str, *, now_us: int) -> dict[Config, int]:
        """Return how many replicas of each configuration serve."""
        found: dict[Config, int] = {}
        one = self.served.get(uid)
        for replica in one.replicas if one else ():
            if replica.ready_us <= now_us:
                found[replica.config] = found.get(replica.config, 0) + 1
        return found

    def assignments(self) -> tuple[Assignment, ...]:
        """Return what plans are told of what runs."""
        found = []
        for uid, one in sorted(self.served.items()):
            nodes: dict[str, int] = {}
            for replica in one.replicas:
                if replica.config == one.config:
                    nodes[replica.node] = nodes.get(replica.node, 0) + 1
            found.append(
                Assignment(
                    intent_uid=uid,
                    config=one.config,
                    replicas=one.wanted,
                    nodes=tuple(sorted(nodes.items())),
                    generation=one.generation,
                    memory_bytes=one.memory_bytes,
                )
            )
        return tuple(found)

    def devices(self, *, now_us: int) -> tuple[int, int]:
        """Return the devices in use, and those of replicas that do not serve yet."""
        used = starting = 0
        for one in self.served.values():
            for replica in one.replicas:
                used += devices(replica.config)
                starting += devices(replica.config) if replica.ready_us > now_us else 0
        return used, starting

    def room(self, config: Config, *, memory_bytes: int) -> int:
        """Return how many replicas of a configuration fit beside everything that runs."""
        return sum(self._slots(node, config, memory_bytes) for node in self.pools)

    def swaps(self, uid: str, config: Config, *, memory_bytes: int) -> bool:
        """Tell whether a replica of a configuration fits in place of one that the intent has."""
        one = self.served.get(uid)
        return one is not None and any(
            self._fits_without(replica, config, memory_bytes) for replica in one.replicas
        )

    def _fits_without(self, gone: Replica, config: Config, memory_bytes: int) -> bool:
        return (
            gone.node in self.pools
            and self._slots(gone.node, config, memory_bytes, without=gone) > 0
        )

    def _settled(self, one: Served, now_us: int) -> bool:
        ready = [r for r in one.replicas if r.config == one.config and r.ready_us <= now_us]
        return len(ready) == len(one.replicas) == one.wanted

    def _roll(self, one: Served, now_us: int) -> None:
        old = [r for r in one.replicas if r.config != one.config]
        current = [r for r in one.replicas if r.config == one.config]
        if old:
            self._replace(one, old, current, now_us)
            return
        while len(current) > one.wanted:
            # Those that do not serve yet go first, as a replica set does it.
            last = max(current, key=lambda r: (r.ready_us, r.node))
            current.remove(last)
            one.replicas.remove(last)
        while len(current) < one.wanted and self._create(one, now_us):
            current = [r for r in one.replicas if r.config == one.config]

    def _replace(
        self, one: Served, old: list[Replica], current: list[Replica], now_us: int
    ) -> None:
        """One replica beside the rest, or in place of one; the last that serves stays."""
        if one.mode == "BreakBeforeMake":
            one.replicas = current
            self._roll(one, now_us)
            return
        starting = [r for r in current if r.ready_us > now_us]
        ready = [r for r in one.replicas if r.ready_us <= now_us]
        while old and len(ready) > one.wanted:
            gone = old.pop()
            ready = [r for r in ready if r is not gone]
            one.replicas.remove(gone)
        if starting:
            return
        if len(current) < one.wanted:
            if one.mode == "OneByOne" and len(ready) >= 2:
                self._make_room(one, old)
            self._create(one, now_us)
        elif old:
            one.replicas.remove(old.pop())

    def _make_room(self, one: Served, old: list[Replica]) -> None:
        for replica in old:
            if self._fits_without(replica, one.config, one.memory_bytes):
                one.replicas.remove(replica)
                return

    def _create(self, one: Served, now_us: int) -> bool:
        for node in sorted(self.pools, key=lambda n: (-self._free(n)[0], n)):
            if self._slots(node, one.config, one.memory_bytes) > 0:
                ready = now_us + self._start_us
                one.replicas.append(Replica(one.config, node, one.memory_bytes, ready))
                return True
        return False

    def _slots(
        self, node: str, config: Config, memory_bytes: int, *, without: Replica | None = None
    ) -> int:
        pool = self.pools[node]
        if (pool.product, pool.cpu_model) != (config.product, config.cpu_model):
            return 0
        threads, memory = self._free(node)
        if without is not None:
            threads, memory = threads + devices(without.config), memory + without.memory_bytes
        return max(0, min(threads // devices(config), memory // max(1, memory_bytes)))

    def _free(self, node: str) -> tuple[int, int]:
        pool = self.pools[node]
        threads, memory = pool.millicores // 1000, pool.memory_bytes
        for one in self.served.values():
            for replica in one.replicas:
                if replica.node == node:
                    threads -= devices(replica.config)
                    memory -= replica.memory_bytes
        return threads, memory
