import itertools

import pytest

from tests.unit.bench.silicon_rows import models
from trimtab.bench.closed_loop import closed_loop
from trimtab.planning.step_model import StepWork

MODEL = models()[1]


def test_a_lone_request_decodes_alone():
    """One request in flight meets nobody: TPOT is the decode step, TTFT the prompt's own step."""
    times = closed_loop(MODEL, prompt=1024, output=256, concurrency=1)
    step = StepWork(tokens=1, sampled=1, batch=1, kv_tokens=1024 + 128)
    prompt = StepWork(tokens=1024, sampled=1, work=1024 * 512)
    assert times.tpot_ms == pytest.approx(MODEL.step_us(step) / 1000)
    assert times.ttft_ms == pytest.approx((MODEL.step_us(prompt) + MODEL.step_us(step) / 2) / 1000)


def test_others_prompts_interrupt_once_per_reply():
    """With n in flight nearly n - 1 prompts interrupt a reply, however many tokens it has."""
    crowd = closed_loop(MODEL, prompt=2048, output=129, concurrency=9)
    long_ = closed_loop(MODEL, prompt=2048, output=1025, concurrency=9)
    step = StepWork(tokens=9, sampled=9, batch=9, kv_tokens=9 * (2048 + 129 / 2))
    waiting = 128 * (crowd.tpot_ms - MODEL.step_us(step) / 1000)
    step = StepWork(tokens=9, sampled=9, batch=9, kv_tokens=9 * (2048 + 1025 / 2))
    longer = 1024 * (long_.tpot_ms - MODEL.step_us(step) / 1000)
    assert waiting > 50
    assert longer == pytest.approx(waiting, rel=0.05)


def test_each_other_prompt_is_met_once_waiting_or_decoding():
    """End to end a request takes its prompt, its decode steps and all the others' prompts."""
    output, n = 128, 32
    times = closed_loop(MODEL, prompt=1024, output=output, concurrency=n)
    context = 1024 + output / 2

    def step_ms(batch, chunk=0):
        step = StepWork(
            tokens=batch + chunk,
            sampled=batch + (1 if chunk else 0),
            work=chunk * chunk / 2,
            batch=batch,
            kv_tokens=batch * context,
        )
        return MODEL.step_us(step) / 1000

    prompt = step_ms(n - 1, 1024)
    others = (n - 1) * (prompt - step_ms(n - 1))
    life = prompt + (output - 0.5) * step_ms(n) + others
    assert times.e2e_ms(output) == pytest.approx(life)


def test_a_prompt_longer_than_the_budget_takes_several_steps():
    """Half the budget leaves the work the same and adds steps, so TTFT rises a little."""
    whole = closed_loop(MODEL, prompt=8000, output=64, concurrency=4)
    halved = closed_loop(MODEL, prompt=8000, output=64, concurrency=4, token_budget=4096)
    assert whole.ttft_ms < halved.ttft_ms < 1.5 * whole.ttft_ms


def test_more_in_flight_is_never_faster():
    """TTFT, TPOT and end-to-end time rise with the concurrency."""
    found = [closed_loop(MODEL, prompt=1024, output=128, concurrency=n) for n in (1, 2, 8, 64, 256)]
    for less, more in itertools.pairwise(found):
        assert more.tpot_ms >= less.tpot_ms
        assert more.e2e_ms(128) >= less.e2e_ms(128)
