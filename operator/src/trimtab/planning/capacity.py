"""Thread sets, GPUs and memory of every node, as intents take them; never oversubscribed."""

from collections.abc import Iterable

from trimtab.planning.plan import Option
from trimtab.planning.slots import Need, Node, Nodes, Rack, first
from trimtab.planning.snapshot import Assignment, Config, CpuPool, GpuPool


class Ledger:
    """What is left of each node's whole threads or GPUs, and of its memory."""

    def __init__(self, pools: Iterable[CpuPool], gpus: Iterable[GpuPool] = ()) -> None:
        threads = [
            Node(
                name=pool.node,
                pool=pool.cpu_model,
                devices=pool.millicores // 1000,
                memory_bytes=pool.memory_bytes,
            )
            for pool in pools
        ]
        slots = [
            Node(
                name=pool.node,
                pool=pool.product,
                devices=pool.gpus,
                memory_bytes=pool.memory_bytes,
            )
            for pool in gpus
        ]
        self._threads = {node.name for node in threads}
        self._rack = Rack([*threads, *slots])

    def place(self, option: Option, *, prefer: Nodes = ()) -> Nodes | None:
        """Return replicas by node, kept where they are as far as possible; None if they do not fit.

        New replicas go where most devices are free, so that replicas spread over nodes.
        """
        return self._rack.place(need_of(option), prefer=prefer)

    def fits(self, option: Option) -> bool:
        """Tell whether `place` would find a place."""
        return self._rack.fits(need_of(option))

    def take(self, option: Option, nodes: Nodes) -> None:
        """Reserve what a placement needs."""
        self._rack.add(need_of(option), nodes, sign=-1)

    def release(self, option: Option, nodes: Nodes) -> None:
        """Give back what was taken."""
        self._rack.add(need_of(option), nodes, sign=1)

    def hold(self, config: Config, nodes: Nodes, *, memory_bytes: int) -> None:
        """Reserve what replicas use that are there, whether or not there is room."""
        self._held(config, nodes, memory_bytes, sign=-1)

    def let_go(self, config: Config, nodes: Nodes, *, memory_bytes: int) -> None:
        """Give back what was held."""
        self._held(config, nodes, memory_bytes, sign=1)

    def slots(self, option: Option) -> int:
        """Return how many replicas fit beside what is taken."""
        return self._rack.rooms(need_of(option))

    def free(self) -> tuple[Node, ...]:
        """Return what is left of each node."""
        return self._rack.nodes()

    def largest_memory(self, config: Config) -> int:
        """Return the most memory that one node of a configuration's kind has left."""
        rack = self._rack
        left = [rack.memory[node] for node, pool in rack.pool.items() if pool == config.pool]
        return max([0, *left])

    def devices(self, config: Config) -> int:
        """Return the GPUs of a configuration's product that are left; on ``cpu`` all threads."""
        free, pool = self._rack.free, self._rack.pool
        mine = (
            self._threads
            if config.product == "cpu"
            else {name for name in free if pool[name] == config.product}
        )
        return sum(max(0, free[name]) for name in mine)

    def _held(self, config: Config, nodes: Nodes, memory: int, *, sign: int) -> None:
        known = tuple((node, count) for node, count in nodes if node in self._rack.pool)
        need = Need(pool=config.pool, group=config.devices, count=1, memory_bytes=memory)
        self._rack.add(need, known, sign=sign)


def need_of(option: Option) -> Need:
    """Return what an option asks of the nodes: groups of GPUs, on ``cpu`` sets of threads."""
    return Need(
        pool=option.config.pool,
        group=option.config.devices,
        count=option.replicas,
        memory_bytes=option.memory_bytes,
    )


def located(assignment: Assignment) -> Nodes:
    """Return where the replicas are; the pods that a roll has beyond them are passing."""
    return first(tuple(sorted(assignment.nodes)), assignment.replicas)


def place_of(assignment: Assignment) -> tuple[str, str]:
    """Return what tells places apart: a group's members have one together."""
    if assignment.group:
        return ("group", assignment.group)
    return ("intent", assignment.intent_uid)


def one_per_place(assignments: Iterable[Assignment]) -> list[Assignment]:
    """Return each place that is held once, in order of its holders."""
    found: dict[tuple[str, str], Assignment] = {}
    for assignment in sorted(assignments, key=lambda a: a.intent_uid):
        found.setdefault(place_of(assignment), assignment)
    return list(found.values())
