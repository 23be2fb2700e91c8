"""What an engine asks of the other ranks while it starts; alone, everything is here already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab_workers.engine import errors
from trimtab_workers.engine.errors import EngineError, OutOfMemoryError
from trimtab_workers.engine.parallel.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.models.llama import LlamaModel
    from trimtab_workers.engine.runner import ModelRunner
    from trimtab_workers.engine.weights.checkpoint import Checkpoint

SHARE_SECONDS = 60.0
# Reading weights may take long, and a rank that ends meanwhile is noticed at once.
LOAD_SECONDS = 1_800.0


class Ranks:
    """All ranks of one engine; this class is the one without others.

    Every rank calls the same methods in the same order: `share` is a meeting.
    """

    def __init__(self, placement: Placement | None = None) -> None:
        self.placement = placement or Placement()
        self.free_bytes = [0]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.placement.size

    @property
    def leads(self) -> bool:
        """Whether this rank schedules, samples and answers."""
        return self.placement.rank == 0

    def share(self, value: Any, *, seconds: float = SHARE_SECONDS) -> list[Any]:  # noqa: ARG002 - see the group
        """Give every rank's JSON value to every rank, in the order of ranks.

        Raises:
            GroupLostError: A rank did not come within `seconds`.
        """
        return [value]

    def settle(
        self, problem: EngineError | None, *, seconds: float = SHARE_SECONDS
    ) -> EngineError | None:
        """Return the first rank's problem, the same on every rank; None if no rank has one."""
        if self.size == 1:
            return problem
        mine = None
        if problem is not None:
            mine = {"kind": type(problem).__name__, "message": problem.message}
        return next((_error(p) for p in self.share(mine, seconds=seconds) if p is not None), None)

    def agree_on_slabs(self, slabs: int, *, slab_bytes: int, fixed_bytes: int) -> int:
        """Return the least number of slabs that any rank can have.

        Raises:
            OutOfMemoryError: All ranks together need more than the host of the poorest one has
                free; the same sentence on every rank.
        """
        if self.size == 1:
            return slabs
        rows = self.share([slabs, slab_bytes, fixed_bytes])
        least = min(int(row[0]) for row in rows)
        need = sum(least * row[1] + row[2] for row in rows)
        poorest = min(range(self.size), key=lambda rank: self.free_bytes[rank])
        free = self.free_bytes[poorest]
        if least > 0 and need > free:
            raise OutOfMemoryError(
                f"Rank {poorest} of {self.size} has {free} bytes of host memory free, but the ranks, "
                f"which share it, need {need} for weights and KV cache. Lower memory_bytes, or "
                "give the pod more memory."
            )
        return least

    def shard(self, checkpoint: Checkpoint, *, model: str) -> Checkpoint:  # noqa: ARG002 - see the group
        """Return this rank's part of a checkpoint."""
        return checkpoint

    def connect(self, model: LlamaModel) -> None:
        """Let a loaded model exchange what its forward pass needs of other ranks."""

    def runner(self, name: str, **settings: Any) -> ModelRunner:  # noqa: ARG002 - see the group
        """Return what executes a model's steps, on every rank."""
        from trimtab_workers.engine.runner import ModelRunner  # noqa: PLC0415 - torch

        return ModelRunner(**settings)

    def watch(self, arena: Arena) -> None:
        """Compare this arena's table of slabs with the other ranks' after every step."""

    def check(self) -> None:
        """Do nothing unless the group is lost.

        Raises:
            GroupLostError: A rank has ended or differs; says which and why.
        """

    def empty_caches(self, cache_bytes: int) -> None:
        """Replace what the CPU caches of the other ranks hold, for fingerprints."""

    def close(self) -> None:
        """End the other ranks."""


class GroupLostError(EngineError):
    """A rank has ended, hangs or differs from rank 0; only a restart of all helps."""

    code = "group_lost"


def _error(problem: Mapping[str, str]) -> EngineError:
    kind = getattr(errors, problem["kind"], EngineError)
    if not (isinstance(kind, type) and issubclass(kind, EngineError)):
        kind = EngineError
    error: EngineError = kind(problem["message"])
    return error
