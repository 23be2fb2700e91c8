"""`trimtab plan`: what would be decided, from files alone."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated, Any

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json


def plan(
    *,
    intents: Annotated[
        list[Path], typer.Option("--filename", "-f", help="InferenceIntents; may be repeated.")
    ],
    inventory: Annotated[
        Path, typer.Option(help="nodes (name, cpuModel, cpu, memory) and models (intent: PATH).")
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
    output: OutputOption = Format.TABLE,
) -> None:
    """Plan a fleet offline: the same planner as the operator's, nothing is created."""
    from trimtab.cli import offline  # noqa: PLC0415 - the planner takes 0.5 s

    try:
        planned = offline.plan(
            intents=intents,
            inventory=inventory,
            prices=prices,
            fingerprints=fingerprints,
            accuracy=accuracy,
        )
    except CommandError as error:
        fail(str(error))
    if output is Format.JSON:
        write_json([_as_json(body) for body in planned])
        return
    for body in planned:
        _show(body)


def _as_json(body: dict[str, Any]) -> dict[str, Any]:  # any: JSON
    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    status = body["status"]
    return {
        "object": why_view.qualified_name(body),
        "planned": status["conditions"][0],
        **{key: status[key] for key in ("model", "plan", "alternatives") if key in status},
    }


def _show(body: dict[str, Any]) -> None:  # any: JSON
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
    out.print(f"[{colour}]{planned['reason']}[/]: {escape(planned['message'])}")
    show_options(body, out=out)
    out.print()
