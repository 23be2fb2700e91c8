"""Dashboard `Trimtab / Intents`: what was planned, what came of it, and whether the parts are well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.dashboards.panels import Panel, Query, Row, compose, variable
from tools.dashboards.promql import quantile, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

INTENT: Final = 'namespace=~"$namespace",intent=~"$intent"'
_MODEL: Final = 'model_name=~"$model"'


def predicted_and_observed(metric: str, *, title: str, description: str) -> Panel:
    """Return the panel of what was planned for a metric, dashed, and what gateways see."""
    queries = tuple(
        Query(
            expr=f'trimtab_intent_{kind}_seconds{{{INTENT},metric="{metric}"}}',
            legend=f"{{{{namespace}}}}/{{{{intent}}}} {kind} ({{{{percentile}}}})",
        )
        for kind in ("predicted", "observed")
    )
    return Panel(
        title=title,
        description=description,
        unit="s",
        queries=queries,
        width=12,
        dashed="/ predicted /",
    )


OBSERVED_OVER_PREDICTED: Final = Query(
    expr=(
        f"trimtab_intent_observed_seconds{{{INTENT}}}"
        " / on (namespace, intent, metric, percentile) "
        f"trimtab_intent_predicted_seconds{{{INTENT}}}"
    ),
    legend="{{namespace}}/{{intent}} {{metric}} ({{percentile}})",
)

PLAN: Final = Row(
    title="Plan",
    panels=(
        Panel(
            title="Unsatisfied intents",
            description="Intents that are not Ready, by the reason of the condition that blocks them. Zero is well.",
            unit="short",
            queries=(
                Query(expr="sum by (reason) (trimtab_unsatisfied_intents)", legend="{{reason}}"),
                Query(expr="sum(trimtab_unsatisfied_intents) or vector(0)", legend="all"),
            ),
        ),
        Panel(
            title="Cost per hour",
            description="What the chosen options reserve, by the price book. Intents without a known price have no line.",
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
            title="Observed ÷ predicted",
            description="1 means that the plan was right; lasting values above 1.2 lead to recalibration and a new plan.",
            unit="none",
            queries=(OBSERVED_OVER_PREDICTED,),
        ),
    ),
)

LATENCY: Final = Row(
    title="Latency: predicted and observed",
    panels=(
        predicted_and_observed(
            "ttft",
            title="Time to first token",
            description="Dashed: what the planner predicted for the chosen option. Solid: what gateways observed, queueing included.",
        ),
        predicted_and_observed(
            "tpot",
            title="Time per output token",
            description="Dashed: what the planner predicted for the chosen option. Solid: what gateways observed.",
        ),
        Panel(
            title="Time to first token, in the engine (p95)",
            description="From arrival at the worker. The gap to the figure above is spent in the gateway and on the way.",
            unit="s",
            queries=(
                Query(
                    expr=quantile(
                        0.95, "vllm:time_to_first_token_seconds", by="model_name", matcher=_MODEL
                    ),
                    legend="{{model_name}}",
                ),
            ),
        ),
        Panel(
            title="Time between tokens, in the engine (p95)",
            description="Preemptions and chunks of other requests' prompts count here.",
            unit="s",
            queries=(
                Query(
                    expr=quantile(
                        0.95, "vllm:inter_token_latency_seconds", by="model_name", matcher=_MODEL
                    ),
                    legend="{{model_name}}",
                ),
            ),
        ),
        Panel(
            title="Waiting in the engine's queue (p95)",
            description="Grows first when the load passes what was planned for.",
            unit="s",
            queries=(
                Query(
                    expr=quantile(
                        0.95, "vllm:request_queue_time_seconds", by="model_name", matcher=_MODEL
                    ),
                    legend="{{model_name}}",
                ),
            ),
        ),
    ),
)

REQUESTS: Final = Row(
    title="Requests",
    panels=(
        Panel(
            title="Requests finished",
            description="By the reason they ended: stop, length or abort.",
            unit="reqps",
            queries=(
                Query(
                    expr=rate(
                        "vllm:request_success_total",
                        by="model_name, finished_reason",
                        matcher=_MODEL,
                    ),
                    legend="{{model_name}} {{finished_reason}}",
                ),
            ),
        ),
        Panel(
            title="Requests in the engine",
            description="Running in the batch, and waiting for a place in it.",
            unit="short",
            queries=tuple(
                Query(
                    expr=f"sum by (model_name) (vllm:num_requests_{state}{{{_MODEL}}})",
                    legend=f"{{{{model_name}}}} {state}",
                )
                for state in ("running", "waiting")
            ),
        ),
        Panel(
            title="Tokens per second",
            description="Prompt tokens read and output tokens written.",
            unit="cps",
            queries=tuple(
                Query(
                    expr=rate(f"vllm:{kind}_tokens_total", by="model_name", matcher=_MODEL),
                    legend=f"{{{{model_name}}}} {name}",
                )
                for kind, name in (("prompt", "prompt"), ("generation", "output"))
            ),
        ),
    ),
)

MEMORY: Final = Row(
    title="KV cache",
    panels=(
        Panel(
            title="KV cache in use",
            description="Of the capacity now. At 100 % requests wait or are preempted; the pool may still grow.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"max by (model_name) (vllm:kv_cache_usage_perc{{{_MODEL}}})",
                    legend="{{model_name}}",
                ),
            ),
        ),
        Panel(
            title="Preemptions",
            description="Requests put back because the KV cache was full. Lasting ones cost throughput.",
            unit="ops",
            queries=(
                Query(
                    expr=rate("vllm:num_preemptions_total", by="model_name", matcher=_MODEL),
                    legend="{{model_name}}",
                ),
            ),
        ),
        Panel(
            title="Engine memory by owner",
            description="The arena's bytes over all workers: weights, KV cache, and what is free.",
            unit="bytes",
            queries=(
                Query(expr="sum by (owner) (trimtab_engine_arena_bytes)", legend="{{owner}}"),
            ),
            stacked=True,
        ),
    ),
)

GATEWAY: Final = Row(
    title="Gateway",
    panels=(
        Panel(
            title="Requests answered",
            description="By HTTP status. 5xx are ours, 4xx the callers'.",
            unit="reqps",
            queries=(
                Query(expr=rate("trimtab_gateway_requests_total", by="code"), legend="{{code}}"),
            ),
            stacked=True,
        ),
        Panel(
            title="Own overhead",
            description="Time before a worker has the request: authentication, routing, connecting.",
            unit="s",
            queries=tuple(
                Query(
                    expr=quantile(q, "trimtab_gateway_time_overhead_seconds"),
                    legend=f"p{q * 100:g}",
                )
                for q in (0.5, 0.99)
            ),
        ),
        Panel(
            title="In flight and held",
            description="Requests being served, and requests that wait because no worker is ready.",
            unit="short",
            queries=(
                Query(expr="sum(trimtab_gateway_inflight)", legend="in flight"),
                Query(expr="sum(trimtab_gateway_held)", legend="held"),
            ),
        ),
        Panel(
            title="Request duration",
            description="From arrival to the last byte.",
            unit="s",
            queries=tuple(
                Query(
                    expr=quantile(q, "trimtab_gateway_request_duration_seconds"),
                    legend=f"p{q * 100:g}",
                )
                for q in (0.5, 0.95)
            ),
        ),
        Panel(
            title="Failed attempts and retries",
            description="Attempts that a worker failed, and attempts on another pod, by reason.",
            unit="ops",
            queries=(
                Query(
                    expr=rate("trimtab_gateway_upstream_errors_total", by="reason"),
                    legend="failed: {{reason}}",
                ),
                Query(
                    expr=rate("trimtab_gateway_retries_total", by="reason"),
                    legend="retried: {{reason}}",
                ),
            ),
        ),
        Panel(
            title="Routing table from the API server",
            description="1: watched live. 0: served from the last good copy on disk, because the API server is away.",
            unit="short",
            queries=(Query(expr="min(trimtab_gateway_routes_live)", legend="live"),),
        ),
    ),
)

OPERATOR: Final = Row(
    title="Operator",
    panels=(
        Panel(
            title="Leaders",
            description="Exactly one. Zero: nothing is planned or repaired, what serves goes on serving.",
            unit="short",
            queries=(Query(expr="sum(trimtab_leader)", legend="leaders"),),
            kind="stat",
            width=4,
        ),
        Panel(
            title="Oldest loop",
            description="Age of the least recent step of any object. Every object is visited at least every 720 s.",
            unit="s",
            queries=(
                Query(expr="max by (kind) (trimtab_loop_oldest_tick_seconds)", legend="{{kind}}"),
            ),
            kind="stat",
            width=4,
        ),
        Panel(
            title="Steps",
            description="Reconcile steps by kind and result.",
            unit="ops",
            queries=(
                Query(
                    expr=rate("trimtab_reconcile_total", by="kind, result"),
                    legend="{{kind}} {{result}}",
                ),
            ),
        ),
        Panel(
            title="Step duration (p99)",
            description="Observing, planning and writing of one object.",
            unit="s",
            queries=(
                Query(
                    expr=quantile(0.99, "trimtab_reconcile_duration_seconds", by="kind"),
                    legend="{{kind}}",
                ),
            ),
        ),
        Panel(
            title="Writes to the API server",
            description="By kind and result. A quiet cluster shows none, the Lease aside.",
            unit="ops",
            queries=(
                Query(
                    expr=rate("trimtab_api_writes_total", by="kind, result"),
                    legend="{{kind}} {{result}}",
                ),
            ),
            width=12,
        ),
        Panel(
            title="Event loop lag",
            description="Lateness of a tick; above 5 s the process is restarted.",
            unit="s",
            queries=(Query(expr="max(trimtab_event_loop_lag_seconds)", legend="lag"),),
            width=12,
        ),
    ),
)

INTENT_VARIABLES: Final = (
    variable(
        "namespace",
        label="Namespace",
        query="label_values(trimtab_intent_predicted_seconds, namespace)",
    ),
    variable(
        "intent",
        label="Intent",
        query='label_values(trimtab_intent_predicted_seconds{namespace=~"$namespace"}, intent)',
    ),
)

ROWS: Final = (PLAN, LATENCY, REQUESTS, MEMORY, GATEWAY, OPERATOR)


def board() -> Dashboard:
    """Return the dashboard."""
    return compose(
        uid="trimtab-intents",
        title="Trimtab / Intents",
        description="What was planned for each InferenceIntent, what is observed, and the health of gateway and operator.",
        rows=ROWS,
        variables=(
            *INTENT_VARIABLES,
            variable(
                "model", label="Model", query="label_values(vllm:num_requests_running, model_name)"
            ),
        ),
    )
