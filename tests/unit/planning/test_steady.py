import math
import random
from statistics import fmean

import pytest

from tests.unit.planning.builders import a_fingerprint
from tests.unit.planning.queue_oracle import poisson, simulate, tpots, ttfts
from trimtab.planning.steady import Replica, ReplicaLimits, _Company
from trimtab.planning.step_model import fit

DEPTH = 30


def _replica(*, prompt=128, output=65, slots=32, kv_tokens=1_000_000, budget=512, **times):
    model = fit(a_fingerprint(**times), depth=DEPTH)
    limits = ReplicaLimits(token_budget=budget, max_sequences=slots, kv_tokens=kv_tokens)
    return Replica(model, prompt=prompt, output=output, limits=limits)


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
        r.ttft_us(r.steady(x), quantile=0.95) / r.service_us(0.0)
        for r, x in ((few, rate), (many, 2 * rate))
    ]
    assert waits[1] < waits[0]


def test_max_running_is_the_batch_that_meets_a_target():
    """The cap on sequences comes out of the target; no sequence at all below the floor."""
    replica = _replica()
    target = replica.decode_us(3.0)
    assert replica.max_running(target) == 4
    assert replica.max_running(replica.decode_us(0.0) - 1) == 0


def test_an_output_of_one_token_needs_no_decoding():
    """With one output token only the prompt counts."""
    replica = _replica(output=1)
    assert replica.unloaded_us() == pytest.approx(replica.service_us(0.0))
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


def test_a_quantile_of_waits_is_what_bisection_finds():
    """Jumps and exponential tails, equal certain times and waits that never queue among them."""
    draw = random.Random(7)
    jumps = 0
    for _ in range(300):
        shares = [draw.random() ** 3 + 1e-9 for _ in range(draw.randint(1, 40))]
        waits = [
            (
                share / sum(shares),
                draw.choice([1e4, 3e4, draw.random() * 1e6]),
                draw.choice([0.0, 0.99 * draw.random()]),
                1 + draw.random() * 1e5,
            )
            for share in shares
        ]
        quantile = draw.choice([0.5, 0.95, 0.99])
        low, high = 0.0, max(sure + 40 * tail for _, sure, _, tail in waits)
        for _ in range(60):
            middle = (low + high) / 2
            late = sum(
                p * (1.0 if middle < sure else use * math.exp((sure - middle) / tail))
                for p, sure, use, tail in waits
            )
            low, high = (middle, high) if late > 1 - quantile else (low, middle)
        found = _Company.of(waits).exceeded(1 - quantile)
        assert found == pytest.approx(high, rel=1e-9)
        jumps += any(found == sure for _, sure, _, _ in waits)
    assert 0 < jumps < 300
