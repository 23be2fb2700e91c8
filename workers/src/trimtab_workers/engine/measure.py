"""Step times and memory of a model of any depth, taken from real engine steps (planner.md §4).

The same scheduler, runner and sampling as in serving, on random weights. A step's state is put
back afterwards, so that one point can be repeated, interleaved with others, at several depths.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.clock import Clock, SystemClock
from trimtab_workers.engine.config import (
    BLOCK_TOKENS,
    EngineConfig,
    ModelSpec,
    RandomWeights,
    dtype_of,
)
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.models.llama import fixed_bytes, layer_bytes
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.engine.parallel.placement import Placement, rank_shape
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.stepper import step
from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trimtab_workers.engine.scheduler import Scheduler

_NAME = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """Bytes at one depth; the fingerprint's memory row.

    Attributes:
        weights: Weights, in slabs and outside of them.
        activation: Most that a step allocated at once, beyond weights and KV cache.
        non_torch: Resident bytes of the process that are neither (libraries, tables).
    """

    depth: int
    weights: int
    activation: int
    non_torch: int


class StepMeter:
    """An engine with random weights whose steps are timed one at a time.

    Args:
        hf_config: Its `num_hidden_layers` is the greatest depth that can be measured.
        dtype: Of the weights; KV cache and activations are bf16 where it is int8 or int4.
        threads: Of each rank.
        tensor_parallel_size: Ranks of a group, which this process starts; end it with `close`.
        max_sequences: Greatest batch.
        max_context: Greatest context, cached and chunk together.
        max_chunk: Greatest prefill chunk.
        prepare: Called before every timed step, for instance to empty the caches.
    """

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        *,
        dtype: str = "bf16",
        threads: int = 1,
        tensor_parallel_size: int = 1,
        max_sequences: int = 8,
        max_context: int = 1024,
        max_chunk: int = 512,
        clock: Clock | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._prepare = prepare
        longest = max_context + BLOCK_TOKENS
        config = dict(hf_config)
        config["max_position_embeddings"] = max(longest, config.get("max_position_embeddings", 0))
        self.engine = Engine(
            EngineConfig(
                models=(
                    ModelSpec(
                        name=_NAME,
                        path=Path(),
                        dtype=dtype_of(dtype, where="StepMeter"),
                        random=RandomWeights(hf_config=config),
                    ),
                ),
                threads=threads,
                tensor_parallel_size=tensor_parallel_size,
                memory_bytes=_memory_bytes(
                    config,
                    dtype,
                    (max_sequences + 1) * longest,
                    placement=Placement(tensor=tensor_parallel_size),
                ),
                max_model_len=longest,
                max_batch_tokens=max_chunk + max_sequences,
                max_seqs=max_sequences + 1,
                prefix_caching=False,
            ),
            clock=self._clock,
        )
        self.engine.load()
        self._tenant = self.engine.tenant(_NAME)
        self._noise = random.Random(0)  # noqa: S311 - token ids, not secrets
        self.depth = self._tenant.shape.layers

    def measure_step(
        self,
        batch: int = 0,
        context: int = 1,
        *,
        chunk: int = 0,
        cached: int = 0,
        layers: int | None = None,
    ) -> float:
        """Run one step and return its seconds.

        Args:
            batch: Sequences that decode, each with `context` tokens.
            context: Tokens of a decoding sequence, the one computed in this step included.
            chunk: Prompt tokens computed in the same step; 0 for none.
            cached: Tokens of that prompt that are computed already.
            layers: Depth to run; None runs all.

        Raises:
            ValueError: Nothing to do, more layers than there are, or it does not fit.
        """
        scheduler, runner = self._tenant.scheduler, self._tenant.runner
        if scheduler is None or runner is None or (batch < 1 and chunk < 1):
            raise ValueError(
                f"measure_step: batch is {batch} and chunk is {chunk}. Give at least one of them."
            )
        if layers is not None and not 1 <= layers <= self.depth:
            raise ValueError(f"measure_step: layers is {layers}. Give 1 to {self.depth}.")
        self._arrange(scheduler, batch=batch, context=context, chunk=chunk, cached=cached)
        runner.layers = layers
        if self._prepare is not None:
            self._prepare()
        began = self._clock.now()
        step(self._tenant, self._clock)
        seconds = self._clock.now() - began
        for sequence in list(scheduler):
            scheduler.remove(sequence)
        if self._tenant.error is not None or self._tenant.failures:
            raise RuntimeError("A measured step failed; its log line says why.")
        return seconds

    def _arrange(
        self, scheduler: Scheduler, *, batch: int, context: int, chunk: int, cached: int
    ) -> None:
        lengths = [(context, context - 1)] * batch
        if chunk:
            lengths.append((cached + chunk, cached))
        need = sum(-(-length // BLOCK_TOKENS) for length, _ in lengths)
        if need > scheduler.blocks.available or max(lengths)[0] > self._tenant.max_model_len:
            raise ValueError(
                f"measure_step: {len(lengths)} sequences of up to {max(lengths)[0]} tokens do not fit "
                f"into {scheduler.blocks.available} KV blocks and a context of "
                f"{self._tenant.max_model_len}. Raise max_sequences or max_context."
            )
        vocab = self._tenant.shape.vocab
        for index, (length, computed) in enumerate(lengths):
            tokens = [self._noise.randrange(vocab) for _ in range(length)]
            sequence = Sequence(
                request=Request(
                    request_id=str(index),
                    model=_NAME,
                    prompt_token_ids=(0,),
                    params=SamplingParams(temperature=0.0, ignore_eos=True),
                ),
                sink=lambda _: None,
                tokens=tokens,
                prompt_length=length,
                limit=length + 2,
                seed=0,
                arrival_seconds=self._clock.now(),
            )
            sequence.blocks = scheduler.blocks.allocate(sequence.blocks_for(length)) or []
            sequence.computed = computed
            scheduler.running.append(sequence)

    def close(self) -> None:
        """End the other ranks, if there are any."""
        self.engine.ranks.close()

    def memory(self, *, chunk: int) -> MemoryRow:
        """Measure the memory of a model of the full depth, of all ranks together.

        Ranks are alike, so this process's bytes count once for each.

        Args:
            chunk: Prompt tokens of the step whose allocations are watched.
        """
        tenant = self._tenant
        weights = tenant.unit.layer_bytes * tenant.unit.layers + tenant.fixed_bytes
        slabs = self.engine.arena_bytes
        activation = _peak_allocation(lambda: self.measure_step(chunk=chunk))
        ranks = self.engine.ranks.size
        return MemoryRow(
            depth=self.depth,
            weights=ranks * weights,
            activation=ranks * activation,
            non_torch=ranks * max(0, _resident_bytes() - slabs - tenant.fixed_bytes),
        )


def _memory_bytes(
    config: Mapping[str, Any], dtype: str, tokens: int, *, placement: Placement
) -> int:
    """Bytes of one rank for weights and the KV of so many tokens, generously rounded."""
    whole = LlamaShape.from_hf_config(config, where="the measured configuration")
    shape = rank_shape(whole, placement, model=_NAME)
    weights = fixed_bytes(shape, dtype) + shape.layers * layer_bytes(shape, dtype)
    kv = shape.kv_bytes_per_token_layer(dtype) * shape.layers * tokens
    slack = 4 * shape.layer_elements * 4
    return int(1.1 * (weights + kv)) + slack + (8 << 20)


def _peak_allocation(run: Callable[[], object]) -> int:
    """Return the most bytes that torch had allocated at once during a call, beyond its start."""
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - with torch

    # Without `acc_events` torch 2.11 warns that it may forget events.
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
    results = profiler.profiler
    events = [] if results is None else results.kineto_results.events()
    current = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096
