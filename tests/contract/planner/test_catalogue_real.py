"""The real catalogue, where it is installed: figures of planner.md §10 and the shared measured rows."""

import json
import os
from pathlib import Path

import pytest

from trimtab.bench import planner_choice, planner_error
from trimtab.bench.closed_loop import closed_loop
from trimtab.cli.catalogue import PYTHON, CatalogueQuery, ask
from trimtab.planning.step_model import fit

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("TRIMTAB_DATA", ROOT.parent / "shared" / "data")) / "llm-serving"
ROWS = DATA / "silicon-8b-32b.csv.gz"
GOLDEN = {
    "h100_sxm": {1: 8.65, 2: 5.26, 4: 3.63, 8: 2.88},
    "l40s": {1: 29.29, 2: 17.34, 4: 24.73},
}


@pytest.fixture(autouse=True)
def _installed():
    if PYTHON not in os.environ:
        pytest.skip(f"{PYTHON} names no environment with the extra `catalogue`")


def shared_rows():
    if not ROWS.is_file():
        pytest.skip(f"{ROWS} is absent: set TRIMTAB_DATA to the folder of real measurements")
    return str(ROWS)


@pytest.mark.parametrize("system", GOLDEN)
def test_times_are_those_that_were_noted(system):
    """An 8B model in bf16 on vLLM, 1,024/256 tokens, 16 in flight: TPOT within 5 % of the note's."""
    sizes = list(GOLDEN[system])
    queries = [
        CatalogueQuery(
            model="meta-llama/Llama-3.1-8B-Instruct",
            system=system,
            backend="vllm",
            precision="bf16",
            kv_precision="bf16",
            tensor_parallel_size=size,
        )
        for size in sizes
    ]
    found = {}
    for size, result in zip(sizes, ask(queries).results, strict=True):
        model = fit(result.fingerprint, depth=result.depth)
        times = closed_loop(model, prompt=1024, output=256, concurrency=16)
        found[size] = times.tpot_ms
    assert found == pytest.approx(GOLDEN[system], rel=0.05)
    # Over PCIe the exchange eats what a larger group gains: TP 2 is the pick on the L40S.
    assert sorted(found, key=found.get) == sorted(GOLDEN[system], key=GOLDEN[system].get)


def test_the_shared_32b_rows_are_predicted(capsys):
    """TensorRT-LLM on H100, fp8: TPOT within 10 % raw and 5 % after four anchors, unscored."""
    options = ["--rows", shared_rows(), "--model", "32B", "--backend", "trtllm", "-o", "json"]
    assert planner_error.main([*options, "--system", "h100_sxm"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    largest = max(groups, key=lambda g: g["TPOT"]["raw"]["rows"])
    assert largest["TPOT"]["raw"]["rows"] == 176
    assert largest["TPOT"]["raw"]["mape_percent"] <= 10
    assert largest["TPOT"]["anchors_4"]["mape_percent"] <= 5


def test_the_shared_32b_rows_leave_little_regret(capsys):
    """On the same rows the choice by latency loses at most 3 % on average and 15 % at worst."""
    options = ["--rows", shared_rows(), "--model", "32B", "--backend", "trtllm", "-o", "json"]
    assert planner_choice.main([*options, "--system", "h100_sxm"]) == 0
    found = json.loads(capsys.readouterr().out)["totals"]["planner"]["MinLatency"]
    # Nine pairs of lengths at 64 and 128 in flight, but one run of them was never published.
    assert found["cells"] == 17
    assert found["mean_regret_percent"] <= 3
    assert found["max_regret_percent"] <= 15
