"""Dashboard `Trimtab / Engine`: who has the arena, what moves between weights and KV cache, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.dashboards.panels import Panel, Query, Row, compose, variable
from tools.dashboards.promql import quantile, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

_MODEL: Final = 'model_name=~"$model"'

ARENA: Final = Row(
    title="Arena",
    panels=(
        Panel(
            title="Arena by owner",
            description="Slabs of all workers in bytes. kv_borrowed lies in the place of lent weights; kv_home and free never do.",
            unit="bytes",
            queries=(
                Query(expr="sum by (owner) (trimtab_engine_arena_bytes)", legend="{{owner}}"),
            ),
            width=12,
            stacked=True,
        ),
        Panel(
            title="KV cache: capacity and reach",
            description="Tokens that fit now, and after everything idle were lent. The gap is what remapping can still give.",
            unit="short",
            queries=tuple(
                Query(
                    expr=f"sum by (model_name) (trimtab_engine_kv_{kind}_tokens{{{_MODEL}}})",
                    legend=f"{{{{model_name}}}} {name}",
                )
                for kind, name in (("capacity", "now"), ("reachable", "reach"))
            ),
            width=12,
            dashed="/ reach$/",
        ),
        Panel(
            title="Models by state",
            description="Resident and Lent serve; Waking reads lent layers again; Failed needs somebody.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (state) (trimtab_engine_model_state{{{_MODEL}}})",
                    legend="{{state}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Layers by state",
            description="Where each model's layers are: resident, streamed through slots, lent to the KV cache, being read.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (model_name, state) (trimtab_engine_layers{{{_MODEL}}})",
                    legend="{{model_name}} {{state}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Model set files refused",
            description="A set that could not be read changed nothing; the worker's state says why.",
            unit="ops",
            queries=(
                Query(
                    expr="sum(rate(trimtab_engine_config_errors_total[$__rate_interval]))",
                    legend="refused",
                ),
            ),
        ),
    ),
)

REMAPPING: Final = Row(
    title="Remapping",
    panels=(
        Panel(
            title="Lends",
            description="Units of idle models, or levels of running ones, that became KV cache.",
            unit="ops",
            queries=(
                Query(expr=rate("trimtab_engine_remaps_total", by="kind"), legend="{{kind}}"),
            ),
        ),
        Panel(
            title="Reverts",
            description="Units that came back, by why: their model woke, the cache ran idle, or a level was taken back.",
            unit="ops",
            queries=(
                Query(expr=rate("trimtab_engine_reverts_total", by="reason"), legend="{{reason}}"),
            ),
        ),
        Panel(
            title="Model switches and thrash holds",
            description="A switch is work for another model than before. A hold keeps a model resident because switches come too fast.",
            unit="ops",
            queries=(
                Query(
                    expr="sum(rate(trimtab_engine_model_switches_total[$__rate_interval]))",
                    legend="switches",
                ),
                Query(
                    expr="sum(rate(trimtab_engine_thrash_holds_total[$__rate_interval]))",
                    legend="holds",
                ),
            ),
        ),
        Panel(
            title="Switch duration",
            description="From the first request for a lent model until it can compute: reading its layers again.",
            unit="s",
            queries=tuple(
                Query(expr=quantile(q, "trimtab_engine_switch_seconds"), legend=f"p{q * 100:g}")
                for q in (0.5, 0.95)
            ),
        ),
        Panel(
            title="Verdict",
            description="1 for the engine's present answer to whether lending pays; its reasons are in `kubectl trimtab why`.",
            unit="short",
            queries=(
                Query(expr="max by (verdict) (trimtab_engine_remap_verdict)", legend="{{verdict}}"),
            ),
        ),
        Panel(
            title="Streaming level and hidden bound",
            description="Layers that running models have freed, and how many the link could hide behind a step.",
            unit="short",
            queries=(
                Query(expr="max(trimtab_engine_remap_alpha)", legend="level"),
                Query(expr="max(trimtab_engine_hidden_bound_layers)", legend="bound"),
            ),
            dashed="/bound/",
        ),
    ),
)

LINK: Final = Row(
    title="Link",
    panels=(
        Panel(
            title="Link bytes by reason",
            description="Copies between host and arena: wakes and loads read weights, streaming reads them every step, swap moves KV.",
            unit="Bps",
            queries=(
                Query(
                    expr=rate("trimtab_engine_link_bytes_total", by="reason"), legend="{{reason}}"
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Stalls",
            description="Share of the time in which compute waited for a copy, by reason. Streaming should show none.",
            unit="percentunit",
            queries=(
                Query(
                    expr=rate("trimtab_engine_link_stall_seconds_total", by="reason"),
                    legend="{{reason}}",
                ),
            ),
        ),
        Panel(
            title="KV swaps",
            description="Sequences whose KV cache left for host memory, or came back.",
            unit="ops",
            queries=(
                Query(
                    expr=rate("trimtab_engine_swaps_total", by="direction"),
                    legend="{{direction}}",
                ),
            ),
        ),
    ),
)

PRESSURE: Final = Row(
    title="Pressure",
    panels=(
        Panel(
            title="Preemptions",
            description="Sequences put back because blocks ran short, after prefixes, lending and swap.",
            unit="ops",
            queries=(
                Query(
                    expr=rate("vllm:num_preemptions_total", by="model_name", matcher=_MODEL),
                    legend="{{model_name}}",
                ),
            ),
        ),
        Panel(
            title="Tokens computed again",
            description="What preemptions cost: work that had been done before.",
            unit="cps",
            queries=(
                Query(
                    expr=rate(
                        "trimtab_engine_recomputed_tokens_total", by="model_name", matcher=_MODEL
                    ),
                    legend="{{model_name}}",
                ),
            ),
        ),
        Panel(
            title="Waiting requests by reason",
            description="For capacity, for a lent model that wakes, or for the other models' turn.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (reason) (vllm:num_requests_waiting_by_reason{{{_MODEL}}})",
                    legend="{{reason}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="KV cache in use",
            description="Of the capacity now; the pool may still grow, so autoscale on waiting requests.",
            unit="percentunit",
            queries=(
                Query(
                    expr=f"max by (model_name) (vllm:kv_cache_usage_perc{{{_MODEL}}})",
                    legend="{{model_name}}",
                ),
            ),
            width=12,
        ),
        Panel(
            title="Step duration (p95)",
            description="One engine step by phase. Streaming that is not hidden shows here first.",
            unit="s",
            queries=(
                Query(
                    expr=quantile(0.95, "trimtab_engine_step_seconds", by="phase"),
                    legend="{{phase}}",
                ),
            ),
            width=12,
        ),
    ),
)

ROWS: Final = (ARENA, REMAPPING, LINK, PRESSURE)


def board() -> Dashboard:
    """Return the dashboard."""
    return compose(
        uid="trimtab-engine",
        title="Trimtab / Engine",
        description="Whose memory the arena is, what moves between weights and KV cache, and what that costs.",
        rows=ROWS,
        variables=(
            variable(
                "model",
                label="Model",
                query="label_values(trimtab_engine_model_state, model_name)",
            ),
        ),
    )
