"""`trimtab why`: what was decided about an object, what else was possible, and what blocks it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WORDS: Final = {"": 8, "Option": 14, "Intent": 14, "Plan": 14}
"""Columns that hold words, which may be folded, down to this width."""
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


def plain(*columns: str, title: str) -> Table:
    """Return a table in the house style."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - 60 ms
    from rich.table import Table  # noqa: PLC0415 - 60 ms

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for column in columns:
        # Figures stay whole; what does not fit folds where there are words.
        words = column in _WORDS
        table.add_column(column, overflow="fold", no_wrap=not words, min_width=_WORDS.get(column))
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
    table = plain(
        "Option", "Outcome", "TTFT ms", "TPOT ms", "USD/h", "USD/1M", "Most/s", "Margin %",
        *(["Accuracy loss"] if loses else []), title="\nOptions considered",
    )  # fmt: skip
    for line in lines:
        table.add_row(
            *map(
                escape,
                (
                    line.option, line.reason, line.ttft.partition(" ")[0],
                    line.tpot.partition(" ")[0], line.cost_per_hour, line.cost_per_million,
                    line.capacity, line.margin.removesuffix(" %"),
                    *([line.accuracy_loss] if loses else []),
                ),
            ),
            style="green" if line.chosen else "",
        )  # fmt: skip
    out.print(table)
    percentile = next((one.ttft.partition(" ")[2] for one in lines if one.ttft), "") or "mean"
    out.print(
        f"Predictions ({percentile}) without their margins (TTFT / TPOT). USD/1M: per million output "
        "tokens at the planned load. Most/s: requests per second at capacity."
    )
    for line in lines:
        mark = "[green]chosen[/]" if line.chosen else "[yellow]lost  [/]"
        other = line.confidence and line.confidence != lines[0].confidence
        trust = f" Confidence {line.confidence}." if other else ""
        out.print(f"  {mark} {escape(line.why + trust)}")
    chosen = f"Confidence {lines[0].confidence}" if lines[0].chosen else "Confidence"
    _show_sentences((body.get("status") or {}).get("plan") or {}, confidence=chosen, out=out)


def _show_sentences(
    plan: dict[str, Any],  # any: JSON
    *,
    confidence: str,
    out: Console,
) -> None:
    from rich.markup import escape  # noqa: PLC0415 - 60 ms

    known = plan.get("confidence") or {}
    anchors = known.get("anchors")
    said = (
        f"{anchors['count']}, {anchors['verdict']}: step times x {anchors['factor']}"
        if anchors
        else ""
    )
    for title, sentences in (
        (confidence, known.get("reasons") or ()),
        ("Anchors", (said,) if said else ()),
        ("Note", plan.get("notes") or ()),
    ):
        for sentence in sentences:
            out.print(f"  {title}: {escape(sentence)}")


def _show_observed(body: dict[str, Any], *, out: Console) -> None:  # any: JSON
    from trimtab.cli import why_view  # noqa: PLC0415 - only this command's

    rows = why_view.predicted_and_observed(body)
    if not rows:
        return
    table = plain("", "Predicted", "Observed", title="\nPredicted against observed")
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
