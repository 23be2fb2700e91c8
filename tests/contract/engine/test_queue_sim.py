"""Contract C1: the planner's queue simulation makes the engine's steps (planner.md §10).

The engine's real scheduler and block manager run on a virtual clock, charged by the same step model.
"""

import random
from pathlib import Path

import pytest

from tests.unit.engine.builders import TINY
from tests.unit.planning.queue_cases import MODEL
from trimtab.planning.queue_sim import simulate
from trimtab.planning.scheduler_limits import SchedulerLimits, SwapSpace
from trimtab.planning.step_model import StepWork
from trimtab.planning.variation import Variation
from trimtab.planning.workload import PlannedLoad, synthesize
from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import ContextLengthError
from trimtab_workers.engine.sim import SimBackend
from trimtab_workers.engine.types import Request, SamplingParams

REQUESTS = 200
BUDGET = 256
SEQUENCES = 16
LINK_BYTES_PER_US = 2.0


class Metered:
    """Charges the engine's steps by the planner's model and notes what each one computes."""

    def __init__(self):
        self.steps = []

    def __call__(self, _spec, plan):
        batch, context = len(plan.decode), sum(row.start + 1 for row in plan.decode)
        chunks = tuple((int(r.sequence.request.request_id), r.start, r.count) for r in plan.prefill)
        preempted = tuple(int(s.request.request_id) for s in plan.preempted)
        self.steps.append((batch, context, chunks, preempted))
        work = StepWork(
            tokens=batch + sum(count for *_, count in chunks),
            sampled=sum(row.sample for row in plan.rows),
            work=sum(count * (start + count / 2) for _, start, count in chunks),
            batch=batch,
            kv_tokens=context,
        )
        return MODEL.step_us(work) / 1e6


def an_engine(meter, *, kv_slabs, pressure, caching):
    """Return a simulated engine of one model with so many slabs of KV cache."""

    def build(memory):
        clock = VirtualClock()
        engine = Engine(
            EngineConfig(
                models=(
                    ModelSpec(
                        name="m",
                        path=Path(),
                        dtype="fp32",
                        random=RandomWeights(hf_config=TINY | {"max_position_embeddings": 4096}),
                    ),
                ),
                max_batch_tokens=BUDGET,
                max_seqs=SEQUENCES,
                memory_bytes=memory,
                pressure=pressure if memory else "recompute",
                prefix_caching=caching,
                swap_bytes=1 << 24,
            ),
            clock=clock,
            backend=SimBackend(clock, price=meter, link_rate=LINK_BYTES_PER_US * 1e6),
        )
        engine.load()
        return engine

    probe = build(None)
    slabs, size = probe.state()["slabs"], probe._arena.slab_bytes
    return build(probe.tenant("m").fixed_bytes + (slabs["weights"] + kv_slabs) * size)


def serve(engine, arrivals):
    """Replay arrivals as a server does; return first-token times in µs, and who was refused."""
    firsts, refused, number = {}, [], 0
    draw = random.Random(9)

    def sink(name):
        return lambda _output: firsts.setdefault(name, engine.clock.now() * 1e6)

    while number < len(arrivals) or not engine.idle:
        while number < len(arrivals) and arrivals[number].at_us / 1e6 <= engine.clock.now():
            due = arrivals[number]
            prompt = tuple(draw.randrange(TINY["vocab_size"]) for _ in range(due.prompt))
            request = Request(
                request_id=str(number),
                model="m",
                prompt_token_ids=prompt,
                params=SamplingParams(temperature=0.0, max_tokens=due.output, ignore_eos=True),
            )
            try:
                engine.submit(request, sink(number))
            except ContextLengthError:
                refused.append(number)
            number += 1
        if not engine.step() and number < len(arrivals):
            engine.clock.advance(max(0.0, arrivals[number].at_us / 1e6 - engine.clock.now()))
    return firsts, refused


def expanded(events):
    """Return every single step of events."""
    return [
        (
            event.decodes,
            event.kv_tokens + step * event.decodes,
            event.chunks,
            event.preempted,
        )
        for event in events
        for step in range(event.steps)
    ]


@pytest.mark.parametrize(
    ("case", "kv_slabs", "pressure", "caching", "preemptions"),
    [
        ("roomy", 40, "recompute", True, 0),
        ("tight, prefixes are found again", 4, "recompute", True, 20),
        ("tight, nothing is found again", 4, "recompute", False, 20),
        ("tight, swapped", 4, "swap", False, 20),
    ],
)
@pytest.mark.parametrize("rate", [1.0, 6.0])
def test_the_simulation_makes_the_engine_s_steps(
    *, case, kv_slabs, pressure, caching, preemptions, rate
):
    """Every step's composition is equal, and so are first-token times (1 % is asked)."""
    meter = Metered()
    engine = an_engine(meter, kv_slabs=kv_slabs, pressure=pressure, caching=caching)
    tenant = engine.tenant("m")
    arrivals = synthesize(
        PlannedLoad(rate=rate, prompt=150, output=60, assumed=False),
        count=REQUESTS,
        draws=random.Random(5),
        variation=Variation(prompt=0.97, output=0.77),
        longest=4096,
    )
    firsts, refused = serve(engine, arrivals)
    layout = tenant.layout(engine._arena.slab_bytes)
    block_bytes = layout.layers * layout.block_bytes
    host = tenant.scheduler.host
    events = []
    result = simulate(
        MODEL,
        kv_tokens=tenant.scheduler.blocks.capacity * 16,
        limits=SchedulerLimits(
            token_budget=BUDGET,
            max_running=SEQUENCES,
            max_model_len=tenant.max_model_len,
            prefix_caching=caching,
            policy="Swap" if host else "Recompute",
            swap=SwapSpace(
                blocks=host.capacity, block_bytes=block_bytes, bytes_per_us=LINK_BYTES_PER_US
            )
            if host
            else None,
        ),
        arrivals=arrivals,
        observe=lambda _, event: events.append(event),
    )
    steps = expanded(events)
    for number, (simulated, real) in enumerate(zip(steps, meter.steps, strict=False)):
        assert simulated == real, f"{case}: step {number} differs"
    assert len(steps) == len(meter.steps)
    assert result.rejected == len(refused)
    assert {s.index for s in result.served} == set(firsts)
    for served in result.served:
        wait = firsts[served.index] - arrivals[served.index].at_us
        assert served.ttft_us == pytest.approx(wait, rel=1e-6)
    if rate > 1:
        assert result.preemptions >= preemptions, "the case is to be one of pressure"
