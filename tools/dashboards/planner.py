"""Dashboard `Trimtab / Planner`: whether plans are right, how sure they are, what they cost, how often they change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.dashboards.intents import (
    INTENT,
    INTENT_VARIABLES,
    OBSERVED_OVER_PREDICTED,
    predicted_and_observed,
)
from tools.dashboards.panels import Panel, Query, Row, compose
from tools.dashboards.promql import quantile, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

PREDICTIONS: Final = Row(
    title="Predictions",
    panels=(
        predicted_and_observed(
            "tpot",
            title="Time per output token",
            description="Dashed: predicted for the chosen option, without its margin. Solid: observed by the gateways in five minutes.",
        ),
        predicted_and_observed(
            "ttft",
            title="Time to first token",
            description="Dashed: predicted for the chosen option, without its margin. Solid: observed, queueing and gateway included.",
        ),
        Panel(
            title="Observed ÷ predicted, by intent",
            description="1 means that the plan was right. Above 1 + margin the intent may miss its target.",
            unit="none",
            queries=(OBSERVED_OVER_PREDICTED,),
        ),
        Panel(
            title="Observed ÷ predicted, median",
            description="Over all intents that have both. A lasting distance from 1 is the planner's own error, not one intent's.",
            unit="none",
            queries=(
                Query(expr="max by (metric) (trimtab_prediction_ratio)", legend="{{metric}}"),
            ),
        ),
        Panel(
            title="Intents outside their margin",
            description="Slower: targets are at risk. Faster: more is reserved than needed. An alert follows after 30 minutes of slower.",
            unit="short",
            queries=(
                Query(
                    expr="max by (metric, direction) (trimtab_intents_outside_margin)",
                    legend="{{metric}} {{direction}}",
                ),
            ),
        ),
    ),
)

TRUST: Final = Row(
    title="Confidence and satisfaction",
    panels=(
        Panel(
            title="Confidence",
            description="Planned intents by how sure their prediction is. Low: a roofline, or a measurement with two weaknesses.",
            unit="short",
            queries=(
                Query(
                    expr="max by (level) (trimtab_intents_by_confidence)",
                    legend="{{level}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Margin",
            description="Median over planned intents of what is added to a prediction before it is held against a target.",
            unit="percentunit",
            queries=(
                Query(expr="max by (metric) (trimtab_plan_margin_ratio)", legend="{{metric}}"),
            ),
        ),
        Panel(
            title="Unsatisfied intents",
            description="Intents that are not Ready, by the reason of the condition that blocks them. Zero is well.",
            unit="short",
            queries=(
                Query(expr="sum by (reason) (trimtab_unsatisfied_intents)", legend="{{reason}}"),
                Query(expr="sum(trimtab_unsatisfied_intents) or vector(0)", legend="all"),
            ),
        ),
    ),
)

MONEY: Final = Row(
    title="Cost and load",
    panels=(
        Panel(
            title="Cost per hour",
            description="What plans reserve, by the price book; whole devices, not busy time. Intents without a known price have no line.",
            unit="currencyUSD",
            queries=(
                Query(
                    expr=f"trimtab_intent_cost_per_hour{{{INTENT}}}",
                    legend="{{namespace}}/{{intent}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Cost per million output tokens",
            description="Of all intents with a price together. Observed above planned: less arrives than was planned for.",
            unit="currencyUSD",
            queries=(
                Query(
                    expr="max by (load) (trimtab_cost_per_million_output_tokens)",
                    legend="{{load}}",
                ),
            ),
        ),
        Panel(
            title="Load: declared, planned for, observed",
            description="Requests per second of all intents together. Planned follows observed once it leaves 0.6 to 1.2 times the plan.",
            unit="reqps",
            queries=(
                Query(
                    expr="max by (load) (trimtab_load_requests_per_second)",
                    legend="{{load}}",
                ),
            ),
            dashed="/declared/",
        ),
    ),
)

PLANNING: Final = Row(
    title="Planning",
    panels=(
        Panel(
            title="Plan changes",
            description="Intents whose option became another, by what changed. Two changes back and forth within minutes are a fault.",
            unit="ops",
            queries=(
                Query(expr=rate("trimtab_plan_changes_total", by="change"), legend="{{change}}"),
            ),
            width=6,
        ),
        Panel(
            title="Planning time",
            description="One plan of the whole fleet. The process is stopped after 30 s.",
            unit="s",
            queries=tuple(
                Query(expr=quantile(q, "trimtab_plan_seconds"), legend=f"p{q * 100:g}")
                for q in (0.5, 0.95)
            ),
            width=6,
        ),
        Panel(
            title="Waiting for a plan",
            description="Age of the oldest change that no plan takes into account. Debouncing alone is up to 10 s.",
            unit="s",
            queries=(Query(expr="max(trimtab_plan_waiting_seconds)", legend="waiting"),),
            width=6,
        ),
        Panel(
            title="Failures",
            description="Plans that could not be made, and running intents of which the last plan found nothing out. Both are zero.",
            unit="short",
            queries=(
                Query(
                    expr="sum(increase(trimtab_plan_failures_total[$__rate_interval]))",
                    legend="plans that failed",
                ),
                Query(expr="max(trimtab_intents_without_findings)", legend="without findings"),
            ),
            width=6,
        ),
    ),
)

ROWS: Final = (PREDICTIONS, TRUST, MONEY, PLANNING)


def board() -> Dashboard:
    """Return the dashboard."""
    return compose(
        uid="trimtab-planner",
        title="Trimtab / Planner",
        description="Whether plans were right, how sure they are, what they cost, and how often and how fast they change.",
        rows=ROWS,
        variables=INTENT_VARIABLES,
    )
