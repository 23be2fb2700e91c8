"""`trimtab why`: what was decided about an object, what else was possible, and what blocks it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ALIASES: Final = {
    "ii": "inferenceintents",
    "sfn": "serverlessfunctions",
    "gpup": "gpuprofiles",
}


def why(
    target: Annotated[
        str, typer.Argument(metavar="KIND/NAME", help="For example ii/chat, sfn/thumbnail.")
    ],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: the current context's.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Explain a decision from the object's status alone: options, figures, conditions, remedies."""
    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    try:
        body = asyncio.run(_read(target, namespace=namespace))
    except CommandError as error:
        fail(str(error))
    if output is Format.JSON:
        write_json(why_view.as_json(body))
        return
    show(body, out=console())


async def _read(target: str, *, namespace: str | None) -> dict[str, Any]:  # any: JSON
    from trimtab.cli import cluster  # noqa: PLC0415 - the client takes 0.6 s
    from trimtab.kube.resources import FUNCTION, INTENT, PROFILE  # noqa: PLC0415 - as above

    word, _, name = target.partition("/")
    kinds = {resource.plural: resource for resource in (INTENT, FUNCTION, PROFILE)}
    spellings = {
        **_ALIASES,
        **{plural: plural for plural in kinds},
        **{resource.kind.lower(): plural for plural, resource in kinds.items()},
    }
    resource = kinds.get(spellings.get(word.lower().split(".")[0], ""))
    if resource is None or not name:
        raise CommandError(
            f"{target} names no object of Trimtab: write ii/NAME, sfn/NAME or gpup/NAME."
        )
    where = (namespace or cluster.namespace()) if resource.namespaced else None
    async with cluster.connected() as client:
        found = await client.get(resource, namespace=where, name=name)
    if found is None:
        place = f" in namespace {where}: name another with -n" if where else ""
        raise CommandError(f"{resource.kind} {name} does not exist{place}.")
    return found


def show(body: dict[str, Any], *, out: Console) -> None:  # any: JSON
    """Print the explanation for people."""
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    out.print(f"[bold]{escape(why_view.headline(body))}[/]")
    if body.get("kind") == "InferenceIntent":
        out.print(f"Objective: {escape(why_view.objective_line(body))}")
        load = why_view.load_line(body)
        if load:
            out.print(f"Load planned for: {escape(load)}")
        show_options(body, out=out)
        for line in why_view.sharing_lines(body):
            out.print(escape(line))
        _show_observed(body, out=out)
    elif why_view.as_json(body).keys() & {"sizes", "outliers", "bins", "violations"}:
        _show_figures(body, out=out)
    _show_conditions(body, out=out)


def _plain(*columns: str, title: str) -> Table:
    from rich.table import Table  # noqa: PLC0415 - 60 ms

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_options(body: dict[str, Any], *, out: Console) -> None:  # any: JSON
    """Print the options considered, the chosen one first."""
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    lines = why_view.option_lines(body)
    if not lines:
        out.print("No option has been considered yet.")
        return
    # Most intents keep the checkpoint's own precision, and a table has no room to waste.
    loses = any(line.accuracy_loss for line in lines)
    table = _plain(
        "", "Option", "TTFT ms", "TPOT ms", "Cost/h", "Cost/1M", "Capacity/s", "Margin",
        "Confidence", *(["Accuracy loss"] if loses else []), "Reason", title="\nOptions considered",
    )  # fmt: skip
    for line in lines:
        table.add_row(
            "[green]chosen[/]" if line.chosen else "",
            *map(
                escape,
                (
                    line.option, line.ttft, line.tpot, line.cost_per_hour, line.cost_per_million,
                    line.capacity, line.margin, line.confidence,
                    *([line.accuracy_loss] if loses else []), line.reason,
                ),
            ),
        )  # fmt: skip
    out.print(table)
    out.print("Margins are of TTFT / TPOT; figures are predictions without them.")
    for line in lines:
        mark = "[green]chosen[/]" if line.chosen else "[yellow]lost  [/]"
        out.print(f"  {mark} {escape(line.why)}")
    _show_sentences((body.get("status") or {}).get("plan") or {}, out=out)


def _show_sentences(plan: dict[str, Any], *, out: Console) -> None:  # any: JSON
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    for title, sentences in (
        ("Confidence", (plan.get("confidence") or {}).get("reasons") or ()),
        ("Note", plan.get("notes") or ()),
    ):
        for sentence in sentences:
            out.print(f"  {title}: {escape(sentence)}")


def _show_observed(body: dict[str, Any], *, out: Console) -> None:  # any: JSON
    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    rows = why_view.predicted_and_observed(body)
    if not rows:
        return
    table = _plain("", "Predicted", "Observed", title="\nPredicted against observed")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _show_figures(body: dict[str, Any], *, out: Console) -> None:  # any: JSON
    import json  # noqa: PLC0415 - only here

    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    for key in ("model", "sizes", "violations", "spread", "bins", "outliers"):
        value = why_view.as_json(body).get(key)
        if value is not None:
            out.print(f"{key}: {json.dumps(value)}", markup=False)


def _show_conditions(body: dict[str, Any], *, out: Console) -> None:  # any: JSON
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    lines = why_view.condition_lines(body)
    if not lines:
        return
    out.print("\n[bold]Conditions[/]")
    colours = {True: "green", False: "red", None: "yellow"}
    for line in lines:
        out.print(
            f"  [{colours[line.good]}]{escape(line.type)}={line.status}[/] {escape(line.reason)}"
            f"{f': {escape(line.meaning)}' if line.meaning else ''}"
        )
        if line.message:
            out.print(f"      {escape(line.message)}")
