"""Stalls over a modelled link."""

import json

import pytest

from trimtab_workers.engine.bench import cpu_link
from trimtab_workers.engine.bench.cpu_link import Point, deviation, predicted_stall


def test_two_slots_stall_by_what_the_link_needs_beyond_the_step():
    """Six layers of 3 ms behind 10 ms of work stall 8 ms; four of 2 ms do not."""
    point = Point(step_s=0.018, stall_s=0.008)
    stall = predicted_stall(point, streamed=6, slots=2, transfer_s=0.003, layers=10, plain_s=0.01)
    assert stall == pytest.approx(0.008)
    assert (
        predicted_stall(point, streamed=4, slots=2, transfer_s=0.002, layers=10, plain_s=0.01)
        == 0.0
    )


def test_one_slot_waits_for_its_layer_too():
    """With one slot each layer costs its compute beside its transfer, and the copy if there is one."""
    point = Point(step_s=0.018, stall_s=0.008)
    stall = predicted_stall(point, streamed=5, slots=1, transfer_s=0.003, layers=10, plain_s=0.01)
    assert stall == pytest.approx(5 * (0.003 + 0.001) - 0.010)
    stall = predicted_stall(point, streamed=5, slots=1, transfer_s=0.003, layers=10, plain_s=0.005)
    assert stall == pytest.approx(5 * (0.003 + 0.0005) + 0.005 - 0.010)


def test_deviation_is_of_the_prediction_or_of_the_step():
    """A stall that was predicted to be nothing is judged by the step it lengthens."""
    assert deviation(measured=0.011, predicted=0.010, step_s=0.040) == pytest.approx(0.1)
    assert deviation(measured=0.001, predicted=0.0, step_s=0.010) == pytest.approx(0.1)


def test_streaming_over_a_slow_link_stalls(monkeypatch, capsys):
    """Steps stall behind a link that is far too slow, and the result says by how much."""
    monkeypatch.setattr(cpu_link, "LOADS", (40.0,))
    small = {"num_hidden_layers": 4, "hidden_size": 96, "intermediate_size": 128, "head_dim": 16}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 512}
    monkeypatch.setattr(cpu_link, "SHAPE", cpu_link.SHAPE | small | heads)
    options = ["--freed=1", "--slots=2", "--steps=6", "--repeats=1", "-o", "json"]
    assert cpu_link.main(options) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    assert row["stall_s"] > 0
    assert row["predicted_s"] > 0
    assert "| 1 | 2 | 40 |" in cpu_link.markdown(result)
