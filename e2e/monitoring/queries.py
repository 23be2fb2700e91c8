"""Every question that dashboards and alerts ask, and those that a healthy short run leaves unanswered."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.monitoring.prometheus import Prometheus

CHART = Path(__file__).resolve().parents[2] / "charts" / "trimtab"
DASHBOARDS = CHART / "dashboards"
ALERTS = CHART / "files" / "alerts.yaml"
RATE_INTERVAL = "30s"

EMPTY: dict[str, str] = {
    "trimtab_unsatisfied_intents": "every intent is Ready; there is a series per reason while one is not",
    "trimtab_intent_cost_per_hour": "no price is known; the demo's values set some",
    "trimtab_cost_per_million_output_tokens": "no price or no load is known",
    "trimtab_prediction_ratio": "no intent has both a plan and traffic in the last five minutes",
    "trimtab_intent_observed_seconds": "a verdict needs traffic in the last five minutes",
    "vllm:request_success_total": "a series per finish reason appears with its first request",
    "trimtab_gateway_upstream_errors_total": "no worker failed an attempt",
    "trimtab_gateway_retries_total": "no attempt was repeated",
    "trimtab_api_missing_permission_total": "the role lacks no verb",
    "trimtab_engine_link_bytes_total": "nothing was lent, streamed or swapped",
    "trimtab_engine_link_stall_seconds_total": "no step waited for a copy",
    "trimtab_engine_remaps_total": "no model shares a worker, or the KV cache never ran short",
    "trimtab_engine_reverts_total": "nothing lent came back",
    "trimtab_engine_swaps_total": "no sequence was swapped",
    "trimtab_engine_switch_seconds": "no lent model woke",
    "trimtab_engine_remap_verdict": "the engine has given no advice yet",
}
"""Metrics whose absence is no fault, with the reason; all others must have data in a run with traffic."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One expression of a panel or an alert, Grafana's variables replaced."""

    source: str
    expression: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a query had data; `excuse` is the listed reason why it need not."""

    query: Query
    series: int
    excuse: str = ""

    @property
    def good(self) -> bool:
        return bool(self.series or self.excuse)


def replaced(expression: str, *, rate_interval: str = RATE_INTERVAL) -> str:
    """Return an expression with `All` chosen in every variable and a fixed rate interval."""
    return re.sub(
        r"\$\{?(\w+)\}?",
        lambda found: rate_interval if found.group(1) == "__rate_interval" else ".*",
        expression,
    )


def selectors(expression: str) -> list[Any]:
    """Return the vector selectors of an expression, outermost first."""
    return list(_walk(promql_parser.parse(expression)))


def _walk(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    if isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
        return
    for part in ("expr", "lhs", "rhs"):
        child = getattr(node, part, None)
        if child is not None:
            yield from _walk(child)
    for child in getattr(node, "args", None) or []:
        yield from _walk(child)


def metric_of(expression: str) -> set[str]:
    """Return the names of the metrics that an expression reads, without histograms' suffixes."""
    return {re.sub(r"_(bucket|sum|count)$", "", one.name) for one in selectors(expression)}


def of_dashboards(folder: Path = DASHBOARDS) -> list[Query]:
    """Return every target of every panel of every dashboard."""
    found = []
    for path in sorted(folder.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [
                Query(source=f"{path.stem}: {panel['title']}", expression=replaced(target["expr"]))
                for target in panel.get("targets", [])
            ]
    return found


def of_alerts(path: Path = ALERTS) -> list[Query]:
    """Return one query per metric of every alert: an alert that is silent has data and no result."""
    found = []
    for group in yaml.safe_load(path.read_text())["groups"]:
        for rule in group["rules"]:
            found += [
                Query(source=f"alert {rule['alert']}", expression=name)
                for name in sorted({one.name for one in selectors(rule["expr"])})
            ]
    return found


def verdicts(server: Prometheus, queries: list[Query], *, seconds: float) -> list[Verdict]:
    """Ask every query over the last `seconds`; NaN counts as no data (a quantile of nothing)."""
    import time

    end = time.time()
    found = []
    for query in queries:
        series = server.over(
            query.expression, start=end - seconds, end=end, step_seconds=max(2.0, seconds / 100)
        )
        filled = sum(any(value == value for _, value in one.points) for one in series)  # noqa: PLR0124 - NaN differs from itself
        reasons = [EMPTY[name] for name in metric_of(query.expression) if name in EMPTY]
        found.append(
            Verdict(query=query, series=filled, excuse="" if filled or not reasons else reasons[0])
        )
    return found


def report(found: list[Verdict]) -> str:
    """Return one line per query: the number of series, or why there are none."""
    lines = []
    for verdict in found:
        state = str(verdict.series) if verdict.series else "-" if verdict.excuse else "NONE"
        note = f"  ({verdict.excuse})" if verdict.excuse else ""
        lines.append(f"{state:>5}  {verdict.query.source}: {verdict.query.expression}{note}")
    return "\n".join(lines)
