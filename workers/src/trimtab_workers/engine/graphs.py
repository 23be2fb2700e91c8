"""CUDA graphs of decode steps: a step of a small batch is hundreds of launches of microseconds.

A graph fixes shapes and addresses. Shapes: a batch is padded to the next of a few buckets; padding
rows write nothing and read nothing. Addresses: inputs are copied into buffers that stay, weights
return to their homes. While layers stream, the graph is cut before and after each of them: copies
and events stay outside, and a slot is free as soon as its layer has run (cutting only before, as
engine.md §5 has it, would hold a single slot until the next streamed layer is due).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab_workers.engine.device import CudaDevice

_SMALL = (1, 2, 4, 8)
_STEP_UP_TO_64 = 8
_STEP_BEYOND = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphKey:
    """What a graph was recorded for.

    Attributes:
        streamed: Layers that stream, which is what the remapping level decides; often none.
        batch: A bucket of `batch_buckets`.
    """

    model: str
    streamed: tuple[int, ...]
    batch: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a step that can be recorded.

    Attributes:
        work: Launches kernels only; called once to warm up and once to be recorded.
        before: Called at every replay outside of the graph, to wait for a load.
        after: The same, to mark the end of the last read.
    """

    work: Callable[[], None]
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None


class LayerGate(Protocol):
    """What makes a streamed layer wait (docs/design/20261123-remap.md §2)."""

    def enter(self, layer: int) -> None:
        """Wait for a layer's weights."""
        ...

    def leave(self, layer: int) -> None:
        """Say that they were read."""
        ...

    def cuts(self, layer: int) -> bool:
        """Whether the layer streams."""
        ...


class GraphBackend(Protocol):
    """Records launches."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work once, beside the stream that records: kernels compile and buffers appear."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what work launches, without running it; returns what replays it."""
        ...


def spans(layers: int, streamed: Sequence[int]) -> list[range]:
    """Return runs of layers to record as one: a streamed layer is alone, the others together."""
    cuts = sorted({0, layers, *streamed, *(layer + 1 for layer in streamed)})
    return [range(a, b) for a, b in pairwise(cuts)]


def batch_buckets(max_seqs: int) -> tuple[int, ...]:
    """Return the batch sizes that graphs are recorded for, ascending, the last `max_seqs`.

    At most 7 rows are padding up to 64 and 15 beyond; a decode step is bound by weights there.
    """
    sizes = [*_SMALL, *range(16, 65, _STEP_UP_TO_64), *range(80, max_seqs, _STEP_BEYOND)]
    return (*(size for size in sizes if size < max_seqs), max_seqs)


class GraphCache:
    """Graphs by model, level of streaming and batch bucket."""

    def __init__(self, backend: GraphBackend, *, max_seqs: int) -> None:
        self._backend = backend
        self._buckets = batch_buckets(max_seqs)
        self._recorded: dict[GraphKey, list[Segment]] = {}

    def __len__(self) -> int:
        return len(self._recorded)

    def bucket(self, batch: int) -> int:
        """Return the least bucket that holds a batch.

        Raises:
            ValueError: The batch is empty or larger than `max_seqs`; a bug in the caller.
        """
        for size in self._buckets:
            if 1 <= batch <= size:
                return size
        raise ValueError(
            f"GraphCache: the batch has {batch} rows, but 1 to {self._buckets[-1]} are possible; "
            "this is a bug, please report it with your model set."
        )

    def run(self, key: GraphKey, build: Callable[[], Sequence[Segment]]) -> None:
        """Replay a step; record it first where it is new.

        Args:
            key: What it depends on. A recording of another level for the same model and batch is
                dropped, since streamed layers moved.
            build: Returns the step's segments, in order. They share buffers of the caller, who
                keeps them alive; inputs are in place before this is called.
        """
        segments = self._recorded.get(key)
        if segments is None:
            segments = self._record(key, build())
        _run(segments)

    def _record(self, key: GraphKey, segments: Sequence[Segment]) -> list[Segment]:
        self._forget(lambda old: (old.model, old.batch) == (key.model, key.batch))

        self._backend.warm_up(lambda: _run(segments))
        recorded = [
            Segment(self._backend.record(segment.work), segment.before, segment.after)
            for segment in segments
        ]
        self._recorded[key] = recorded
        return recorded

    def drop(self, model: str) -> None:
        """Forget a model's graphs: it was removed, or its fixed region moved."""
        self._forget(lambda key: key.model == model)

    def _forget(self, gone: Callable[[GraphKey], bool]) -> None:
        for key in [key for key in self._recorded if gone(key)]:
            del self._recorded[key]


def _run(segments: Sequence[Segment]) -> None:
    for segment in segments:
        if segment.before is not None:
            segment.before()
        segment.work()
        if segment.after is not None:
            segment.after()


class CudaGraphs:
    """Records CUDA graphs into one memory pool; never run in this project's tests."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work once on a side stream, as torch's documentation asks."""
        side, current = self._device.new_stream(), self._device.current_stream()
        side.wait_stream(current)
        with self._device.on(side):
            work()
        current.wait_stream(side)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what work launches; calls of other threads do not disturb it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay
