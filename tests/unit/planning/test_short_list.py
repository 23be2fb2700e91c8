"""Plans whose queues were simulated: which options, at what cost in events, and what that changes."""

import itertools
import math
from dataclasses import replace
from statistics import fmean, pstdev

import pytest

from tests.unit.planning.builders import (
    LOAD,
    POLICY,
    a_fingerprint,
    a_fleet,
    a_key,
    a_pool,
    an_intent,
)
from trimtab.planning import simulations
from trimtab.planning.draws import StratifiedDraws
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.queue_sim import quantile, simulate
from trimtab.planning.snapshot import Assignment, Constraints, Load, Targets
from trimtab.planning.survey import Surveys
from trimtab.planning.variation import Variation
from trimtab.planning.workload import PlannedLoad, synthesize

FINGERPRINTS = tuple(a_fingerprint(key=a_key(threads=t)) for t in (1, 2, 4))
POOLS = tuple(a_pool(f"n{n}", threads=4, gib=16) for n in range(4))
BUSY = Load(requests_per_second=2.0, prompt_tokens=256, output_tokens=64)
LONG = Load(requests_per_second=0.9, prompt_tokens=768, output_tokens=64)


def a_busy_fleet(*intents, **fields):
    return a_fleet(
        *(intents or (an_intent(load=BUSY),)),
        pools=POOLS,
        fingerprints=FINGERPRINTS,
        **fields,
    )


@pytest.fixture
def runs(monkeypatch):
    """Note the simulations that are run."""
    found = []

    def noted(*args, **kwargs):
        result = simulate(*args, **kwargs)
        found.append((kwargs, result))
        return result

    monkeypatch.setattr(simulations, "simulate", noted)
    return found


def test_latencies_of_a_chosen_option_are_those_of_simulated_requests(runs):
    """Mean and percentiles come from the requests, the gateway's overhead on top of the first token."""
    plan = plan_fleet(a_busy_fleet(gateway_overhead_us=700), POLICY).intents[0]
    option = plan.option
    assert option.simulated
    assert "queue simulated" in option.confidence.reasons
    result = next(r for k, r in runs if k["replicas"] == option.replicas)
    first, later = result.values("TTFT"), result.values("TPOT")
    assert len(result.served) == 256
    assert option.predicted.ttft.p95_us == round(quantile(first, 0.95) + 700)
    assert option.predicted.ttft.mean_us == round(fmean(first) + 700)
    assert option.predicted.tpot.p99_us == round(quantile(later, 0.99))


def test_all_options_of_an_intent_meet_the_same_requests(runs):
    """What is compared differs in the machine and not in luck."""
    plan_fleet(a_busy_fleet(an_intent(load=BUSY, objective="MinCost")), POLICY)
    traces = {k["arrivals"] for k, _ in runs}
    assert len(runs) > 1
    assert len(traces) == 1


@pytest.mark.parametrize("objective", ["MinLatency", "MinCost", "TargetLatency", "TargetCost"])
def test_at_most_three_options_are_simulated_within_the_intent_s_budget(runs, objective):
    """The best is simulated until the best was; three options and 4,000 events are the end of it."""
    targets = Targets(tpot_us=60_000, ttft_us=900_000, cost_per_hour_micro_usd=900_000)
    plan_fleet(a_busy_fleet(an_intent(load=BUSY, objective=objective, targets=targets)), POLICY)
    assert 1 <= len(runs) <= 3
    assert sum(r.events for _, r in runs) <= 4_000


def test_the_budget_of_an_intent_ends_a_simulation(runs):
    """A queue that cannot be followed to its end says nothing, and the closed form stays."""
    small = replace(POLICY, intent_events=50)
    found = plan_fleet(a_busy_fleet(), small)
    option = found.intents[0].option
    assert not option.simulated
    assert found.waiting == 0
    assert [r.events for _, r in runs] == [50]


def test_what_the_plan_s_budget_leaves_out_is_simulated_by_the_next_plan():
    """Two intents are planned at once; what the first plan could not follow, the next ones do."""
    other = an_intent("other", load=replace(BUSY, requests_per_second=1.0), objective="MinCost")
    fleet = a_busy_fleet(an_intent(load=BUSY, objective="MinCost"), other)
    small = replace(POLICY, plan_events=800)
    known = Surveys()
    first = plan_fleet(fleet, small, surveys=known)
    assert first.waiting
    assert not all(p.option.simulated for p in first.intents)
    plans = [plan_fleet(fleet, small, surveys=known) for _ in range(6)]
    assert plans[-1].waiting == 0
    assert all(p.option.simulated for p in plans[-1].intents)
    assert repr(plans[-1].intents) == repr(plan_fleet(fleet, POLICY).intents)


def test_a_skipped_simulation_costs_a_level_above_a_third_of_the_capacity():
    """The closed form is within a tenth below that."""
    unsimulated = replace(POLICY, short_list=0)
    fleet = a_busy_fleet(an_intent(load=BUSY, objective="MinCost"))
    skipped = plan_fleet(fleet, unsimulated).intents[0].option
    simulated = plan_fleet(fleet, POLICY).intents[0].option
    assert skipped.predicted.utilisation_permille > 300
    assert (skipped.confidence.level, simulated.confidence.level) == ("Medium", "High")
    assert skipped.margin_permille > simulated.margin_permille


def test_equal_queues_are_simulated_once(runs):
    """Equal intents share a simulation, and the next plan remembers it."""
    known = Surveys()
    fleet = a_busy_fleet(an_intent("a", load=BUSY), an_intent("b", load=BUSY))
    one = plan_fleet(fleet, POLICY, surveys=known)
    keys = [(id(k["arrivals"]), k["replicas"], k["limits"], k["kv_tokens"]) for k, _ in runs]
    count = len(runs)
    two = plan_fleet(fleet, POLICY, surveys=known)
    assert len(runs) == count
    assert repr(one) == repr(two)
    assert one.intents[0].option == one.intents[1].option
    assert len(keys) == count


def test_without_a_load_nothing_is_simulated(runs):
    """One request at a time never queues."""
    plan = plan_fleet(a_busy_fleet(an_intent(load=None)), POLICY).intents[0]
    assert runs == []
    assert not plan.option.simulated


def test_what_runs_is_simulated_before_it_is_compared(runs):
    """A running option in closed form would look better than it is beside a simulated one."""
    option = plan_fleet(a_busy_fleet(), POLICY).intents[0].option
    held = Assignment(
        intent_uid="uid-chat", config=option.config, replicas=option.replicas + 1, generation=1
    )
    runs.clear()
    plan_fleet(a_busy_fleet(assignments=(held,)), POLICY)
    assert runs[0][0]["replicas"] == option.replicas + 1


def test_what_runs_stays_while_simulations_are_missing():
    """It was chosen when more was known, so a plan without budget moves nobody."""
    intent = an_intent(load=BUSY, objective="MinCost")
    wanted = plan_fleet(a_busy_fleet(intent), POLICY).intents[0].option
    bigger = replace(wanted.config, threads=4)
    held = Assignment(
        intent_uid="uid-chat",
        config=bigger,
        replicas=3,
        nodes=(("n0", 1), ("n1", 1), ("n2", 1)),
        generation=1,
    )
    fleet = a_busy_fleet(intent, assignments=(held,))
    assert plan_fleet(fleet, POLICY).intents[0].option.config == wanted.config
    without = plan_fleet(fleet, replace(POLICY, plan_events=0))
    assert without.waiting == 1
    assert (without.intents[0].option.config, without.intents[0].option.replicas) == (bigger, 3)


def test_what_only_looks_better_is_not_called_slower():
    """An alternative that was not simulated loses for that, whatever its closed form says."""
    intent = an_intent(load=LONG, constraints=Constraints(max_replicas=2))
    found = plan_fleet(a_busy_fleet(intent), replace(POLICY, short_list=1))
    plan = found.intents[0]
    chosen = plan.option.predicted.e2e.mean_us
    looks_better = [
        a for a in plan.alternatives if a.option and a.option.predicted.e2e.mean_us < chosen
    ]
    assert looks_better
    assert {a.reason for a in looks_better} <= {"NotSimulated", "NoCapacity"}
    assert any(a.reason == "NotSimulated" for a in looks_better)


def test_queues_are_seen_where_prompts_are_long():
    """With prompts longer than a step's budget the closed form is too optimistic about the tail."""
    fleet = a_busy_fleet(an_intent(load=LONG, objective="MinCost"))
    closed = plan_fleet(fleet, replace(POLICY, short_list=0)).intents[0].option
    same = an_intent(
        load=LONG,
        objective="MinCost",
        constraints=Constraints(min_replicas=closed.replicas, max_replicas=closed.replicas),
    )
    simulated = plan_fleet(a_busy_fleet(same), POLICY).intents[0].option
    assert (simulated.config, simulated.replicas) == (closed.config, closed.replicas)
    assert closed.predicted.utilisation_permille > 300
    assert simulated.predicted.ttft.p95_us > 1.1 * closed.predicted.ttft.p95_us


def test_a_quiet_load_is_simulated_too():
    """Lengths vary: first tokens differ more than the closed form knows, which has one length."""
    intent = an_intent(load=LOAD)
    simulated = plan_fleet(a_busy_fleet(intent), POLICY).intents[0].option
    closed = plan_fleet(a_busy_fleet(intent), replace(POLICY, short_list=0)).intents[0].option
    assert simulated.simulated
    assert simulated.predicted.ttft.p95_us > closed.predicted.ttft.p95_us


def test_a_long_prompt_is_no_slow_one_end_to_end():
    """End-to-end times are told for mean lengths, so at a trickle its p95 is about that of a request alone."""
    trickle = replace(BUSY, requests_per_second=0.02)
    option = plan_fleet(a_busy_fleet(an_intent(load=trickle)), POLICY).intents[0].option
    assert option.simulated
    assert option.predicted.e2e.p95_us < 1.2 * option.predicted.unloaded_e2e_us
    assert option.predicted.ttft.p95_us > 1.3 * option.predicted.ttft.p50_us


def test_a_little_more_load_never_looks_better():
    """All loads meet the same order of requests, so their predictions do not jump with luck."""

    def p95(rate):
        load = replace(BUSY, requests_per_second=rate)
        pins = Constraints(min_replicas=1, max_replicas=1)
        intent = an_intent(load=load, constraints=pins)
        option = plan_fleet(a_busy_fleet(intent), POLICY).intents[0].option
        assert option.simulated
        return option.predicted.ttft.p95_us

    times = [p95(0.5 + 0.05 * n) for n in range(12)]
    assert all(b >= 0.97 * a for a, b in itertools.pairwise(times)), times


@pytest.mark.parametrize("gap", [0.5, 1.0, 4.0])
def test_a_trace_has_the_means_and_spreads_that_were_asked_for(gap):
    """Also of 256 requests, because every quantile of the law is there once."""
    load = PlannedLoad(rate=2.0, prompt=500, output=100, assumed=False)
    trace = synthesize(
        load,
        count=256,
        draws=StratifiedDraws(3, count=256),
        variation=Variation(gap=gap),
        longest=10**6,
    )
    gaps = [b - a for a, b in itertools.pairwise([0.0, *(a.at_us for a in trace)])]
    assert fmean(gaps) == pytest.approx(5e5, rel=0.02)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(gap, rel=0.1)
    for lengths, mean in (([a.prompt for a in trace], 500), ([a.output for a in trace], 100)):
        assert fmean(lengths) == pytest.approx(mean, rel=0.03)
        logs = [math.log(n) for n in lengths]
        assert pstdev(logs) == pytest.approx(math.sqrt(math.log(2)), rel=0.03)


def test_a_seed_draws_the_same_trace_again_and_another_one_another():
    """A plan can be repeated years later."""

    def drawn(seed):
        draws = StratifiedDraws(seed, count=8)
        return [draws.lognormvariate(2.0, 0.5) for _ in range(16)]

    assert drawn(5) == drawn(5) != drawn(6)
    assert sorted(drawn(5)) == sorted(drawn(6))


def test_observed_bursts_ask_for_other_replicas_than_their_mean(runs):
    """Equal rates and lengths with gaps of CV 1 and 2 are two plans (Dynamo PR #10528)."""
    targets = Targets(ttft_us=2_000_000, tpot_us=80_000)
    found = {}
    for gap in (1.0, 2.0):
        load = replace(BUSY, variation=Variation(gap=gap))
        intent = an_intent(load=load, objective="TargetLatency", targets=targets)
        found[gap] = plan_fleet(a_busy_fleet(intent), POLICY).intents[0].option
        assert found[gap].simulated
    gaps = {round(pstdev(_gaps(k["arrivals"])) / fmean(_gaps(k["arrivals"])), 1) for k, _ in runs}
    assert len(gaps) == 2
    calm, uneven = ((o.config.devices * o.replicas) for o in (found[1.0], found[2.0]))
    assert uneven > calm


def _gaps(arrivals):
    return [b - a for a, b in itertools.pairwise([0.0, *(a.at_us for a in arrivals)])]
