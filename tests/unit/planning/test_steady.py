import math
import random
from statistics import fmean

import numpy as np
import pytest

from tests.unit.planning.builders import a_fingerprint
from tests.unit.planning.one_replica import OneReplica
from tests.unit.planning.queue_oracle import poisson, simulate, tpots, ttfts
from trimtab.planning.steady import ReplicaKind, Replicas
from trimtab.planning.step_model import fit
from trimtab.planning.waits import Waits

DEPTH = 30


def _replica(*, prompt=128, output=65, **limits):
    return OneReplica(fit(a_fingerprint(), depth=DEPTH), prompt=prompt, output=output, **limits)


def test_a_request_alone_takes_its_prompt_and_its_steps():
    """Unloaded: one chunk and n_o - 1 decode steps, by hand."""
    replica = _replica()
    chunk = 5100 + DEPTH * (700 + 20 * 128 + 0.02 * 128 * 64)
    step = 5100 + DEPTH * (700 + 20 + 0.1 * (128 + 32.5))
    assert replica.unloaded_us() == pytest.approx(chunk + 64 * step, rel=0.01)
    state = replica.steady(0.0)
    assert state.step_us == pytest.approx(step, rel=0.01)
    assert replica.ttft_us(state, quantile=0.95) == pytest.approx(chunk, rel=0.01)


def test_one_slot_serves_one_request_after_another():
    """With one sequence at a time the capacity is about one per unloaded request."""
    replica = _replica(slots=1)
    assert replica.capacity() * replica.unloaded_us() / 1e6 == pytest.approx(1.0, rel=0.05)


def test_little_s_law_holds():
    """Running sequences = rate · decoding time, at every load."""
    replica = _replica()
    for share in (0.1, 0.5, 0.9):
        rate = share * replica.capacity()
        state = replica.steady(rate)
        assert state.running == pytest.approx(rate * 64 * state.step_us / 1e6, rel=0.01)


def test_capacity_is_bounded_by_slots_and_by_kv():
    """Fewer slots, or KV for fewer requests, lower the capacity."""
    free = _replica().capacity()
    assert _replica(slots=2).capacity() < free
    assert _replica(kv_tokens=2 * 161).capacity() == pytest.approx(_replica(slots=2).capacity())


def test_a_prompt_interrupts_the_sequences_beside_it():
    """Longer prompts at an equal request rate raise the time per output token."""
    short, long = _replica(prompt=32), _replica(prompt=512)
    rate = 0.3 * long.capacity()
    assert long.steady(rate).step_us > 1.05 * short.steady(rate).step_us


def test_short_prompts_share_steps_instead_of_queueing():
    """A budget that holds many prompts keeps the prompt queue short at equal prompt tokens/s."""
    few, many = _replica(prompt=512, output=2), _replica(prompt=64, output=2)
    rate = 0.5 * few.capacity()
    waits = [
        r.ttft_us(r.steady(x), quantile=0.95) / r.service_us(0)
        for r, x in ((few, rate), (many, 2 * rate))
    ]
    assert waits[1] < waits[0]


def test_max_running_is_the_batch_that_meets_a_target():
    """The cap on sequences comes out of the target; no sequence at all below the floor."""
    replica = _replica()
    target = replica.decode_us(3)
    assert replica.max_running(target) == 4
    assert replica.max_running(replica.decode_us(0) - 1) == 0


def test_an_output_of_one_token_needs_no_decoding():
    """With one output token only the prompt counts."""
    replica = _replica(output=1)
    assert replica.unloaded_us() == pytest.approx(replica.service_us(0))
    assert replica.capacity() > 0


@pytest.mark.parametrize(("prompt", "output"), [(128, 64), (512, 128), (32, 256)])
def test_the_capacity_is_that_of_a_simulated_replica(prompt, output):
    """Flooded with requests, a simulated replica ends as many per second, within 5 %."""
    replica = _replica(prompt=prompt, output=output)
    flood = poisson(5 * replica.capacity(), count=250, prompt=prompt, output=output)
    simulate(fit(a_fingerprint(), depth=DEPTH), flood, budget=512, slots=32)
    ended = len(flood) / max(r.last for r in flood) * 1e6
    assert replica.capacity() == pytest.approx(ended, rel=0.05)


@pytest.mark.parametrize(
    ("prompt", "output", "load"),
    [(128, 64, 0.2), (128, 64, 0.7), (512, 128, 0.2), (512, 128, 0.4), (32, 256, 0.7)],
)
def test_the_closed_form_agrees_with_a_simulation(prompt, output, load):
    """Mean TPOT within 10 % and median TTFT within 10 % of a simulation step by step."""
    replica = _replica(prompt=prompt, output=output)
    rate = load * replica.capacity()
    requests = poisson(rate, count=400, prompt=prompt, output=output)
    simulate(fit(a_fingerprint(), depth=DEPTH), requests, budget=512, slots=32)
    state = replica.steady(rate)
    assert state.step_us == pytest.approx(fmean(tpots(requests)), rel=0.10)
    waits = ttfts(requests)
    median = waits[len(waits) // 2]
    assert replica.ttft_us(state, quantile=0.5) == pytest.approx(median, rel=0.10)


def test_a_request_finds_more_company_than_a_poisson_number():
    """A full batch is slow and so stays full: the p95 of the others exceeds n + 1.645·√n."""
    replica = _replica(prompt=512, output=128)
    state = replica.steady(0.7 * replica.capacity())
    assert state.others(0.95) > state.running + 1.645 * state.running**0.5
    assert abs(sum(state.seen) - 1) < 1e-9


def _bisected(waits, share):
    """The time that a mixture of (share, sure, use, tail) exceeds with a probability, by halving."""
    low, high = 0.0, max(sure + 40 * tail for _, sure, _, tail in waits)
    for _ in range(60):
        middle = (low + high) / 2
        late = sum(
            p * (1.0 if middle < sure else use * math.exp((sure - middle) / tail))
            for p, sure, use, tail in waits
        )
        low, high = (middle, high) if late > share else (low, middle)
    return high


def test_a_quantile_of_waits_is_what_bisection_finds():
    """Jumps and exponential tails, equal certain times and waits that never queue among them."""
    draw = random.Random(7)
    quantiles = [0.5, 0.95, 0.99]
    every = []
    for _ in range(100):
        shares = [draw.random() ** 3 + 1e-9 for _ in range(draw.randint(1, 40))]
        every.append(
            [
                (
                    share / sum(shares),
                    draw.choice([1e4, 3e4, draw.random() * 1e6]),
                    draw.choice([0.0, 0.99 * draw.random()]),
                    1 + draw.random() * 1e5,
                )
                for share in shares
            ]
        )
    # Rows of unequal length are filled with waits that are never met.
    filled = np.array([row + [(0.0, 5e3, 0.5, 1e3)] * (40 - len(row)) for row in every])
    shares, sure, use, tail = np.moveaxis(filled, 2, 0)
    waits = Waits(shares=shares, sure=sure, use=use, tail=tail)
    found = waits.exceeded([1 - quantile for quantile in quantiles])
    jumps = 0
    for row, times in zip(every, found, strict=True):
        assert times == pytest.approx([_bisected(row, 1 - q) for q in quantiles], rel=1e-9)
        jumps += sum(any(time == sure for _, sure, _, _ in row) for time in times)
    assert 0 < jumps < 300


def test_a_row_does_not_hang_on_the_rows_beside_it():
    """Replicas asked about together get bit by bit what each gets alone, whatever their load."""
    kinds = [
        ReplicaKind(
            model=fit(a_fingerprint(us_per_token=us), depth=DEPTH),
            prompt=prompt,
            output=output,
            token_budget=512,
            max_sequences=32,
        )
        for us, prompt, output in ((5.0, 200, 65), (20.0, 16, 300), (80.0, 900, 8))
    ]
    together = Replicas(kinds)
    which = np.array([0, 1, 2, 2, 0])
    slots = np.array([32, 4, 32, 1, 7])
    rate = together.capacity(which, slots) * [0.1, 0.9, 1.5, 0.98, 0.0]

    def figures(replicas, rows, numbers):
        states = replicas.steady(numbers, slots=slots[rows], rate=rate[rows])
        waits = replicas.waits(states)
        return np.concatenate(
            [
                states.step_us[:, None],
                states.others([0.5, 0.95]),
                replicas.tpot_us(states, [0.5, 0.95]),
                waits.mean()[:, None],
                waits.exceeded([0.5, 0.05]),
            ],
            axis=1,
        )

    all_at_once = figures(together, np.arange(5), which)
    for row, number in enumerate(which):
        alone = Replicas([kinds[number]])
        assert (figures(alone, np.array([row]), np.array([0])) == all_at_once[row]).all()


def test_rows_looked_at_apart_have_the_figures_that_they_have_together():
    """Little used replicas have the same figures to the last bit beside full ones and without them."""
    replica = _replica(prompt=512, output=128)
    use = np.linspace(0.0, 0.98, 120)
    which = np.zeros(len(use), dtype=np.intp)
    slots = np.where(np.arange(len(use)) % 3, replica.slots, 4)
    replicas = replica.all
    states = replicas.steady(which, slots=slots, rate=use * replicas.capacity(which, slots))
    quantiles = [0.5, 0.95, 0.99]
    waits = replicas.waits(states)
    parts = list(states.alike())
    assert len(parts) > 2
    assert len({some.seen.shape[1] for _, some in parts}) > 2
    assert sorted(row for rows, _ in parts for row in rows) == list(range(len(use)))
    for rows, some in parts:
        apart = replicas.waits(some)
        assert np.array_equal(apart.mean(), waits.mean()[rows])
        left = [1 - quantile for quantile in quantiles]
        assert np.array_equal(apart.exceeded(left), waits.exceeded(left)[rows])
        together = replicas.tpot_us(states, quantiles)[rows]
        assert np.array_equal(replicas.tpot_us(some, quantiles), together)
