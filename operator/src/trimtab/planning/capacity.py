"""Thread sets and memory of every node, as intents take them; never oversubscribed."""

from collections.abc import Iterable

from trimtab.planning.plan import Option
from trimtab.planning.slots import Need, Node, Nodes, Rack
from trimtab.planning.snapshot import Config, CpuPool


class Ledger:
    """What is left of each node's whole threads and memory."""

    def __init__(self, pools: Iterable[CpuPool]) -> None:
        self._rack = Rack(
            Node(
                name=pool.node,
                pool=pool.cpu_model,
                devices=pool.millicores // 1000,
                memory_bytes=pool.memory_bytes,
            )
            for pool in pools
        )

    def place(self, option: Option, *, prefer: Nodes = ()) -> Nodes | None:
        """Return replicas by node, kept where they are as far as possible; None if they do not fit.

        New replicas go where most threads are free, so that replicas spread over nodes.
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

    def largest_memory(self, cpu_model: str) -> int:
        """Return the most memory that one node of a CPU model has left."""
        rack = self._rack
        left = [rack.memory[node] for node, model in rack.pool.items() if model == cpu_model]
        return max([0, *left])

    def threads(self) -> int:
        """Return the whole threads that are left."""
        return sum(max(0, t) for t in self._rack.free.values())

    def _held(self, config: Config, nodes: Nodes, memory: int, *, sign: int) -> None:
        known = tuple((node, count) for node, count in nodes if node in self._rack.pool)
        need = Need(pool=config.cpu_model, group=config.threads, count=1, memory_bytes=memory)
        self._rack.add(need, known, sign=sign)


def need_of(option: Option) -> Need:
    """Return what an option asks of the nodes; on ``cpu`` the slots are sets of threads."""
    return Need(
        pool=option.config.cpu_model,
        group=option.config.threads,
        count=option.replicas,
        memory_bytes=option.memory_bytes,
    )
