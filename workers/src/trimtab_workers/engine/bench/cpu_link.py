"""`trimtab bench cpu-link`: streaming stalls as long as the formula says. A modelled link.

Real weights are copied and computed with, but a copy counts as there only after latency + bytes ÷
rate, as if a link of that rate had brought it. For several numbers of streamed layers the rate is
chosen so that reading them takes a half, one, two and four times the step; the stall per decoding
step is compared with max(0, cost - step), cost being that of the slot rule (engine.md §3).
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.backend import CpuBackend
from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.bench.options import emit, parser, positive, positive_numbers, progress
from trimtab_workers.engine.bench.replay import counters, difference, total
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOLERANCE: Final = 0.15
_NAME: Final = "linked"
# SmolLM2-135M's layers, fewer of them.
SHAPE: Final[dict[str, object]] = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
LOADS: Final = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is decoded.

    Attributes:
        freed: Numbers of layers that are KV cache; as many and the slots stream.
    """

    freed: tuple[int, ...] = (1, 2, 4)
    slots: tuple[int, ...] = (1, 2)
    batch: int = 4
    steps: int = 48
    repeats: int = 5
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Decoding steps under one rate, seconds each.

    Attributes:
        step_s: A step, stall included.
        stall_s: Of it, waiting for the link.
    """

    step_s: float
    stall_s: float


def predicted_stall(
    point: Point, *, streamed: int, slots: int, transfer_s: float, layers: int, plain_s: float
) -> float:
    """Return max(0, cost - what the step needs without waiting), seconds.

    One slot is free only between its layers, so each costs its compute too, and the copy, which the
    CPU makes here before the modelled link begins.

    Args:
        point: What was measured.
        streamed: Layers read per step.
        slots: 1 or 2.
        transfer_s: One layer over the link.
        layers: Depth.
        plain_s: The step without streaming; what it takes longer without stalls is copying.
    """
    busy = point.step_s - point.stall_s
    own = plain_s / layers + max(0.0, busy - plain_s) / streamed if slots == 1 else 0.0
    return max(0.0, streamed * (transfer_s + own) - busy)


def deviation(*, measured: float, predicted: float, step_s: float) -> float:
    """Return how far off a stall is: of the prediction, or of the step where little was predicted."""
    return abs(measured - predicted) / (predicted if predicted > 0.2 * step_s else step_s)


class Linked:
    """An engine whose layers stream over a modelled link."""

    def __init__(self, task: Task, *, pressure: str, slots: int, link_rate: float | None) -> None:
        backend = CpuBackend(link_rate=link_rate)
        spec = ModelSpec(name=_NAME, path=Path(), random=RandomWeights(hf_config=SHAPE))
        config = EngineConfig(
            models=(spec,),
            threads=task.threads,
            max_model_len=256,
            max_seqs=task.batch,
            prefix_caching=False,
            pressure=pressure,
            slots=slots,
        )
        self._task = task
        self.engine = Engine(config, backend=backend)
        self.engine.load()
        error = self.engine.tenant(_NAME).error
        if error is not None:
            raise error

    def measure(self) -> Point:
        """Decode a batch and return its decode-only steps' means."""
        for index in range(self._task.batch):
            request = Request(
                request_id=str(index),
                model=_NAME,
                prompt_token_ids=tuple(range(1, 17)),
                params=SamplingParams(
                    temperature=0.0, max_tokens=self._task.steps + 1, ignore_eos=True
                ),
            )
            self.engine.submit(request, lambda _: None)
        self.engine.step()  # the prompts
        before = counters(self.engine.registry)
        while self.engine.step():
            pass
        counted = difference(counters(self.engine.registry), before)
        steps = total(counted, "trimtab_engine_decode_only_steps")
        return Point(
            step_s=total(counted, "trimtab_engine_decode_only_seconds") / steps,
            stall_s=total(counted, "trimtab_engine_link_stall_seconds", ending=("/stream",))
            / steps,
        )


def cpu_link(task: Task) -> dict[str, Any]:
    """Measure every combination of freed layers, slots and load of the link."""
    layers = int(str(SHAPE["num_hidden_layers"]))
    plain = Linked(task, pressure="recompute", slots=0, link_rate=None)
    plain.measure()
    step_s = statistics.median(plain.measure().step_s for _ in range(task.repeats))
    layer_bytes = plain.engine.tenant(_NAME).unit.layer_bytes
    rows = []
    for freed in task.freed:
        for slots in task.slots:
            for load in LOADS:
                rate = (freed + slots) * layer_bytes / (load * step_s)
                linked = Linked(task, pressure=f"static:{freed}", slots=slots, link_rate=rate)
                linked.measure()
                points = [linked.measure() for _ in range(task.repeats)]
                row = _row(
                    points,
                    layers=layers,
                    streamed=freed + slots,
                    slots=slots,
                    transfer_s=layer_bytes / rate,
                    plain_s=step_s,
                )
                rows.append({"freed": freed, "slots": slots, "load": load, "rate": rate} | row)
                progress(f"{freed} freed, {slots} slots, load {load:g}: {row['deviation']:.0%} off")
    return {
        "benchmark": "cpu-link",
        "kind": "modelled link",
        "task": asdict(task),
        "plain_step_s": step_s,
        "layer_bytes": layer_bytes,
        "rows": rows,
        "worst_deviation": max(row["deviation"] for row in rows),
        "tolerance": TOLERANCE,
        "conditions": machine.conditions(),
    }


def _row(
    points: Sequence[Point],
    *,
    layers: int,
    streamed: int,
    slots: int,
    transfer_s: float,
    plain_s: float,
) -> dict[str, float]:
    middle = sorted(points, key=lambda point: point.step_s)[len(points) // 2]
    predicted = predicted_stall(
        middle,
        streamed=streamed,
        slots=slots,
        transfer_s=transfer_s,
        layers=layers,
        plain_s=plain_s,
    )
    return {
        "step_s": middle.step_s,
        "stall_s": middle.stall_s,
        "predicted_s": predicted,
        "deviation": deviation(measured=middle.stall_s, predicted=predicted, step_s=middle.step_s),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as a table."""
    conditions = result["conditions"]
    lines = [
        f"**Modelled link.** {conditions['cpu']}, {conditions['cpus']} CPUs, load average before "  # noqa: ISC004 - one line
        f"{conditions['load_average']}; step without streaming {1e3 * result['plain_step_s']:.2f} ms",
        "",
        "| freed | slots | link time ÷ step | step ms | stall ms | predicted ms | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        mark = "" if row["deviation"] <= result["tolerance"] else " **beyond 15 %**"
        lines.append(
            f"| {row['freed']} | {row['slots']} | {row['load']:g} | {1e3 * row['step_s']:.2f} | "
            f"{1e3 * row['stall_s']:.2f} | {1e3 * row['predicted_s']:.2f} | "
            f"{row['deviation']:.0%}{mark} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 on success."""
    options = parser("cpu-link", "Stalls of streamed layers over a modelled link, and the formula.")
    options.add_argument("--freed", type=positive_numbers, default=(1, 2, 4), help="such as 1,2,4")
    options.add_argument("--slots", type=positive_numbers, default=(1, 2), help="1, 2 or both")
    options.add_argument("--steps", type=positive, default=48, help="decoding steps of a run")
    options.add_argument("--repeats", type=positive, default=5)
    options.add_argument("--threads", type=positive, default=1)
    chosen = options.parse_args(argv)
    task = Task(
        freed=chosen.freed,
        slots=chosen.slots,
        steps=chosen.steps,
        repeats=chosen.repeats,
        threads=chosen.threads,
    )
    result = cpu_link(task)
    emit(result, kind=chosen.format, markdown=lambda: markdown(result))
    return 0
