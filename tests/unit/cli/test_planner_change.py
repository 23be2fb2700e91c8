import json

import typer
from typer.testing import CliRunner

from trimtab.bench.change import stories
from trimtab.bench.planner_change import planner_change, poisson
from trimtab.cli.bench import BENCHES


def _run(*arguments):
    app = typer.Typer()
    app.command()(planner_change)
    return CliRunner().invoke(app, ["planner-change", *arguments])


def test_the_document_has_counts_before_ratios_and_a_verdict(monkeypatch):
    """A story with and without the rules, labelled, with everything that was counted."""
    lonely = stories._intents()[:1]
    monkeypatch.setattr(stories, "_intents", lambda: lonely)
    ran = _run("--story", "steady", "--hours", "0.03", "--seeds", "1", "-o", "json")
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.output)
    assert document["label"].startswith("simulation")
    (story,) = document["stories"]
    assert (story["name"], story["intents"], story["turns"]) == ("steady", 1, 0)
    for rules in ("on", "off"):
        (run,) = story[rules]
        assert run["requests"] > 500
        assert run["requests_within_target"] <= run["requests"]
        assert run["plans"] >= 1
    assert story["on"][0]["changes"] == 0
    assert document["verdict"]["oscillating_stories"]["on"] == []
    assert document["verdict"]["steps_beyond_bound"] == 0


def test_an_unknown_story_is_named_with_the_known_ones():
    """The error says what there is."""
    ran = _run("--story", "nonsense")
    assert ran.exit_code == 1
    assert "there is no story nonsense; choose among steady" in ran.output


def test_the_benchmark_is_found_by_its_name():
    """`trimtab bench planner-change` runs this module."""
    assert BENCHES["planner-change"].module == "trimtab.bench.planner_change"


def test_counts_have_the_mean_and_variance_of_a_poisson_number():
    """Small and large means, so that simulated traffic is no smoother than real traffic."""
    for mean in (0.5, 20.0, 400.0):
        draw = poisson(1)
        drawn = [draw(mean) for _ in range(4000)]
        average = sum(drawn) / len(drawn)
        variance = sum((d - average) ** 2 for d in drawn) / len(drawn)
        assert abs(average - mean) < 0.1 * mean
        assert 0.85 * mean < variance < 1.15 * mean
    assert poisson(1)(0.0) == 0
