"""The house style of a panel: a sentence that says what to look for, a unit, a legend, a place."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

Unit = Literal[
    "s", "short", "reqps", "cps", "percentunit", "bytes", "currencyUSD", "ops", "none", "Bps"
]
"""Grafana's names; cps is counts per second, here tokens."""

SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
ROW_WIDTH: Final = 24
HEIGHT: Final = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One expression and how its series are called."""

    expr: str
    legend: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; `kind` stat shows the last value, `dashed` matches the legends drawn as predictions."""

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    width: int = 8
    kind: Literal["timeseries", "stat"] = "timeseries"
    minimum: float | None = 0
    dashed: str = ""
    stacked: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _target(query: Query, number: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .datasource(SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .range()
        .ref_id(chr(ord("A") + number))
    )


def _timeseries(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .draw_style(common_model.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(20 if panel.stacked else 0)
        .show_points(common_model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.TABLE)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003 - the builder takes no keyword
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_model.TooltipDisplayMode.MULTI)
            .sort(common_model.SortOrder.DESCENDING)
        )
    )
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if panel.dashed:
        dash = {"fill": "dash", "dash": [8, 8]}
        built.override_by_regexp(
            panel.dashed, [model.DynamicConfigValue(id_val="custom.lineStyle", value=dash)]
        )
    return built


def _stat(_: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(common_model.BigValueColorMode.NONE)
        .graph_mode(common_model.BigValueGraphMode.AREA)
    )


def build(panel: Panel, *, identity: int, x: int, y: int) -> Any:
    """Return the panel's builder at a place of the grid (Grafana counts 24 columns)."""
    built: Any = _timeseries(panel) if panel.kind == "timeseries" else _stat(panel)
    built = (
        built.id(identity)
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .grid_pos(model.GridPos(h=HEIGHT, w=panel.width, x=x, y=y))
        .targets([_target(query, number) for number, query in enumerate(panel.queries)])
    )
    return built if panel.minimum is None else built.min(panel.minimum)


def variable(name: str, *, label: str, query: str) -> dashboard.QueryVariable:
    """Return a variable filled by `label_values(…)`, several values and `All` allowed."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)  # noqa: FBT003 - the builder takes no keyword
        .include_all(True)  # noqa: FBT003 - the builder takes no keyword
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def compose(
    *, uid: str, title: str, description: str, rows: tuple[Row, ...], variables: tuple[Any, ...]
) -> model.Dashboard:
    """Lay rows out from top to bottom, panels from left to right, and return the dashboard.

    Raises:
        ValueError: The panels of a row do not fill lines of 24 columns.
    """
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["trimtab"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for one in variables:
        board.with_variable(one)
    y, identity = 0, 1
    for row in rows:
        board.with_row(
            dashboard.Row(row.title).id(identity).grid_pos(model.GridPos(h=1, w=24, x=0, y=y))
        )
        y, identity, x = y + 1, identity + 1, 0
        for panel in row.panels:
            if x + panel.width > ROW_WIDTH:
                raise ValueError(f"{title}, row {row.title}: {panel.title} crosses the right edge.")
            board.with_panel(build(panel, identity=identity, x=x, y=y))
            identity, x = identity + 1, x + panel.width
            if x == ROW_WIDTH:
                x, y = 0, y + HEIGHT
        y += HEIGHT if x else 0
    return board.build()
