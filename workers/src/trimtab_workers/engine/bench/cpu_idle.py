"""`trimtab bench cpu-idle`: bursts on one of three models, under each way to cope with a short cache.

The same engine, bytes, arrivals and cores; only `pressure` differs: `recompute` (with watermark),
`swap`, `remap-idle`. With a peer's Python also vLLM's CPU build: three processes with static shares
of the same KV bytes. Wall clock: a CPU's copies compete with its computing, so this measures
whether lending idle weights pays, not whether copies hide.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.bench.arrivals import LENGTHS, Load, bursts_on_one
from trimtab_workers.engine.bench.cpu_peer import LEAST_REPEATS, our_side, peer_side
from trimtab_workers.engine.bench.figures import figures
from trimtab_workers.engine.bench.idle_report import Run, markdown, summary
from trimtab_workers.engine.bench.one_directory import one_directory
from trimtab_workers.engine.bench.options import emit, parser, positive, progress
from trimtab_workers.engine.bench.paired import rounds
from trimtab_workers.engine.bench.replay import Answer
from trimtab_workers.engine.bench.sides import Side, SideError
from trimtab_workers.engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab_workers.engine.bench.arrivals import Arrival

POLICIES: Final = ("recompute", "swap", "remap-idle")
PEER: Final = "vllm-static"
# vLLM's attention on CPUs takes blocks of multiples of 32 tokens and no others.
_BLOCK_TOKENS: Final = 32
_LEAD_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every policy is given.

    Attributes:
        kv_share: Slabs of KV beside the weights' slabs.
        warm_seconds: Requests due before are answered but not counted.
    """

    tenants: tuple[str, ...] = ("a", "b", "c")
    kv_share: float = 0.10
    dtype: str = "bf16"
    threads: int = 1
    max_model_len: int = 640
    max_seqs: int = 64
    max_batch_tokens: int = 512
    warm_seconds: float = 5.0
    repeats: int = LEAST_REPEATS


class Policy:
    """One way to serve: a process of ours, or one peer process for each model."""

    def __init__(self, sides: Mapping[str, Side]) -> None:
        self._sides = sides

    def replay(self, arrivals: Sequence[Arrival]) -> tuple[list[Answer], dict[str, float]]:
        """Replay everywhere at once; answers come in the order of arrivals."""
        start = time.perf_counter() + _LEAD_SECONDS
        shares = {name: [a for a in arrivals if name in ("", a.model)] for name in self._sides}
        for name, side in self._sides.items():
            rows = [arrival.to_dict() for arrival in shares[name]]
            side.send("replay", arrivals=rows, start_seconds=start)
        answers: list[Answer] = []
        counted: dict[str, float] = {}
        for side in self._sides.values():
            reply = side.receive()
            answers += [Answer(**answer) for answer in reply["answers"]]
            for key, value in reply["counted"].items():
                counted[key] = counted.get(key, 0.0) + value
        return sorted(answers, key=lambda answer: answer.arrival_seconds), counted

    def settle(self) -> None:
        """Let what was lent go home before the next run."""
        side = self._sides.get("")
        if side is not None:
            side.call("settle", seconds=_SETTLE_SECONDS)


def start_ours(
    stack: contextlib.ExitStack,
    *,
    model: Path,
    task: Task,
    policies: Sequence[str],
    folder: Path,
) -> tuple[dict[str, Policy], dict[str, Any]]:
    """Start one process for each of our policies, all with the same bytes.

    Raises:
        SideError: One cannot load.
    """
    budget: dict[str, Any] | None = None
    started: dict[str, Policy] = {}
    for policy in policies:
        side = stack.enter_context(our_side(name=policy, threads=task.threads, folder=folder))
        if budget is None:
            budget = side.call(
                "budget",
                model=str(model),
                dtype=task.dtype,
                tenants=len(task.tenants),
                kv_share=task.kv_share,
            )
        progress(f"loading {policy}")
        side.call(
            "serve",
            model=str(model),
            tenants=list(task.tenants),
            dtype=task.dtype,
            threads=task.threads,
            memory_bytes=budget["memory_bytes"],
            max_model_len=task.max_model_len,
            max_seqs=task.max_seqs,
            max_batch_tokens=task.max_batch_tokens,
            pressure=policy,
        )
        started[policy] = Policy({"": side})
    return started, budget or {}


def start_peer(
    stack: contextlib.ExitStack,
    *,
    python: Path,
    model: Path,
    task: Task,
    kv_tokens: int,
    folder: Path,
) -> Policy:
    """Start one vLLM process for each model, each with an equal static share of the KV tokens.

    Raises:
        SideError: One cannot load.
    """
    sides = {}
    for name in task.tenants:
        progress(f"loading vLLM for {name}")
        sides[name] = stack.enter_context(
            peer_side(python, name=f"vllm-{name}", threads=task.threads, folder=folder)
        )
        sides[name].call(
            "load",
            model=str(model),
            dtype=task.dtype,
            context=task.max_model_len,
            seqs=task.max_seqs,
            block_size=_BLOCK_TOKENS,
            num_gpu_blocks_override=-(-kv_tokens // len(task.tenants) // _BLOCK_TOKENS),
            disable_log_stats=False,
        )
    return Policy(sides)


def run(policies: Mapping[str, Policy], load: Load, task: Task) -> list[Run]:
    """Run every policy once per round, in turns; a short run of each warms up before."""
    arrivals = bursts_on_one(task.tenants, load)
    short = replace(load, seconds=min(load.seconds, 8.0), visit_seconds=2.0, seed=load.seed + 1)
    for name, policy in policies.items():
        progress(f"warming up {name}")
        policy.replay(bursts_on_one(task.tenants, short))
        policy.settle()
    runs: list[Run] = []
    for number, order in enumerate(rounds([*policies], task.repeats)):
        for name in order:
            answers, counted = policies[name].replay(arrivals)
            policies[name].settle()
            found = figures(answers, skip_seconds=task.warm_seconds)
            runs.append(
                Run(policy=name, round=number, figures=found, counted=counted, answers=answers)
            )
            progress(
                f"round {number + 1} of {task.repeats}: {name} {found.tokens_per_second:.1f} tok/s, "
                f"P99 first token {found.ttft_p99:.2f} s"
            )
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 on success, 2 if a side or the model cannot be used."""
    chosen = _options().parse_args(argv)
    task = Task(
        threads=chosen.threads,
        dtype=chosen.dtype,
        repeats=chosen.repeats,
        max_model_len=chosen.context,
        kv_share=chosen.kv_share,
        warm_seconds=min(5.0, chosen.seconds / 6),
    )
    load = Load(
        lengths=chosen.lengths,
        divisor=chosen.divisor,
        longest=chosen.context,
        seconds=chosen.seconds,
        burst_seconds=chosen.burst,
        pause_seconds=chosen.pause,
        burst_rate=chosen.rate,
        visit_seconds=chosen.visits or None,
        seed=chosen.seed,
    )
    conditions = machine.conditions()
    try:
        with contextlib.ExitStack() as stack:
            folder = chosen.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            model = one_directory(chosen.model)
            policies, budget = start_ours(
                stack, model=model, task=task, policies=chosen.policies.split(","), folder=folder
            )
            if chosen.peer_python is not None:
                policies[PEER] = start_peer(
                    stack,
                    python=chosen.peer_python,
                    model=model,
                    task=task,
                    kv_tokens=budget["kv_tokens"],
                    folder=folder,
                )
            runs = run(policies, load, task)
    except (EngineError, SideError, OSError, ValueError) as error:
        progress(f"error: {error}")
        return 2
    result = summary(runs) | {
        "benchmark": "cpu-idle",
        "model": chosen.model.name,
        "task": asdict(task),
        "load": asdict(load),
        "budget": budget,
        "conditions": conditions,
    }
    emit(result, kind=chosen.format, markdown=lambda: markdown(result))
    return 0


def _options() -> Any:
    options = parser("cpu-idle", "Bursts on one of three models, under each pressure policy.")
    options.add_argument("--model", type=Path, required=True, help="a directory or a GGUF file")
    options.add_argument("--peer-python", type=Path, help="Python that has vllm; compares with it")
    options.add_argument("--policies", default=",".join(POLICIES), help="of this engine")
    options.add_argument("--seconds", type=float, default=60.0, help="in which requests arrive")
    options.add_argument("--rate", type=float, default=8.0, help="requests/s inside a burst")
    options.add_argument("--burst", type=float, default=12.0, help="seconds of a burst")
    options.add_argument("--pause", type=float, default=8.0, help="seconds between bursts")
    options.add_argument(
        "--visits",
        type=float,
        default=20.0,
        help="mean seconds between requests to others; 0: none",
    )
    options.add_argument("--lengths", choices=[*LENGTHS], default="azure-conv")
    options.add_argument("--divisor", type=float, default=8.0, help="lengths are divided by it")
    options.add_argument("--context", type=positive, default=640, help="max_model_len")
    options.add_argument("--kv-share", type=float, default=0.10, help="KV slabs ÷ weight slabs")
    options.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    options.add_argument("--threads", type=positive, default=len(machine.cpus()))
    options.add_argument("--repeats", type=positive, default=LEAST_REPEATS)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--logs", type=Path, help="folder for the sides' output")
    return options
