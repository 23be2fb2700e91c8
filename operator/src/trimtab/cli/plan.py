"""`trimtab plan`: what would be decided, from files alone."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from trimtab.cli.offline import Decided

JSON = dict[str, Any]  # any: JSON


def plan(
    *,
    intents: Annotated[
        list[Path], typer.Option("--filename", "-f", help="InferenceIntents; may be repeated.")
    ],
    inventory: Annotated[
        Path,
        typer.Option(help="YAML: nodes (CPUs or GPUs, and how many) and models (intent: PATH)."),
    ],
    prices: Annotated[
        Path | None, typer.Option(help="Price book, as in the ConfigMap trimtab-prices.")
    ] = None,
    fingerprints: Annotated[
        Path | None, typer.Option(help="Folder of fingerprint documents; without: roofline.")
    ] = None,
    accuracy: Annotated[
        Path | None,
        typer.Option(help="Folder of what `trimtab fingerprint accuracy` found; without: unknown."),
    ] = None,
    load_factor: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="What if: multiply declared loads.")
    ] = 1.0,
    count: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE=N", help="What if: N nodes of this name; may be repeated."),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Only one line per intent, and the sums.")
    ] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Plan a fleet offline: the same planner as the operator's, nothing is created."""
    from trimtab.cli import offline  # noqa: PLC0415 - the planner takes 0.5 s

    try:
        decided = offline.decide(
            intents=intents,
            inventory=inventory,
            prices=prices,
            fingerprints=fingerprints,
            accuracy=accuracy,
            load_factor=load_factor,
            counts=dict(map(_counted, count or ())),
        )
    except CommandError as error:
        fail(str(error))
    planned = offline.shown(decided)
    if output is Format.JSON:
        write_json([_as_json(body) for body in planned])
        return
    for body in planned if not summary else ():
        _show(body)
    _show_summary(decided, planned, load_factor=load_factor, explained=not summary)


def _counted(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise CommandError(f"--count {text} is not NODE=N: write --count node-a=3.")
    return name, int(number)


def _as_json(body: JSON) -> JSON:
    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    status = body["status"]
    return {
        "object": why_view.qualified_name(body),
        "planned": status["conditions"][0],
        **{key: status[key] for key in ("model", "plan", "alternatives") if key in status},
    }


def _show(body: JSON) -> None:
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's
    from trimtab.cli.why import show_options  # noqa: PLC0415 - only this command's

    out = console()
    planned = body["status"]["conditions"][0]
    colour = "green" if planned["status"] == "True" else "red"
    out.print(f"[bold]{escape(why_view.qualified_name(body))}[/]")
    out.print(f"Objective: {escape(why_view.objective_line(body))}")
    load = why_view.load_line(body)
    if load:
        out.print(f"Load planned for: {escape(load)}")
    said = str((body["status"].get("plan") or {}).get("message") or "")
    # What is planned says so below, with its notes.
    if planned["message"].partition(": ")[2] not in said:
        out.print(f"[{colour}]{planned['reason']}[/]: {escape(planned['message'])}")
    show_options(body, out=out)
    out.print()


def _show_summary(
    decided: Decided, bodies: list[JSON], *, load_factor: float, explained: bool
) -> None:
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    from trimtab.cli import plan_summary  # noqa: PLC0415 - only this command's
    from trimtab.cli.why import plain  # noqa: PLC0415 - only this command's

    out = console()
    table = plain(
        "Intent", "Plan", "Outcome", "TTFT ms", "TPOT ms", "USD/h", "USD/1M", "Used",
        title="The fleet",
    )  # fmt: skip
    for line in plan_summary.lines(bodies):
        table.add_row(
            *map(
                escape,
                (
                    line.intent, line.option, line.outcome, line.ttft, line.tpot,
                    line.cost_per_hour, line.cost_per_million, line.used,
                ),
            ),
        )  # fmt: skip
    out.print(table)
    for body in bodies if not explained else ():
        condition = body["status"]["conditions"][0]
        if condition["status"] != "True":
            out.print(f"[red]{condition['reason']}[/]: {escape(condition['message'])}")
    for sentence in plan_summary.sentences(decided, load_factor=load_factor):
        out.print(escape(sentence))
