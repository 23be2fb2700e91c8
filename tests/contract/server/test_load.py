"""The load generator of the repository against worker processes, as a person would run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def load(worker, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "e2e.load", "--url", worker.url("/v1"), *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_two_models_under_open_loop_load(worker):
    """Every request is answered in full, and what the generator counts is what was asked."""
    done = load(
        worker,
        *("--model", "team-a/alice", "--model", "team-a/bruno", "-o", "json", "--seed", "3"),
        *("--rate", "12", "--seconds", "3", "--prompt-tokens", "40", "--output-tokens", "20"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["requests"] == result["completed"] > 20
    assert result["errors"] == {}
    assert result["output_tokens"] == 20 * result["completed"]
    for name in ("ttft_ms", "tpot_ms", "gap_ms"):
        figures = result[name]
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"], name


def test_refusals_are_counted_and_fail_the_run(worker):
    """Requests that the server refuses are errors by name, in a table too, and the exit is 1."""
    done = load(
        worker,
        *("--model", "team-a/alice", "--rate", "20", "--seconds", "0.5"),
        *("--prompt-tokens", "200", "--output-tokens", "2"),
    )
    assert done.returncode == 1
    assert "BadRequestError" in done.stdout
