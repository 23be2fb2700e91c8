"""`planner-cost`: what is expected by bytes, and what is made of the engine's seconds."""

import json

import pytest
from typer.testing import CliRunner

from tests.unit.bench import silicon_rows
from trimtab.bench import planner_cost, probe
from trimtab.cli.app import app
from trimtab.cli.output import CommandError

FIXED, LAYER = 2.0, 0.5


class Engine:
    """Steps of F + depth·h seconds; remembers in which order it was asked."""

    def __init__(self, *, fixed=FIXED, layer=LAYER, load=0.0):
        self.fixed, self.layer, self.load = fixed, layer, load
        self.asked = []

    def __call__(self, question):
        depths = question["depths"]
        self.asked.append(tuple(depths))
        assert question["config"]["num_hidden_layers"] == max(depths)
        assert question["cold"] == (len(depths) == 2)
        step = sum(self.fixed + self.layer * depth for depth in depths)
        parts = {"decode": step, "prefill": 2 * step, "mixed": 0.0}
        return {"start": self.load, "load": self.load, **parts, "stepping": parts}


@pytest.fixture
def run(monkeypatch, capsys):
    def call(engine, *options, output="json", ask=silicon_rows.ask):
        monkeypatch.setattr(probe, "ask", engine)
        monkeypatch.setattr(probe, "lacking", lambda: "")
        monkeypatch.setattr(planner_cost, "ask", ask)
        assert planner_cost.main(["-o", output, *options]) == 0
        printed = capsys.readouterr().out
        return json.loads(printed) if output == "json" else printed

    return call


def absent(*_, **__):
    raise CommandError("There is no catalogue.")


def test_expected_ratios_are_the_notes():
    """By the bytes of a decode step: 2.0, 4.4, 10.6 and 14.9 (planner.md §11)."""
    ratios = [planner_cost.by_bytes(name)["ratio"] for name in planner_cost._EXPECTED]
    assert ratios == pytest.approx([2.0, 4.4, 10.6, 14.9], abs=0.05)


def test_measured_steps_give_the_formula(run):
    """With F and h known the ratio of steps is (F + L·h)/(2F + 3h)."""
    found = run(Engine())["engine"]
    expected = (FIXED + 30 * LAYER) / (2 * FIXED + 3 * LAYER)
    assert found["ratio_of_decode_steps"]["median"] == pytest.approx(expected, abs=0.01)
    assert found["ratio"]["median"] == pytest.approx(expected, abs=0.01)
    assert found["layers"] == 30


def test_start_and_load_are_counted(run):
    """What both pay alike brings the ratio of everything down, not that of the steps."""
    found = run(Engine(load=50.0))["engine"]
    assert found["ratio"]["median"] < 1.5 < found["ratio_of_steps"]["median"]
    assert found["device_seconds"]["fingerprint"]["load"] == 50


def test_both_run_in_alternating_order(run):
    """A machine that warms up favours neither."""
    engine = Engine()
    run(engine, "--runs", "2")
    assert engine.asked == [(1, 2), (30,), (30,), (1, 2)]


def test_six_times_is_claimed_only_where_it_is_measured(run):
    """A model of little F reaches it, SmolLM2's shape does not."""
    assert not run(Engine())["claimed"]
    assert run(Engine(fixed=0.0))["claimed"]


def test_the_catalogue_counts_devices_of_emulated_ranks(run):
    """One GPU stands for a group of eight: eight times fewer devices."""
    rows = run(Engine())["expected_by_catalogue"]["rows"]
    eight = next(row for row in rows if row["tensor_parallel_size"] == 8)
    assert eight["ratio_of_devices_if_emulated"] == pytest.approx(8 * eight["ratio"], abs=0.05)


def test_without_engine_and_catalogue_the_formula_remains(run):
    """Both parts say why they are missing."""
    found = run(Engine(), "--no-engine", ask=absent)
    assert found["engine"]["skipped"] == "asked for with --no-engine"
    assert found["expected_by_catalogue"]["skipped"] == "There is no catalogue."
    assert not found["claimed"]
    text = run(Engine(), "--no-engine", ask=absent, output="table")
    assert "There is no catalogue." in text


def test_people_get_tables(run):
    """What was run stands before any ratio of it."""
    text = run(Engine(), output="table")
    assert text.index("5 repeats, 3 runs") < text.index("full : fingerprint")
    assert "six times or more: not here" in text


def test_it_is_listed():
    """`trimtab bench list` names it."""
    assert "planner-cost" in CliRunner().invoke(app, ["bench", "list"]).stdout
