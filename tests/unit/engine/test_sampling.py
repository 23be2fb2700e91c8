"""Which token follows from which logits."""

import math

import pytest
import torch

from tests.unit.engine.builders import a_request, an_engine, kv_memory, run
from trimtab_workers.engine.errors import InvalidRequestError
from trimtab_workers.engine.sampling import NanLogitsError, sample, uniform
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.types import SamplingParams

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])


def _sequence(tokens: tuple[int, ...] = (0,), prompt: int = 1, seed: int = 0, **params) -> Sequence:
    return Sequence(
        request=a_request("r", tokens[:prompt], **params),
        sink=lambda _: None,
        tokens=list(tokens),
        prompt_length=prompt,
        limit=100,
        seed=seed,
        arrival_seconds=0.0,
    )


def _token(sequence: Sequence) -> int:
    return sample(LOGITS.clone()[None], [sequence])[0].token_id


def _frequencies(draws: int = 4000, **params) -> list[float]:
    sequences = [_sequence(seed=seed, **params) for seed in range(draws)]
    tokens = [s.token_id for s in sample(LOGITS.repeat(draws, 1), sequences)]
    return [tokens.count(token) / draws for token in range(len(LOGITS))]


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-39, 1e-30, 1e-6, 2e-5])
def test_greedy_takes_the_best(temperature: float):
    """Temperature 0 takes the most likely token, and so does one that overflows a division."""
    assert _token(_sequence(temperature=temperature)) == 1


def test_temperature_follows_the_distribution():
    """At temperature 1 tokens come as often as their probabilities say."""
    expected = LOGITS.softmax(-1).tolist()
    for got, wanted in zip(_frequencies(temperature=1.0), expected, strict=True):
        assert math.isclose(got, wanted, abs_tol=0.03)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.6}, {1}),
        ({"top_p": 0.7}, {1, 2}),
        ({"min_p": 0.3}, {1, 2}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.05}, {0, 1, 2}),
        ({"top_k": 50}, {0, 1, 2, 3, 4}),
    ],
)
def test_filters(params: dict, allowed: set[int]):
    """top_k, top_p and min_p leave exactly the tokens that they define."""
    frequencies = _frequencies(temperature=1.0, **params)
    assert {token for token, share in enumerate(frequencies) if share > 0} == allowed


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"logit_bias": {4: 100.0}}, 4),
        ({"logit_bias": {1: -100.0}}, 2),
        ({"presence_penalty": 2.0}, 2),
        ({"frequency_penalty": 0.6}, 2),
        ({"frequency_penalty": 0.4}, 1),
        ({"repetition_penalty": 2.0}, 2),
    ],
)
def test_biases_and_penalties(params: dict, expected: int):
    """Biases and penalties change the arg-max; the output was token 1 twice."""
    assert _token(_sequence((0, 1, 1), **params)) == expected


def test_penalties_ignore_the_prompt():
    """Presence and frequency penalties count output alone; repetition counts the prompt too."""
    assert _token(_sequence((1, 1), prompt=2, presence_penalty=2.0, frequency_penalty=2.0)) == 1
    assert _token(_sequence((1, 1), prompt=2, repetition_penalty=2.0)) == 2


def test_logprobs_are_of_raw_logits():
    """Log-probabilities ignore biases, are sorted, and as many as asked for."""
    [got] = sample(LOGITS.clone()[None], [_sequence(logprobs=2, logit_bias={4: 100.0})])
    expected = LOGITS.log_softmax(-1)
    assert got.token_id == 4
    assert got.logprob == pytest.approx(float(expected[4]))
    assert [token for token, _ in got.top] == [1, 2]
    assert got.top[0][1] == pytest.approx(float(expected[1]))


def test_noise_depends_on_seed_and_position():
    """The same seed and position give the same noise, others do not."""
    assert uniform(5, 9) == uniform(5, 9)
    assert len({uniform(seed, position) for seed in range(9) for position in range(9)}) == 81


def test_nan_is_an_error():
    """NaN logits are refused, not sampled."""
    logits = LOGITS.clone()
    logits[3] = float("nan")
    with pytest.raises(NanLogitsError):
        sample(logits[None], [_sequence()])


def test_seed_survives_preemption():
    """A seeded request that is preempted and recomputed gives the tokens it gives alone."""
    requests = [
        a_request(f"r{i}", range(i, i + 40), max_tokens=150, temperature=1.0, seed=i, top_p=0.9)
        for i in range(5)
    ]
    alone = [run(an_engine(), request)[0].tokens for request in requests]
    engine = an_engine(memory_bytes=kv_memory(16), prefix_caching=False)
    outputs = run(engine, *requests)
    timings = [output[-1].timings for output in outputs]
    assert sum(t.preemptions for t in timings if t is not None) > 0
    assert [output.tokens for output in outputs] == alone


def test_unseeded_requests_differ():
    """Without a seed, two equal requests get noise of their own."""
    first, second = run(
        an_engine(),
        a_request("a", max_tokens=20, temperature=2.0),
        a_request("b", max_tokens=20, temperature=2.0),
    )
    assert first.tokens != second.tokens


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("max_tokens", 0),
        ("seed", 2**63),
        ("stop", ("",)),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("repetition_penalty", 0.0),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: 101.0}),
    ],
)
def test_values_out_of_range(field: str, value: object):
    """A value out of range is a 400 that names field, value and remedy."""
    with pytest.raises(InvalidRequestError, match=rf"{field} is .*Give ") as caught:
        SamplingParams(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, field)
