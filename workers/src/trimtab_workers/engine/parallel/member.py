"""What rank 0 and its followers have in common: shards, collectives, and the running check sum."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.models.llama import MIN_ROWS
from trimtab_workers.engine.parallel.collectives import Collectives, connect
from trimtab_workers.engine.parallel.ranks import Ranks
from trimtab_workers.engine.parallel.shard import ShardedCheckpoint
from trimtab_workers.engine.runner import ModelRunner, ends_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.engine.arena import Arena
    from trimtab_workers.engine.models.llama import LlamaModel
    from trimtab_workers.engine.parallel.placement import Placement
    from trimtab_workers.engine.scheduler import StepPlan
    from trimtab_workers.engine.weights.checkpoint import Checkpoint


class Member(Ranks):
    """One rank of a group of several.

    Attributes:
        collectives: Set once all ranks have met.
    """

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        self.collectives: Collectives | None = None
        self._arena: Arena | None = None
        self._seen = 0

    def joined(self) -> Collectives:
        """Return the collectives."""
        if self.collectives is None:
            raise ValueError("The ranks have not met; this is a bug, please report it.")
        return self.collectives

    def shard(self, checkpoint: Checkpoint, *, model: str) -> Checkpoint:
        """Return this rank's part of a checkpoint."""
        return ShardedCheckpoint(checkpoint, self.placement, model=model)

    def connect(self, model: LlamaModel) -> None:
        """Wrap the products that need other ranks."""
        connect(model, self.joined(), self.placement)

    def watch(self, arena: Arena) -> None:
        """Keep the arena for check sums."""
        self._arena = arena

    def checksum(self, body: bytes) -> int:
        """Return a check sum of all frames executed so far and of the table of slabs."""
        self._seen = zlib.crc32(body, self._seen)
        arena = self._arena
        table = "" if arena is None else repr([arena[index] for index in range(len(arena))])
        return zlib.crc32(table.encode(), self._seen)


class RankRunner(ModelRunner):
    """Runs this rank's part of a step; torch's kernels, as the native pass knows no ranks."""

    def __init__(self, member: Member, **settings: Any) -> None:
        super().__init__(**{**settings, "native": False})
        self._member = member

    @torch.inference_mode()
    def rank_logits(self, plan: StepPlan) -> torch.Tensor | None:
        """Compute a plan's rows on this rank; return what it has of the logits.

        On rank 0 that is all of them, shape [sequences, vocab], None if no row reached its end.
        """
        place, ranks = self._member.placement, self._member.joined()
        hidden = self.hidden_states(plan)
        if not place.last_stage:
            ranks.to_next_stage(hidden)
        ends, _ = ends_of(plan)
        if not ends:
            return None
        if place.last_stage:
            padding = [ends[-1]] * max(0, MIN_ROWS - len(ends))
            logits = self.model.logits(hidden[torch.tensor(ends + padding)])[: len(ends)]
            if place.pipeline > 1 and place.shard == 0:
                ranks.to_first(logits)
            return logits
        if place.rank == 0:
            return ranks.from_last_stage(torch.empty(len(ends), self.model.shape.vocab))
        return None

    @torch.inference_mode()
    def clear_slots(self, slots: list[int]) -> None:
        """Zero blocks by their slots."""
        index = torch.tensor(slots, dtype=torch.int64)
        for layer in range(self._layout.layers):
            self._layout.view(self._arena, layer).index_fill_(0, index, 0.0)


def config_document(config: EngineConfig) -> dict[str, Any]:
    """Return a configuration as JSON can hold it, all fields."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name != "models"
    } | {"models": [{**dataclasses.asdict(spec), "path": str(spec.path)} for spec in config.models]}


def config_of(data: Mapping[str, Any]) -> EngineConfig:
    """Return the configuration of a `config_document`; `file` and `model_root` are rank 0's alone."""
    specs = [
        {
            **spec,
            "path": Path(spec["path"]),
            "random": None if spec["random"] is None else RandomWeights(**spec["random"]),
        }
        for spec in data["models"]
    ]
    kept = {name: value for name, value in data.items() if name not in {"file", "model_root"}}
    return EngineConfig(**{**kept, "models": tuple(ModelSpec(**spec) for spec in specs)})
