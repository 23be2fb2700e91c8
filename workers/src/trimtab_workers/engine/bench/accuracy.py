"""`trimtab bench accuracy`: what a precision of weights costs in accuracy, and gains in bytes and time.

Accuracy is the perplexity of a fixed English text (or `--text`), as `engine.scoring` computes it. The
loss is by how much it is higher than at the first precision given, the checkpoint's own by default,
with its standard error. Agreement is the share of positions whose most likely token is the same. A
text of some thousand tokens separates precisions, whose errors meet the same text; it ranks no models.

A checkpoint that was quantised before (GGUF) hides loss: what int4 would lose, it has lost already.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.bench.options import emit, parser, positive, progress
from trimtab_workers.engine.config import DTYPES
from trimtab_workers.engine.errors import EngineError
from trimtab_workers.engine.measure import StepMeter
from trimtab_workers.engine.models.llama import layer_bytes
from trimtab_workers.engine.scoring import MODEL, difference, load, score
from trimtab_workers.engine.scoring_text import TEXT
from trimtab_workers.engine.weights.inspect import inspect_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab_workers.engine.scoring import Scores

_POINTS: tuple[Mapping[str, int], ...] = (
    {"batch": 1, "context": 128},
    {"batch": 8, "context": 128},
    {"batch": 32, "context": 128},
    {"chunk": 256},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """One precision of a model.

    Attributes:
        loss_percent: By how much the perplexity is higher than at the first precision.
        error_percent: Standard error of that: the text is short.
        agreement_percent: Positions with the first precision's most likely token.
        layer_bytes: One layer's matrices in their home.
        weight_bytes: All weights in memory.
        step_ms: Median step by work (decode of 1, 8, 32 sequences, prefill of 256), if asked for.
    """

    precision: str
    perplexity: float
    bits_per_token: float
    loss_percent: float
    error_percent: float
    agreement_percent: float
    tokens: int
    layer_bytes: int
    weight_bytes: int
    step_ms: tuple[float, ...] = ()


def compare(
    path: Path, *, precisions: Sequence[str], text: str, threads: int, repeats: int
) -> list[Accuracy]:
    """Score every precision; the first is what the others are compared with."""
    steps = _steps(path, precisions, threads=threads, repeats=repeats)
    rows: list[Accuracy] = []
    own: Scores | None = None
    for precision in precisions:
        progress(f"accuracy: {precision}")
        engine = load(path, precision=precision, threads=threads)
        found = score(engine, text)
        own = own or found
        apart = difference(found, own)
        tenant = engine.tenant(MODEL)
        layer = layer_bytes(tenant.shape, precision)
        rows.append(
            Accuracy(
                precision=precision,
                perplexity=round(math.exp(found.mean_nats), 4),
                bits_per_token=round(found.mean_nats / math.log(2), 4),
                loss_percent=round(apart.percent, 3),
                error_percent=round(apart.error_percent, 3),
                agreement_percent=round(100 * apart.agreement, 1),
                tokens=len(found.nats),
                layer_bytes=layer,
                weight_bytes=layer * tenant.shape.layers + tenant.fixed_bytes,
                step_ms=steps[precision],
            )
        )
    return rows


def _steps(
    path: Path, precisions: Sequence[str], *, threads: int, repeats: int
) -> dict[str, tuple[float, ...]]:
    """Time steps of all precisions in turns, on random weights of the model's shape."""
    if not repeats:
        return dict.fromkeys(precisions, ())
    config = inspect_checkpoint(path).hf_config
    meters = {
        p: StepMeter(
            config, dtype=p, threads=threads, max_sequences=32, max_context=256, max_chunk=256
        )
        for p in precisions
    }
    taken: dict[tuple[str, int], list[float]] = {}
    for repeat in range(repeats + 1):
        progress(f"accuracy: round {repeat} of {repeats}")
        for index, point in enumerate(_POINTS):
            for precision, meter in meters.items():
                seconds = meter.measure_step(**point)
                if repeat:
                    taken.setdefault((precision, index), []).append(1e3 * seconds)
    return {
        p: tuple(round(statistics.median(taken[p, i]), 2) for i in range(len(_POINTS)))
        for p in precisions
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the report as text."""
    lines = [
        "| precision | perplexity | bits/token | loss | same arg-max | bytes of a layer | of all | step, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['precision']} | {row['perplexity']:.3f} | {row['bits_per_token']:.4f} "
        f"| {row['loss_percent']:+.2f} ± {row['error_percent']:.2f} % "
        f"| {row['agreement_percent']} % | {row['layer_bytes']:,} | {row['weight_bytes']:,} "
        f"| {' / '.join(map(str, row['step_ms'])) or '-'} |"
        for row in result["rows"]
    ]
    if any(row["step_ms"] for row in result["rows"]):
        lines += ["", "Steps: decode of 1, 8, 32 sequences at context 128; a prompt of 256 tokens."]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 1 if the model cannot be served."""
    options = parser("accuracy", "Perplexity of a text, by precision of the weights.")
    options.add_argument("--model", type=Path, required=True, help="GGUF file or directory")
    options.add_argument(
        "--precision", action="append", choices=DTYPES, help="may be repeated; default: all"
    )
    options.add_argument("--text", type=Path, help="UTF-8 file; default: public-domain prose")
    options.add_argument("--threads", type=positive, default=1)
    options.add_argument(
        "--repeats", type=int, default=0, help="rounds of timed steps; 0 (default): accuracy alone"
    )
    given = options.parse_args(argv)
    try:
        own = inspect_checkpoint(given.model).precision
        precisions = given.precision or [own, *(p for p in DTYPES if p != own)]
        rows = compare(
            given.model,
            precisions=precisions,
            text=given.text.read_text(encoding="utf-8") if given.text else TEXT,
            threads=given.threads,
            repeats=given.repeats,
        )
    except (EngineError, OSError) as error:
        progress(f"error: {error}")
        return 1
    result = {"conditions": machine.conditions(), "rows": [asdict(row) for row in rows]}
    emit(result, kind=given.format, markdown=lambda: markdown(result))
    return 0
