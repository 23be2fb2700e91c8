"""`trimtab bench planner-memory`: does what is said to fit really fit (planner.md §5, §11)?

GPUs: cases whose outcome is public, and every option of some models against its GPU's memory. Our own
engine on this CPU: weights, activation, KV tokens and resident memory at 1, 2 and all layers, measured.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench import probe
from trimtab.bench.known_models import KNOWN
from trimtab.bench.memory_cases import (
    CASES,
    NOT_CHECKED,
    judge_case,
    options,
    uneven_sizes,
)
from trimtab.bench.report import run, table
from trimtab.planning.architecture import architecture_hash
from trimtab.planning.fingerprint import Fingerprint, FingerprintKey, MemoryPoint
from trimtab.planning.memory import memory_plan, weight_bytes
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.bench.known_models import KnownModel
    from trimtab.planning.memory import MemoryPlan

JSON = dict[str, Any]  # any: JSON
NAME: Final = "planner-memory"
_BLOCK_TOKENS: Final = 16
_CHUNK: Final = 512
_WITHIN_PERCENT: Final = 3.0
_METRICS: Final = ("weights", "activation", "kv_tokens")
_MIB: Final = 2**20


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
    parser.add_argument("--kv-tokens", type=int, default=4096, help="that the arena is planned for")
    parser.add_argument("--no-engine", action="store_true", help="only what needs no engine")
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return run(parser, argv, measure=_measure, text=_text)


def _measure(given: argparse.Namespace) -> JSON:
    policy = PlannerPolicy()
    cases = [judge_case(case, policy=policy) for case in CASES]
    found = list(options(policy=policy))
    engine = _engine(given, policy=policy)
    return {
        "benchmark": NAME,
        "label": "cases: measured by others; options: formulas; engine: measured on this CPU",
        "policy": policy.digest(),
        "cases": cases,
        "not_checked": NOT_CHECKED,
        "options": {
            "options": len(found),
            "fit": sum(option["fits"] for option in found),
            "beyond_their_gpu": sum(o["fits"] and not o["within"] for o in found),
            "most_planned_permille_of_gpu": round(
                max(o["planned_permille_of_gpu"] for o in found if o["fits"]), 1
            ),
            "most_weights_of_all_ranks_ratio": round(
                max(o["weights_of_all_ranks_ratio"] for o in found), 4
            ),
        },
        "uneven_sizes": uneven_sizes(),
        "engine": engine,
        "verdict": {
            "false_fits": sum(case["false_fit"] for case in cases)
            + sum(row["false_fit"] for row in engine.get("rows", ())),
            "false_refusals": sum(case["false_refusal"] for case in cases),
            "engine_worst_percent": engine.get("worst_percent"),
            "engine_within_3_percent": engine.get("within"),
        },
    }


def _engine(given: argparse.Namespace, *, policy: PlannerPolicy) -> JSON:
    """Return the engine's figures at 1, 2 and all layers beside those planned from 1 and 2."""
    missing = "asked for with --no-engine" if given.no_engine else probe.lacking()
    if missing:
        return {"skipped": missing}
    known = KNOWN[given.model]
    base = {"precision": given.precision, "threads": given.threads}
    rows = {
        depth: probe.ask(
            {"what": "memory", "config": known.hf_config(depth=depth), "chunk": _CHUNK, **base}
        )
        for depth in (1, 2, known.depth)
    }
    points = tuple(MemoryPoint(graphs=0, **rows[depth]) for depth in (1, 2))
    fingerprint = Fingerprint(
        key=FingerprintKey(
            architecture=architecture_hash(known.architecture),
            product="cpu",
            threads=given.threads,
            precision=given.precision,
            kv_precision=compute_precision(given.precision),
            engine_version="",
        ),
        source="Measured",
        depths=(1, 2),
        decode=(),
        prefill=(),
        memory=points,
    )
    compared = []
    for depth, row in rows.items():
        plan = memory_plan(
            known.architecture,
            depth=depth,
            precision=given.precision,
            kv_precision=compute_precision(given.precision),
            kv_tokens=given.kv_tokens,
            block_tokens=_BLOCK_TOKENS,
            fingerprint=fingerprint,
            policy=policy,
        )
        started = probe.ask(
            {
                "what": "arena",
                "config": known.hf_config(depth=depth),
                "arenaBytes": plan.arena,
                "maxModelLen": min(known.context, given.kv_tokens),
                **base,
            }
        )
        compared.append(compare(known, plan, points, row=row, started=started, given=given))
    worst = max(abs(row[name]["error_percent"]) for row in compared for name in _METRICS)
    return {
        "model": given.model,
        "precision": given.precision,
        "threads": given.threads,
        "rows": compared,
        "worst_percent": worst,
        "within": worst <= _WITHIN_PERCENT,
    }


def compare(
    known: KnownModel,
    plan: MemoryPlan,
    points: Sequence[MemoryPoint],
    *,
    row: JSON,
    started: JSON,
    given: argparse.Namespace,
) -> JSON:
    """Return planned beside measured bytes and tokens at one depth.

    Resident memory is compared with arena and overhead: the host copy is files until it is read. A
    process that holds more than the pod would request is a false fit.
    """
    weights = weight_bytes(known.architecture, depth=row["depth"], precision=given.precision)
    return {
        "depth": row["depth"],
        "weights": _pair(weights, row["weights"]),
        "activation": _pair(max(p.activation for p in points), row["activation"]),
        "kv_tokens": _pair(plan.kv_tokens, started["kv_tokens"]),
        "other": _pair(max(p.non_torch for p in points), row["non_torch"]),
        "resident": _pair(plan.arena + plan.overhead, started["resident_bytes"]),
        "requested": plan.total,
        "false_fit": started["resident_bytes"] > plan.total
        or started["kv_tokens"] < given.kv_tokens,
    }


def _pair(planned: int, measured: int) -> JSON:
    error = round(100 * (planned / measured - 1), 2) if measured else None
    return {"planned": planned, "measured": measured, "error_percent": error}


def _text(document: JSON) -> str:
    found, engine = document["options"], document["engine"]
    lines = [
        f"{NAME}: {document['label']}; policy {document['policy']}",
        f"{len(document['cases'])} cases, {found['options']} options ({found['fit']} fit)",
        *(f"  not checked: {name}: {why}" for name, why in document["not_checked"].items()),
        "",
        table([_case_line(case) for case in document["cases"]]),
        "",
        (
            f"options beyond their GPU: {found['beyond_their_gpu']}; the fullest plans "
            f"{found['most_planned_permille_of_gpu'] / 10:.1f} % of it"
        ),
        *(
            f"{s['model']} over {s['tensor_parallel_size']}: {s['refused'] or 'not refused'}"
            for s in document["uneven_sizes"]
        ),
        "",
    ]
    if "skipped" in engine:
        lines.append(f"engine: skipped, {engine['skipped']}")
    else:
        lines += [
            f"engine, measured: {engine['model']} {engine['precision']}, {engine['threads']} threads",
            table([_engine_line(row) for row in engine["rows"]]),
            f"worst of weights, activation and KV tokens: {engine['worst_percent']} % (target 3 %)",
        ]
    verdict = document["verdict"]
    lines += [
        "",
        f"false fits: {verdict['false_fits']}; false refusals: {verdict['false_refusals']}",
    ]
    return "\n".join(lines)


def _case_line(case: JSON) -> JSON:
    return {
        "case": case["source"],
        "overhead": case["overhead"],
        "KV tokens planned": case["planned_kv_tokens"],
        "of the run, or needed": case.get("kv_tokens_of_the_run", case.get("tokens_needed")),
        "fits, said": case["said_to_fit"],
        "did": case["did_fit"],
        "KV %": case["kv_error_percent"],
        "without reserve %": case["kv_error_without_reserve_percent"],
    }


def _engine_line(row: JSON) -> JSON:
    line: JSON = {"layers": row["depth"]}
    for name in ("weights", "activation", "other", "resident"):
        pair = row[name]
        line[f"{name} MiB: planned, measured"] = (
            f"{pair['planned'] / _MIB:.1f}, {pair['measured'] / _MIB:.1f} ({pair['error_percent']} %)"
        )
    tokens = row["kv_tokens"]
    line["KV tokens"] = f"{tokens['planned']}, {tokens['measured']} ({tokens['error_percent']} %)"
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
