"""`trimtab simulate`: what a load would see, from files alone."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trimtab.cli.output import CommandError, Format, OutputOption, console, fail, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.cli.replay_inputs import Drawn, Limits, Subject
    from trimtab.planning.plan import Latency
    from trimtab.planning.queue_sim import Metric, SimResult

JSON = dict[str, Any]  # any: JSON

app = typer.Typer(no_args_is_help=True, help="Simulate what a load would see, from files alone.")

_SHARES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_WARM: Final = 20


@app.callback()
def simulate() -> None:
    """Simulate what a load would see, from files alone."""


@app.command()
def requests(
    *,
    trace: Annotated[
        Path | None,
        typer.Option("--requests", help=".jsonl or .csv (.gz): times, prompt and output tokens."),
    ] = None,
    fingerprint: Annotated[
        Path | None, typer.Option(help="Fingerprint document; with --model-config.")
    ] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="The model's config.json: how many layers it has.")
    ] = None,
    intents: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", help="InferenceIntents: replay against their plan."),
    ] = None,
    inventory: Annotated[Path | None, typer.Option(help="As for `trimtab plan`.")] = None,
    prices: Annotated[Path | None, typer.Option(help="As for `trimtab plan`.")] = None,
    fingerprints: Annotated[Path | None, typer.Option(help="As for `trimtab plan`.")] = None,
    intent: Annotated[
        str | None, typer.Option(help="NAMESPACE/NAME, if there are several.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Instead of the plan's, or 1.")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="KV cache of one replica; default the plan's, or any.")
    ] = None,
    max_seqs: Annotated[int | None, typer.Option(min=1, help="Sequences at once.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per step.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=2, help="Longest request.")] = None,
    faster: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="Divide the trace's gaps by it.")
    ] = 1.0,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Draw a trace of so many requests per second.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Mean of a drawn trace.")] = 1024,
    output_tokens: Annotated[int, typer.Option(min=1, help="Mean of a drawn trace.")] = 256,
    count: Annotated[int, typer.Option(min=1, help="Requests of a drawn trace.")] = 1024,
    gap_cv: Annotated[
        float, typer.Option(min=0.0, help="Variation of its gaps: 1 is Poisson.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of a drawn trace.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here, .svg.")] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Replay requests step by step, by the engine's scheduling rules, against a plan or a fingerprint."""
    from trimtab.cli.replay_inputs import Drawn, Limits  # noqa: PLC0415 - the planner takes 0.5 s

    try:
        subject = _subject(
            fingerprint=fingerprint,
            model_config=model_config,
            planned=(intents or [], inventory, prices, fingerprints, intent),
            given=Limits(
                replicas=replicas,
                kv_tokens=kv_tokens,
                max_seqs=max_seqs,
                max_batch_tokens=max_batch_tokens,
                max_model_len=max_model_len,
            ),
        )
        drawn = Drawn(
            rate=rate,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            count=count,
            gap_cv=gap_cv,
            seed=seed,
        )
        found = _replayed(subject, trace=trace, faster=faster, drawn=drawn, plot=plot)
    except CommandError as error:
        fail(str(error))
    if output is Format.JSON:
        write_json(found)
    else:
        _show(found)


def _subject(
    *,
    fingerprint: Path | None,
    model_config: Path | None,
    planned: tuple[list[Path], Path | None, Path | None, Path | None, str | None],
    given: Limits,
) -> Subject:
    from trimtab.cli import replay_inputs  # noqa: PLC0415 - as above

    intents, inventory, prices, fingerprints, intent = planned
    if fingerprint is not None and model_config is not None and not intents:
        return replay_inputs.of_step_model(
            fingerprint=fingerprint, model_config=model_config, given=given
        )
    if intents and inventory is not None and fingerprint is None:
        return replay_inputs.of_plan(
            intents=intents,
            inventory=inventory,
            prices=prices,
            fingerprints=fingerprints,
            intent=intent,
            given=given,
        )
    raise CommandError(
        "Say what serves the requests: --fingerprint with --model-config, or -f with --inventory for "
        "what `trimtab plan` would choose; not both."
    )


def _replayed(
    subject: Subject, *, trace: Path | None, faster: float, drawn: Drawn, plot: Path | None
) -> JSON:
    from trimtab.cli import replay_inputs  # noqa: PLC0415 - as above
    from trimtab.cli.replay_plot import Recorder, picture  # noqa: PLC0415 - as above
    from trimtab.planning import queue_sim  # noqa: PLC0415 - as above

    arrivals, skipped = replay_inputs.arrivals(subject, trace=trace, faster=faster, drawn=drawn)
    recorder = None if plot is None else Recorder()
    try:
        result = queue_sim.simulate(
            subject.model,
            kv_tokens=subject.kv_tokens,
            limits=subject.limits,
            arrivals=arrivals,
            replicas=subject.replicas,
            observe=recorder,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    if plot is not None and recorder is not None:
        try:
            plot.write_text(picture(result, recorder, title=subject.name))
        except OSError as error:
            raise CommandError(f"--plot {plot} cannot be written: {error}.") from error
    seconds = arrivals[-1].at_us / 1e6
    return {
        "label": "simulation",
        "subject": subject.name,
        "replicas": subject.replicas,
        "trace": {
            "requests": len(arrivals),
            "skipped": skipped,
            "seconds": round(seconds, 3),
            "requests_per_second": round(len(arrivals) / seconds, 4) if seconds else None,
            "from": "drawn" if trace is None else trace.name,
        },
        "milliseconds": {metric: _figures(_kept(result, metric)) for metric in queue_sim.METRICS},
        "planned_milliseconds": _planned(subject),
        "served": len(result.served),
        "rejected": result.rejected,
        "preemptions": result.preemptions,
        "recomputed_tokens": result.recomputed_tokens,
        "peak_kv_tokens": result.peak_kv_tokens,
        "steps": result.steps,
        "events": result.events,
    }


def _kept(result: SimResult, metric: Metric) -> list[float]:
    """Leave out the first fifth, which found an empty engine, where enough are left."""
    return result.values(metric, warm_up=len(result.served) >= _WARM)


def _figures(values: Sequence[float]) -> JSON | None:
    from trimtab.planning.queue_sim import quantile  # noqa: PLC0415 - as above

    if not values:
        return None
    shares = {name: round(quantile(values, share) / 1000, 3) for name, share in _SHARES.items()}
    return {"mean": round(fmean(values) / 1000, 3)} | shares


def _planned(subject: Subject) -> JSON | None:
    """Return what the plan promised, for its own load."""
    if subject.option is None:
        return None
    predicted = subject.option.predicted
    return {
        "TTFT": _promised(predicted.ttft),
        "TPOT": _promised(predicted.tpot),
        "E2E": _promised(predicted.e2e),
    }


def _promised(latency: Latency) -> JSON:
    return {
        "mean": latency.mean_us / 1000,
        "p50": latency.p50_us / 1000,
        "p95": latency.p95_us / 1000,
        "p99": latency.p99_us / 1000,
    }


def _show(found: JSON) -> None:
    from rich.markup import escape  # noqa: PLC0415 - 60 ms
    from rich.table import Table  # noqa: PLC0415 - 60 ms

    out, trace = console(), found["trace"]
    out.print(f"[bold]{escape(found['subject'])}[/], replicas {found['replicas']} (simulation)")
    out.print(
        f"{trace['requests']} requests in {trace['seconds']:.1f} s ({escape(trace['from'])}, "
        f"{trace['skipped']} skipped): {found['served']} served, {found['rejected']} rejected, "
        f"{found['preemptions']} preemptions, at most {found['peak_kv_tokens']} KV tokens"
    )
    table = Table("milliseconds", "mean", *_SHARES)
    for metric in found["milliseconds"]:
        _row(table, metric, found["milliseconds"][metric])
        if found["planned_milliseconds"] is not None:
            _row(table, f"{metric}, as planned", found["planned_milliseconds"][metric])
    out.print(table)


def _row(table: Any, name: str, figures: JSON | None) -> None:  # any: rich is imported late
    names = ("mean", *_SHARES)
    shown = [figures.get(n) if figures else None for n in names]
    table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in shown))
