"""Watch a running Trimtab with a real Prometheus, check every query, and draw the dashboards.

`python -m e2e.monitoring --cluster NAME --seconds 180`: scrape the pods of an embedded cluster.
`python -m e2e.monitoring --synthetic`: made-up figures, to try the drawing; not to be kept.
Traffic is the caller's: the demo or a scenario makes it meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.monitoring import draw, prometheus, queries, synthetic, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def _watched(
    arguments: argparse.Namespace,
) -> Iterator[tuple[Callable[[], list[prometheus.Target]], Callable[[], None], str]]:
    """Yield (what to scrape now, one tick, what the picture shows)."""
    if arguments.synthetic:
        with synthetic.exporter() as (target, tick):
            yield (
                lambda: [target],
                tick,
                "SYNTHETIC figures: they test the drawing, nothing was measured.",
            )
        return
    from e2e.cluster import api

    cluster = api.get(arguments.cluster)
    if cluster is None:
        raise SystemExit(
            f"There is no cluster {arguments.cluster}. Remedy: `make demo`, or "
            f"`python -m e2e.cluster up --name {arguments.cluster}`."
        )
    what = arguments.caption or f"Embedded cluster {cluster.name}, level {cluster.level}."
    yield lambda: targets.of_cluster(cluster), lambda: None, what


def main() -> int:
    """Scrape, check, draw; exit 1 if a query has no data and no listed reason."""
    parser = argparse.ArgumentParser(prog="python -m e2e.monitoring", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cluster", metavar="NAME", help="an embedded cluster that is up")
    where.add_argument("--synthetic", action="store_true", help="made-up figures")
    parser.add_argument("--seconds", type=float, default=120, help="how long to watch (120)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "dashboards", help="folder of the pictures"
    )
    parser.add_argument("--caption", default="", help="what was measured, on what")
    arguments = parser.parse_args()
    with (
        _watched(arguments) as (current, tick, caption),
        prometheus.started(rules=queries.ALERTS) as server,
    ):
        start = time.monotonic()
        while (passed := time.monotonic() - start) < arguments.seconds:
            server.scrape(current())
            tick()
            print(
                f"\rwatching: {passed:.0f} of {arguments.seconds:.0f} s",
                end="",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(min(prometheus.SCRAPE_SECONDS, arguments.seconds))
        print(file=sys.stderr)
        unwell = {address: error for address, error in server.healthy().items() if error}
        found = queries.verdicts(
            server, [*queries.of_dashboards(), *queries.of_alerts()], seconds=arguments.seconds
        )
        print(queries.report(found))
        for path in sorted(queries.DASHBOARDS.glob("*.json")):
            output = arguments.output / f"{path.stem}.png"
            draw.dashboard(path, server, output=output, seconds=arguments.seconds, caption=caption)
            print(f"drawn: {output}")
    for address, error in unwell.items():
        print(f"target {address}: {error}", file=sys.stderr)
    bad = [verdict for verdict in found if not verdict.good]
    print(
        f"{len(found)} queries, {sum(bool(v.series) for v in found)} with data, {sum(bool(v.excuse) for v in found)} empty for a listed reason, {len(bad)} without data"
    )
    return 1 if bad or unwell else 0


if __name__ == "__main__":
    sys.exit(main())
