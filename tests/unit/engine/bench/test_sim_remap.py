"""Simulated runs: the real scheduler and controller, no tensors, the same JSON every time."""

import json

import pytest

from trimtab_workers.engine.bench import sim_remap
from trimtab_workers.engine.bench.sim_remap import rounded, run_curve, simulate
from trimtab_workers.engine.bench.sim_report import draw, markdown
from trimtab_workers.engine.bench.sim_scenarios import SCENARIOS, curve_point


def test_lending_idle_models_wins_where_it_was_predicted_to():
    """Bursts on one of three models: lending shortens the tail of first tokens several-fold."""
    scenario = SCENARIOS["temporal"].lasting(11.0)
    arrivals = scenario.arrivals()
    plain, _ = simulate(scenario, policy="recompute", arrivals=arrivals)
    remap, counted = simulate(scenario, policy="remap-idle", arrivals=arrivals)
    assert counted["trimtab_engine_remaps/lend"] > 0
    assert remap.ttft_p99 < 0.5 * plain.ttft_p99


def test_two_runs_are_equal(capsys):
    """The same command prints the same JSON twice: nothing depends on the machine or its clock."""
    shown = []
    for _ in range(2):
        options = ["--scenarios=fast-link", "--seconds=1", "--no-curve", "-o", "json"]
        assert sim_remap.main(options) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    result = json.loads(shown[0])
    assert result["kind"] == "simulation"
    assert [*result["scenarios"]["fast-link"]["policies"]] == ["recompute", "swap", "remap"]
    assert "| fast-link | remap ÷ recompute |" in markdown(result)


def test_a_fast_link_and_a_small_cache_gain_by_streaming(tmp_path):
    """At r = 7 with 0.5 GB of KV streaming gains a third or more; table and plot show the point."""
    points = run_curve((0.5,), (7.0,))
    assert points[0]["remap_over_recompute"] > 1.3
    assert points[0]["alpha"] > 0
    result = {"scenarios": {}, "predictions": [], "curve": points}
    assert "| 0.5 (3%) | 7 |" in markdown(result)
    draw(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_slow_link_streams_nothing():
    """At r = 60 one active model stays at alpha 0: remapping is then swapping, to the token."""
    scenario, backlog = curve_point(pool_bytes=500_000_000, slowness=60.0)
    remap, counted = simulate(scenario, policy="remap", arrivals=backlog[:12])
    swap, _ = simulate(scenario, policy="swap", arrivals=backlog[:12])
    assert "trimtab_engine_remaps/alpha" not in counted
    assert remap.tokens_per_second == pytest.approx(swap.tokens_per_second)


def test_forced_streaming_over_a_slow_link_loses():
    """Four layers streamed over PCIe in every step cost most of the throughput, and stall."""
    scenario = SCENARIOS["all-active-decode"].lasting(1.0)
    arrivals = scenario.arrivals()
    forced, counted = simulate(scenario, policy="static:4", arrivals=arrivals)
    plain, _ = simulate(scenario, policy="recompute", arrivals=arrivals)
    assert forced.tokens_per_second < 0.6 * plain.tokens_per_second
    assert counted["trimtab_engine_link_stall_seconds/stream"] > 0


def test_figures_are_rounded():
    """Nine significant digits, everywhere in the document."""
    assert rounded({"a": [1 / 3, (2, "x")]}) == {"a": [0.333333333, [2, "x"]]}


def test_unknown_scenarios_are_refused(capsys):
    """A name that is no situation is refused with those that are."""
    with pytest.raises(SystemExit):
        sim_remap.main(["--scenarios=nowhere"])
    assert "choose among temporal" in capsys.readouterr().err
