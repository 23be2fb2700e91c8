"""No policy lets a request come back only to be thrown out again (vllm #25538)."""

from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.property.engine.test_remapping import Remapping

if TYPE_CHECKING:
    from trimtab_workers.engine.sequence import Sequence

POLICIES = ("recompute", "swap", "remap-idle", "remap", "static:1", "oracle:1")


class Watched(Remapping):
    """Follows every sequence through admissions and preemptions, seen from between the steps."""

    def begin(self) -> None:
        self.tokens: dict[Sequence, int] = {}
        self.capacity: dict[str, int] = {}
        self.admissions = self.preemptions = 0

    def watch(self) -> None:
        """Take a step; whoever was thrown out had been let in once since the last time."""
        before = {
            sequence: (
                sequence.preemptions,
                sequence in tenant.scheduler.running,
                len(sequence.tokens),
            )
            for tenant in self.engine._tenants.values()
            for sequence in tenant.scheduler
        }
        self.engine.step()
        for name, tenant in self.engine._tenants.items():
            scheduler = tenant.scheduler
            if scheduler.blocks.capacity < self.capacity.get(name, 0):
                # Who was promised blocks may have lost them with a slab.
                self.tokens = dict.fromkeys(self.tokens, -1)
            self.capacity[name] = scheduler.blocks.capacity
            for sequence in scheduler:
                count, ran, tokens = before.get(sequence, (0, False, sequence.prompt_length))
                thrown = sequence.preemptions - count
                assert thrown <= int(ran), "thrown out without having been let in"
                if thrown:
                    self.preemptions += 1
                    assert tokens > self.tokens.pop(sequence), "left before it gave a token"
                if sequence in scheduler.running and sequence not in self.tokens:
                    self.admissions += 1
                    self.tokens[sequence] = tokens


@pytest.mark.parametrize("pressure", POLICIES)
@settings(max_examples=4, deadline=None)
@given(
    slabs=st.integers(12, 15),
    link=st.sampled_from([1e8, 1e10]),
    bursts=st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(1, 110), st.integers(1, 50), st.integers(4, 8)
        ),
        min_size=2,
        max_size=6,
    ),
)
def test_at_most_one_preemption_per_admission(
    pressure: str, slabs: int, link: float, bursts: list[tuple[str, int, int, int]]
):
    """Every preemption follows an admission, and a token that was given since, in small arenas."""
    machine = Watched()
    machine.begin()
    machine.start(pressure=pressure, slabs=slabs, link=link, order="mru", caching=False)
    for model, prompt, output, copies in bursts:
        machine.submit(model, prompt, output, 0, copies)
        for _ in range(10):
            machine.watch()
    for _ in range(5_000):
        if machine.engine.idle:
            break
        machine.watch()
        machine.clock.advance(0.01)
    assert machine.engine.idle
    value = machine.engine.registry.get_sample_value
    labels = [{"model_name": name, "engine": "0"} for name in "ab"]
    counted = sum(value("vllm:num_preemptions_total", label) or 0 for label in labels)
    assert counted == machine.preemptions <= machine.admissions


def test_small_arenas_preempt():
    """The property above is about something: the same arenas do preempt, under every policy."""
    for pressure in POLICIES:
        machine = Watched()
        machine.begin()
        machine.start(pressure=pressure, slabs=13, link=1e8, order="mru", caching=False)
        for model in "ab":
            machine.submit(model, 70, 50, 0, 6)
        while not machine.engine.idle:
            machine.watch()
        assert machine.preemptions > 0, pressure
