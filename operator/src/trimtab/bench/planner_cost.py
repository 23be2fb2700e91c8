"""`trimtab bench planner-cost`: what a fingerprint costs beside measuring the full model (planner.md §11).

Both run the same points equally often in the engine: the fingerprint at 1 and 2 layers, the full model at
all of them. Expected is (F + L·h)/(2F + 3h), by bytes read or by step times; measured stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench import estimates, probe
from trimtab.bench.known_models import KNOWN
from trimtab.bench.report import run, table
from trimtab.cli.catalogue import CatalogueQuery, ask
from trimtab.cli.output import CommandError
from trimtab.planning.memory import layer_bytes
from trimtab.planning.precision import value_bytes
from trimtab.planning.step_model import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.known_models import KnownModel

JSON = dict[str, Any]  # any: JSON
NAME: Final = "planner-cost"
PAPER_RATIO: Final = 6.05
_PARTS: Final = ("start", "load", "decode", "prefill", "mixed")
_EXPECTED: Final = ("smollm2-135m", "llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")
_CATALOGUED: Final = ("llama-3.1-8b", "qwen3-32b")
_SIZES: Final = (1, 2, 4, 8)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    parser = argparse.ArgumentParser(prog=f"trimtab bench {NAME}", description=__doc__)
    parser.add_argument(
        "--model", choices=sorted(KNOWN), default="smollm2-135m", help="in the engine"
    )
    parser.add_argument(
        "--precision", default="bf16", help="of its weights: bf16, fp32, int8, int4"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--grid", choices=("cpu", "quick"), default="quick", help="points")
    parser.add_argument("--repeats", type=int, default=5, help="of each point and depth")
    parser.add_argument("--runs", type=int, default=3, help="of both, in alternating order")
    parser.add_argument("--no-engine", action="store_true", help="only what is expected")
    parser.add_argument(
        "--system", default="h100_sxm", help="machine that the catalogue is asked for"
    )
    parser.add_argument(
        "--catalogue-python",
        metavar="PATH",
        help="interpreter with aiconfigurator; default: TRIMTAB_CATALOGUE_PYTHON, or this one",
    )
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return run(parser, argv, measure=_measure, text=_text)


def _measure(given: argparse.Namespace) -> JSON:
    engine = _engine(given)
    return {
        "benchmark": NAME,
        "label": "engine: measured on this CPU; expected: formula, on bytes or on catalogue step times",
        "paper_ratio": PAPER_RATIO,
        "expected_by_bytes": [by_bytes(name) for name in _EXPECTED],
        "expected_by_catalogue": _by_catalogue(given),
        "engine": engine,
        "claimed": engine.get("ratio", {}).get("median", 0) >= 6,
    }


def by_bytes(name: str) -> JSON:
    """Return the expected ratio where a decode step takes as long as its weights take to read.

    F is the head, of which the embedding's rows are a negligible part.
    """
    known = KNOWN[name]
    a = known.architecture
    fixed = a.vocab_size * a.hidden_size * value_bytes("bf16")
    layer = layer_bytes(a, precision="bf16")
    tables = 1 if a.tied_embeddings else 2
    held = tables * fixed
    return {
        "model": name,
        "layers": known.depth,
        "ratio": round(estimates.expected_ratio(fixed, layer, full=fixed + known.depth * layer), 2),
        "weights_of_fingerprint_percent": round(
            100 * (held + 2 * layer) / (held + known.depth * layer), 2
        ),
    }


def _by_catalogue(given: argparse.Namespace) -> JSON:
    """Return what is expected of one decode step's time, and of devices where ranks are emulated."""
    queries = [
        CatalogueQuery(
            model=KNOWN[name].catalogue,
            system=given.system,
            backend="vllm",
            precision="bf16",
            kv_precision="bf16",
            tensor_parallel_size=size,
        )
        for name in _CATALOGUED
        for size in _SIZES
    ]
    try:
        answers = ask(queries, python=given.catalogue_python)
    except CommandError as error:
        return {"skipped": str(error)}
    rows = []
    for query, answer in zip(queries, answers.results, strict=True):
        if isinstance(answer, str):
            continue
        ratio = estimates.profiling_ratio(fit(answer.fingerprint, depth=answer.depth))
        size = query.tensor_parallel_size
        rows.append(
            {
                "model": query.model,
                "tensor_parallel_size": size,
                "ratio": round(ratio, 2),
                # Shapes of one rank on one GPU stand for a group: as many devices fewer.
                "ratio_of_devices_if_emulated": round(ratio * size, 2),
            }
        )
    return {"package": answers.package, "system": given.system, "rows": rows}


def _engine(given: argparse.Namespace) -> JSON:
    """Return the seconds of both, by part, in alternating order."""
    missing = "asked for with --no-engine" if given.no_engine else probe.lacking()
    if missing:
        return {"skipped": missing}
    known = KNOWN[given.model]
    runs: dict[str, list[JSON]] = {"fingerprint": [], "full": []}
    for number in range(given.runs):
        order = ("fingerprint", "full") if number % 2 == 0 else ("full", "fingerprint")
        for which in order:
            runs[which].append(_one(known, given, full=which == "full"))
    return {
        "model": given.model,
        "precision": given.precision,
        "threads": given.threads,
        "grid": given.grid,
        "repeats": given.repeats,
        "runs": given.runs,
        **summary(runs["fingerprint"], runs["full"], depth=known.depth, threads=given.threads),
    }


def _one(known: KnownModel, given: argparse.Namespace, *, full: bool) -> JSON:
    """Return one run's seconds by part.

    A fingerprint empties the caches before each step, as its Job does; the full model evicts its own
    layers.
    """
    return probe.ask(
        {
            "what": "steps",
            "config": known.hf_config(depth=known.depth if full else 2),
            "depths": [known.depth] if full else [1, 2],
            "cold": not full,
            "precision": given.precision,
            "threads": given.threads,
            "grid": given.grid,
            "repeats": given.repeats,
        }
    )


def summary(fingerprint: Sequence[JSON], full: Sequence[JSON], *, depth: int, threads: int) -> JSON:
    """Return medians by part, the ratio of each pair of runs, and what its own step times expect."""
    seconds = {
        name: {part: _median([run[part] for run in runs]) for part in _PARTS}
        for name, runs in (("fingerprint", fingerprint), ("full", full))
    }
    ratios = {
        "all": [_total(b) / _total(a) for a, b in zip(fingerprint, full, strict=True)],
        "steps": [
            sum(b["stepping"].values()) / sum(a["stepping"].values())
            for a, b in zip(fingerprint, full, strict=True)
        ],
        "decode_steps": [
            b["stepping"]["decode"] / a["stepping"]["decode"]
            for a, b in zip(fingerprint, full, strict=True)
        ],
    }
    return {
        "device_seconds": {
            name: {part: round(threads * value, 2) for part, value in parts.items()}
            for name, parts in seconds.items()
        },
        "layers": depth,
        "ratio": _spread(ratios["all"]),
        "ratio_of_steps": _spread(ratios["steps"]),
        "ratio_of_decode_steps": _spread(ratios["decode_steps"]),
    }


def _total(parts: JSON) -> float:
    return sum(float(parts[part]) for part in _PARTS)


def _spread(values: Sequence[float]) -> JSON:
    return {
        "median": round(_median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]) / 2


def _text(document: JSON) -> str:
    catalogue, engine = document["expected_by_catalogue"], document["engine"]
    lines = [
        f"{NAME}: {document['label']}",
        "",
        (
            "expected, (F + L·h)/(2F + 3h) by the bytes of a decode step; the paper says "
            f"{document['paper_ratio']}:"
        ),
        table(document["expected_by_bytes"]),
        "",
        "expected by a catalogue's decode step:",
        catalogue["skipped"] if "skipped" in catalogue else table(catalogue["rows"]),
        "",
    ]
    if "skipped" in engine:
        lines.append(f"engine: skipped, {engine['skipped']}")
        return "\n".join(lines)
    lines += [
        (
            f"measured: {engine['model']} {engine['precision']}, {engine['threads']} threads, grid "
            f"{engine['grid']}, {engine['repeats']} repeats, {engine['runs']} runs"
        ),
        table(
            [
                {"thread seconds, median": name, **parts}
                for name, parts in engine["device_seconds"].items()
            ]
        ),
        "",
        *(
            f"full : fingerprint, {what}: {engine[name]['median']} "
            f"({engine[name]['least']} to {engine[name]['most']})"
            for what, name in (
                ("all", "ratio"),
                ("steps alone", "ratio_of_steps"),
                ("decode steps", "ratio_of_decode_steps"),
            )
        ),
        "six times or more: " + ("measured here" if document["claimed"] else "not here"),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
