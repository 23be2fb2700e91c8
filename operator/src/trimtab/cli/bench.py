"""`trimtab bench`: one name for every benchmark; each is a module with its own options."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from trimtab.cli.output import fail, write

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark: `python -m module NAME` with the options that are passed through."""

    module: str
    doc: str
    extra: str = ""


BENCHES: Final[Mapping[str, Bench]] = {
    "engine-throughput": Bench(
        module="trimtab_workers.engine.bench",
        doc="output tokens/s by batch size, beside transformers with the same dtype and threads",
        extra="engine",
    ),
    "cpu-peer": Bench(
        module="trimtab_workers.engine.bench",
        doc="output tokens/s beside vLLM's CPU build, in turns on the same cores",
        extra="engine",
    ),
    "cpu-idle": Bench(
        module="trimtab_workers.engine.bench",
        doc="bursts on one of three models: recompute, swap, lending idle weights, or static vLLM",
        extra="engine",
    ),
    "sim-remap": Bench(
        module="trimtab_workers.engine.bench",
        doc="simulation: registered predictions, and where streaming active layers begins to pay",
        extra="engine",
    ),
    "cpu-link": Bench(
        module="trimtab_workers.engine.bench",
        doc="modelled link: streamed layers stall as long as the formula says",
        extra="engine",
    ),
    "accuracy": Bench(
        module="trimtab_workers.engine.bench",
        doc="bits per token of a text by precision of the weights, their bytes and step times",
        extra="engine",
    ),
    "ranks": Bench(
        module="trimtab_workers.engine.bench",
        doc="a step in one process with one and two threads, and on two ranks, in turns",
        extra="engine",
    ),
    "planner-cpu": Bench(
        module="trimtab.bench.planner_cpu",
        doc="your cluster: predictions beside a model served through gateway and workers",
    ),
    "planner-des": Bench(
        module="trimtab.bench.planner_des",
        doc="a queue simulation from a fingerprint beside requests that were really served",
    ),
    "planner-memory": Bench(
        module="trimtab.bench.planner_memory",
        doc="what is said to fit beside what did, on GPUs and in this engine at 1, 2 and all layers",
    ),
    "planner-cost": Bench(
        module="trimtab.bench.planner_cost",
        doc="seconds times devices of a fingerprint beside those of the full model, same points",
    ),
    "planner-traces": Bench(
        module="trimtab.bench.planner_traces",
        doc="simulation: choices for production traces on GPUs beside every static choice",
    ),
    "planner-fleet": Bench(
        module="trimtab.bench.planner_fleet",
        doc="simulation: many models on one fleet of GPUs, beside five other ways to place them",
    ),
    "planner-scale": Bench(
        module="trimtab.bench.planner_scale",
        doc="how long a plan takes: one intent, and 200 intents on 2,000 slots, roomy and scarce",
    ),
    "calibrate": Bench(
        module="trimtab_workers.engine.bench",
        doc="one GPU: link, memory, interference, compaction, pinning",
        extra="engine",
    ),
    "decode": Bench(
        module="trimtab_workers.engine.bench",
        doc="one GPU: decode steps beside the time that their bytes take to read",
        extra="engine",
    ),
    "exact": Bench(
        module="trimtab_workers.engine.bench",
        doc="one GPU: streamed layers beside the resident model, bit for bit",
        extra="engine",
    ),
    "active": Bench(
        module="trimtab_workers.engine.bench",
        doc="one GPU: steps with streamed layers beside the formula, and the slot rule",
        extra="engine",
    ),
    "planner-error": Bench(
        module="trimtab.bench.planner_error",
        doc="predictions from the catalogue beside measured rows, raw and with anchors",
    ),
    "planner-choice": Bench(
        module="trimtab.bench.planner_choice",
        doc="choices from the catalogue on an 8-GPU node, judged by measured rows",
    ),
    "c2c": Bench(
        module="trimtab_workers.engine.bench",
        doc="one GPU: EMULATION of a fast link by copies within its memory",
        extra="engine",
    ),
    "planner-change": Bench(
        module="trimtab.bench.planner_change",
        doc="simulation: edits, three times the load, nodes lost and gained, prices; rules on and off",
    ),
    "rightsizer": Bench(
        module="trimtab.bench.rightsizer",
        doc="simulation on recorded runs: sizes per invocation beside static ones and other sizers",
    ),
    "decision": Bench(
        module="trimtab.bench.decision",
        doc="how long it takes to decide an invocation's size, features and prediction",
    ),
}


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Benchmark, or `list`.")],
) -> None:
    """Run a benchmark; everything after its name is passed through (`NAME --help` shows it)."""
    if name == "list":
        for known, found in BENCHES.items():
            write(f"{known}: {found.doc}")
        return
    chosen = BENCHES.get(name)
    if chosen is None:
        fail(f"There is no benchmark {name}: choose one of {', '.join(BENCHES)}.")
    if importlib.util.find_spec(chosen.module) is None:
        fail(
            f"Benchmark {name} needs {chosen.module}, which is not installed: run "
            f"`pip install 'trimtab[{chosen.extra}]'`."
        )
    done = subprocess.run(  # noqa: S603 - our own module with the user's own options
        [sys.executable, "-m", chosen.module, name, *context.args], check=False
    )
    raise typer.Exit(done.returncode)
