"""Queries and drawing against a real Prometheus that scrapes made-up figures: nothing here is a measurement."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import pytest

from e2e.monitoring import draw, prometheus, queries, synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MISSING = "trimtab_leader"
EXCUSED = "trimtab_gateway_retries"
WATCH_SECONDS = 14.0


@pytest.fixture(scope="module")
def server() -> Iterator[prometheus.Prometheus]:
    """Prometheus after some scrapes of an exporter that lacks two metrics, one of them excused."""
    with contextlib.ExitStack() as stack:
        target, tick = stack.enter_context(
            synthetic.exporter(without=frozenset({MISSING, EXCUSED}))
        )
        try:
            started = stack.enter_context(
                prometheus.started(targets=[target], rules=queries.ALERTS)
            )
        except prometheus.PrometheusError as exc:
            if os.environ.get("CI"):
                pytest.fail(str(exc))
            pytest.skip(str(exc))
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            tick()
            time.sleep(1)  # samples take time: there is no event to wait for
        yield started


def test_every_query_of_dashboards_and_alerts_is_answered(server: prometheus.Prometheus) -> None:
    """Prometheus accepts every expression; the ones without data are exactly those whose metric was left out."""
    asked = [*queries.of_dashboards(), *queries.of_alerts()]
    found = queries.verdicts(server, asked, seconds=WATCH_SECONDS)
    assert len(found) == len(asked) > 40
    bad = {verdict.query.expression for verdict in found if not verdict.good}
    assert bad == {f"sum({MISSING})", MISSING}, queries.report(found)
    excused = [verdict for verdict in found if not verdict.series and verdict.excuse]
    assert {next(iter(queries.metric_of(v.query.expression))) for v in excused} == {
        f"{EXCUSED}_total"
    }
    assert "NONE  intents: Leaders: sum(trimtab_leader)" in queries.report(found)


def test_targets_that_answer_are_healthy(server: prometheus.Prometheus) -> None:
    """Every target is up, and a target that is gone says why it is not."""
    assert set(server.healthy().values()) == {""}


def test_every_panel_is_drawn(server: prometheus.Prometheus, tmp_path: Path) -> None:
    """The picture of a dashboard is a PNG of a size that holds all its panels."""
    for path in sorted(queries.DASHBOARDS.glob("*.json")):
        output = tmp_path / f"{path.stem}.png"
        draw.dashboard(path, server, output=output, seconds=WATCH_SECONDS, caption="SYNTHETIC.")
        assert output.read_bytes().startswith(b"\x89PNG")
        assert output.stat().st_size > 30_000


def test_legends_are_written_as_grafana_does() -> None:
    """Labels fill the legend's braces, unknown labels leave nothing."""
    assert draw.legend("{{a}}/{{ b }} p{{c}}", {"a": "x", "b": "y"}) == "x/y p"


def test_all_is_chosen_in_every_variable() -> None:
    """Grafana's variables become patterns that match everything, the interval a number."""
    text = 'rate(x{a=~"$namespace",b=~"${model}"}[$__rate_interval])'
    assert queries.replaced(text) == 'rate(x{a=~".*",b=~".*"}[30s])'


def test_every_excuse_is_for_a_metric_that_is_asked_for() -> None:
    """The list of metrics that may be empty holds none that no dashboard or alert reads."""
    asked = {
        name
        for query in [*queries.of_dashboards(), *queries.of_alerts()]
        for name in queries.metric_of(query.expression)
    }
    assert set(queries.EMPTY) <= asked


def test_a_missing_prometheus_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program the error says what to install."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TRIMTAB_PROMETHEUS", raising=False)
    with pytest.raises(prometheus.PrometheusError, match="apt-get install prometheus"):
        prometheus.program()
