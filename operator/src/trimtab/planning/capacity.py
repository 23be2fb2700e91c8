"""Thread sets and memory of every node, as intents take them; never oversubscribed."""

from collections.abc import Iterable, Sequence

from trimtab.planning.plan import Option
from trimtab.planning.snapshot import Config, CpuPool

Nodes = tuple[tuple[str, int], ...]


class Ledger:
    """What is left of each node's whole threads and memory."""

    def __init__(self, pools: Iterable[CpuPool]) -> None:
        self._model: dict[str, str] = {}
        self._threads: dict[str, int] = {}
        self._memory: dict[str, int] = {}
        for pool in sorted(pools, key=lambda p: p.node):
            self._model[pool.node] = pool.cpu_model
            self._threads[pool.node] = pool.millicores // 1000
            self._memory[pool.node] = pool.memory_bytes

    def place(self, option: Option, *, prefer: Nodes = ()) -> Nodes | None:
        """Return replicas by node, kept where they are as far as possible; None if they do not fit.

        New replicas go where most threads are free, so that replicas spread over nodes.
        """
        left = option.replicas
        placed: dict[str, int] = {}
        for node, running in prefer:
            count = min(running, left, self._slots(node, option))
            if count > 0:
                placed[node] = count
                left -= count
        while left:
            room = [n for n in self._threads if self._slots(n, option) > placed.get(n, 0)]
            if not room:
                return None
            node = min(room, key=lambda n: (-self._free(n, option, placed.get(n, 0)), n))
            placed[node] = placed.get(node, 0) + 1
            left -= 1
        return tuple(sorted(placed.items()))

    def take(self, option: Option, nodes: Nodes) -> None:
        """Reserve what a placement needs."""
        self._add(option.config, option.memory_bytes, nodes, sign=-1)

    def release(self, option: Option, nodes: Nodes) -> None:
        """Give back what was taken."""
        self._add(option.config, option.memory_bytes, nodes, sign=1)

    def hold(self, config: Config, nodes: Nodes, *, memory_bytes: int) -> None:
        """Reserve what replicas use that are there, whether or not there is room."""
        self._add(config, memory_bytes, self._known(nodes), sign=-1)

    def let_go(self, config: Config, nodes: Nodes, *, memory_bytes: int) -> None:
        """Give back what was held."""
        self._add(config, memory_bytes, self._known(nodes), sign=1)

    def slots(self, option: Option) -> int:
        """Return how many replicas fit beside what is taken."""
        return sum(self._slots(node, option) for node in self._threads)

    def largest_memory(self, cpu_model: str) -> int:
        """Return the most memory that one node of a CPU model has left."""
        left = [self._memory[n] for n, m in self._model.items() if m == cpu_model]
        return max([0, *left])

    def threads(self) -> int:
        """Return the whole threads that are left."""
        return sum(max(0, t) for t in self._threads.values())

    def _known(self, nodes: Nodes) -> Nodes:
        return tuple((node, count) for node, count in nodes if node in self._threads)

    def _slots(self, node: str, option: Option) -> int:
        if self._model.get(node) != option.config.cpu_model:
            return 0
        by_threads = self._threads[node] // option.config.threads
        return max(0, min(by_threads, self._memory[node] // option.memory_bytes))

    def _free(self, node: str, option: Option, placed: int) -> int:
        return self._threads[node] - placed * option.config.threads

    def _add(
        self, config: Config, memory: int, nodes: Sequence[tuple[str, int]], *, sign: int
    ) -> None:
        for node, count in nodes:
            self._threads[node] += sign * count * config.threads
            self._memory[node] += sign * count * memory
