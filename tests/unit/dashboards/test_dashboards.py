"""The dashboards: importable by Grafana, in the house style, and about metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards import __main__ as generator
from tools.dashboards import panels, registered

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "charts" / "trimtab" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))
VARIABLES = {"__rate_interval": "1m"}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def drawn(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def queries(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in drawn(board) for target in panel["targets"]]


def names(expression: str) -> set[str]:
    """Return the metrics that an expression reads, Grafana's variables replaced first."""
    text = re.sub(r"\$(\w+)", lambda found: VARIABLES.get(found.group(1), ".*"), expression)
    return set(_selectors(promql_parser.parse(text)))


def _selectors(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector.name
    else:
        for part in ("expr", "lhs", "rhs", "param"):
            child = getattr(node, part, None)
            if child is not None and not isinstance(child, (str, float)):
                yield from _selectors(child)
        for child in getattr(node, "args", None) or []:
            yield from _selectors(child)


def test_files_are_what_the_code_generates() -> None:
    """Nobody edited the JSON by hand, and no board's file is missing or left over."""
    assert generator.outdated() == {}
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dashboards_survive_a_round_trip_through_grafanas_own_types(path: Path) -> None:
    """Reading the JSON into Grafana's published types and writing it again loses nothing."""
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(load(path)), cls=JSONEncoder))
    assert again == load(path)


def test_uids_and_titles_are_unique() -> None:
    """Two boards never overwrite each other in one Grafana."""
    boards = [load(path) for path in FILES]
    assert len({board["uid"] for board in boards}) == len(boards)
    assert len({board["title"] for board in boards}) == len(boards)
    assert all(re.fullmatch(r"trimtab-[a-z-]{1,32}", board["uid"]) for board in boards)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_panel_is_in_the_house_style(path: Path) -> None:
    """Each panel has a sentence, a unit, the data source variable and named series, and they do not overlap."""
    board = load(path)
    assert board["templating"]["list"][0]["type"] == "datasource"
    cells: set[tuple[int, int]] = set()
    for panel in drawn(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells |= covered
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
            assert target["legendFormat"], panel["title"]
    titles = [panel["title"] for panel in drawn(board)]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rates_follow_the_scrape_interval(path: Path) -> None:
    """Every rate's range is $__rate_interval, so that a zoom never shows gaps."""
    for expression in queries(load(path)):
        assert set(re.findall(r"\[([^]]+)\]", expression)) <= {"$__rate_interval"}, expression


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_variables_used_are_defined(path: Path) -> None:
    """No query names a variable that the board does not have."""
    board = load(path)
    defined = {variable["name"] for variable in board["templating"]["list"]}
    texts = [*queries(board), *(str(v.get("query", "")) for v in board["templating"]["list"])]
    used = {name for text in texts for name in re.findall(r"\$\{?(\w+)", text)}
    assert used <= defined | {"__rate_interval"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_metrics_used_are_registered(path: Path) -> None:
    """Each metric of each query is one that a process registers: own ones from the code, vLLM's by name."""
    known = registered.sample_names()
    used = {name for expression in queries(load(path)) for name in names(expression)}
    assert used
    assert used - known == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_engine_panels_work_for_vllm_too(path: Path) -> None:
    """Names with the prefix `vllm:` are ones that vLLM itself exports, its old names not among them."""
    used = {name for expression in queries(load(path)) for name in names(expression)}
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert {name for name in plain if name.startswith("vllm:")} <= {
        f"vllm:{name}" for name in registered.VLLM
    }


def test_alerts_use_registered_metrics() -> None:
    """The alerts read metrics that exist; `up` is Prometheus' own."""
    import yaml

    groups = yaml.safe_load((ROOT / "charts/trimtab/files/alerts.yaml").read_text())["groups"]
    used = {name for g in groups for rule in g["rules"] for name in names(rule["expr"])}
    assert used - registered.sample_names() == {"up"}


def test_panels_that_cross_the_edge_are_refused() -> None:
    """A row whose panels do not fill lines of 24 columns is an error that names board, row and panel."""
    wide = panels.Panel(title="Wide", description="W.", unit="s", queries=(), width=16)
    row = panels.Row(title="R", panels=(wide, wide))
    with pytest.raises(ValueError, match="Board, row R: Wide crosses the right edge"):
        panels.compose(uid="u", title="Board", description="d", rows=(row,), variables=())
