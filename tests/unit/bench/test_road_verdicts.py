"""What planner-cpu concludes from its rows."""

from dataclasses import replace

import pytest

from tests.unit.bench.road_builders import SHAPE, documents, measured
from trimtab.bench.planner_cpu import _text
from trimtab.bench.road.figures import machine_spread, verdict
from trimtab.bench.road.ledger import Ledger
from trimtab.bench.road.verdicts import report


def tpot(cell, name="p50"):
    return cell["TPOT"][name]


def test_a_machine_as_measured_is_foretold(tmp_path):
    """Where the machine is as its fingerprint says, the median TPOT of every cell is within target."""
    found = report(measured(tmp_path / "r.jsonl"))
    assert [(c["way"], c["load"]) for c in found["cells"]] == [
        (way, load) for way in ("bf16-x1", "fp32-x1") for load in SHAPE.loads
    ]
    assert {tpot(cell)["verdict"] for cell in found["cells"]} == {"met"}
    assert {tpot(cell)["machine_spread_percent"] for cell in found["cells"]} == {0.0}
    assert max(tpot(cell)["spread_percent"] for cell in found["cells"]) > 1.0
    assert found["counts"]["errors"] == {}
    assert found["preemption"]["preemptions"]["predicted"] > 0
    assert (
        found["preemption"]["preemptions"]["observed"]
        == found["preemption"]["preemptions"]["predicted"]
    )


def test_anchors_bring_a_slow_machine_back(tmp_path):
    """A machine slower than its fingerprint misses raw; anchors of the first repeat mend it."""
    slow = documents(bf16=1.25, fp32=1.6 * 1.25)
    found = report(measured(tmp_path / "r.jsonl", truth=slow))
    raw = found["targets"]["TPOT p50 within 15 %"]
    anchored = found["targets"]["TPOT p50 within 8 % with anchors"]
    assert found["counts"]["anchors"] == 6
    assert raw["missed"] == raw["cells"] == 5
    assert anchored["met"] >= 4
    assert found["capacity"][0]["error_percent"] > 15
    assert abs(found["capacity"][0]["anchored_error_percent"]) < 10


def test_anchors_are_not_scored_on_their_own_repeat(tmp_path):
    """With one repeat there are anchors and nothing left to score them with."""
    found = report(measured(tmp_path / "r.jsonl", shape=replace(SHAPE, repeats=1, preempt=False)))
    assert found["counts"]["anchors"] == 6
    assert {tpot(cell)["anchored_error_percent"] for cell in found["cells"]} == {None}
    assert {tpot(cell)["anchored_verdict"] for cell in found["cells"]} == {"not judged"}
    assert found["preemption"] is None
    # One repeat has no spread, so nothing is told apart.
    assert [c for c in found["choices"] if c["counted"]] == []


@pytest.mark.parametrize(
    ("error", "noise", "expected"),
    [
        (14.0, 3.0, "met"),
        (-16.0, 3.0, "missed"),
        (-16.0, 15.9, "missed"),
        (-16.0, 16.1, "machine too noisy"),
        (2.0, 14.0, "met"),
        (2.0, 16.0, "machine too noisy"),
        (20.0, None, "missed"),
        (None, 1.0, "not judged"),
    ],
)
def test_noise_excuses_only_what_it_exceeds(error, noise, expected):
    """A miss stands unless repeats differ by more than the error; so does a hit within the target."""
    assert verdict(error, target=15.0, noise=noise, judged=True) == expected


def test_a_noisy_machine_is_told_by_its_repeats(tmp_path):
    """Repeats that differ by half on like requests are called noise, whatever the mean error is."""
    ledger = measured(
        tmp_path / "r.jsonl", noise=lambda run: 1.5 if run.repeat and run.share == 0.5 else 1.0
    )
    cells = {(c["way"], c["load"]): tpot(c) for c in report(ledger)["cells"]}
    assert cells["bf16-x1", 0.5]["verdict"] == "machine too noisy"
    assert cells["bf16-x1", 0.5]["machine_spread_percent"] == pytest.approx(40, abs=1)
    assert cells["bf16-x1", 0.2]["verdict"] == "met"


def test_different_requests_are_no_noise():
    """One repeat alone has no spread."""
    assert machine_spread([], [], "TPOT", 0.5) is None


def test_replicas_without_a_core_of_their_own_are_not_judged(tmp_path):
    """On two CPUs two replicas share with gateway and client: figures without a verdict."""
    shape = replace(SHAPE, loads=(0.5,), replicas=(1, 2), preempt=False)
    found = report(measured(tmp_path / "r.jsonl", shape=shape))
    said = {cell["way"]: tpot(cell)["verdict"] for cell in found["cells"]}
    assert said == {
        "bf16-x1": "met", "bf16-x2": "not judged", "fp32-x1": "met", "fp32-x2": "not judged",
    }  # fmt: skip
    assert set(found["choices"][0]["options"]) == set(said)
    assert set(found["choices_with_a_core_each"][0]["options"]) == {"bf16-x1", "fp32-x1"}


def test_picks_are_right_where_predictions_are(tmp_path):
    """Each objective is put to every load, and the pick is the observed best where options differ."""
    found = report(measured(tmp_path / "r.jsonl"))
    assert [(c["load"], c["objective"]) for c in found["choices"]][:4] == [
        (0.2, "MinLatency"), (0.2, "MinCost"), (0.2, "TargetLatency"), (0.2, "TargetCost"),
    ]  # fmt: skip
    told = found["targets"]["pick is the observed best in 80 % of choices"]
    assert told["cells"] == 8
    assert told["options_differ_by_more_than_the_spread"] >= 4
    assert told["percent"] >= 80


def test_a_wrong_pick_is_counted(tmp_path):
    """Where the slower precision turns out the faster one, picks for latency are worse, with a regret."""
    swapped = documents(bf16=1.6, fp32=1.0)
    found = report(measured(tmp_path / "r.jsonl", truth=swapped))
    latency = [c for c in found["choices"] if c["objective"] == "MinLatency"]
    assert {(c["pick"], c["observed_best"], c["outcome"]) for c in latency} == {
        ("bf16-x1", "fp32-x1", "worse")
    }
    assert min(c["regret_percent"] for c in latency) > 30
    told = found["targets"]["pick is the observed best in 80 % of choices"]
    assert told["worse"] >= 2
    assert told["percent"] < 80


def test_a_report_is_readable_and_survives_its_file(tmp_path):
    """A ledger read again gives the same document, and every cell has a line of text."""
    path = tmp_path / "r.jsonl"
    found = report(measured(path))
    assert report(Ledger(path)) == found
    text = _text(found)
    for word in ("bf16-x1", "fp32-x1", "TTFT p50", "small KV cache", "TargetCost", "within 15 %"):
        assert word in text
