"""`trimtab bench planner-fleet`: many models on one fleet of GPUs, in a simulation (planner.md §11).

Three to eight models with skewed, bursty load on 16 to 32 GPUs. `planner` is the operator's: `plan_fleet`, which on
GPUs gives every model engines of its own. `with_sharing` chooses jointly, by the planner's solver, among such
engines and engines that several models share, and `greedy` among the same; beside them stand first fit, an equal
static split, and AlpaServe's heuristic. Attainment is the share of all requests within both targets, on requests that no
strategy has seen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench.fleet_scenario import MODELS, TPOT_MS, TTFT_MS, scenario
from trimtab.bench.fleet_strategies import BASELINES, columns, greedy, planner, with_sharing
from trimtab.bench.gpu_setups import PRODUCTS, setups
from trimtab.bench.report import interval, percent, run, table
from trimtab.cli.output import CommandError
from trimtab.planning.policy import PlannerPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.fleet_scenario import Placement, Scenario

JSON = dict[str, Any]  # any: JSON
NAME: Final = "planner-fleet"
_TRUTH_SALT: Final = 2
_SHAPES: Final = ((3, 16), (5, 16), (6, 24), (8, 32))
_LOADS: Final = (0.3, 0.6, 0.9)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    parser = argparse.ArgumentParser(prog=f"trimtab bench {NAME}", description=__doc__)
    parser.add_argument("--product", choices=sorted(PRODUCTS), default="h100")
    parser.add_argument("--seeds", type=int, default=2, help="scenarios of each shape and load")
    parser.add_argument("--load", type=float, action="append", help="busy share of the GPUs")
    parser.add_argument(
        "--shape", action="append", metavar="MODELS:GPUS", help="default: 3:16 5:16 6:24 8:32"
    )
    parser.add_argument(
        "--requests", type=int, default=1500, help="of all models together, in truth"
    )
    parser.add_argument("--fingerprints", type=Path, help="folder of full-grid fingerprints")
    parser.add_argument(
        "--catalogue-python",
        metavar="PATH",
        help="interpreter with aiconfigurator; default: TRIMTAB_CATALOGUE_PYTHON, or this one",
    )
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return run(parser, argv, measure=_measure, text=_text)


def _measure(given: argparse.Namespace) -> JSON:
    policy = PlannerPolicy()
    found = setups(
        MODELS,
        [given.product],
        python=given.catalogue_python,
        folder=given.fingerprints,
        policy=policy,
    )
    known = {(s.model, s.size): s for s in found.setups}
    if not known:
        raise CommandError(
            f"No model of the fleet has step times on {given.product} ({found.label}). Give another "
            "product, or other fingerprints."
        )
    shapes = [tuple(map(int, text.split(":"))) for text in given.shape or ()] or _SHAPES
    cells = []
    for wishes, gpus in shapes:
        for load in given.load or _LOADS:
            for seed in range(given.seeds):
                drawn = scenario(
                    seed, known, wishes=wishes, gpus=gpus, load=load, requests=given.requests
                )
                cells.append(cell(drawn, load=load, policy=policy))
    return {
        "benchmark": NAME,
        "label": f"inputs: {found.label}, thin grid; truth: simulation of the same on the full grid",
        "policy": policy.digest(),
        "product": given.product,
        "targets": {"ttft_ms": TTFT_MS, "tpot_ms": TPOT_MS},
        "requests_per_scenario": given.requests,
        "refused": dict(found.refused),
        **summary(cells),
        "per_scenario": cells,
    }


def cell(drawn: Scenario, *, load: float, policy: PlannerPolicy) -> JSON:
    """Return what every strategy attains on a scenario."""
    began = time.perf_counter()
    placements = {"planner": planner(drawn, policy=policy)}
    seconds = time.perf_counter() - began
    asked = columns(drawn)
    placements["with_sharing"] = with_sharing(drawn, asked)
    placements["greedy"] = greedy(drawn, asked)
    placements |= {name: place(drawn) for name, place in BASELINES.items()}
    arrivals = drawn.arrivals(salt=_TRUTH_SALT, faster=1.0, seconds=drawn.seconds)
    total = sum(map(len, arrivals.values()))
    strategies = {}
    for name, placement in placements.items():
        attained = drawn.attained(placement, arrivals, view="truth")
        good = sum(share * len(arrivals[wish]) for wish, share in attained.items())
        strategies[name] = {
            "attained_percent": percent(good / total),
            "least_intent_percent": percent(min(attained.values())),
            "gpus": sum(engine.size for engine in placement),
            "shared_engines": sum(len(engine.names) > 1 for engine in placement),
            "engines": _told(placement),
        }
    return {
        "seed": drawn.seed,
        "intents": len(drawn.wishes),
        "gpus": drawn.gpus,
        "load": load,
        "requests": total,
        "columns": len(asked.every),
        "planner_seconds": round(seconds, 2),
        "strategies": strategies,
    }


def _told(placement: Placement) -> list[str]:
    counts: dict[str, int] = {}
    for engine in placement:
        name = f"{'+'.join(engine.names)} on {engine.size}"
        counts[name] = counts.get(name, 0) + 1
    return [f"{count} x {name}" for name, count in sorted(counts.items())]


def summary(cells: Sequence[JSON]) -> JSON:
    """Return counts, mean attainment by strategy, and the scenarios in which another attains more."""
    names = list(cells[0]["strategies"]) if cells else []
    by_strategy = {}
    losing = []
    for name in names:
        found = [c["strategies"][name] for c in cells]
        mine = [c["strategies"]["planner"] for c in cells]
        gains = [
            (m["attained_percent"] - f["attained_percent"]) / 100
            for m, f in zip(mine, found, strict=True)
        ]
        by_strategy[name] = {
            "scenarios": len(found),
            "mean_attained_percent": round(
                statistics.fmean(f["attained_percent"] for f in found), 2
            ),
            "least_attained_percent": min(f["attained_percent"] for f in found),
            "mean_least_intent_percent": round(
                statistics.fmean(f["least_intent_percent"] for f in found), 2
            ),
            "with_shared_engines": sum(f["shared_engines"] > 0 for f in found),
            "planner_better_equal_worse": [
                sum(g > 0 for g in gains),
                sum(g == 0 for g in gains),
                sum(g < 0 for g in gains),
            ],
            "planner_gains_points": percent(statistics.fmean(gains)),
            "gain_interval": interval(gains),
        }
        losing += [
            {
                **{key: c[key] for key in ("seed", "intents", "gpus", "load")},
                "strategy": name,
                "attained_percent": c["strategies"][name]["attained_percent"],
                "planner_percent": c["strategies"]["planner"]["attained_percent"],
            }
            for c, gain in zip(cells, gains, strict=True)
            if gain < 0
        ]
    return {"scenarios": len(cells), "strategies": by_strategy, "losing_scenarios": losing}


def _text(document: JSON) -> str:
    lines = [
        f"{NAME}: {document['label']}; policy {document['policy']}",
        (
            f"{document['scenarios']} scenarios on {document['product']}, "
            f"{document['requests_per_scenario']} requests each"
        ),
        *(f"  no room or no estimate: {name}: {why}" for name, why in document["refused"].items()),
        "",
        table([{"strategy": name, **found} for name, found in document["strategies"].items()]),
        "",
        "scenarios in which another attains more:",
        table(document["losing_scenarios"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
