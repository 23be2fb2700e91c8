"""`trimtab bench planner-change`: how plans follow a changing fleet, with and without the rules."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.output import Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

_NORMAL_ABOVE = 50.0
_COLUMNS = (
    "changes",
    "scaled_up",
    "scaled_down",
    "moved",
    "reversals",
    "within_target_percent",
    "device_hours",
    "starting_device_hours",
    "plans",
    "plan_seconds_most",
)


def planner_change(
    name: Annotated[str, typer.Argument(help="planner-change.")],
    story: Annotated[
        list[str] | None, typer.Option(help="Only this story; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each story, seeds 0, 1, …")] = 1,
    hours: Annotated[
        float, typer.Option(min=0.01, help="Length of the stories without an end of their own.")
    ] = 1.0,
    output: OutputOption = Format.TABLE,
) -> None:
    """Simulate edits, three times the load, lost and gained nodes and prices; print what changed."""
    from trimtab.bench.change.compare import compare  # noqa: PLC0415 - the planner takes 0.5 s
    from trimtab.bench.change.stories import told  # noqa: PLC0415 - the same
    from trimtab.planning.policy import PlannerPolicy  # noqa: PLC0415 - the same

    every = told(hours=hours)
    known = [one.story.name for one in every]
    for wanted in story or ():
        if wanted not in known:
            fail(f"{name}: there is no story {wanted}; choose among {', '.join(known)}.")
    document = compare(
        [one for one in every if not story or one.story.name in story],
        seeds=range(seeds),
        arrivals=poisson,
        clock=time.perf_counter,
        # Two sizes of replicas are enough to move between, and keep a run within minutes.
        policy=replace(PlannerPolicy(), thread_counts=(1, 2), most_replicas=24),
    )
    if output is Format.JSON:
        write_json(document)
    else:
        _show(document)


def poisson(seed: int) -> Callable[[float], int]:
    """Return what draws Poisson counts with a given mean; beyond 50 a rounded normal count."""
    source = random.Random(seed)  # noqa: S311 - traffic of a simulation

    def draw(mean: float) -> int:
        if mean > _NORMAL_ABOVE:
            return max(0, round(source.gauss(mean, math.sqrt(mean))))
        limit, product, count = math.exp(-mean), source.random(), 0
        while product > limit:
            product *= source.random()
            count += 1
        return count

    return draw


def _show(document: dict[str, Any]) -> None:  # any: JSON
    from rich.table import Table  # noqa: PLC0415 - 60 ms

    out = console()
    table = Table("story", "rules", "seed", *(c.replace("_", " ") for c in _COLUMNS))
    for story in document["stories"]:
        for rules in ("on", "off"):
            for run in story[rules]:
                figures = (str(run[column]) for column in _COLUMNS)
                table.add_row(story["name"], rules, str(run["seed"]), *figures)
    out.print(f"{document['benchmark']} ({document['label']}), policy {document['policy']}")
    out.print(table)
    for key, value in document["verdict"].items():
        out.print(f"{key.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    typer.run(planner_change)
