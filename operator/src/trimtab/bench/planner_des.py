"""`trimtab bench planner-des`: a queue simulation from a fingerprint beside requests that were really served.

Inputs of the prediction are the fingerprint, the model's depth, the engine's limits, and when requests came with
how many tokens. What the run measured is only compared with: nothing is fitted to it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Self

from trimtab.bench.served_model import kv_tokens, read_engine, read_model
from trimtab.cli.output import CommandError, write
from trimtab.cli.traces import read_trace
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.queue_sim import METRICS, quantile, simulate
from trimtab.planning.step_model import fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trimtab.bench.served_model import ServedEngine, ServedModel
    from trimtab.cli.traces import Row, Trace
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.queue_sim import Served, SimResult
    from trimtab.planning.step_model import StepModel

JSON = dict[str, Any]  # any: JSON

_GIB: Final = 2**30
_SHOWN: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_TARGETS: Final = {("TPOT", "mean"): 5, ("TTFT", "mean"): 15, ("TTFT", "p50"): 25}
"""Planner.md §11: most absolute error in percent."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 whether or not the targets are met, 1 if it cannot run."""
    options = _options().parse_args(argv)
    try:
        result = run(options)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    write(json.dumps(result, indent=2) if options.output == "json" else _table(result))
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="trimtab bench planner-des", description=__doc__)
    options.add_argument("name", choices=["planner-des"], help=argparse.SUPPRESS)
    options.add_argument("--fingerprint", type=Path, required=True, help="fingerprint document")
    options.add_argument("--model-config", type=Path, required=True, help="the model's config.json")
    options.add_argument(
        "--requests",
        type=Path,
        required=True,
        help="JSON lines: input_toks, output_toks, queued_ts, first_token_ts, last_token_ts",
    )
    options.add_argument(
        "--engine", type=Path, required=True, help="vLLM's arguments, alone or as engine_kwargs"
    )
    options.add_argument("--kv-tokens", type=int, help="tokens that the KV cache held, if known")
    options.add_argument(
        "--gpu-memory-gib", type=float, help="of one GPU; the KV cache's size follows"
    )
    options.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return options


def run(options: argparse.Namespace) -> JSON:
    """Return the comparison.

    Raises:
        CommandError: A file is missing or wrong, or the files are not of one run.
    """
    fingerprint = _fingerprint(options.fingerprint)
    model, engine = read_model(options.model_config), read_engine(options.engine)
    _check_group(fingerprint, engine, options)
    step_model = _fit(fingerprint, model, options.fingerprint)
    trace = read_trace(options.requests)
    real = _measured(trace, options.requests)
    tokens, why = _kv_tokens(options, fingerprint, model, engine)
    began = time.process_time()
    predicted = simulate(
        step_model,
        kv_tokens=tokens,
        limits=engine.limits,
        arrivals=trace.arrivals,
        replicas=engine.replicas,
    )
    seconds = time.process_time() - began
    # Both sides count the same requests: nothing is dropped as warm-up.
    ours = {s.index: _Latencies.of(s) for s in predicted.served if s.index in real}
    return {
        metric: _compared(
            _sorted(real.values(), metric),
            _sorted(ours.values(), metric),
        )
        for metric in METRICS
    } | {
        "labels": {"real": "measured", "predicted": "simulation from a measured fingerprint"},
        "requests": {
            "used": len(ours),
            "skipped_without_tokens": trace.skipped,
            "skipped_without_time_stamps": len(trace.arrivals) - len(real),
            "rejected_by_simulation": predicted.rejected,
        },
        "simulation": _simulation(predicted, seconds=seconds),
        "kv_cache": {"tokens": tokens, "from": why},
        "fingerprint": _about(fingerprint, step_model, depth=model.depth),
        "notes": [*model.notes, *_version_note(fingerprint, engine)],
    }


def _fingerprint(path: Path) -> Fingerprint:
    try:
        return parse(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from error
    except FingerprintInvalidError as error:
        raise CommandError(f"{path}: {error}") from error


def _fit(fingerprint: Fingerprint, model: ServedModel, path: Path) -> StepModel:
    try:
        return fit(fingerprint, depth=model.depth)
    except FingerprintInvalidError as error:
        raise CommandError(f"{path}: {error}") from error


def _check_group(
    fingerprint: Fingerprint, engine: ServedEngine, options: argparse.Namespace
) -> None:
    have = fingerprint.key.tensor_parallel_size
    if have != engine.tensor_parallel_size:
        raise CommandError(
            f"{options.fingerprint} was measured with tensor parallel size {have}, but "
            f"{options.engine} served with {engine.tensor_parallel_size}. Give the fingerprint of "
            "that size: one does not predict the other."
        )


def _version_note(fingerprint: Fingerprint, engine: ServedEngine) -> list[str]:
    measured = fingerprint.key.engine_version
    if not engine.version or engine.version == measured:
        return []
    return [f"the fingerprint is of version {measured}, but version {engine.version} served"]


def _kv_tokens(
    options: argparse.Namespace,
    fingerprint: Fingerprint,
    model: ServedModel,
    engine: ServedEngine,
) -> tuple[int, str]:
    if options.kv_tokens is not None:
        return options.kv_tokens, "--kv-tokens"
    gib = options.gpu_memory_gib
    return kv_tokens(
        model,
        engine,
        gpu_bytes=None if gib is None else int(gib * _GIB),
        precision=fingerprint.key.precision,
        kv_precision=fingerprint.key.kv_precision,
    )


@dataclass(frozen=True, slots=True)
class _Latencies:
    """One request's, milliseconds; TPOT is None for an output of one token."""

    ttft: float
    tpot: float | None
    e2e: float

    @classmethod
    def of(cls, served: Served) -> Self:
        tpot = served.tpot_us / 1000 if served.output > 1 else None
        return cls(served.ttft_us / 1000, tpot, served.e2e_us / 1000)


def _measured(trace: Trace, path: Path) -> dict[int, _Latencies]:
    """Return what the run measured, by the request's place in the trace."""
    found: dict[int, _Latencies] = {}
    for number, (arrival, row) in enumerate(zip(trace.arrivals, trace.rows, strict=True)):
        where = f"{path} request {number}"
        begin, first, last = (
            _stamp(row, name, where=where)
            for name in ("queued_ts", "first_token_ts", "last_token_ts")
        )
        if begin is None or first is None or last is None:
            continue
        tpot = (last - first) * 1000 / (arrival.output - 1) if arrival.output > 1 else None
        found[number] = _Latencies((first - begin) * 1000, tpot, (last - begin) * 1000)
    if not found:
        raise CommandError(
            f"{path} has no request with queued_ts, first_token_ts and last_token_ts, so there is "
            "nothing to compare with. `trimtab simulate requests` replays a trace alone."
        )
    return found


def _stamp(row: Row, name: str, *, where: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"{where}: {name} is {value!r}. Give the engine's time stamps, seconds on one clock."
        ) from error


def _sorted(latencies: Iterable[_Latencies], metric: str) -> list[float]:
    each = [getattr(found, metric.lower()) for found in latencies]
    return sorted(x for x in each if x is not None)


def _compared(real: Sequence[float], predicted: Sequence[float]) -> JSON:
    figures: JSON = {"mean": _pair(_mean(real), _mean(predicted))}
    for name, share in _SHOWN.items():
        figures[name] = _pair(quantile(real, share), quantile(predicted, share))
    return figures


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _pair(real: float, predicted: float) -> JSON:
    error = 100 * (predicted / real - 1) if real else math.nan
    return {
        "real": _finite(real),
        "predicted": _finite(predicted),
        "error_percent": _finite(error, digits=2),
    }


def _finite(value: float, *, digits: int = 3) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _simulation(result: SimResult, *, seconds: float) -> JSON:
    return {
        "events": result.events,
        "steps": result.steps,
        "microseconds_per_event": round(seconds * 1e6 / max(1, result.events), 1),
        "preemptions": result.preemptions,
        "recomputed_tokens": result.recomputed_tokens,
        "peak_kv_tokens": result.peak_kv_tokens,
    }


def _about(fingerprint: Fingerprint, model: StepModel, *, depth: int) -> JSON:
    key = fingerprint.key
    mixed = model.mixed_error
    return {
        "product": key.product,
        "engine": f"{key.engine} {key.engine_version}",
        "precision": key.precision,
        "tensor_parallel_size": key.tensor_parallel_size,
        "flags": list(key.flags),
        "depth": depth,
        "points": {
            "decode": len(fingerprint.decode),
            "prefill": len(fingerprint.prefill),
            "mixed": len(fingerprint.mixed),
        },
        "step_model_misses_its_points_by_percent": round(100 * model.residual, 2),
        "mixed_steps_off_by_percent": None if mixed is None else round(100 * mixed, 2),
    }


def _table(result: Mapping[str, Any]) -> str:
    lines = [
        _counted(result),
        "",
        "| metric | statistic | real, measured (ms) | predicted, simulation (ms) | error | target |",
        "|---|---|---|---|---|---|",
    ]
    for metric in METRICS:
        for name, pair in result[metric].items():
            if pair["error_percent"] is None:
                continue
            most = _TARGETS.get((metric, name))
            target = "" if most is None else f"within {most} %: {_verdict(pair, most)}"
            lines.append(
                f"| {metric} | {name} | {pair['real']:.1f} | {pair['predicted']:.1f} | "
                f"{pair['error_percent']:+.1f} % | {target} |"
            )
    return "\n".join([*lines, *(f"\n{note}" for note in result["notes"])])


def _counted(result: Mapping[str, Any]) -> str:
    counts, simulation = result["requests"], result["simulation"]
    return (
        f"{counts['used']} requests ({counts['skipped_without_tokens']} without tokens and "
        f"{counts['skipped_without_time_stamps']} without time stamps skipped, "
        f"{counts['rejected_by_simulation']} rejected by the simulation); "
        f"{simulation['steps']} steps in {simulation['events']} events, "
        f"{simulation['preemptions']} preemptions; KV cache: {result['kv_cache']['from']}"
    )


def _verdict(pair: Mapping[str, float], most: float) -> str:
    return "met" if abs(pair["error_percent"]) <= most else "missed"


if __name__ == "__main__":
    sys.exit(main())
