from dataclasses import replace

import pytest

from tests.unit.planning.builders import LLAMA_8B, POLICY, a_key
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.step_model import StepWork, fit

H100 = PEAKS["NVIDIA-H100-80GB-HBM3"]
DECODE = StepWork(tokens=1, sampled=1, batch=1, kv_tokens=512)


def a_model(*, size=1, precision="bf16", peak=H100):
    key = replace(
        a_key(LLAMA_8B, precision=precision),
        product="NVIDIA-H100-80GB-HBM3",
        kv_precision="bf16",
        tensor_parallel_size=size,
    )
    return fit(gpu_roofline(LLAMA_8B, key=key, peak=peak, policy=POLICY), depth=32)


def test_a_lone_decode_reads_every_weight_once_at_half_the_bandwidth():
    """7.5 billion weights of the layers and the head, 15 GB at 1.675 TB/s: about 9 ms."""
    parameters = 32 * LLAMA_8B.layer_parameters() + LLAMA_8B.vocab_size * LLAMA_8B.hidden_size
    floor = 2 * parameters / (3.35e6 / 2)
    assert a_model().step_us(DECODE) == pytest.approx(floor, rel=0.02)


def test_a_long_prompt_is_bound_by_compute():
    """2 FLOPs per weight and token, 4 per attended value, at half of 989 TFLOP/s."""
    chunk = StepWork(tokens=8192, sampled=1, work=8192 * 4096)
    attended = LLAMA_8B.attention_heads * LLAMA_8B.head_dim * chunk.work
    flops = 32 * (2 * LLAMA_8B.layer_parameters() * 8192 + 4 * attended)
    assert a_model().step_us(chunk) == pytest.approx(flops / (989e6 / 2), rel=0.02)


def test_a_group_halves_the_reading_and_pays_for_its_exchange():
    """Two ranks take more than half the time of one, and a slower link takes longer."""
    alone, pair = a_model(), a_model(size=2)
    assert 0.5 < pair.step_us(DECODE) / alone.step_us(DECODE) < 0.55
    slow = a_model(size=2, peak=replace(H100, link_bytes_per_us=0.032e6))
    chunk = StepWork(tokens=2048, sampled=1, work=2048 * 1024)
    assert slow.step_us(chunk) > 1.5 * pair.step_us(chunk)


def test_fp8_halves_the_weights():
    """Half the bytes: the layers' share of a decode step halves, the head's stays."""
    assert 0.5 < a_model(precision="fp8").step_us(DECODE) / a_model().step_us(DECODE) < 0.6
