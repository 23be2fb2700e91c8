"""`trimtab bench planner-traces`: choices for production traces on GPUs, judged by a fuller simulation.

Traces x models x products x rates on a node of 8 GPUs (planner.md §11). The planner sees thin-grid
fingerprints and the mean load of the first fifth of a trace; truth replays the requests that followed on
the full grid. Beside it: what the operator's
`plan_fleet` picks, the oracle, every static choice and the best of them, data sheets, the fewest GPUs,
and a random choice.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench.gpu_setups import LONGEST, NODE_GPUS, PRODUCTS, setups
from trimtab.bench.headline import headline
from trimtab.bench.known_models import KNOWN
from trimtab.bench.report import percent, run, table
from trimtab.bench.trace_cells import OBJECTIVES, Targets, candidates
from trimtab.bench.trace_loads import observed
from trimtab.bench.trace_outcomes import Cell, Judge, loses, quality
from trimtab.bench.trace_production import pick
from trimtab.cli.output import CommandError
from trimtab.cli.traces import read_trace
from trimtab.planning.policy import PlannerPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from trimtab.bench.gpu_setups import Setup
    from trimtab.bench.trace_cells import Candidate, View
    from trimtab.bench.trace_loads import TraceLoad
    from trimtab.bench.trace_outcomes import Outcome

JSON = dict[str, Any]  # any: JSON
NAME: Final = "planner-traces"
RATES: Final = (0.25, 0.5, 1.0, 2.0, 3.0)
_MODELS: Final = ("llama-3.1-8b", "qwen3-32b")
_OTHERS: Final[Mapping[str, View]] = {
    "planner_with_poisson_arrivals": "poisson",
    "planner_with_observed_counts": "counts",
    "roofline": "roofline",
}
_FOLDER: Final = Path("llm-serving")
_FILES: Final = ("azure-llm-2023-conv.csv.gz", "azure-llm-2023-code.csv.gz")


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    parser = argparse.ArgumentParser(prog=f"trimtab bench {NAME}", description=__doc__)
    parser.add_argument(
        "--trace",
        type=Path,
        action="append",
        help="JSON lines or CSV of requests; default: Azure's two below $TRIMTAB_DATA",
    )
    parser.add_argument("--model", action="append", choices=sorted(KNOWN), help="may be repeated")
    parser.add_argument("--product", action="append", choices=sorted(PRODUCTS))
    parser.add_argument("--rate", action="append", type=float, help="multiple of the trace's rate")
    parser.add_argument("--requests", type=int, default=1000, help="replayed per cell, at most")
    parser.add_argument("--ttft-ms", type=float, default=2000, help="target of TargetLatency, p95")
    parser.add_argument("--tpot-ms", type=float, default=50, help="the same")
    parser.add_argument("--fingerprints", type=Path, help="folder of full-grid fingerprints")
    parser.add_argument(
        "--catalogue-python",
        metavar="PATH",
        help="interpreter with aiconfigurator; default: TRIMTAB_CATALOGUE_PYTHON, or this one",
    )
    parser.add_argument("--plot", type=Path, help="write latency over rate as a picture")
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return run(parser, argv, measure=measure, text=_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A group of cells that differ in rate: ours, the operator's, every static choice, the best first."""

    cells: tuple[Cell, ...]
    ours: tuple[Outcome, ...]
    planned: tuple[Outcome, ...]
    static: tuple[tuple[str, tuple[Outcome, ...]], ...]
    profiling: float

    def at(self, rate: float) -> Answered:
        """Return the part at one rate; the static choices keep the order of the whole group."""
        here = [n for n, cell in enumerate(self.cells) if cell.load.faster == rate]
        return Answered(
            cells=tuple(self.cells[n] for n in here),
            ours=tuple(self.ours[n] for n in here),
            planned=tuple(self.planned[n] for n in here),
            static=tuple((name, tuple(found[n] for n in here)) for name, found in self.static),
            profiling=self.profiling,
        )


def measure(given: argparse.Namespace) -> JSON:
    """Return the document.

    Raises:
        CommandError: A trace or a fingerprint cannot be read.
    """
    policy = PlannerPolicy()
    models, products = given.model or _MODELS, given.product or tuple(PRODUCTS)
    rates = given.rate or RATES
    loads = list(_loads(given.trace or _shared(), rates, requests=given.requests))
    found = setups(
        models, products, python=given.catalogue_python, folder=given.fingerprints, policy=policy
    )
    targets = Targets(ttft_ms=given.ttft_ms, tpot_ms=given.tpot_ms)
    judge = Judge(targets, policy=policy)
    asked = [cell for m in models for p in products for cell in _cells(m, p, found.setups, loads)]
    unanswerable = [cell for cell in asked if not judge.answerable(cell)]
    plan = partial(pick, targets=targets, policy=policy)
    answered = list(_answer((cell for cell in asked if judge.answerable(cell)), judge, plan))
    if given.plot:
        from trimtab.bench.trace_plot import plot  # noqa: PLC0415 - matplotlib is optional

        plot(answered, given.plot)
    return {
        "benchmark": NAME,
        "label": f"inputs: {found.label}, thin grid; truth: simulation of the same on the full grid",
        "policy": policy.digest(),
        "targets": {"ttft_p95_ms": given.ttft_ms, "tpot_p95_ms": given.tpot_ms},
        "node_gpus": NODE_GPUS,
        "requests_per_cell": given.requests,
        "loads": [_load_json(load) for load in loads],
        "refused": dict(found.refused),
        "cells": {
            "asked": len(asked),
            "no_answer_in_truth": len(unanswerable),
            "used": sum(len(a.cells) for a in answered),
        },
        **summary(answered, judge),
        "iserve": _iserve(answered, models, rates),
        "per_cell": [line for a in answered for line in _cell_lines(a)],
    }


def _shared() -> list[Path]:
    data = os.environ.get("TRIMTAB_DATA")
    if not data:
        raise CommandError(
            "No trace is given and TRIMTAB_DATA names no folder of shared data. Give --trace FILE, a CSV "
            "or JSON lines with TIMESTAMP, ContextTokens and GeneratedTokens."
        )
    return [Path(data) / _FOLDER / name for name in _FILES]


def _loads(paths: Sequence[Path], rates: Sequence[float], *, requests: int) -> Iterator[TraceLoad]:
    for path in paths:
        arrivals = read_trace(path).arrivals
        if len(arrivals) < 10:
            raise CommandError(
                f"{path} holds {len(arrivals)} requests. Give a trace of at least 10."
            )
        for rate in rates:
            yield observed(
                path.name.split(".")[0], arrivals, faster=rate, requests=requests, longest=LONGEST
            )


def _load_json(load: TraceLoad) -> JSON:
    return {
        "trace": load.name,
        "rate_multiple": load.faster,
        "observed": {
            "requests_per_second": round(load.load.rate, 2),
            "prompt_tokens": load.load.prompt,
            "output_tokens": load.load.output,
            "cv": [round(v, 2) for v in astuple(load.load.variation)],
        },
        "came": {"requests": len(load.arrivals), "requests_per_second": round(load.rate, 2)},
    }


def _cells(
    model: str, product: str, every: Sequence[Setup], loads: Sequence[TraceLoad]
) -> Iterator[Cell]:
    mine = [s for s in every if (s.model, s.product) == (model, product)]
    for load in loads if mine else ():
        found = candidates(mine, load)
        for objective in OBJECTIVES:
            open_ = [c for c in found if objective != "MinLatency" or c.gpus == NODE_GPUS]
            yield Cell(
                objective=objective,
                model=model,
                product=product,
                load=load,
                candidates=tuple(open_),
            )


def _answer(
    cells: Iterable[Cell], judge: Judge, plan: Callable[[Cell], Candidate]
) -> Iterator[Answered]:
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    for group in groups.values():
        yield Answered(
            cells=tuple(group),
            ours=tuple(judge.answer(cell) for cell in group),
            planned=tuple(judge.outcome(cell, plan(cell)) for cell in group),
            static=tuple(judge.static(group)),
            profiling=statistics.fmean(c.setup.profiling for c in group[0].candidates),
        )


def summary(answered: Sequence[Answered], judge: Judge) -> JSON:
    """Return every chooser's quality by objective, and the cells in which the best static wins."""
    by_objective: JSON = {}
    losing: list[JSON] = []
    for objective in OBJECTIVES:
        groups = [a for a in answered if a.cells[0].objective == objective]
        cells = [cell for a in groups for cell in a.cells]
        regrets = [r for cell in cells if (r := judge.random_regret(cell)) is not None]
        pairs = [pair for a in groups for pair in zip(a.ours, a.static[0][1], strict=True)]
        beaten = [(ours, static) for ours, static in pairs if loses(ours, static)]
        losing += [_losing(ours, static) for ours, static in beaten]
        by_objective[objective] = {
            "planner": quality(o for a in groups for o in a.ours),
            "plan_fleet": quality(o for a in groups for o in a.planned),
            "best_static_per_group": quality(o for a in groups for o in a.static[0][1]),
            "poorest_static_per_group": quality(o for a in groups for o in a.static[-1][1]),
            **{
                name: quality(judge.answer(cell, view) for cell in cells)
                for name, view in _OTHERS.items()
            },
            "fewest_gpus": quality(judge.fewest(cell) for cell in cells),
            "random_mean_regret_percent": percent(statistics.fmean(regrets)) if regrets else None,
            "worse_than_best_static": len(beaten),
            "better_than_best_static": sum(loses(static, ours) for ours, static in pairs),
            **_beside_static(groups),
        }
    return {"objectives": by_objective, "losing_cells": losing}


def _beside_static(groups: Sequence[Answered]) -> JSON:
    """Return in how many cells the operator's plan is worse, and better, than the best static choice."""
    pairs = [pair for a in groups for pair in zip(a.planned, a.static[0][1], strict=True)]
    return {
        "plan_fleet_worse_than_best_static": sum(loses(plan, static) for plan, static in pairs),
        "plan_fleet_better_than_best_static": sum(loses(static, plan) for plan, static in pairs),
    }


def _losing(ours: Outcome, static: Outcome) -> JSON:
    cell = ours.cell
    return {
        "objective": cell.objective,
        "model": cell.model,
        "product": cell.product,
        "trace": cell.load.name,
        "rate_multiple": cell.load.faster,
        "ours": ours.pick.name,
        "best_static": static.pick.name,
        "ours_violates": ours.violates,
        "worse_percent": percent(ours.value() / static.value() - 1),
    }


def _iserve(
    answered: Sequence[Answered], models: Sequence[str], rates: Sequence[float]
) -> list[JSON]:
    """Return the paper's ratios per model and rate, and for all rates together."""
    found = []
    for model in models:
        here = [a for a in answered if a.cells[0].model == model]
        for rate in (*rates, None):
            part = here if rate is None else [a.at(rate) for a in here]
            groups = [
                (
                    [o.as_choice() for o in a.ours],
                    [[o.as_choice() for o in outcomes] for _, outcomes in a.static],
                    a.profiling,
                )
                for a in part
                if a.ours
            ]
            found += [{"model": model, "rate_multiple": rate, **line} for line in headline(groups)]
    return found


def _cell_lines(answered: Answered) -> Iterator[JSON]:
    best, outcomes = answered.static[0]
    for ours, plan, static in zip(answered.ours, answered.planned, outcomes, strict=True):
        cell = ours.cell
        yield {
            "objective": cell.objective,
            "model": cell.model,
            "product": cell.product,
            "trace": cell.load.name,
            "rate_multiple": cell.load.faster,
            "pick": ours.pick.name,
            "plan_fleet": plan.pick.name,
            "plan_fleet_violates": plan.violates,
            "plan_fleet_e2e_ms": round(plan.pick.views["truth"].e2e_ms, 1),
            "oracle": ours.oracle.name,
            "best_static": best,
            "violates": ours.violates,
            "regret_percent": None if ours.regret is None else percent(ours.regret),
            "e2e_ms": round(ours.pick.views["truth"].e2e_ms, 1),
            "predicted_e2e_ms": round(ours.pick.views["planner"].e2e_ms, 1),
            "best_static_e2e_ms": round(static.pick.views["truth"].e2e_ms, 1),
            "ttft_p95_ms": round(ours.pick.views["truth"].ttft_p95_ms, 1),
            "tpot_p95_ms": round(ours.pick.views["truth"].tpot_p95_ms, 2),
        }


def _text(document: JSON) -> str:
    counts = document["cells"]
    lines = [
        f"{NAME}: {document['label']}; policy {document['policy']}",
        (
            f"{counts['asked']} cells asked, {counts['no_answer_in_truth']} without an answer in truth, "
            f"{counts['used']} used"
        ),
        *(f"  no room or no estimate: {name}: {why}" for name, why in document["refused"].items()),
        "",
        table(
            [
                {"objective": objective, "chooser": name, **found[name]}
                for objective, found in document["objectives"].items()
                for name in (
                    "planner",
                    "plan_fleet",
                    "best_static_per_group",
                    "poorest_static_per_group",
                    *_OTHERS,
                    "fewest_gpus",
                )
            ]
        ),
        "",
        *(
            f"{objective}: over 3 % worse than the best static in {found['worse_than_best_static']}, "
            f"better in {found['better_than_best_static']} (the operator's plan in "
            f"{found['plan_fleet_worse_than_best_static']} and "
            f"{found['plan_fleet_better_than_best_static']}); a random choice has "
            f"{found['random_mean_regret_percent']} % regret"
            for objective, found in document["objectives"].items()
        ),
        "",
        "cells in which the best static choice wins:",
        table(document["losing_cells"]),
        "",
        table(document["iserve"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
