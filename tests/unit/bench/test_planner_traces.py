"""`planner-traces`: loads cut out of traces, choices by hand, and the whole command without a catalogue."""

import dataclasses
import json
import random
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from trimtab.bench import gpu_setups, planner_traces, production, trace_cells
from trimtab.bench.gpu_setups import setups
from trimtab.bench.known_models import KNOWN
from trimtab.bench.trace_cells import Candidate, Served, Targets, choose, shortfall
from trimtab.bench.trace_loads import observed
from trimtab.bench.trace_outcomes import Cell, Judge, loses
from trimtab.bench.trace_production import pick as pick_planned
from trimtab.cli.app import app
from trimtab.planning.fingerprint import dump
from trimtab.planning.gpu_grid import FULL, THIN, thinned
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.snapshot import Load
from trimtab.planning.snapshot import Targets as Wanted
from trimtab.planning.variation import Variation
from trimtab.planning.workload import Arrival

POLICY = PlannerPolicy()
TARGETS = Targets(ttft_ms=1000, tpot_ms=50)


def a_served(e2e=100.0, *, ttft=100.0, tpot=10.0, slowdown=1.0, utilisation=0.1, rejected=0):
    return Served(
        e2e_ms=e2e,
        ttft_p95_ms=ttft,
        tpot_p95_ms=tpot,
        slowdown_p95=slowdown,
        utilisation=utilisation,
        rejected=rejected,
    )


def a_candidate(size, replicas, seen=None, real=None):
    seen = seen or a_served()
    return Candidate(
        setup=SimpleNamespace(size=size, margin_permille=200),
        replicas=replicas,
        views={"planner": seen, "truth": real or seen},
    )


def a_cell(objective, *candidates):
    return Cell(
        objective=objective,
        model="m",
        product="p",
        load=SimpleNamespace(name="t", faster=1.0),
        candidates=candidates,
    )


def pick(objective, *candidates, view="planner"):
    return choose(objective, candidates, view, targets=TARGETS, policy=POLICY).name


def evenly(count, *, gap_us=1e6, prompt=100, output=10):
    return [Arrival(at_us=n * gap_us, prompt=prompt, output=output) for n in range(count)]


def test_the_first_fifth_is_observed_and_the_rest_came():
    """Rate and lengths are those of twenty requests of a hundred; what came is three times as fast."""
    arrivals = [
        *evenly(20, prompt=100),
        *(dataclasses.replace(a, at_us=a.at_us + 20e6, prompt=500) for a in evenly(80)),
    ]
    load = observed("t", arrivals, faster=3.0, requests=50, longest=400)
    assert load.load.rate == pytest.approx(3.0)
    assert (load.load.prompt, load.load.output) == (100, 10)
    assert load.load.variation == Variation()
    assert len(load.arrivals) == 50
    assert load.arrivals[0].at_us == 0
    assert load.rate == pytest.approx(3.0)
    assert {a.prompt for a in load.arrivals} == {390}


def test_variation_is_what_plans_make_of_a_gateway_s_figures():
    """Of 700 requests a second apart plans take the smoothest gaps that they know, at any multiple."""
    load = observed("t", evenly(3500), faster=3.0, requests=50, longest=400)
    assert load.load.variation == Variation(gap=0.5, prompt=0.1, output=0.1)


def test_observed_counts_keep_their_order():
    """Thirty requests at once and then none for a minute are drawn so, twice as fast."""
    arrivals = [*evenly(30, gap_us=1e5), *evenly(150)[60:]]
    load = observed("t", arrivals, faster=2.0, requests=10, longest=400)
    assert load.counts == (24,)
    drawn = load.from_counts(random.Random(0), longest=400)
    assert len(drawn) == 24
    assert max(a.at_us for a in drawn) <= 5e6


def test_the_thin_grid_is_a_part_of_the_full_one():
    """Thinning keeps exactly the note's points."""
    assert set(THIN.decode) < set(FULL.decode)
    assert set(THIN.prefill) < set(FULL.prefill)
    found = setups(["llama-3.1-8b"], ["h100"], python="/none", folder=None, policy=POLICY)
    assert "roofline" in found.label
    assert [s.size for s in found.setups] == [1, 2, 4, 8]
    thin = thinned(a_document("llama-3.1-8b", "NVIDIA-H100-80GB-HBM3", 1))
    assert (len(thin.decode), len(thin.prefill)) == (len(THIN.decode), len(THIN.prefill))


def a_document(model, product, size):
    from trimtab.planning.architecture import architecture_hash
    from trimtab.planning.fingerprint import FingerprintKey

    architecture = KNOWN[model].architecture
    key = FingerprintKey(
        architecture=architecture_hash(architecture),
        product=product,
        precision="bf16",
        kv_precision="bf16",
        tensor_parallel_size=size,
        engine="vllm",
        engine_version="1",
    )
    return gpu_roofline(architecture, key=key, peak=PEAKS[product], policy=POLICY, grid=FULL)


def test_what_does_not_fit_is_refused_with_both_figures():
    """32B in 16 bits has no room on one L40S."""
    found = setups(["qwen3-32b"], ["l40s"], python="/none", folder=None, policy=POLICY)
    assert [s.size for s in found.setups] == [2, 4, 8]
    assert "GiB" in found.refused["qwen3-32b on l40s, 1 GPUs"]


def test_latency_takes_the_fastest_and_cost_the_fewest():
    """Two objectives, two picks."""
    slow, fast = a_candidate(1, 1, a_served(200)), a_candidate(8, 1, a_served(100))
    assert pick("MinLatency", slow, fast) == "1 x TP8"
    assert pick("MinCost", slow, fast) == "1 x TP1"


def test_cost_wants_headroom_and_use():
    """A replica that is nearly full, or in which requests take four times as long, is not usable."""
    good = a_candidate(4, 1)
    assert pick("MinCost", a_candidate(1, 1, a_served(utilisation=0.9)), good) == "1 x TP4"
    assert pick("MinCost", a_candidate(1, 1, a_served(slowdown=4)), good) == "1 x TP4"


def test_a_target_is_met_with_its_margin():
    """45 ms and 20 % miss 50; in truth 45 ms meets it. Where nothing meets it the nearest is taken."""
    close, far = a_candidate(1, 1, a_served(tpot=45)), a_candidate(2, 1, a_served(tpot=30))
    assert pick("TargetLatency", close, far) == "1 x TP2"
    assert pick("TargetLatency", close, far, view="truth") == "1 x TP1"
    assert pick("TargetLatency", close, a_candidate(2, 1, a_served(tpot=99))) == "1 x TP1"


def test_rejected_requests_meet_nothing():
    """One request without room fails every requirement, but not a comparison of latencies."""
    candidate = a_candidate(1, 1, a_served(rejected=1))
    for objective in ("MinCost", "TargetLatency"):
        worst = shortfall(objective, candidate, "truth", targets=TARGETS, policy=POLICY)
        assert worst > 1e6
    assert shortfall("MinLatency", candidate, "truth", targets=TARGETS, policy=POLICY) == 0


def test_truth_is_no_input():
    """Whatever really happens, the pick is the same; only its worth changes."""
    judge = Judge(TARGETS, policy=POLICY)
    for real in (a_served(50), a_served(5000, tpot=500)):
        cell = a_cell(
            "TargetLatency", a_candidate(1, 1, None, real), a_candidate(2, 1, None, a_served())
        )
        outcome = judge.answer(cell)
        assert outcome.pick.name == "1 x TP1"
        assert outcome.violates == (real.tpot_p95_ms > 50)
        assert (outcome.regret is None) == outcome.violates


def test_the_best_static_choice_is_chosen_in_hindsight():
    """Fewest violations first, then what the objective minimises; 3 % more is a tie."""
    judge = Judge(TARGETS, policy=POLICY)
    cells = [
        a_cell(
            "MinLatency",
            a_candidate(1, 8, a_served(90), a_served(first)),
            a_candidate(8, 1, a_served(95), a_served(100)),
        )
        for first in (102, 150)
    ]
    static = judge.static(cells)
    assert [name for name, _ in static] == ["1 x TP8", "8 x TP1"]
    ours = [judge.answer(cell) for cell in cells]
    assert [loses(o, s) for o, s in zip(ours, static[0][1], strict=True)] == [False, True]
    assert judge.random_regret(cells[1]) == pytest.approx(0.25)


def test_a_miss_loses_against_a_static_choice_that_meets():
    """And a static choice that misses beats nobody, however cheap."""
    judge = Judge(TARGETS, policy=POLICY)
    missing = a_candidate(1, 1, a_served(), a_served(tpot=99))
    cell = a_cell("TargetLatency", missing, a_candidate(2, 1))
    ours, static = judge.outcome(cell, missing), judge.outcome(cell, cell.candidates[1])
    assert loses(ours, static)
    assert not loses(static, ours)
    assert judge.answerable(cell)
    assert judge.fewest(cell).pick.name == "1 x TP1"


def test_the_operators_planner_picks():
    """What is judged is what `plan_fleet` decides for that load; it may take three replicas."""
    found = setups(["llama-3.1-8b"], ["l40s"], python="/none", folder=None, policy=POLICY)
    load = observed("t", evenly(100, gap_us=2e4), faster=1.0, requests=30, longest=400)
    for objective in ("MinLatency", "MinCost", "TargetLatency"):
        cell = Cell(
            objective=objective,
            model="llama-3.1-8b",
            product="l40s",
            load=load,
            candidates=tuple(
                Candidate(setup=setup, replicas=1, views={"truth": a_served()})
                for setup in found.setups
            ),
        )
        asked = production.Asked(
            name="trace",
            model="llama-3.1-8b",
            objective=objective,
            load=Load(
                requests_per_second=load.load.rate,
                prompt_tokens=100,
                output_tokens=10,
                variation=load.load.variation,
            ),
            targets=Wanted(ttft_us=1_000_000, tpot_us=50_000)
            if objective == "TargetLatency"
            else Wanted(),
        )
        planned = production.planned([asked], found.setups, gpus=8, policy=POLICY)["trace"]
        picked = pick_planned(cell, targets=TARGETS, policy=POLICY)
        assert (picked.setup, picked.replicas) == (planned.setup, planned.replicas)
        assert picked.views["plan"].e2e_ms == planned.predicted.e2e.mean_us / 1000
        assert (picked.views["truth"] == a_served()) == (picked.replicas == 1)


def test_a_catalogues_own_configuration_is_the_same_model():
    """A document whose key says another rotary scaling is what plans rest on: no data sheet stands in."""
    full = a_document("llama-3.1-8b", "NVIDIA-L40S", 2)
    foreign = dataclasses.replace(full, key=dataclasses.replace(full.key, architecture="0" * 64))
    setup = gpu_setups._setup("llama-3.1-8b", "l40s", 2, foreign, policy=POLICY)
    assert setup.document.key == full.key


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trace_cells, "PREDICTED_REQUESTS", 20)
    path = tmp_path / "small.csv"
    lines = [
        f"2023-11-16 18:00:{n // 2:02d}.{5 * (n % 2)}00000,{300 + n},{20 + n % 7}"
        for n in range(80)
    ]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))

    def call(*options, trace=True, output="json"):
        args = ["-o", output, "--catalogue-python", "/none", "--product", "l40s"]
        args += ["--model", "llama-3.1-8b", "--rate", "1", "--rate", "20", "--requests", "30"]
        args += ["--trace", str(path)] if trace else []
        status = planner_traces.main([*args, *options])
        return status, capsys.readouterr()

    return call


def test_the_document_counts_before_it_divides(run):
    """Every cell asked is used or has no answer; every chooser has the same cells; the ratios are per rate."""
    status, printed = run()
    found = json.loads(printed.out)
    assert status == 0
    cells = found["cells"]
    assert cells["asked"] == 6 == cells["used"] + cells["no_answer_in_truth"]
    for by_chooser in found["objectives"].values():
        counts = {q["cells"] for q in by_chooser.values() if isinstance(q, dict)}
        assert len(counts) == 1
    assert {line["rate_multiple"] for line in found["iserve"]} == {1.0, 20.0, None}
    assert len(found["iserve"]) == 15
    assert {load["rate_multiple"] for load in found["loads"]} == {1.0, 20.0}
    assert "roofline" in found["label"]
    assert len(found["per_cell"]) == cells["used"]


def test_given_fingerprints_are_read(run, tmp_path):
    """Documents of the full grid replace the catalogue; what is not there is refused."""
    folder = tmp_path / "fingerprints"
    folder.mkdir()
    (folder / "one.json").write_text(dump(a_document("llama-3.1-8b", "NVIDIA-L40S", 2), limit=None))
    status, printed = run("--fingerprints", str(folder))
    found = json.loads(printed.out)
    assert status == 0
    assert found["label"].startswith("inputs: given fingerprints")
    assert len(found["refused"]) == 3
    (folder / "two.json").write_text("{}")
    status, printed = run("--fingerprints", str(folder))
    assert status == 1
    assert "--grid full" in printed.err


def test_people_get_tables(run):
    """Counts stand before percentages."""
    status, printed = run(output="table")
    assert status == 0
    assert printed.out.index("cells asked") < printed.out.index("percent")


def test_without_a_trace_the_sentence_names_what_to_give(run, monkeypatch):
    """The default is the shared data, where there is any."""
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    status, printed = run(trace=False)
    assert status == 1
    assert "Give --trace FILE" in printed.err


def test_it_is_listed():
    """`trimtab bench list` names it."""
    assert "planner-traces" in CliRunner().invoke(app, ["bench", "list"]).stdout
