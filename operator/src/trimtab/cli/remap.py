"""`trimtab remap`: whether turning weights into KV cache pays, from model shapes and hardware."""

from __future__ import annotations

import dataclasses
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.cli.remap_inputs import RemapQuestion
    from trimtab.planning.remap import RemapAdvice


def remap(
    *,
    model_config: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH of a Hugging Face config.json or its folder; repeat per model."
        ),
    ] = None,
    shapes: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON: models {NAME: layers, layer_bytes, …} instead of configs."
        ),
    ] = None,
    active: Annotated[
        list[str] | None, typer.Option(help="A model with work; repeat. Default: the first.")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="h100, gh200 or cpu; figures below replace its.")
    ] = "h100",
    memory: Annotated[
        str | None, typer.Option(help="For weights and KV cache together, such as 56G.")
    ] = None,
    memory_rate: Annotated[
        str | None, typer.Option(help="Device memory, bytes per second, such as 3T.")
    ] = None,
    link_rate: Annotated[
        str | None, typer.Option(help="Host to device, one way, bytes per second, such as 50G.")
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="For host copies of the weights, such as 200G.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the weights from --model-config; default: its own.")
    ] = None,
    sequence_tokens: Annotated[int, typer.Option(help="Mean tokens of a running sequence.")] = 1000,
    prefill_tokens: Annotated[
        int, typer.Option(help="Prompt tokens that a step computes beside decoding.")
    ] = 0,
    switch_interval: Annotated[
        float | None, typer.Option(help="Mean seconds between switches of model; default: never.")
    ] = None,
    step_milliseconds: Annotated[
        float | None, typer.Option(help="Measured step; default: the roofline's floor.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Say what idle models would lend, what active ones would stream, and why not more."""
    from trimtab.cli import remap_inputs  # noqa: PLC0415 - only this command's
    from trimtab.planning.remap import plan_remap  # noqa: PLC0415 - as above

    try:
        question = remap_inputs.read(
            configs=model_config or [],
            shapes=shapes,
            active=active or [],
            hardware=hardware,
            figures={
                "memory_bytes": memory,
                "memory_rate": memory_rate,
                "link_rate": link_rate,
                "host_bytes": host_memory,
            },
            precision=precision,
            traffic={
                "sequence_tokens": sequence_tokens,
                "prefill_tokens_per_step": prefill_tokens,
                "switch_interval_s": switch_interval,
                "step_s": None if step_milliseconds is None else step_milliseconds / 1000,
            },
        )
        advice = plan_remap(
            question.models, question.active, question.hardware, question.traffic, question.limits
        )
    except (CommandError, ValueError) as error:
        fail(str(error))
    if output is Format.JSON:
        write_json(as_json(question, advice))
        return
    _show(question, advice)


def as_json(question: RemapQuestion, advice: RemapAdvice) -> dict[str, Any]:  # any: JSON
    """Return question and answer with plain values; an infinite ratio is null."""
    answer = dataclasses.asdict(advice)
    for name in ("ratio_if_forced", "hidden_m"):
        answer[name] = _finite(answer[name])
    return {
        "advice": answer,
        "models": {name: dataclasses.asdict(shape) for name, shape in question.models.items()},
        "active": sorted(question.active),
        "hardware": dataclasses.asdict(question.hardware),
        "traffic": dataclasses.asdict(question.traffic),
    }


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _show(question: RemapQuestion, advice: RemapAdvice) -> None:
    from rich.markup import escape  # noqa: PLC0415 - 60 ms
    from rich.table import Table  # noqa: PLC0415 - 60 ms

    out = console()
    colour = "yellow" if advice.verdict == "DoNotRemap" else "green"
    out.print(f"[bold {colour}]{advice.verdict}[/]")
    table = Table("model", "state", "weights", "lends", "keeps")
    for name, shape in question.models.items():
        busy, units = name in question.active, advice.lend_units.get(name, 0)
        units = advice.alpha if busy else units
        table.add_row(
            escape(name),
            "active" if busy else "idle",
            _gigabytes(shape.weight_bytes),
            f"{units} of {shape.layers} layers",
            f"{shape.layers - units} layers",
        )
    out.print(table)
    for name, value in _figures(advice).items():
        out.print(f"{name}: {value}")
    for reason in advice.reasons:
        word, _, rest = reason.partition(":")
        out.print(f"[yellow]{word}[/]:{escape(rest)}")
    for note in question.notes:
        out.print(f"[dim]{escape(note)}[/]")


def _figures(advice: RemapAdvice) -> Mapping[str, str]:
    before, after = advice.kv_tokens_before, advice.kv_tokens_after
    times = f", {after / before:.1f} times as many" if before else ""
    ratio = _finite(advice.ratio_if_forced)
    which = "with" if advice.alpha else "if forced to"
    return {
        "KV cache": f"{before} tokens, with remapping {after}{times}",
        "one model back": f"{advice.switch_s:.2f} s",
        "layers whose reading hides": f"{advice.hidden_m:.1f} per step",
        f"throughput {which} stream": "nothing runs without"
        if ratio is None
        else f"{ratio:.2f} times",
    }


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
