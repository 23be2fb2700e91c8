"""`trimtab bench planner-choice`: what is chosen from predictions, judged by measured rows.

Comparators on the same rows: the oracle, every static tensor-parallel size and the best of them, a
roofline, and a random choice. A static size still takes its concurrency from the same predictions.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.bench.anchored import LEAST_ROWS, anchors_of, compare, correction_from
from trimtab.bench.choice_bounds import bounds, foresight
from trimtab.bench.choices import (
    OBJECTIVES,
    Candidate,
    Cell,
    Figures,
    Outcome,
    answer,
    cells,
    judge,
    kendall_tau,
    with_margin,
)
from trimtab.bench.closed_loop import Times, closed_loop
from trimtab.bench.estimates import read_estimates
from trimtab.bench.headline import headline
from trimtab.bench.report import JSON, interval, options, percent, run, table
from trimtab.bench.silicon import apart
from trimtab.planning.policy import PlannerPolicy

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from trimtab.bench.estimates import Family
    from trimtab.bench.silicon import Group, Row
    from trimtab.planning.calibration import Correction
    from trimtab.planning.step_model import StepModel

NAME: Final = "planner-choice"
MARGINS_PERMILLE: Final = (0, 100, 150, 200)
"""Margins that latency targets are also asked with: what a margin costs and what it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One group's outcomes by chooser; the planner's and the static ones are parallel."""

    group: Group
    asked: tuple[Cell, ...]
    outcomes: Mapping[str, tuple[Outcome, ...]]
    random_regret: float | None
    profiling: float


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    about = "Choices from predictions on an 8-GPU node, judged by measured rows."
    return run(options(NAME, about), argv, measure=_measure, text=_text)


def _measure(given: argparse.Namespace) -> JSON:
    policy = PlannerPolicy()
    estimates = read_estimates(given, policy=policy)
    rows, found = estimates.rows, estimates.families
    skipped = dict(rows.skipped)
    judged: list[Judged] = []
    used = 0
    for group, members in estimates.groups.items():
        family = found.by_group[group]
        known = [row for row in members if row.tensor_parallel_size in family.models]
        result = judge_group(group, known, family, policy=policy)
        _count(skipped, "no estimate", len(members) - len(known))
        if result is None:
            _count(skipped, "one tensor-parallel size: nothing to choose", len(known))
        else:
            used += len(known)
            judged.append(result)
    counted = [j for j in judged if not apart(j.group)]
    return {
        "benchmark": NAME,
        "label": "choices from: catalogue; judged by: measured",
        "catalogue": f"aiconfigurator {found.package}",
        "policy": policy.digest(),
        "rows": {"read": rows.read, "used": used, "skipped": skipped},
        "node_gpus": 8,
        "totals": summary(counted),
        "bounds": bounds([cell for j in counted for cell in j.asked], policy=policy),
        "groups": [
            {
                **j.group.as_json(),
                "apart": apart(j.group) or None,
                **summary([j]),
                "per_cell": [_cell_json(outcome) for outcome in j.outcomes["planner"]],
            }
            for j in judged
        ],
    }


def _count(skipped: dict[str, int], reason: str, rows: int) -> None:
    if rows:
        skipped[reason] = skipped.get(reason, 0) + rows


def judge_group(
    group: Group, rows: Sequence[Row], family: Family, *, policy: PlannerPolicy
) -> Judged | None:
    """Return every chooser's outcomes on a group's cells; None if there is nothing to choose."""
    asked = _cells(rows, family.models, family.margins)
    if not asked:
        return None
    outcomes = {"planner": tuple(answer(cell, policy=policy) for cell in asked)}
    for size in sorted({c.size for cell in asked for c in cell.candidates}):
        fixed = tuple(answer(cell, policy=policy, size=size) for cell in asked if _has(cell, size))
        if len(fixed) == len(asked):
            outcomes[f"tensor_parallel_{size}"] = fixed
    if set(family.roofline) >= set(family.models):
        margins = dict.fromkeys(family.roofline, policy.margin_low_permille)
        by_roofline = _cells(rows, family.roofline, margins)
        outcomes["roofline"] = tuple(answer(cell, policy=policy) for cell in by_roofline)
    if len(rows) >= LEAST_ROWS:
        outcomes["anchored"] = _anchored(rows, family, policy=policy)
    for permille in MARGINS_PERMILLE:
        targets = [c for c in asked if c.objective == "TargetLatency"]
        outcomes[f"margin_{permille}"] = tuple(
            answer(with_margin(cell, permille / 1000), policy=policy) for cell in targets
        )
        limited = [c for c in asked if c.objective in {"TargetLatency", "TargetCost"}]
        outcomes[f"foresight_{permille}"] = tuple(
            foresight(limited, margin=permille / 1000, policy=policy)
        )
    regrets = [
        statistics.fmean(r)
        for cell in asked
        if (
            r := [
                g
                for c in cell.candidates
                if (g := judge(cell, c, policy=policy).regret) is not None
            ]
        )
    ]
    return Judged(
        group=group,
        asked=tuple(asked),
        outcomes=outcomes,
        random_regret=statistics.fmean(regrets) if regrets else None,
        profiling=statistics.fmean(family.profiling.values()),
    )


def _anchored(rows: Sequence[Row], family: Family, *, policy: PlannerPolicy) -> tuple[Outcome, ...]:
    """Return the outcomes once four of the rows have corrected the predictions, as live steps would."""
    compared = compare(rows, family.models)
    correction = correction_from(
        anchors_of(compared, count=4), sizes=sorted(family.models), policy=policy
    )
    sure = policy.margin_medium_permille if correction.good else policy.margin_low_permille
    margins = {size: min(sure, margin) for size, margin in family.margins.items()}
    asked = _cells(rows, family.models, margins, correction=correction)
    return tuple(answer(cell, policy=policy) for cell in asked)


def _has(cell: Cell, size: int) -> bool:
    return any(c.size == size for c in cell.candidates)


def _cells(
    rows: Sequence[Row],
    models: Mapping[int, StepModel],
    margins: Mapping[int, int],
    *,
    correction: Correction | None = None,
) -> list[Cell]:
    by_lengths: dict[tuple[int, int], dict[tuple[int, int], list[Row]]] = {}
    for row in rows:
        if row.tensor_parallel_size in models and math.isfinite(row.ttft_ms) and row.ttft_ms > 0:
            same = by_lengths.setdefault((row.prompt, row.output), {})
            same.setdefault((row.tensor_parallel_size, row.concurrency), []).append(row)
    found: list[Cell] = []
    for (prompt, output), points in sorted(by_lengths.items()):
        candidates = [
            _candidate(same, models[size], margin=margins[size] / 1000, correction=correction)
            for (size, _), same in sorted(points.items())
        ]
        found += cells(candidates, prompt=prompt, output=output)
    return found


def _candidate(
    rows: Sequence[Row], model: StepModel, *, margin: float, correction: Correction | None
) -> Candidate:
    """Return the candidate that equal rows measure; runs that were repeated count with their mean."""
    row = rows[0]
    measured = Times(
        ttft_ms=statistics.fmean(r.ttft_ms for r in rows),
        tpot_ms=statistics.fmean(r.tpot_ms for r in rows),
    )
    said = closed_loop(model, prompt=row.prompt, output=row.output, concurrency=row.concurrency)
    if correction is not None:
        factor = math.exp(correction.log_factor(row.tensor_parallel_size, row.concurrency))
        said = Times(ttft_ms=said.ttft_ms * factor, tpot_ms=said.tpot_ms * factor)
    figures = [
        Figures.of(
            times,
            output=row.output,
            concurrency=row.concurrency,
            size=row.tensor_parallel_size,
        )
        for times in (said, measured)
    ]
    return Candidate(
        size=row.tensor_parallel_size,
        concurrency=row.concurrency,
        predicted=figures[0],
        measured=figures[1],
        margin=margin,
    )


def summary(judged: Sequence[Judged]) -> JSON:
    """Return counts, regrets, attainment and comparators over groups."""
    outcomes = [outcome for j in judged for outcome in j.outcomes["planner"]]
    ranked = [o for o in outcomes if o.cell.objective == "MinLatency"]
    top = [o.pick == o.oracle for o in ranked]
    return {
        "cells": len(outcomes),
        "planner": quality(outcomes),
        "top_1_percent": percent(statistics.fmean(top)) if top else None,
        "kendall_tau": (
            round(statistics.fmean(kendall_tau(o.cell) for o in ranked), 3) if ranked else None
        ),
        "anchored": _beside(judged, "anchored"),
        "margins": {
            f"{permille / 10:g} %": quality(
                [o for j in judged for o in j.outcomes[f"margin_{permille}"]]
            ).get("TargetLatency")
            for permille in MARGINS_PERMILLE
        },
        "foresight": {
            f"{permille / 10:g} %": quality(
                [o for j in judged for o in j.outcomes[f"foresight_{permille}"]]
            )
            for permille in MARGINS_PERMILLE
        },
        "static": _static(judged),
        "roofline": quality([o for j in judged for o in j.outcomes.get("roofline", ())]),
        "random_mean_regret_percent": _mean_percent(
            [j.random_regret for j in judged if j.random_regret is not None]
        ),
        "iserve": headline([(j.outcomes["planner"], _by_quality(j), j.profiling) for j in judged]),
    }


def _beside(judged: Sequence[Judged], name: str) -> JSON | None:
    """Return a chooser that not every group has, beside the planner in the groups that have it."""
    these = [j for j in judged if name in j.outcomes]
    if not these:
        return None
    return {
        **quality([o for j in these for o in j.outcomes[name]]),
        "raw_in_the_same_groups": quality([o for j in these for o in j.outcomes["planner"]]),
    }


def _by_quality(judged: Judged) -> list[tuple[Outcome, ...]]:
    """Return the static choices' outcomes, the best size first."""
    static = [o for name, o in judged.outcomes.items() if name.startswith("tensor_parallel_")]
    return sorted(static, key=badness)


def badness(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return violations' share, then mean regret: what makes a static choice good or poor."""
    regrets = [o.regret for o in outcomes if o.regret is not None]
    return (
        statistics.fmean(o.violates for o in outcomes)
        + (statistics.fmean(regrets) if regrets else 1),
        statistics.fmean(regrets) if regrets else math.inf,
    )


def _static(judged: Sequence[Judged]) -> JSON:
    """Return each static size's quality, and that of each group's best one."""
    names = sorted({n for j in judged for n in j.outcomes if n.startswith("tensor_parallel_")})
    document: JSON = {
        name: quality([o for j in judged for o in j.outcomes.get(name, ())]) for name in names
    }
    best = [statics[0] for j in judged if (statics := _by_quality(j))]
    document["best_per_group"] = quality([o for outcomes in best for o in outcomes])
    return document


def quality(outcomes: Sequence[Outcome]) -> JSON:
    """Return counts first, then regret by objective, and for targets violations and attainment."""
    document: JSON = {"cells": len(outcomes), **_regret(outcomes)}
    for objective in OBJECTIVES:
        these = [o for o in outcomes if o.cell.objective == objective]
        if not these:
            continue
        entry: JSON = {"cells": len(these), **_regret(these)}
        if objective == "TargetLatency":
            ratios = [
                o.pick.measured.tokens_per_gpu / o.oracle.measured.tokens_per_gpu for o in these
            ]
            entry["tokens_per_gpu_of_oracle_percent"] = percent(statistics.fmean(ratios))
        document[objective] = entry
    return document


def _regret(outcomes: Sequence[Outcome]) -> JSON:
    regrets = [o.regret for o in outcomes if o.regret is not None]
    violating = sum(o.violates for o in outcomes)
    return {
        "violations": violating,
        "violations_percent": percent(violating / len(outcomes)) if outcomes else None,
        "mean_regret_percent": _mean_percent(regrets),
        "interval_percent": interval(regrets) if regrets else None,
        "max_regret_percent": percent(max(regrets)) if regrets else None,
    }


def _mean_percent(values: Sequence[float]) -> float | None:
    return percent(statistics.fmean(values)) if values else None


def _cell_json(outcome: Outcome) -> JSON:
    cell, pick, oracle = outcome.cell, outcome.pick, outcome.oracle
    unit = {
        "MinLatency": "node_concurrency",
        "TargetLatency": "target_tpot_ms",
        "TargetCost": "budget_gpu_seconds_per_token",
    }
    limit = {unit[cell.objective]: cell.limit} if cell.objective in unit else {}
    return {
        "objective": cell.objective,
        "prompt_tokens": cell.prompt,
        "output_tokens": cell.output,
        **limit,
        "oracle": _choice(oracle),
        "pick": _choice(pick),
        "predicted_tpot_ms": round(pick.predicted.tpot_ms, 3),
        "regret_percent": None if outcome.regret is None else percent(outcome.regret),
        "violates": outcome.violates,
        "attainment_percent": percent(
            pick.measured.tokens_per_gpu / oracle.measured.tokens_per_gpu
        ),
    }


def _choice(candidate: Candidate) -> JSON:
    figures = candidate.measured
    return {
        "tensor_parallel_size": candidate.size,
        "concurrency_per_replica": candidate.concurrency,
        "e2e_ms": round(figures.e2e_ms, 2),
        "tpot_ms": round(figures.tpot_ms, 3),
        "tokens_per_second_per_gpu": round(figures.tokens_per_gpu, 2),
    }


def _text(document: JSON) -> str:
    rows, all_ = document["rows"], document["totals"]
    choosers = {
        "planner": all_["planner"],
        **({"planner, 4 anchors": all_["anchored"]} if all_["anchored"] else {}),
        **all_["static"],
        "roofline": all_["roofline"],
    }
    return "\n".join(
        [
            f"{NAME}: {document['label']}; {document['catalogue']}; policy {document['policy']}",
            f"rows: {rows['read']} read, {rows['used']} used; {all_['cells']} cells",
            *(f"  skipped {count}: {reason}" for reason, count in rows["skipped"].items()),
            "",
            table(
                [
                    _quality_line(name, q, objective)
                    for objective in OBJECTIVES
                    for name, q in choosers.items()
                    if objective in q
                ]
            ),
            "",
            f"MinLatency: top-1 {all_['top_1_percent']} %, Kendall tau {all_['kendall_tau']}",
            f"random choice: mean regret {all_['random_mean_regret_percent']} %",
            "",
            table(
                [
                    {
                        "TPOT targets, margin": margin,
                        "cells": found["cells"],
                        "missed %": found["violations_percent"],
                        "tokens/s/GPU of oracle %": found["tokens_per_gpu_of_oracle_percent"],
                    }
                    for margin, found in all_["margins"].items()
                    if found
                ]
            ),
            "",
            "no chooser does better: one that knows the rows and keeps a margin",
            table(
                [
                    {"margin": margin, **_short(objective, found[objective])}
                    for margin, found in all_["foresight"].items()
                    for objective in ("TargetLatency", "TargetCost")
                    if objective in found
                ]
            ),
            "",
            "predictions of a mean error, with the least margin that misses at most 5 % of targets",
            table(
                [
                    {"objective": objective, **line}
                    for objective, lines in document["bounds"].items()
                    for line in lines
                ]
            ),
            "",
            table(all_["iserve"]),
            "",
            table([_group_line(group) for group in document["groups"]]),
        ]
    )


def _short(objective: str, entry: JSON) -> JSON:
    return {
        "objective": objective,
        "cells": entry["cells"],
        "violations": entry["violations"],
        "regret mean %": entry["mean_regret_percent"],
        "max %": entry["max_regret_percent"],
        "tokens/s/GPU of oracle %": entry.get("tokens_per_gpu_of_oracle_percent"),
    }


def _quality_line(name: str, found: JSON, objective: str) -> JSON:
    return {"chooser": name, **_short(objective, found[objective])}


def _group_line(group: JSON) -> JSON:
    name = " ".join(group[n] for n in ("model", "system", "backend", "version", "precision"))
    best = group["static"]["best_per_group"]
    return {
        "group": name + (" (apart)" if group["apart"] else ""),
        "cells": group["cells"],
        "violations": group["planner"]["violations"],
        "mean %": group["planner"]["mean_regret_percent"],
        "max %": group["planner"]["max_regret_percent"],
        "best static mean %": best["mean_regret_percent"],
        "its violations": best["violations"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
