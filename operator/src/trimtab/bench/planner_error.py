"""`trimtab bench planner-error`: predictions from the catalogue beside measured rows.

Truth is never an input: the catalogue gives single steps of 1- and 2-layer models. Anchors are rows
that are then not scored.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Final

from trimtab.bench.anchored import (
    LEAST_ROWS,
    METRICS,
    anchored,
    anchors_of,
    compare,
    correction_from,
    errors,
    two_at_one_size,
)
from trimtab.bench.estimates import read_estimates
from trimtab.bench.host_time import host_time
from trimtab.bench.report import JSON, options, percent, run, spread, table
from trimtab.bench.silicon import apart
from trimtab.planning.policy import PlannerPolicy

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from trimtab.bench.anchored import Compared, Metric
    from trimtab.bench.estimates import Family
    from trimtab.bench.silicon import Group

NAME: Final = "planner-error"


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    about = "Predictions from the catalogue beside measured rows, raw and with anchors."
    return run(options(NAME, about), argv, measure=_measure, text=_text)


def _measure(given: argparse.Namespace) -> JSON:
    policy = PlannerPolicy()
    estimates = read_estimates(given, policy=policy)
    rows, found = estimates.rows, estimates.families
    skipped = dict(rows.skipped)
    judged: dict[Group, list[Compared]] = {}
    for group, members in estimates.groups.items():
        family = found.by_group[group]
        judged[group] = compare(members, family.models)
        lacking = len(members) - len(judged[group])
        if lacking:
            skipped["no estimate"] = skipped.get("no estimate", 0) + lacking
    reports = [
        group_report(group, compared, found.by_group[group], policy=policy)
        for group, compared in judged.items()
    ]
    counted = {g: c for g, c in judged.items() if not apart(g)}
    return {
        "benchmark": NAME,
        "label": "predictions: catalogue; truth: measured",
        "catalogue": f"aiconfigurator {found.package}",
        "policy": policy.digest(),
        "rows": {
            "read": rows.read,
            "used": sum(len(c) for c in judged.values()),
            "apart": sum(len(c) for g, c in judged.items() if apart(g)),
            "skipped": skipped,
        },
        **totals(counted, policy=policy),
        "groups": reports,
    }


def totals(judged: Mapping[Group, Sequence[Compared]], *, policy: PlannerPolicy) -> JSON:
    """Return the errors over all groups, raw and with 1 and 4 anchors per group, unscored."""
    return {
        metric: _metric([judged[group] for group in judged], metric, policy=policy)
        for metric in METRICS
    }


def _metric(groups: Sequence[Sequence[Compared]], metric: Metric, *, policy: PlannerPolicy) -> JSON:
    document: JSON = {"raw": spread([e for compared in groups for e in errors(compared, metric)])}
    for count in (1, 4):
        before: list[float] = []
        after: list[float] = []
        for compared in groups:
            raw, corrected = anchored(compared, metric, count=count, policy=policy)
            before += raw
            after += corrected
        document[f"anchors_{count}"] = {**spread(after), "raw_on_the_same_rows": spread(before)}
    return document


def group_report(
    group: Group, compared: Sequence[Compared], family: Family, *, policy: PlannerPolicy
) -> JSON:
    """Return one group's errors, its anchors, and what two anchors at one size do to the others."""
    report: JSON = {
        **group.as_json(),
        "apart": apart(group) or None,
        "no_estimate": {str(size): why for size, why in family.refused.items()},
        **{metric: _metric([compared], metric, policy=policy) for metric in METRICS},
    }
    by_size: dict[int, list[Compared]] = {}
    for c in compared:
        by_size.setdefault(c.row.tensor_parallel_size, []).append(c)
    report["TPOT"]["by_tensor_parallel_size"] = {
        str(size): spread(errors(members, "TPOT")) for size, members in sorted(by_size.items())
    }
    roofline = compare([c.row for c in compared], family.roofline)
    report["TPOT"]["roofline"] = spread(errors(roofline, "TPOT"))
    report["anchors"] = _anchors_json(compared, policy=policy)
    report["host_time"] = host_time(compared) if len(compared) >= LEAST_ROWS else None
    return report


def _anchors_json(compared: Sequence[Compared], *, policy: PlannerPolicy) -> JSON | None:
    if len(compared) < LEAST_ROWS:
        return None
    sizes = sorted({c.row.tensor_parallel_size for c in compared})
    four = correction_from(anchors_of(compared, count=4), sizes=sizes, policy=policy)
    return {
        "rows": [
            [r.tensor_parallel_size, r.batch, percent(math.expm1(-r.error))] for r in four.residuals
        ],
        "good": four.good,
        "suspect": four.suspect,
        "two_at_one_size": two_at_one_size(compared, policy=policy),
    }


def _text(document: JSON) -> str:
    rows = document["rows"]
    lines = [
        f"{NAME}: {document['label']}; {document['catalogue']}; policy {document['policy']}",
        f"rows: {rows['read']} read, {rows['used']} used, of these {rows['apart']} apart",
        *(f"  skipped {count}: {reason}" for reason, count in rows["skipped"].items()),
        "",
        table(
            [
                {"error, all groups but those apart": name, **figures}
                for name, figures in (
                    ("TPOT raw", _short(document["TPOT"]["raw"])),
                    ("TPOT, 1 anchor", _short(document["TPOT"]["anchors_1"])),
                    ("TPOT, 4 anchors", _short(document["TPOT"]["anchors_4"])),
                    ("TTFT raw", _short(document["TTFT"]["raw"])),
                    ("TTFT, 4 anchors", _short(document["TTFT"]["anchors_4"])),
                )
            ]
        ),
        "",
        table([_line(group) for group in document["groups"]]),
    ]
    return "\n".join(lines)


def _short(figures: JSON) -> JSON:
    return {
        "rows": figures["rows"],
        "MAPE %": figures["mape_percent"],
        "median %": figures["median_percent"],
        "95 % interval": figures["interval_percent"],
    }


def _line(group: JSON) -> JSON:
    tpot = group["TPOT"]
    two = (group["anchors"] or {}).get("two_at_one_size") or {}
    return {
        "group": " ".join(group[n] for n in ("model", "system", "backend", "version", "precision")),
        "rows": tpot["raw"]["rows"],
        "TPOT %": tpot["raw"]["mape_percent"],
        "1 anchor": tpot["anchors_1"]["mape_percent"],
        "4 anchors": tpot["anchors_4"]["mape_percent"],
        "roofline %": tpot["roofline"]["mape_percent"],
        "with host time %": (group["host_time"] or {}).get("mape_percent"),
        "TTFT %": group["TTFT"]["raw"]["mape_percent"],
        "2 at one TP": two.get("raised_points"),
        "naive": two.get("naive_raised_points"),
        "apart": "yes" if group["apart"] else "",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
