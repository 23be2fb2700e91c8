"""What kinds of machines a fleet has and what of a model its GPUs hold: found once for all intents."""

from typing import TYPE_CHECKING

from trimtab.planning.gpu_memory import GpuMemory, gpu_memory
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision
from trimtab.planning.snapshot import Config, FleetSnapshot, ModelView
from trimtab.planning.sources import Sources

if TYPE_CHECKING:
    from trimtab.planning.architecture import Architecture


class Machines:
    """The machines of one plan.

    Attributes:
        products: That the fleet offers and the engine runs on, sorted.
        threads: Most threads that one node of each CPU model has.
        largest: Most GPUs of each product that one node has for plans.
        gpu_bytes: Memory of the smallest GPU of each product.
    """

    def __init__(self, snapshot: FleetSnapshot, *, policy: PlannerPolicy, sources: Sources) -> None:
        self._policy, self._sources = policy, sources
        self._block_tokens = snapshot.capabilities.block_tokens
        self.threads: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self.gpu_bytes: dict[str, int] = {}
        for pool in snapshot.pools:
            if pool.product == "cpu":
                most = max(self.threads.get(pool.cpu_model, 0), pool.millicores // 1000)
                self.threads[pool.cpu_model] = most
        for node in snapshot.gpu_pools:
            name, size = node.product, node.gpu_memory_bytes
            self.largest[name] = max(self.largest.get(name, 0), node.gpus)
            self.gpu_bytes[name] = min(self.gpu_bytes.get(name, size), size)
        offered = {pool.product for pool in snapshot.pools} & set(snapshot.capabilities.products)
        self.products = sorted(offered | self.largest.keys())
        self._memories: dict[tuple[Architecture, int, Config], GpuMemory | None] = {}

    def memory(self, model: ModelView, config: Config) -> GpuMemory | None:
        """Return the memory of a replica on GPUs; None where nothing is known of its step times."""
        asked = (model.architecture, model.depth, config)
        if asked not in self._memories:
            self._memories[asked] = self._memory(model, config)
        return self._memories[asked]

    def _memory(self, model: ModelView, config: Config) -> GpuMemory | None:
        known = self._sources.known(model, config)
        if known is None:
            return None
        return gpu_memory(
            model.architecture,
            config,
            depth=model.depth,
            gpu_bytes=self.gpu_bytes.get(config.product, 0),
            kv_precision=compute_precision(config.precision),
            block_tokens=self._block_tokens,
            rows=known.memory,
            policy=self._policy,
        )
