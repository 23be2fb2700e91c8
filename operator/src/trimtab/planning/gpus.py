"""Which groups of GPUs can serve a model (planner.md §5, §8)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from trimtab.planning.gpu_memory import GpuMemory
from trimtab.planning.roofline_gpu import PEAKS, WEIGHT_BYTES
from trimtab.planning.snapshot import Config, GpuPool

_GIB: Final = 2**30


def gpu_bytes(pools: Iterable[GpuPool], product: str) -> int:
    """Return the memory of the smallest GPU of a product; 0 where there is none."""
    return min((p.gpu_memory_bytes for p in pools if p.product == product), default=0)


def gpu_configs(
    product: str,
    *,
    stages: int,
    precisions: Iterable[str],
    sizes: Sequence[int],
) -> Iterator[Config]:
    """Yield the configurations of a product with so many pipeline stages."""
    for precision in sorted(set(precisions)):
        for tp in sorted(set(sizes)):
            yield Config(
                product=product,
                cpu_model="",
                precision=precision,
                threads=0,
                tensor_parallel_size=tp,
                pipeline_parallel_size=stages,
            )


def known_peak(config: Config) -> bool:
    """Whether a configuration can be estimated from the data sheet of its product."""
    return config.product in PEAKS and config.precision in WEIGHT_BYTES


def too_large(memory: GpuMemory, config: Config, *, longest: int, gpu_bytes: int) -> str | None:
    """Return why one request of the longest length finds no room on the GPUs; None if it does."""
    if memory.kv_tokens >= longest:
        return None
    have = memory.budget / _GIB
    need = memory.without_kv / _GIB
    group = f"each of {memory.ranks} GPUs" if memory.ranks > 1 else "one GPU"
    return (
        f"{config.precision} on {group} of {config.product} needs {need:.1f} GiB before its first "
        f"token and holds {memory.kv_tokens} tokens of KV cache, fewer than the {longest} of one "
        f"long request; the engine has {have:.1f} of {math.floor(gpu_bytes / _GIB)} GiB."
    )
