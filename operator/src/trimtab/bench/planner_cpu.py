"""`trimtab bench planner-cpu`: plans held against a model that is really served, on any cluster.

A fingerprint Job measures one thread; the planner foretells how each way to serve (precision and
replicas, one thread each) does at three loads, and picks one under each objective; then every way is
served by the operator and driven through the gateway, and both are compared. The client runs where
the command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from trimtab.api.v1alpha1.inferenceintent import ModelSource
from trimtab.bench.report import run, table
from trimtab.bench.road.conduct import Conductor
from trimtab.bench.road.ledger import Ledger
from trimtab.bench.road.matrix import Shape
from trimtab.bench.road.stage import Stage
from trimtab.bench.road.verdicts import report
from trimtab.cli.cluster import connected
from trimtab.cli.output import CommandError
from trimtab.planning.variation import Variation

if TYPE_CHECKING:
    from collections.abc import Sequence

JSON = dict[str, Any]  # any: a document
NAME: Final = "planner-cpu"
_FULL: Final = Shape(
    loads=(0.2, 0.5, 0.7),
    precisions=("bf16", "fp32"),
    replicas=(1, 2),
    repeats=3,
    seconds=120.0,
    capacity_seconds=60.0,
    preempt=True,
    prompt=64,
    output=64,
    # What plans assume until lengths are observed.
    length_cv=Variation().output,
)
_SHORT: Final = replace(
    _FULL, loads=(0.5,), replicas=(1,), repeats=2, seconds=20.0, capacity_seconds=15.0
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if it cannot be done, 130 if it was interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(
            _parser(), given[1:] if given[:1] == [NAME] else given, measure=_measure, text=_text
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(  # noqa: T201 - a command
            "interrupted; what was created is deleted, and the same command goes on from --results",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"trimtab bench {NAME}",
        description="Predicted against served, in the cluster of your kubeconfig.",
    )
    parser.add_argument("--model", default="smollm2-135m", help="name shown, and the default path")
    parser.add_argument(
        "--source",
        metavar="YAML",
        help="spec.model.source; default: the claim `models`, at the model's name",
    )
    parser.add_argument(
        "--namespace",
        "-n",
        default="trimtab-bench",
        help="created, and deleted at the end, if absent",
    )
    parser.add_argument("--system-namespace", default="trimtab-system", help="where the chart is")
    parser.add_argument("--gateway", default="", metavar="URL", help="without /v1; default: found")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(f"{NAME}.jsonl"),
        help="a line per run; an interrupted benchmark goes on from it",
    )
    parser.add_argument("--report", action="store_true", help="only print what --results holds")
    parser.add_argument("--short", action="store_true", help="one load, one replica, seconds")
    parser.add_argument("--loads", type=_shares, help="of the predicted capacity: 0.2,0.5,0.7")
    parser.add_argument("--precisions", type=_words, help="the checkpoint's own first: bf16,fp32")
    parser.add_argument("--replicas", type=_counts, help="1,2")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seconds", type=float, help="of each run at a load, after its warm-up")
    parser.add_argument("--capacity-seconds", type=float, help="of each run at saturation; 0: none")
    parser.add_argument("--no-preempt", action="store_true", help="no run on a small KV cache")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--output-tokens", type=int)
    parser.add_argument(
        "--length-cv", type=float, help="coefficient of variation of lengths; 0: all equal"
    )
    parser.add_argument(
        "--ready-seconds", type=float, default=1200.0, help="patience with each roll-out"
    )
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return parser


def _measure(options: argparse.Namespace) -> JSON:
    ledger = Ledger(options.results)
    if not options.report:
        shape = _shape(options)
        opening = ledger.opening
        if opening is not None and (opening.shape, opening.model) != (shape, options.model):
            raise CommandError(
                f"--results {options.results} holds another benchmark: model {opening.model}, "
                f"{opening.shape.to_dict()}. Give the same options to go on, or another file."
            )
        asyncio.run(_conduct(options, shape, ledger))
    if ledger.opening is None:
        raise CommandError(f"--results {options.results} holds nothing yet. Run without --report.")
    return report(ledger)


async def _conduct(options: argparse.Namespace, shape: Shape, ledger: Ledger) -> None:
    source = _source(options)
    task = asyncio.current_task()
    if task is not None:
        # Ctrl-C is asyncio's own; a termination must clean up as well.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with connected() as client:
        stage = Stage(
            client,
            namespace=options.namespace,
            system_namespace=options.system_namespace,
            source=source,
            gateway=options.gateway,
            ready_seconds=options.ready_seconds,
            say=_say,
        )
        try:
            await stage.prepare()
            conductor = Conductor(
                stage=stage,
                ledger=ledger,
                model=options.model,
                shape=shape,
                source=source,
                say=_say,
            )
            await conductor.measure()
        finally:
            await stage.clean()


def _shape(options: argparse.Namespace) -> Shape:
    wanted = {
        "loads": options.loads,
        "precisions": options.precisions,
        "replicas": options.replicas,
        "repeats": options.repeats,
        "seconds": options.seconds,
        "capacity_seconds": options.capacity_seconds,
        "preempt": False if options.no_preempt else None,
        "prompt": options.prompt_tokens,
        "output": options.output_tokens,
        "length_cv": options.length_cv,
    }
    base = _SHORT if options.short else _FULL
    shape = replace(base, **{k: v for k, v in wanted.items() if v is not None})
    least = min(shape.repeats, shape.prompt, shape.output - 1, *shape.replicas)
    if least < 1 or shape.seconds <= 0 or min(shape.capacity_seconds, shape.length_cv) < 0:
        raise CommandError(
            f"There is nothing to measure in {shape.to_dict()}: give at least one repeat, replica, "
            "prompt token and second, and two output tokens."
        )
    return shape


def _source(options: argparse.Namespace) -> JSON:
    """Return `spec.model.source` as the user gave it, checked."""
    default = {"persistentVolumeClaim": {"claimName": "models", "path": options.model}}
    try:
        given = default if options.source is None else yaml.safe_load(options.source)
        ModelSource.model_validate(given)
    except (ValidationError, yaml.YAMLError) as error:
        raise CommandError(
            f"--source is no spec.model.source: {error}. Write for example "
            "'{hostPath: {path: /models/smollm2-135m}}'."
        ) from error
    return dict(given)


def _shares(text: str) -> tuple[float, ...]:
    found = tuple(sorted(float(part) for part in text.split(",")))
    if not found or not 0 < found[0] <= found[-1] < 1:
        raise argparse.ArgumentTypeError(f"{text}: give shares between 0 and 1, such as 0.2,0.5")
    return found


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress of a command


def _text(document: JSON) -> str:
    counts = document["counts"]
    head = (
        f"{document['benchmark']} ({document['label']}): {document['model']}, {counts['runs']} runs, "
        f"{counts['requests']} requests, not answered: {counts['errors'] or 'none'}, "
        f"{counts['anchors']} anchors, load average {counts['load_average']}"
    )
    parts = [
        head,
        *(f"skipped {way}: {why}" for way, why in counts["skipped_ways"].items()),
        "",
        table([row for cell in document["cells"] for row in _figures(cell)]),
        "",
        table([_plain(one) for one in document["capacity"]]),
    ]
    small = document["preemption"]
    if small:
        told = f"small KV cache, {small['label']}: {small['kv_tokens']}, {small['preemptions']}"
        parts += ["", told, table(_figures(small | {"load": "-"}))]
    for title in (key for key in document if key.startswith("choices")):
        rows = [{k: v for k, v in one.items() if k != "options"} for one in document[title]]
        parts += ["", f"{title.replace('_', ' ')}:", table(rows)]
    parts += ["", *(f"{name}: {found}" for name, found in document["targets"].items())]
    return "\n".join(parts)


def _figures(cell: JSON) -> list[JSON]:
    rows = []
    for metric, name in (("TPOT", "p50"), ("TPOT", "p95"), ("TTFT", "p50")):
        figure = cell[metric][name]
        rows.append(
            {
                "way": cell["way"],
                "load": cell["load"],
                "requests": cell["requests"],
                "figure": f"{metric} {name}",
                "predicted": figure["predicted_ms"],
                "observed": figure["observed_ms"],
                "error %": figure["error_percent"],
                "A/A %": figure["spread_percent"],
                "machine %": figure["machine_spread_percent"],
                "verdict": figure["verdict"],
                "anchored %": figure["anchored_error_percent"],
                "anchored verdict": figure.get("anchored_verdict"),
            }
        )
    return rows


def _plain(row: JSON) -> JSON:
    return {k.replace("_requests_per_second", "/s"): v for k, v in row.items() if k != "note"}


if __name__ == "__main__":
    sys.exit(main())
