"""`trimtab bench accuracy`: what a precision of weights costs in accuracy, and gains in bytes and time.

Accuracy is bits per token: the mean of -log2 p(next token) over a fixed English text (or `--text`),
in windows of up to 512 tokens, computed by the engine as it serves. The loss is the relative
increase over the first precision given, the checkpoint's own by default. Agreement is the share of
positions whose most likely token is the same. A text of some hundred tokens separates precisions,
whose errors meet the same text; it ranks no models.

A checkpoint that was quantised before (GGUF) hides loss: what int4 would lose, it has lost already.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.bench.accuracy_text import TEXT
from trimtab_workers.engine.bench.options import emit, parser, positive, progress
from trimtab_workers.engine.config import DTYPES, EngineConfig, ModelSpec, dtype_of
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import EngineError
from trimtab_workers.engine.measure import StepMeter
from trimtab_workers.engine.models.llama import layer_bytes
from trimtab_workers.engine.runner import ModelRunner
from trimtab_workers.engine.scheduler import Row, StepPlan
from trimtab_workers.engine.sequence import Sequence as RunningSequence
from trimtab_workers.engine.types import Request, SamplingParams
from trimtab_workers.engine.weights.inspect import inspect_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAME = "bench"
_WINDOW = 512
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
        loss_percent: Of bits per token, against the first precision.
        agreement_percent: Positions with the first precision's most likely token.
        layer_bytes: One layer's matrices in their home.
        weight_bytes: All weights in memory.
        step_ms: Median step by work (decode of 1, 8, 32 sequences, prefill of 256), if asked for.
    """

    precision: str
    bits_per_token: float
    loss_percent: float
    agreement_percent: float
    tokens: int
    layer_bytes: int
    weight_bytes: int
    step_ms: tuple[float, ...] = ()


def log_probabilities(engine: Engine, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log2 p of tokens 1 … n - 1 given those before, and the most likely token at each.

    Args:
        engine: Loaded, without a thread, idle; its one model is asked as it serves.
        tokens: At most as many as one step computes.
    """
    tenant = engine.tenant(_NAME)
    scheduler, runner, model = tenant.scheduler, tenant.runner, tenant.model
    if scheduler is None or not isinstance(runner, ModelRunner) or model is None:
        raise ValueError("log_probabilities: the engine is not loaded; call Engine.load first.")
    sequence = RunningSequence(
        request=Request(request_id="", model=_NAME, prompt_token_ids=(0,), params=SamplingParams()),
        sink=lambda _: None,
        tokens=list(tokens),
        prompt_length=len(tokens),
        limit=len(tokens) + 1,
        seed=0,
        arrival_seconds=0.0,
    )
    sequence.blocks = scheduler.blocks.allocate(sequence.blocks_for(len(tokens))) or []
    if not sequence.blocks:
        raise ValueError(
            f"log_probabilities: {len(tokens)} tokens do not fit into the KV cache. Give fewer."
        )
    plan = StepPlan(prefill=(Row(sequence, 0, len(tokens)),))
    with torch.inference_mode():
        hidden = runner.hidden_states(plan)[: len(tokens)]
        chances = model.logits(hidden)[:-1].log_softmax(dim=-1)
    scheduler.blocks.release(sequence.blocks)
    following = torch.tensor(tokens[1:]).unsqueeze(1)
    taken = chances.gather(1, following).squeeze(1) / torch.log(torch.tensor(2.0))
    return taken, chances.argmax(dim=-1)


def measure(path: Path, *, precision: str, text: str, threads: int) -> tuple[Any, Any, Engine]:
    """Load a model at a precision and score a text; returns log2 p, most likely tokens, engine."""
    spec = ModelSpec(name=_NAME, path=path, dtype=dtype_of(precision, where="--precision"))
    engine = Engine(
        EngineConfig(
            models=(spec,),
            threads=threads,
            max_model_len=_WINDOW,
            max_batch_tokens=_WINDOW,
            max_seqs=2,
            prefix_caching=False,
        )
    )
    engine.load()
    tenant = engine.tenant(_NAME)
    if tenant.error is not None:
        raise tenant.error
    tokens = engine.tokenizer(_NAME).encode(text)
    window = min(_WINDOW, tenant.max_model_len)
    scored = [
        log_probabilities(engine, tokens[at : at + window])
        for at in range(0, len(tokens), window)
        if len(tokens) - at > 1
    ]
    return torch.cat([s for s, _ in scored]), torch.cat([t for _, t in scored]), engine


def compare(
    path: Path, *, precisions: Sequence[str], text: str, threads: int, repeats: int
) -> list[Accuracy]:
    """Score every precision; the first is what the others are compared with."""
    steps = _steps(path, precisions, threads=threads, repeats=repeats)
    rows: list[Accuracy] = []
    base: torch.Tensor | None = None
    for precision in precisions:
        progress(f"accuracy: {precision}")
        found, likely, engine = measure(path, precision=precision, text=text, threads=threads)
        tenant = engine.tenant(_NAME)
        bits = -float(found.mean())
        base = likely if base is None else base
        own = rows[0].bits_per_token if rows else bits
        layer = layer_bytes(tenant.shape, precision)
        rows.append(
            Accuracy(
                precision=precision,
                bits_per_token=round(bits, 4),
                loss_percent=round(100 * (bits / own - 1), 2),
                agreement_percent=round(100 * float((likely == base).float().mean()), 1),
                tokens=len(found),
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
        "| precision | bits/token | loss | same arg-max | bytes of a layer | of all | step, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['precision']} | {row['bits_per_token']:.4f} | {row['loss_percent']:+.2f} % "
        f"| {row['agreement_percent']} % | {row['layer_bytes']:,} | {row['weight_bytes']:,} "
        f"| {' / '.join(map(str, row['step_ms'])) or '-'} |"
        for row in result["rows"]
    ]
    if any(row["step_ms"] for row in result["rows"]):
        lines += ["", "Steps: decode of 1, 8, 32 sequences at context 128; a prompt of 256 tokens."]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 1 if the model cannot be served."""
    options = parser("accuracy", "Bits per token of a text, by precision of the weights.")
    options.add_argument("--model", type=Path, required=True, help="GGUF file or directory")
    options.add_argument(
        "--precision", action="append", choices=DTYPES, help="may be repeated; default: all"
    )
    options.add_argument("--text", type=Path, help="UTF-8 file; default: a text of our own")
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
