"""`planner-memory`: the document, and what the engine's answers are compared with."""

import json
import subprocess

import pytest
from typer.testing import CliRunner

from trimtab.bench import planner_memory, probe
from trimtab.bench.known_models import KNOWN
from trimtab.cli.app import app
from trimtab.cli.output import CommandError
from trimtab.planning.memory import weight_bytes

MIB = 2**20


class Engine:
    """Answers as an engine would, with faults that a test asks for."""

    def __init__(self, *, resident=0, kv_tokens=4160, activation=lambda depth: 6 * MIB):
        self.extra, self.kv_tokens, self.activation = resident, kv_tokens, activation

    def __call__(self, question):
        depth = question["config"]["num_hidden_layers"]
        if question["what"] == "memory":
            known = KNOWN["smollm2-135m"]
            return {
                "depth": depth,
                "weights": weight_bytes(known.architecture, depth=depth, precision="bf16"),
                "activation": self.activation(depth),
                "non_torch": 500 * MIB,
            }
        return {
            "kv_tokens": self.kv_tokens,
            "arena_bytes": question["arenaBytes"],
            "resident_bytes": question["arenaBytes"] + 506 * MIB + self.extra,
        }


@pytest.fixture
def run(monkeypatch, capsys):
    def call(engine=None, *options, output="json"):
        monkeypatch.setattr(probe, "ask", engine or Engine())
        monkeypatch.setattr(probe, "lacking", lambda: "")
        assert planner_memory.main(["-o", output, *options]) == 0
        printed = capsys.readouterr().out
        return json.loads(printed) if output == "json" else printed

    return call


def test_an_engine_that_does_as_planned_is_within_three_percent(run):
    """Counts first, then planned beside measured at 1, 2 and 30 layers."""
    found = run(Engine(kv_tokens=4128), "--kv-tokens", "4096")
    assert [row["depth"] for row in found["engine"]["rows"]] == [1, 2, 30]
    last = found["engine"]["rows"][-1]
    assert last["weights"]["error_percent"] == 0
    assert abs(last["resident"]["error_percent"]) < 0.01
    assert found["verdict"]["false_fits"] == 0
    assert found["options"]["fit"] > 50
    assert found["options"]["beyond_their_gpu"] == 0


def test_activation_that_grows_with_depth_is_seen(run):
    """What two depths do not show is an error at the third."""
    found = run(Engine(activation=lambda depth: 6 * MIB * (1 if depth < 30 else 2)))
    assert found["engine"]["rows"][-1]["activation"]["error_percent"] == -50
    assert not found["engine"]["within"]


def test_a_process_beyond_its_request_is_a_false_fit(run):
    """Resident memory over what the pod would ask for, or fewer tokens than asked: both count."""
    assert run(Engine(resident=2000 * MIB))["verdict"]["false_fits"] == 3
    assert run(Engine(kv_tokens=4000))["verdict"]["false_fits"] == 3


def test_without_an_engine_the_cases_are_judged(run):
    """The engine's part says why it was skipped; nothing of it enters the verdict."""
    found = run(None, "--no-engine")
    assert found["engine"] == {"skipped": "asked for with --no-engine"}
    assert found["verdict"]["engine_within_3_percent"] is None
    assert len(found["cases"]) >= 6


def test_people_get_tables(run):
    """Counts stand before any percentage."""
    text = run(output="table")
    assert text.index("1024 options") < text.index("%")
    assert "false fits: 0" in text
    assert "does not divide" in text


def test_a_process_that_dies_is_one_sentence(monkeypatch):
    """It names the question, the last line, and what to do."""
    died = subprocess.CompletedProcess([], 137, stdout="", stderr="a\nKilled")
    monkeypatch.setattr(probe.subprocess, "run", lambda *_, **__: died)
    with pytest.raises(CommandError, match="137 at arena: Killed Give a smaller model"):
        probe.ask({"what": "arena"})


def test_a_missing_engine_is_said(monkeypatch):
    """Without torch the command names what to install."""
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda _: None)
    assert "trimtab[engine]" in probe.lacking()


def test_it_is_listed():
    """`trimtab bench list` names it."""
    assert "planner-memory" in CliRunner().invoke(app, ["bench", "list"]).stdout
