"""A follower's side of the meetings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.parallel.collectives import Collectives
from trimtab_workers.engine.parallel.host import free_host_bytes
from trimtab_workers.engine.parallel.member import Member, RankRunner
from trimtab_workers.engine.parallel.placement import Placement
from trimtab_workers.engine.parallel.ranks import SHARE_SECONDS
from trimtab_workers.engine.parallel.wire import Kind, document, of_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.engine.parallel.channel import Channel
    from trimtab_workers.engine.runner import ModelRunner


class Following(Member):
    """A rank above 0.

    Attributes:
        runners: By the model's place in the model set.
    """

    def __init__(self, channel: Channel, hello: Mapping[str, Any], *, device: str) -> None:
        super().__init__(
            Placement(rank=hello["rank"], tensor=hello["tensor"], pipeline=hello["pipeline"])
        )
        self._channel = channel
        self._names = [spec["name"] for spec in hello["config"]["models"]]
        self.runners: dict[int, RankRunner] = {}
        self.free_bytes = self.share(free_host_bytes())
        self.collectives = Collectives(self.placement, store=hello["store"], device=device)

    def share(self, value: Any, *, seconds: float = SHARE_SECONDS) -> list[Any]:
        """Send this rank's value and wait for all of them; rank 0 waits less long than this."""
        self._channel.send(of_document(Kind.SHARE, value))
        result: list[Any] = document(self._channel.receive(2 * seconds))["values"]
        return result

    def runner(self, name: str, **settings: Any) -> ModelRunner:
        """Return a runner for a model and keep it for frames that name the model by its place."""
        runner = RankRunner(self, **settings)
        self.runners[self._names.index(name)] = runner
        return runner

    def empty_caches(self, cache_bytes: int) -> None:
        """Read a buffer of this size, so that the caches hold nothing else."""
        torch.ones(cache_bytes // 4).sum()

    def close(self) -> None:
        """Leave the group."""
        self.joined().leave()
