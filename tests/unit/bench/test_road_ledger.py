"""What planner-cpu measures, in which order, and what it remembers."""

import json
from dataclasses import replace

import pytest

from tests.unit.bench.road_builders import SHAPE, an_opening, measured
from trimtab.bench.open_loop import UNFINISHED, Arrival, Outcome
from trimtab.bench.road.conduct import row_of, tokens_within
from trimtab.bench.road.ledger import Ledger
from trimtab.bench.road.matrix import Rates, Run, blocks
from trimtab.cli.output import CommandError

RATES = Rates(base=1.0, saturating={"bf16-x1": 1.5, "fp32-x1": 1.5}, preempt=0.8)


def an_outcome(at, *, ttft=0.1, span=0.9, tokens=10, error=None):
    return Outcome(
        arrival=Arrival(at_seconds=at, model="m", prompt_tokens=4, output_tokens=10),
        lag_seconds=0.0,
        ttft_seconds=ttft,
        tpot_seconds=span / (tokens - 1),
        end_seconds=at + ttft + span,
        output_tokens=tokens,
        error=error,
    )


def a_run(**fields):
    base = Run(
        way="bf16-x1",
        kind="load",
        share=0.5,
        repeat=0,
        rate=0.5,
        seconds=10.0,
        prompt=4,
        output=10,
        length_cv=1.0,
    )
    return replace(base, **fields)


def test_every_second_repeat_goes_backwards():
    """Ways and loads alternate, and every run is measured once per repeat."""
    shape = replace(SHAPE, loads=(0.2, 0.5, 0.7), preempt=False, capacity_seconds=0.0)
    order = [(way.name, [r.share for r in runs]) for way, runs in blocks(shape, RATES)]
    assert order == [
        ("bf16-x1", [0.2, 0.5, 0.7]),
        ("fp32-x1", [0.2, 0.5, 0.7]),
        ("fp32-x1", [0.7, 0.5, 0.2]),
        ("bf16-x1", [0.7, 0.5, 0.2]),
    ]
    keys = [run.key for _, runs in blocks(SHAPE, RATES) for run in runs]
    assert len(keys) == len(set(keys)) == 2 * (2 * 3 + 1)


def test_ways_are_compared_on_the_same_requests():
    """All ways get equal arrivals in a repeat, and other ones in the next; their number is the mean."""
    run = a_run(seconds=100.0)
    times = [a.at_seconds for a in run.arrivals("m")]
    assert times == [a.at_seconds for a in replace(run, way="fp32-x1").arrivals("m")]
    assert times != [a.at_seconds for a in replace(run, repeat=1).arrivals("m")]
    assert len(times) == 55
    assert times == sorted(times)


def test_the_warm_up_is_sent_and_not_counted():
    """Only requests after the warm-up are samples; what failed is counted by kind."""
    run = a_run()
    row = row_of(
        run,
        [an_outcome(0.5), an_outcome(2.0), an_outcome(3.0, error=UNFINISHED)],
        before={"vllm:num_preemptions": 1.0},
        after={"vllm:num_preemptions": 4.0, "trimtab_engine_kv_capacity_tokens": 2048.0},
        load_average=(1.0, 2.0),
        started="now",
    )
    assert (row.requests, row.errors, len(row.tpot_us)) == (2, {UNFINISHED: 1}, 1)
    assert row.e2e_us == (1_000_000,)
    assert row.counters["vllm:num_preemptions"] == 3.0
    assert row.kv_tokens == 2048


def test_throughput_counts_what_came_in_time():
    """A request half within the time counts with the tokens that came then."""
    whole = tokens_within([an_outcome(2.0)], begin=1.0, end=11.0)
    cut = tokens_within([an_outcome(2.0)], begin=1.0, end=2.1 + 0.45)
    assert whole == pytest.approx(10)
    assert cut == pytest.approx(1 + 4.5)
    assert tokens_within([an_outcome(20.0)], begin=1.0, end=11.0) == 0


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    """Opening and rows come back equal, and what was measured is no longer missing."""
    path = tmp_path / "r.jsonl"
    wrote = measured(path, shape=replace(SHAPE, loads=(0.5,), precisions=("bf16",), repeats=1))
    read = Ledger(path)
    assert (read.opening, read.rows) == (wrote.opening, wrote.rows)
    assert read.missing([r.run for r in wrote.rows.values()]) == []
    assert read.missing([a_run(repeat=9)]) == [a_run(repeat=9)]


def test_a_skipped_way_is_tried_again(tmp_path):
    """A way without room is remembered with its reason until it is measured."""
    ledger = Ledger(tmp_path / "r.jsonl")
    ledger.begin(an_opening())
    ledger.skip("bf16-x1", "no room")
    assert Ledger(tmp_path / "r.jsonl").skipped["bf16-x1"].why == "no room"


@pytest.mark.parametrize("text", ["nonsense\n", '{"row": {}}\n', '{"v": 9, "opening": {}}\n'])
def test_another_file_is_refused(tmp_path, text):
    """A file that this release did not write is an error that names the line."""
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(CommandError, match="line 1"):
        Ledger(path)


def test_half_a_line_is_refused_with_the_remedy(tmp_path):
    """A line that was cut off is named, so that nobody scores it."""
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"skipped": {"way": "a", "why": "b"}}) + '\n{"row"')
    with pytest.raises(CommandError, match="Remove that line"):
        Ledger(path)
