"""Invariants of arena, KV blocks and scheduler under arbitrary histories."""

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trimtab_workers.engine.arena import Arena, UnitShape, choose_slab, slabs_for_weights
from trimtab_workers.engine.errors import OutOfMemoryError
from trimtab_workers.engine.kv import DeviceBlockManager
from trimtab_workers.engine.scheduler import Scheduler
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.types import Request, SamplingParams

BLOCK = 16


class Scheduling(RuleBasedStateMachine):
    """Submissions, steps, aborts and ends in any order against a small pool of blocks."""

    @initialize(
        blocks=st.integers(4, 24),
        budget=st.integers(16, 64),
        seqs=st.integers(1, 6),
        caching=st.booleans(),
    )
    def start(self, blocks: int, budget: int, seqs: int, caching: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        self.budget, self.seqs = budget, seqs
        self.manager = DeviceBlockManager(caching=caching)
        self.manager.grow(0, range(blocks + 1))
        self.scheduler = Scheduler(
            self.manager, model="m", max_batch_tokens=budget, max_seqs=seqs, watermark=0.02
        )
        self.limit = blocks * BLOCK
        self.count = 0
        self.admitted: dict[Sequence, int] = {}

    @rule(prompt=st.integers(1, 120), output=st.integers(1, 60), kind=st.integers(0, 2))
    def submit(self, prompt: int, output: int, kind: int) -> None:
        prompt = min(prompt, self.limit - 1)
        tokens = [kind * 1000 + index for index in range(prompt)]
        self.count += 1
        self.scheduler.add(
            Sequence(
                request=Request(
                    request_id=str(self.count),
                    model="m",
                    prompt_token_ids=(0,),
                    params=SamplingParams(temperature=0.0),
                ),
                sink=lambda _: None,
                tokens=tokens,
                prompt_length=prompt,
                limit=min(self.limit, prompt + output),
                seed=0,
                arrival_seconds=0.0,
            )
        )

    @rule()
    def step(self) -> None:
        scheduler = self.scheduler
        oldest = scheduler.running[0] if scheduler.running else None
        had_work = scheduler.has_work
        before = list(scheduler.running)
        plan = scheduler.schedule()
        for victim in plan.preempted:
            assert len(victim.tokens) > self.admitted.pop(victim), "left before it gave a token"
        for sequence in scheduler.running:
            if sequence not in before:
                self.admitted[sequence] = len(sequence.tokens)
        rows = plan.rows
        assert sum(row.count for row in rows) <= self.budget
        assert len({id(row.sequence) for row in rows}) == len(rows)
        assert oldest not in plan.preempted
        assert rows or not had_work, "work, but nothing scheduled"
        for row in rows:
            assert row.start == row.sequence.computed
            assert len(row.sequence.blocks) * BLOCK >= row.start + row.count
        for victim in plan.preempted:
            assert victim.blocks == []
            assert victim in scheduler.waiting
        for row in rows:
            scheduler.commit(row)
            if row.sample:
                row.sequence.tokens.append(len(row.sequence.tokens))
                if len(row.sequence.tokens) >= row.sequence.limit:
                    scheduler.remove(row.sequence)

    @rule(choice=st.integers(0, 1000))
    def abort(self, choice: int) -> None:
        live = list(self.scheduler)
        if live:
            self.scheduler.remove(live[choice % len(live)])

    @rule()
    def forget(self) -> None:
        self.manager.forget_all()

    @invariant()
    def blocks_add_up(self) -> None:
        if not hasattr(self, "manager"):
            return
        self.manager.check()
        held: dict[int, int] = {}
        for sequence in self.scheduler:
            for block in sequence.blocks:
                held[id(block)] = held.get(id(block), 0) + 1
        assert all(
            block.refs == held.get(id(block), 0)
            for block in self.manager.blocks()
            if block is not self.manager.zero
        )
        assert len(self.scheduler.running) <= self.seqs
        assert all(not sequence.blocks for sequence in self.scheduler.waiting)

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for _ in range(20_000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "the oldest sequence never ends"
        assert self.manager.used == 0


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Slabs(RuleBasedStateMachine):
    """Models come and go; slabs partition the arena and nothing leaks."""

    @initialize(slabs=st.integers(1, 40))
    def start(self, slabs: int) -> None:
        self.arena = Arena(slab_bytes=4096, slabs=slabs)
        self.models: dict[str, int] = {}

    @rule(name=st.sampled_from("abcd"), homes=st.integers(1, 8), span=st.integers(1, 3))
    def add(self, name: str, homes: int, span: int) -> None:
        if name in self.models:
            return
        before = self.arena.counts()
        try:
            starts = self.arena.claim_homes(name, homes=homes, slabs_per_home=span)
        except OutOfMemoryError:
            assert self.arena.counts() == before
            return
        slabs = [start + offset for start in starts for offset in range(span)]
        assert len(set(slabs)) == homes * span
        for slab in slabs:
            assert self.arena[slab].home is not None
            self.arena.change(slab, "loading", model=name)
            self.arena.change(slab, "weight")
        grown = [slab for slab in self.arena.free_slabs() if self.arena[slab].home is None][:2]
        for slab in grown:
            self.arena.change(slab, "kv", model=name)
        self.models[name] = homes * span + len(grown)

    @rule(name=st.sampled_from("abcd"))
    def remove(self, name: str) -> None:
        self.arena.release(name)
        self.models.pop(name, None)

    @invariant()
    def slabs_partition(self) -> None:
        if hasattr(self, "arena"):
            assert sum(self.arena.counts().values()) == len(self.arena)
            assert self.arena.free == len(self.arena) - sum(self.models.values())


TestSlabs = Slabs.TestCase


@given(
    shapes=st.lists(
        st.builds(
            UnitShape,
            layer_bytes=st.integers(1, 1 << 22),
            layers=st.integers(1, 40),
            block_bytes=st.sampled_from([1024, 4096, 12_288, 65_536]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_slab_choice(shapes: list[UnitShape]):
    """Any models' slab is aligned, holds a block of every layer, and its homes hold all layers."""
    choice = choose_slab(shapes, align_bytes=4096)
    for shape, per_slab, span in zip(
        shapes, choice.layers_per_slab, choice.slabs_per_layer, strict=True
    ):
        assert choice.slab_bytes % shape.block_bytes == 0
        assert choice.slab_bytes % 4096 == 0
        assert choice.slab_bytes >= shape.layers * shape.block_bytes
        assert max(per_slab, 1) * shape.layer_bytes <= max(
            choice.slab_bytes, span * choice.slab_bytes
        )
        total = slabs_for_weights(shape, choice.slab_bytes) * choice.slab_bytes
        assert total >= shape.layers * shape.layer_bytes
    assert 0.0 <= choice.waste < 1.0
