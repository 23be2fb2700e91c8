"""`trimtab plan` for a person who sizes a purchase: how many, how much, and what another load would change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.unit.api.manifest_cases import an_intent, named
from trimtab.cli.app import app
from trimtab.observe.capabilities import ASSUMED
from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.fingerprint import FingerprintKey, dump
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.roofline import roofline

ROOT = Path(__file__).resolve().parents[3]
RUN = CliRunner()
CONFIG = ROOT / "examples" / "offline" / "smollm2-135m.json"
LOAD = {"requestsPerSecond": "0.1", "promptTokens": 64, "outputTokens": 64}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three equal nodes of two threads, prices, and one intent of a small load."""
    node = {"name": "n", "count": 3, "cpuModel": "EPYC", "cpu": "2", "memory": "8Gi"}
    fleet = {"nodes": [node], "models": {"*": str(CONFIG)}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    prices = {"dated": "2026-11-01", "cpuHour": {"*": "0.04"}, "memoryGiBHour": "0.005"}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
    write(tmp_path, an_intent(load=LOAD))
    return tmp_path


def write(folder: Path, *intents: dict[str, Any]) -> None:
    (folder / "intents.yaml").write_text(yaml.safe_dump_all(intents))


def asked(folder: Path, *words: str) -> list[str]:
    known = ["plan", "-f", str(folder / "intents.yaml"), "--inventory", str(folder / "fleet.yaml")]
    return [*known, "--prices", str(folder / "prices.yaml"), *words]


def planned(folder: Path, *words: str) -> list[dict[str, Any]]:
    done = RUN.invoke(app, asked(folder, *words, "-o", "json"))
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_greater_load_takes_more_of_the_fleet(files: Path) -> None:
    """Ten times the load is planned for at ten times the rate, and costs more."""
    (as_declared,) = planned(files)
    (more,) = planned(files, "--load-factor", "10")
    assert as_declared["plan"]["load"]["requestsPerSecond"] == "0.1"
    assert more["plan"]["load"]["requestsPerSecond"] == "1"
    assert float(more["plan"]["costPerHour"]) > float(as_declared["plan"]["costPerHour"])


def test_the_number_of_nodes_can_be_asked_about(files: Path) -> None:
    """With no node nothing is planned; with as many as needed it is."""
    (none,) = planned(files, "--count", "n=0")
    assert none["planned"]["status"] == "False"
    (one,) = planned(files, "--count", "n=1")
    assert one["planned"]["status"] == "True"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "n"), "--count n is not NODE=N"),
        (("--count", "m=2"), "has no node m: --count takes the names under nodes, n"),
    ],
)
def test_a_wrong_count_names_what_there_is(
    files: Path, words: tuple[str, ...], message: str
) -> None:
    """What is no count, or of no node of the inventory, ends in a sentence."""
    done = RUN.invoke(app, asked(files, *words))
    assert done.exit_code == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": -1}, "count is -1, but must be 0 to 10000"),
        ({"count": "many"}, "count is 'many'"),
        ({"name": "twice"}, "two nodes are called twice"),
    ],
)
def test_nodes_are_counted_and_named_once(
    files: Path, change: dict[str, Any], message: str
) -> None:
    """A count is a whole number, and a node's name tells it from the others."""
    fleet = yaml.safe_load((files / "fleet.yaml").read_text())
    twice = {"name": "twice", "cpu": "1", "memory": "4Gi"}
    fleet["nodes"] = [fleet["nodes"][0] | change, twice]
    (files / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    done = RUN.invoke(app, asked(files))
    assert done.exit_code == 1
    assert message in done.stderr


def test_the_summary_says_what_it_comes_to(files: Path) -> None:
    """One line per intent, then how many are served, what that costs and which devices it takes."""
    write(files, an_intent(load=LOAD), named(an_intent(objective="MinLatency"), "second"))
    words = ("--summary", "--load-factor", "2")
    done = RUN.invoke(app, asked(files, *words), env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    both = planned(files, "--load-factor", "2")
    total = sum(float(one["plan"]["costPerHour"]) for one in both)
    threads = sum(one["plan"]["replicas"] * one["plan"]["threadsPerReplica"] for one in both)
    assert "2 of 2 intents are planned." in done.stdout
    assert f"They cost {total:.6f}".rstrip("0") in done.stdout
    assert f"cpu EPYC: {threads} of 6 threads on " in done.stdout
    assert "1 intents declare none" in done.stdout
    assert "Options considered" not in done.stdout


def a_document(folder: Path, name: str, **key: Any) -> None:
    """A fingerprint of the example's model in another engine, one decode and one prefill size wide."""
    config = Architecture.from_hf_config(json.loads(CONFIG.read_text()))
    known = {"product": "cpu", "cpu_model": "EPYC", "threads": 1, "precision": "bf16"}
    fields = {"engine": "other", "engine_version": "9.9", "kv_precision": "bf16"}
    whole = known | fields | {"architecture": architecture_hash(config)} | key
    made = roofline(
        config,
        key=FingerprintKey(**whole, tensor_parallel_size=1, flags=()),
        policy=PlannerPolicy(),
    )
    folder.mkdir(exist_ok=True)
    made = replace(made, source="Catalogue")
    (folder / f"{name}.json").write_text(dump(made, limit=None))


def test_the_summary_says_what_blocks_an_intent(files: Path) -> None:
    """Who is not planned is a line of the table and a sentence below it."""
    done = RUN.invoke(app, asked(files, "--summary", "--count", "n=0"))
    assert done.exit_code == 0, done.output
    (found,) = planned(files, "--count", "n=0")
    assert found["planned"]["status"] == "False"
    assert f"{found['planned']['reason']}: {found['planned']['message']}" in done.stdout


def test_times_of_another_engine_serve_a_plan_and_say_so(files: Path) -> None:
    """A catalogue's document replaces the roofline, one level less sure than in its own engine."""
    a_document(files / "documents", "other")
    (found,) = planned(files, "--fingerprints", str(files / "documents"))
    confidence = found["plan"]["confidence"]
    assert (confidence["source"], confidence["level"]) == ("Catalogue", "Low")
    assert f"times of other 9.9, not of {ASSUMED.version}" in confidence["reasons"]


def test_documents_that_nothing_rests_on_are_told(files: Path) -> None:
    """A document of another model, or of a product by another name, is counted with the reason."""
    a_document(files / "documents", "model", architecture="0" * 16)
    a_document(files / "documents", "product", cpu_model="Xeon")
    done = RUN.invoke(app, asked(files, "--fingerprints", str(files / "documents"), "--summary"))
    assert done.exit_code == 0, done.output
    assert "1 fingerprints are of no model that is asked for." in done.stdout
    assert "does not name like this: Xeon." in done.stdout
