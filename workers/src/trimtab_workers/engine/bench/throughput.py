"""`trimtab bench engine-throughput`: output tokens per second, side by side.

Three ways to answer the same prompts with the same weights, dtype and threads, greedy and without
an early end: this engine (all requests at once), transformers one request after another, and
transformers' `generate` over the whole batch. They alternate within one run, and medians count.
The prompts are random tokens of one length, so `generate` needs no padding: its best case.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.bench.options import (
    emit,
    parser,
    positive,
    positive_numbers,
    progress,
)
from trimtab_workers.engine.capabilities import ENGINE_VERSION
from trimtab_workers.engine.config import BLOCK_TOKENS, EngineConfig, ModelSpec
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import EngineError
from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME = "bench"
_TARGET_LOOP, _TARGET_BATCH = 5.0, 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Median output tokens per second at one batch size; None where a way was not measured.

    Attributes:
        loop_requests: Requests that the one-after-another loop answered; its rate is per request.
    """

    batch: int
    engine: float
    transformers_loop: float | None
    transformers_batch: float | None
    loop_requests: int
    engine_range: tuple[float, float]

    @property
    def over_loop(self) -> float | None:
        """Engine ÷ one request after another."""
        return None if not self.transformers_loop else self.engine / self.transformers_loop

    @property
    def over_batch(self) -> float | None:
        """Engine ÷ `generate` over the batch."""
        return None if not self.transformers_batch else self.engine / self.transformers_batch

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready figures."""
        return asdict(self) | {"over_loop": self.over_loop, "over_batch": self.over_batch}


class EngineWay:
    """This engine, stepped on the calling thread."""

    def __init__(self, model: Path, *, dtype: str, threads: int, context: int, seqs: int) -> None:
        spec = ModelSpec(name=_NAME, path=model, dtype="fp32" if dtype == "fp32" else "bf16")
        self.engine = Engine(
            EngineConfig(
                models=(spec,),
                threads=threads,
                max_model_len=context,
                max_seqs=seqs,
                prefix_caching=False,
                memory_bytes=_memory_bytes(spec, tokens=seqs * (context + BLOCK_TOKENS)),
            )
        )
        self.engine.load()
        error = self.engine.tenant(_NAME).error
        if error is not None:
            raise error

    def answer(self, prompts: Sequence[Sequence[int]], output: int) -> list[list[int]]:
        """Return each prompt's output tokens, all prompts at once."""
        answers: list[list[int]] = [[] for _ in prompts]
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        for index, prompt in enumerate(prompts):
            request = Request(
                request_id=str(index),
                model=_NAME,
                prompt_token_ids=tuple(prompt),
                params=params,
            )
            answer = answers[index]
            self.engine.submit(request, lambda o, answer=answer: answer.extend(o.token_ids))  # type: ignore[misc]
        while self.engine.step():
            pass
        return answers


def _memory_bytes(spec: ModelSpec, *, tokens: int) -> int:
    """Bytes for the weights and the KV cache of so many tokens, so that nothing is preempted."""
    from trimtab_workers.engine.memory import TORCH_DTYPES  # noqa: PLC0415 - with torch
    from trimtab_workers.engine.weights.store import open_checkpoint  # noqa: PLC0415 - with torch

    shape = open_checkpoint(spec).shape
    weights = shape.parameters * TORCH_DTYPES[spec.dtype].itemsize
    cache = shape.kv_bytes_per_token_layer(spec.dtype) * shape.layers * tokens
    return int(1.1 * (weights + cache)) + (64 << 20)


class _TransformersWay:
    """transformers with the same weights, read by the engine's importer."""

    def __init__(self, engine: Engine, *, model: Path, dtype: str) -> None:
        import torch  # noqa: PLC0415 - seconds
        import transformers  # noqa: PLC0415 - only the bench needs it

        from trimtab_workers.engine.models.names import tensor_shapes  # noqa: PLC0415 - with torch
        from trimtab_workers.engine.weights.store import open_checkpoint  # noqa: PLC0415

        self._torch = torch
        self.version = transformers.__version__
        checkpoint = open_checkpoint(ModelSpec(name=_NAME, path=model))
        shape = engine.tenant(_NAME).shape
        fields = shape.to_hf_config()
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        kind = torch.float32 if dtype == "fp32" else torch.bfloat16
        self._model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind).eval()
        weights = {name: checkpoint.tensor(name).to(kind) for name in tensor_shapes(shape)}
        self._model.load_state_dict(weights, strict=False)
        self._model.tie_weights()

    def answer(self, prompts: Sequence[Sequence[int]], output: int) -> list[list[int]]:
        ids = self._torch.tensor([list(prompt) for prompt in prompts])
        with self._torch.inference_mode():
            full = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=output,
                min_new_tokens=output,
                do_sample=False,
                pad_token_id=0,
            )
        answers: list[list[int]] = full[:, ids.shape[1] :].tolist()
        return answers


def engine_throughput(
    model: Path,
    *,
    batches: Sequence[int],
    prompt: int,
    output: int,
    dtype: str = "bf16",
    threads: int = 1,
    repeats: int = 3,
    loop_requests: int = 2,
    compare: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure output tokens per second at several batch sizes.

    Args:
        model: A GGUF file or a checkpoint directory.
        batches: Numbers of simultaneous requests.
        prompt: Tokens of each prompt, random ids.
        output: Tokens of each answer.
        dtype: `bf16` or `fp32`, for engine and transformers alike.
        threads: CPU threads, for both.
        repeats: Rounds; each runs every way once, medians are reported.
        loop_requests: Requests per round of the one-after-another loop, whose rate does not depend
            on how many there are.
        compare: Whether transformers runs beside the engine.
        progress: Called with a line per finished measurement.

    Raises:
        CheckpointError: The model cannot be served.
    """
    progress(f"loading {model}")
    ours = EngineWay(
        model, dtype=dtype, threads=threads, context=prompt + output, seqs=max(batches)
    )
    theirs = _TransformersWay(ours.engine, model=model, dtype=dtype) if compare else None
    rng = random.Random(0)  # noqa: S311 - token ids, not secrets
    vocab = ours.engine.tenant(_NAME).shape.vocab
    prompts = [[rng.randrange(vocab) for _ in range(prompt)] for _ in range(max(batches))]
    ours.answer(prompts[:1], output)
    agreement = None
    if theirs is not None:
        theirs.answer(prompts[:1], output)
        # In bf16 random prompts give near-ties, which rounding decides.
        agreement = (
            None
            if dtype == "bf16"
            else _agreement(ours.answer(prompts[:1], output), theirs.answer(prompts[:1], output))
        )
    rows = []
    for batch in batches:
        samples = _rounds(
            ours, theirs, prompts[:batch], output=output, repeats=repeats, loop=loop_requests
        )
        row = Row(
            batch=batch,
            engine=statistics.median(samples["engine"]),
            transformers_loop=_median(samples["loop"]),
            transformers_batch=_median(samples["batch"]),
            loop_requests=loop_requests,
            engine_range=(min(samples["engine"]), max(samples["engine"])),
        )
        progress(f"batch {batch}: {row.engine:.1f} tok/s")
        rows.append(row)
    return {
        "benchmark": "engine-throughput",
        "unit": "output tokens per second, wall clock from submission to last token, medians",
        "model": str(model.name),
        "dtype": dtype,
        "threads": threads,
        "prompt": prompt,
        "output": output,
        "repeats": repeats,
        "engine_version": ENGINE_VERSION,
        "transformers_version": None if theirs is None else theirs.version,
        "torch_version": machine.version("torch"),
        "cpu": machine.cpu_model(),
        "load_average": machine.load_average(),
        "agreement": agreement,
        "targets": {"over_loop": _TARGET_LOOP, "over_batch": _TARGET_BATCH, "at_batch": 8},
        "rows": [row.to_dict() for row in rows],
    }


def _rounds(
    ours: EngineWay,
    theirs: _TransformersWay | None,
    prompts: Sequence[Sequence[int]],
    *,
    output: int,
    repeats: int,
    loop: int,
) -> dict[str, list[float]]:
    """Run every way once per round, in turns forwards and backwards, so that drift cancels."""
    few = list(prompts[:loop])

    def one_after_another() -> int:
        if theirs is not None:
            for prompt in few:
                theirs.answer([prompt], output)
        return len(few) * output

    def together() -> int:
        if theirs is not None:
            theirs.answer(prompts, output)
        return len(prompts) * output

    def engine() -> int:
        answers = ours.answer(prompts, output)
        return sum(len(answer) for answer in answers)

    ways: list[tuple[str, Callable[[], int]]] = [("engine", engine)]
    if theirs is not None:
        ways += [("loop", one_after_another), ("batch", together)]
    samples: dict[str, list[float]] = {"engine": [], "loop": [], "batch": []}
    for round_ in range(repeats):
        for name, way in ways if round_ % 2 == 0 else reversed(ways):
            began = time.perf_counter()
            tokens = way()
            samples[name].append(tokens / (time.perf_counter() - began))
    return samples


def _median(samples: list[float]) -> float | None:
    return statistics.median(samples) if samples else None


def _agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Return the share of first tokens that agree until the first difference."""
    total = same = 0
    for a, b in zip(ours, theirs, strict=True):
        total += len(a)
        for x, y in zip(a, b, strict=True):
            if x != y:
                break
            same += 1
    return same / total


def markdown(result: dict[str, Any]) -> str:
    """Return a result as a table."""
    conditions = (
        f"{result['model']}, {result['dtype']}, {result['threads']} thread(s), prompts of "
        f"{result['prompt']} and answers of {result['output']} tokens, median of "
        f"{result['repeats']}; {result['cpu']}, load average {result['load_average']:.1f}"
    )
    head = (
        "| batch | engine tok/s | transformers, one by one | engine ÷ it "
        "| transformers generate(batch) | engine ÷ it |"
    )
    lines = [conditions, "", head, "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        figures = [
            row["engine"],
            row["transformers_loop"],
            row["over_loop"],
            row["transformers_batch"],
            row["over_batch"],
        ]
        cells = ["-" if value is None else f"{value:.2f}" for value in figures]
        lines.append(f"| {row['batch']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark from the command line; 0 on success, 2 on an unusable model."""
    options = parser("engine-throughput", "Output tokens per second beside transformers.")
    options.add_argument("--model", type=Path, required=True, help="a GGUF file or a directory")
    options.add_argument(
        "--batch", type=positive_numbers, default=(1, 8, 32), help="such as 1,8,32"
    )
    options.add_argument("--prompt", type=positive, default=128, help="prompt tokens")
    options.add_argument("--output", type=positive, default=64, help="output tokens")
    options.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    options.add_argument("--threads", type=positive, default=1)
    options.add_argument("--repeats", type=positive, default=3)
    options.add_argument("--no-compare", action="store_true", help="the engine alone")
    chosen = options.parse_args(argv)
    try:
        result = engine_throughput(
            chosen.model,
            batches=chosen.batch,
            prompt=chosen.prompt,
            output=chosen.output,
            dtype=chosen.dtype,
            threads=chosen.threads,
            repeats=chosen.repeats,
            compare=not chosen.no_compare,
            progress=progress,
        )
    except EngineError as error:
        progress(error.message)
        return 2
    emit(result, kind=chosen.format, markdown=lambda: markdown(result))
    return 0
