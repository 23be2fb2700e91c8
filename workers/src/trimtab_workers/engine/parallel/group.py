"""Rank 0's side: it starts the other ranks, tells them each step, and ends when one of them does."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.parallel.channel import Channel, PeerGoneError
from trimtab_workers.engine.parallel.collectives import Collectives
from trimtab_workers.engine.parallel.host import free_host_bytes
from trimtab_workers.engine.parallel.member import Member, RankRunner, config_document
from trimtab_workers.engine.parallel.placement import Placement
from trimtab_workers.engine.parallel.ranks import SHARE_SECONDS, GroupLostError
from trimtab_workers.engine.parallel.wire import (
    Frame,
    Kind,
    document,
    of_document,
    slots_frame,
    step_frame,
)
from trimtab_workers.engine.runner import StepResult, ends_of
from trimtab_workers.engine.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trimtab_workers.engine.config import EngineConfig
    from trimtab_workers.engine.kv import Block
    from trimtab_workers.engine.runner import ModelRunner
    from trimtab_workers.engine.scheduler import StepPlan

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


class TPGroup(Member):
    """Rank 0 of a group, and the owner of its followers' processes.

    Args:
        config: Its parallel sizes make the group.
        on_lost: Called once, on another thread, as soon as a follower has ended on its own.
        environment: Variables per rank, for tests.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_lost: Callable[[], None] | None = None,
        environment: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        place = Placement(
            tensor=config.tensor_parallel_size, pipeline=config.pipeline_parallel_size
        )
        super().__init__(place)
        self._on_lost = on_lost
        self._lost: str | None = None
        self._guard = threading.Lock()
        self._closing = False
        self._names = [spec.name for spec in config.models]
        self._number = 0
        self._awaited: list[deque[tuple[int, int]]] = []
        self._channels: list[Channel] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.mkdtemp(prefix="trimtab-ranks-")
        try:
            for rank in range(1, place.size):
                self._spawn(rank, (environment or {}).get(rank, {}))
            self._meet(config)
        except BaseException:
            self.close()
            raise

    def _spawn(self, rank: int, extra: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, our module
                [
                    sys.executable,
                    "-m",
                    "trimtab_workers.engine.parallel.follower",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **extra},
            )
        self._processes.append(process)
        self._awaited.append(deque())
        self._channels.append(Channel(ours, on_end=lambda: self._ended(rank)))
        log.info("follower_started", extra={"rank": rank, "follower_pid": process.pid})

    def _meet(self, config: EngineConfig) -> None:
        store = str(Path(self._folder) / "store")
        for rank, channel in enumerate(self._channels, start=1):
            hello = {
                "rank": rank,
                "tensor": self.placement.tensor,
                "pipeline": self.placement.pipeline,
                "store": store,
                "config": config_document(config),
            }
            channel.send(of_document(Kind.HELLO, hello))
        self.free_bytes = self.share(free_host_bytes())
        self.collectives = Collectives(self.placement, store=store, device=config.device)
        log.info(
            "ranks_met",
            extra={
                "tensor_parallel_size": self.placement.tensor,
                "pipeline_parallel_size": self.placement.pipeline,
                "free_host_bytes": self.free_bytes,
            },
        )

    # -- meetings ------------------------------------------------------------------------------

    def share(self, value: Any, *, seconds: float = SHARE_SECONDS) -> list[Any]:
        """Collect every rank's value and send the list to all."""
        until = time.monotonic() + seconds
        values = [value]
        for rank, channel in enumerate(self._channels, start=1):
            try:
                frame = channel.receive(max(0.0, until - time.monotonic()))
            except PeerGoneError as error:
                raise self.lose(
                    f"rank {rank} has ended or did not answer within {seconds:.0f} s while the ranks met"
                ) from error
            values.append(document(frame))
        self._send(of_document(Kind.SHARE, {"values": values}))
        return values

    def _tell(self, frame: Frame) -> None:
        for channel in self._channels:
            channel.send(frame)

    # -- steps ---------------------------------------------------------------------------------

    def runner(self, name: str, **settings: Any) -> ModelRunner:
        """Return a runner that announces each step to the followers, then takes its own part."""
        return LeadingRunner(self, self._names.index(name), **settings)

    def announce(self, plan: StepPlan, *, model: int, layers: int | None) -> None:
        """Send a step to the followers, after a look at what they answered to earlier ones.

        Raises:
            GroupLostError: A follower has gone or differs.
        """
        self._verify()
        self._number += 1
        frame = step_frame(self._number, model=model, layers=layers, plan=plan)
        self._send(frame)
        expected = self._number, self.checksum(frame.body)
        for awaited in self._awaited:
            awaited.append(expected)

    def clear(self, model: int, slots: list[int]) -> None:
        """Let the followers zero blocks."""
        if self._lost is None:
            self._send(slots_frame(self._number, model=model, slots=slots))

    def empty_caches(self, cache_bytes: int) -> None:
        """Let the followers fill their caches with other data, and wait until they have."""
        self._verify(drain=True)
        self._send(of_document(Kind.EMPTY_CACHES, {"bytes": cache_bytes}))
        try:
            for channel in self._channels:
                channel.receive(SHARE_SECONDS)
        except PeerGoneError as error:
            raise self.lose(str(error)) from error

    def _send(self, frame: Frame) -> None:
        try:
            self._tell(frame)
        except PeerGoneError as error:
            raise self.lose(str(error)) from error

    def _verify(self, *, drain: bool = False) -> None:
        for rank, (channel, awaited) in enumerate(
            zip(self._channels, self._awaited, strict=True), start=1
        ):
            while awaited:
                try:
                    frame = channel.receive(SHARE_SECONDS) if drain else channel.take()
                except PeerGoneError as error:
                    raise self.lose(str(error)) from error
                if frame is None:
                    break
                number, checksum = awaited.popleft()
                if (frame.number, int.from_bytes(frame.body, "little")) != (number, checksum):
                    raise self.lose(
                        f"rank {rank} differs after step {number}: its table of slabs or the steps that "
                        "it executed are not rank 0's; this is a bug, please report it"
                    )

    # -- the end -------------------------------------------------------------------------------

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the followers, by rank from 1."""
        return tuple(process.pid for process in self._processes)

    def check(self) -> None:
        """Raise if the group is lost."""
        if self._lost is not None:
            raise GroupLostError(self._lost)

    def lose(self, why: str) -> GroupLostError:
        """End the followers and record why; return the error to raise."""
        with self._guard:
            first, self._lost = (
                self._lost is None,
                self._lost
                or (
                    f"The group of {self.size} ranks is lost, because {why}. Restart the worker; if it "
                    "happens again, look at the last log lines of every rank."
                ),
            )
        if first:
            log.error("group_lost", extra={"reason": why})
            for process in self._processes:
                with contextlib.suppress(OSError):
                    process.kill()
            if self._on_lost is not None and not self._closing:
                self._on_lost()
        return GroupLostError(self._lost)

    def _ended(self, rank: int) -> None:
        if self._closing:
            return
        process = self._processes[rank - 1]
        try:
            status: int | None = process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = None
        log.error("follower_ended", extra={"rank": rank, "exit_status": status})
        self.lose(f"rank {rank} has ended with exit status {status}")

    def close(self) -> None:
        """Ask the followers to end, and end those that do not; then leave the group."""
        self._closing = True
        if self._lost is None:
            with contextlib.suppress(PeerGoneError):
                self._tell(Frame(Kind.STOP, self._number, b""))
        until = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for channel in self._channels:
            channel.close()
        if self.collectives is not None:
            self.collectives.leave()
            self.collectives = None
        shutil.rmtree(self._folder, ignore_errors=True)


class LeadingRunner(RankRunner):
    """Rank 0's runner of one model."""

    def __init__(self, group: TPGroup, number: int, **settings: Any) -> None:
        super().__init__(group, **settings)
        self._group, self._number = group, number

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Announce a plan, compute this rank's part, sample.

        Raises:
            NanLogitsError: The logits are NaN; nothing was committed.
            GroupLostError: Ranks may wait for each other in vain now: nothing can go on.
        """
        self._group.check()
        self._group.announce(plan, model=self._number, layers=self.layers)
        _, sequences = ends_of(plan)
        try:
            logits = self.rank_logits(plan)
        except Exception as error:
            raise self._group.lose(f"rank 0 could not compute a step: {error}") from error
        if logits is None:
            return StepResult(())
        return StepResult(tuple(zip(sequences, sample(logits, sequences), strict=True)))

    def clear(self, blocks: Iterable[Block]) -> None:
        """Zero blocks on every rank."""
        slots = [block.slot for block in blocks]
        self._group.clear(self._number, slots)
        self.clear_slots(slots)
