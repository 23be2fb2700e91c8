"""`trimtab simulate requests` and its traces, as a person runs them."""

import gzip
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.planning.builders import a_fingerprint
from tests.unit.planning.queue_cases import DEPTH, chunk_us
from trimtab.cli.app import app
from trimtab.cli.output import CommandError
from trimtab.cli.replay_plot import log_ticks, ticks
from trimtab.cli.traces import read_trace
from trimtab.planning.fingerprint import dump

ROOT = Path(__file__).resolve().parents[3]
RUN = CliRunner()
LINES = "\n".join(
    json.dumps({"seconds": 100 + n, "prompt_tokens": 100, "output_tokens": 10}) for n in range(5)
)


@pytest.fixture
def files(tmp_path):
    """Return a fingerprint, a configuration that names the depth, and a trace."""
    found = {name: tmp_path / name for name in ("fp.json", "config.json", "trace.jsonl")}
    found["fp.json"].write_text(dump(a_fingerprint()))
    found["config.json"].write_text(json.dumps({"model_type": "gpt2", "num_hidden_layers": DEPTH}))
    found["trace.jsonl"].write_text(LINES)
    return found


def simulate(*options):
    return RUN.invoke(app, ["simulate", "requests", *map(str, options)], terminal_width=200)


def against_fingerprint(files, *options):
    return simulate(
        "--fingerprint", files["fp.json"], "--model-config", files["config.json"], *options
    )


def test_a_trace_is_replayed_against_a_fingerprint(files):
    """Requests far apart each see the unloaded times; counts come with them."""
    done = against_fingerprint(files, "--requests", files["trace.jsonl"], "-o", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["label"] == "simulation"
    assert (found["trace"]["requests"], found["served"], found["rejected"]) == (5, 5, 0)
    assert found["milliseconds"]["TTFT"]["p99"] == pytest.approx(chunk_us(100) / 1000, abs=0.01)
    assert found["planned_milliseconds"] is None


def test_a_faster_trace_waits_longer(files):
    """Five requests within 5 ms queue for each other's prompts."""
    slow = against_fingerprint(files, "--requests", files["trace.jsonl"], "-o", "json")
    fast = against_fingerprint(
        files, "--requests", files["trace.jsonl"], "--faster", 1000, "-o", "json"
    )
    waits = [json.loads(done.stdout)["milliseconds"]["TTFT"]["p95"] for done in (slow, fast)]
    assert waits[1] > 2 * waits[0]


def test_a_drawn_load_is_the_same_each_time(files, tmp_path):
    """Without a trace one is drawn, with a seed that the load decides, and a picture can be had."""
    load = ("--rate", 1.0, "--prompt-tokens", 64, "--output-tokens", 32, "--count", 40)
    plot = tmp_path / "queue.svg"
    first = against_fingerprint(files, *load, "--plot", plot, "-o", "json")
    assert first.exit_code == 0, first.output
    assert first.stdout == against_fingerprint(files, *load, "-o", "json").stdout
    picture = ET.parse(plot).getroot()
    assert picture.tag.endswith("svg")
    assert len([e for e in picture.iter() if e.tag.endswith("polyline")]) == 5


def test_a_trace_is_replayed_against_a_plan():
    """With an intent and an inventory the planner's choice serves, and its promise is shown beside."""
    done = simulate(
        "-f",
        ROOT / "examples/chat.yaml",
        "--inventory",
        ROOT / "examples/offline/fleet.yaml",
        "--prices",
        ROOT / "examples/offline/prices.yaml",
        "--rate",
        0.05,
        "--count",
        20,
    )
    assert done.exit_code == 0, done.output
    for text in ("simulation", "20 requests", "TPOT, as planned", "Roofline"):
        assert text in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Say what serves the requests"),
        (("-f", ROOT / "examples/chat.yaml"), "Say what serves the requests"),
    ],
)
def test_who_serves_must_be_said(options, words):
    """Neither a fingerprint nor a plan is an error with the remedy."""
    done = simulate(*options)
    assert done.exit_code == 1
    assert words in done.stderr


def test_nothing_to_replay_is_an_error(files):
    """A bare step model has no load of its own."""
    done = against_fingerprint(files)
    assert done.exit_code == 1
    assert "nothing to replay" in done.stderr


def test_a_cache_without_a_block_is_an_error(files):
    """The figure is named."""
    done = against_fingerprint(files, "--requests", files["trace.jsonl"], "--kv-tokens", 3)
    assert done.exit_code == 1
    assert "holds 0 blocks" in done.stderr


def test_azure_s_columns_are_read(tmp_path):
    """TIMESTAMP with seven decimals, in any order, gzipped; requests without output are skipped."""
    path = tmp_path / "azure.csv.gz"
    rows = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:47.6805900,200,20",
        "2023-11-16 18:15:46.6805900,100,10",
        "2023-11-16 18:15:48.6805900,100,0",
    ]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    trace = read_trace(path)
    assert [(a.at_us, a.prompt, a.output) for a in trace.arrivals] == [
        (0.0, 100, 10),
        (pytest.approx(1e6), 200, 20),
    ]
    assert trace.skipped == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.txt", "", "is no .jsonl or .csv file"),
        ("t.jsonl", "{", "line 1 is not JSON"),
        ("t.jsonl", "[1]", "line 1 is [1], not an object"),
        ("t.jsonl", '{"seconds": 1, "prompt_tokens": 2}', "has none of the columns output_tokens"),
        (
            "t.jsonl",
            '{"seconds": 1, "prompt_tokens": "x", "output_tokens": 1}',
            "prompt_tokens is 'x', which is no whole number",
        ),
        (
            "t.jsonl",
            '{"seconds": "soon", "prompt_tokens": 1, "output_tokens": 1}',
            "seconds is 'soon', which is no time",
        ),
        ("t.jsonl", '{"seconds": 1, "prompt_tokens": 0, "output_tokens": 1}', "holds no request"),
        ("t.csv.gz", "not gzipped", "cannot be read"),
    ],
)
def test_bad_traces_are_named(tmp_path, name, text, words):
    """File, line, column and remedy are in the message."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CommandError) as caught:
        read_trace(path)
    assert words in str(caught.value)


def test_axes_have_round_values():
    """Linear axes count in ones, twos and fives, logarithmic ones by powers of ten, within their ends."""
    assert ticks(0.0, 245.0) == [0, 50, 100, 150, 200]
    assert ticks(0.0, 1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert log_ticks(9.14, 26_600.0) == [
        10,
        20,
        50,
        100,
        200,
        500,
        1000,
        2000,
        5000,
        10_000,
        20_000,
    ]
    assert log_ticks(0.02, 30_000.0) == [0.1, 1, 10, 100, 1000, 10_000]
    assert log_ticks(3.004, 3.2) == [3.0, 3.2]
