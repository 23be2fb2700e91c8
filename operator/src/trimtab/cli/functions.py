"""`trimtab functions`: advice on a function from its recorded runs, without a cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from trimtab.cli.invocations import Invocation, Recording
    from trimtab.rightsizing.types import Decision, Ladder

JSON = dict[str, Any]  # any: JSON

app = typer.Typer(no_args_is_help=True, help="Advice on functions from recorded runs.")
_CPU: Final = "100m:2:100m"
_MEMORY: Final = "128Mi:2Gi:128Mi"


@app.callback()
def functions() -> None:
    """Advice on functions from recorded runs."""


@app.command()
def replay(
    runs: Annotated[
        Path,
        typer.Argument(help="CSV or .jsonl (.gz), a row per invocation: see docs/how-to/cli.md."),
    ],
    *,
    deadline: Annotated[
        int, typer.Option("--deadline-milliseconds", min=1, help="As in the ServerlessFunction.")
    ],
    cpu: Annotated[str, typer.Option(help="min:max:step.")] = _CPU,
    memory: Annotated[str, typer.Option(help="min:max:step.")] = _MEMORY,
    output: OutputOption = Format.TABLE,
) -> None:
    """Say which size each recorded invocation would have got, and what that would have done.

    Each is decided from what came before it. Its time at another size is a calculation, not a run.
    """
    from trimtab.cli.invocations import read_invocations  # noqa: PLC0415 - numpy takes 0.1 s

    try:
        found = advice(
            read_invocations(runs), ladder=_ladder(cpu, memory), deadline_s=deadline / 1000
        )
    except CommandError as error:
        fail(str(error))
    if output is Format.JSON:
        write_json(found)
    else:
        _show(found)


def _ladder(cpu: str, memory: str) -> Ladder:
    from trimtab.rightsizing.types import Ladder, LadderError  # noqa: PLC0415 - as above

    try:
        return Ladder.of(
            cpu_m=_span(cpu, "--cpu", unit=0.001), mem_mib=_span(memory, "--memory", unit=2**20)
        )
    except LadderError as error:
        raise CommandError(f"{error} (--cpu {cpu}, --memory {memory})") from error


def _span(text: str, option: str, *, unit: float) -> tuple[int, int, int]:
    from decimal import InvalidOperation  # noqa: PLC0415 - only here

    from trimtab.api.v1alpha1.serverlessfunction_rules import amount  # noqa: PLC0415 - pydantic

    try:
        low, high, step = (round(float(amount(part)) / unit) for part in text.split(":"))
    except (ValueError, InvalidOperation) as error:
        raise CommandError(
            f"{option} {text} is not min:max:step. Write quantities as in Kubernetes, such as "
            f"{_CPU if option == '--cpu' else _MEMORY}."
        ) from error
    return low, high, step


def advice(recording: Recording, *, ladder: Ladder, deadline_s: float) -> JSON:
    """Return what the right-sizer would have done with recorded invocations.

    Args:
        recording: In the order in which they ran.
        ladder: The sizes to choose from.
        deadline_s: Seconds that each had.
    """
    from trimtab.rightsizing.explain import explain  # noqa: PLC0415 - numpy
    from trimtab.rightsizing.sizer import FunctionModel, Layout  # noqa: PLC0415 - numpy

    model = FunctionModel(
        ladder, layout=Layout(numbers=recording.numbers, categories=recording.categories)
    )
    totals: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    sources: Counter[str] = Counter()
    for one in recording.invocations:
        decision = model.decide(one.features, budget_s=deadline_s)
        sizes[decision.size.cpu_m, decision.size.mem_mib] += 1
        gate = decision.cpu.gate
        sources[str(decision.cpu.source) if gate is None else f"default:{gate}"] += 1
        _add(totals, one, decision, deadline_s=deadline_s)
        model.observe(one.features, one.usage, budget_s=deadline_s, outcome=one.outcome)
        model.choose_sizes()
    last = recording.invocations[-1].features
    return {
        "label": "recorded usage; times at other sizes are calculated, not run",
        "invocations": len(recording.invocations),
        "deadline_seconds": deadline_s,
        "recorded": _side(totals, "recorded"),
        "sized": _side(totals, "sized"),
        "sizes": [
            {"cpu_m": cpu, "mem_mib": mem, "invocations": count}
            for (cpu, mem), count in sorted(sizes.items())
        ],
        "decisions": dict(sorted(sources.items())),
        "sizable": not model.too_short,
        "dropped": dict(sorted(model.dropped.items())),
        "last": explain(model, last, decision=model.preview(last, budget_s=deadline_s)),
    }


def _add(totals: Counter[str], one: Invocation, decision: Decision, *, deadline_s: float) -> None:
    from trimtab.rightsizing.targets import split  # noqa: PLC0415 - numpy

    usage, size = one.usage, decision.size
    work = split(usage, width_seen=max(1.0, usage.alloc.cpu_m / 1000))
    seconds = work.idle_s + work.cpu_s / min(size.cpu_m / 1000, work.width)
    for side, took, cpu_m, mem in (
        ("recorded", usage.wall_s, usage.alloc.cpu_m, usage.alloc.mem_mib),
        ("sized", seconds, size.cpu_m, size.mem_mib),
    ):
        totals[f"{side} late"] += took > deadline_s
        totals[f"{side} killed"] += mem < usage.peak_anon_mib
        # Counter's values are typed as int; these sums are in thousandths and whole MiB seconds.
        totals[f"{side} cpu"] += round(cpu_m * took)
        totals[f"{side} memory"] += round(mem * took)


def _side(totals: Counter[str], side: str) -> JSON:
    return {
        "late": totals[f"{side} late"],
        "too_little_memory": totals[f"{side} killed"],
        "vcpu_seconds": round(totals[f"{side} cpu"] / 1000, 1),
        "mib_seconds": totals[f"{side} memory"],
    }


def _show(found: JSON) -> None:
    from rich.table import Table  # noqa: PLC0415 - only for people

    table = Table(
        "", "late", "too little memory", "vCPU-seconds", "MiB-seconds", title=found["label"]
    )
    for side in ("recorded", "sized"):
        table.add_row(side, *(str(value) for value in found[side].values()))
    shown = console()
    shown.print(table)
    for size in found["sizes"]:
        shown.print(
            f"{size['cpu_m']}m {size['mem_mib']}Mi: {size['invocations']} of {found['invocations']}"
        )
    shown.print("decided by " + ", ".join(f"{n} {c}" for n, c in found["decisions"].items()))
    if not found["sizable"]:
        shown.print(
            "TooShort: half of the invocations use less than 0.1 s of CPU, where a quota does not bind: one "
            "CPU class for all, memory per input."
        )
