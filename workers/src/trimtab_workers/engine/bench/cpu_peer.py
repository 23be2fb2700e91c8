"""`trimtab bench cpu-peer`: output tokens per second beside vLLM's CPU build, in turns.

Both engines load one directory once, in processes of their own on the same cores, and answer the
same random prompts greedily. Every round runs both at every batch size; the ratio is that of the
medians, and its range that of the rounds.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.engine.bench import machine, side_vllm
from trimtab_workers.engine.bench.one_directory import one_directory
from trimtab_workers.engine.bench.options import (
    emit,
    parser,
    positive,
    positive_numbers,
    progress,
)
from trimtab_workers.engine.bench.paired import paired_ratio, rounds, spread
from trimtab_workers.engine.bench.sides import BUSY_IDLER, Side, SideError, our_command
from trimtab_workers.engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEAST_REPEATS: Final = 5
_TARGET, _GOAL = 1.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What both sides do.

    Attributes:
        batches: Numbers of simultaneous requests.
        prompt: Tokens of each prompt.
        output: Tokens of each answer.
        dtype: `bf16` or `fp32`.
        threads: Of each side; the other is idle meanwhile.
        repeats: Rounds that count; one more before them warms up.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    prompt: int = 128
    output: int = 64
    dtype: str = "bf16"
    threads: int = 1
    repeats: int = LEAST_REPEATS


def peer_environment(python: Path, *, threads: int) -> dict[str, str | None]:
    """Return what vLLM's CPU documentation advises: cache size, bound threads, preloads if there."""
    cpus = ",".join(map(str, machine.cpus()[:threads]))
    environment: dict[str, str | None] = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": cpus,
        # vLLM warns that a number given here slows serving; the binding says how many.
        "OMP_NUM_THREADS": None,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    found = [*_preloads(python)]
    if found:
        environment["LD_PRELOAD"] = ":".join(found)
    return environment


def _preloads(python: Path) -> list[str]:
    """The allocator and the OpenMP runtime that vLLM's documentation recommends, where installed."""
    name = "libtcmalloc_minimal.so.4"
    tcmalloc = [
        path
        for found in ("lib64", "lib", "lib/*-linux-gnu")
        for path in Path("/usr").glob(f"{found}/{name}")
    ]
    # NB: the environment's own folder; resolving its link would lead to the base interpreter.
    openmp = list(python.parent.parent.glob("lib/**/libiomp5.so"))
    return [str(paths[0]) for paths in (tcmalloc, openmp) if paths]


def peer_side(python: Path, *, name: str, threads: int, folder: Path) -> Side:
    """Start vLLM in its own Python, isolated from this one's modules."""
    return Side(
        name,
        [str(python), "-I", side_vllm.__file__],
        environment=peer_environment(python, threads=threads),
        log=folder / f"{name}.log",
    )


def our_side(*, name: str, threads: int, folder: Path) -> Side:
    """Start this engine in a process of its own."""
    return Side(
        name,
        our_command("side_ours"),
        environment={"OMP_NUM_THREADS": str(threads)},
        log=folder / f"{name}.log",
    )


def compare(ours: Side, peer: Side, *, model: Path, task: Task) -> dict[str, Any]:
    """Load both, warm both up, and run the rounds.

    Returns:
        `rows`, one per batch size, and what was observed about the sides.

    Raises:
        SideError: A side failed.
    """
    sides = {"ours": ours, "peer": peer}
    settings = {
        "model": str(model),
        "dtype": task.dtype,
        "context": task.prompt + task.output,
        "seqs": max(task.batches),
    }
    facts = {}
    for name, side in sides.items():
        progress(f"loading {name}")
        # The peer's threads are bound by its environment.
        own = {"threads": task.threads} if name == "ours" else {}
        facts[name] = side.call("load", **settings, **own)
    rng = random.Random(0)  # noqa: S311 - token ids, not secrets
    vocab = min(fact["vocab"] for fact in facts.values())
    prompts = [[rng.randrange(vocab) for _ in range(task.prompt)] for _ in range(max(task.batches))]
    agreement = _warm_up(sides, prompts, task)
    spinning = _find_spinners(sides)
    samples: dict[tuple[str, int], list[float]] = {
        (name, batch): [] for name in sides for batch in task.batches
    }
    for number, order in enumerate(rounds([*sides], task.repeats)):
        for batch in task.batches:
            for name in order:
                samples[name, batch].append(_turn(sides, name, prompts[:batch], task.output))
        progress(f"round {number + 1} of {task.repeats}")
    rows = [_row(batch, samples["ours", batch], samples["peer", batch]) for batch in task.batches]
    return {
        "rows": rows,
        "versions": {name: fact["version"] for name, fact in facts.items()},
        "agreement": agreement,
        "idle_cores": spinning,
        "stopped_when_idle": [name for name, side in sides.items() if side.stopped_when_idle],
    }


def _turn(
    sides: Mapping[str, Side], name: str, prompts: Sequence[Sequence[int]], output: int
) -> float:
    """Let one side answer while the others idle; returns output tokens per second."""
    for other, side in sides.items():
        if other != name:
            side.pause()
    reply = sides[name].call("answer", prompts=prompts, output=output)
    tokens: int = sum(len(answer) for answer in reply["answers"])
    return tokens / float(reply["seconds"])


def _warm_up(
    sides: Mapping[str, Side], prompts: Sequence[Sequence[int]], task: Task
) -> dict[str, float]:
    """Run every size once, unmeasured; return the share of first tokens on which both agree."""
    agreement = {}
    for batch in task.batches:
        answers = {
            name: side.call("answer", prompts=prompts[:batch], output=task.output)["answers"]
            for name, side in sides.items()
        }
        pairs = [same_start(a, b) for a, b in zip(answers["ours"], answers["peer"], strict=True)]
        agreement[str(batch)] = round(sum(pairs) / (len(pairs) * task.output), 3)
    return agreement


def same_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Return how many tokens are equal before the first difference."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return index
    return min(len(ours), len(theirs))


def _find_spinners(sides: Mapping[str, Side]) -> dict[str, float]:
    """A side that uses a core while it waits would slow the other: it is stopped in between."""
    shares = {}
    for name, side in sides.items():
        shares[name] = round(side.idle_share(), 3)
        side.stopped_when_idle = shares[name] > BUSY_IDLER
        if side.stopped_when_idle:
            progress(
                f"{name} uses {shares[name]} cores while idle: stopped (SIGSTOP) between turns"
            )
    return shares


def _row(batch: int, ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    mine, theirs = spread(ours), spread(peer)
    return {
        "batch": batch,
        "ours": mine.median,
        "peer": theirs.median,
        "ratio": mine.median / theirs.median,
        "ours_range": mine.to_list(),
        "peer_range": theirs.to_list(),
        "ratio_range": paired_ratio(ours, peer).to_list(),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return a result as a table with its conditions."""
    task, conditions = result["task"], result["conditions"]
    head = (
        f"{result['model']}, {task['dtype']}, {task['threads']} threads each, prompts of "
        f"{task['prompt']} and answers of {task['output']} tokens, median (range) of "
        f"{task['repeats']} rounds; Trimtab {result['versions']['ours']}, vLLM "
        f"{result['versions']['peer']}; {conditions['cpu']}, {conditions['cpus']} CPUs, load "
        f"average before {conditions['load_average']}"
    )
    columns = "| batch | Trimtab tok/s | vLLM-CPU tok/s | ratio |"
    lines = [head, "", columns, "|---|---|---|---|"]
    for row in result["rows"]:
        cells = [
            f"{row[key]:.{digits}f} ({row[f'{key}_range'][0]:.{digits}f} to "
            f"{row[f'{key}_range'][1]:.{digits}f})"
            for key, digits in (("ours", 1), ("peer", 1), ("ratio", 2))
        ]
        mark = "" if row["ratio"] >= _TARGET else " **loses**"
        lines.append(f"| {row['batch']} | " + " | ".join(cells) + f"{mark} |")
    stopped = ", ".join(result["stopped_when_idle"]) or "none"
    foot = (
        f"Target {_TARGET}, goal {_GOAL}. Cores used while idle: {result['idle_cores']}; stopped "
        f"between turns: {stopped}. Share of greedy tokens equal before the first difference, by "
        f"batch: {result['agreement']} (bf16 rounds differently in the two engines)."
    )
    return "\n".join([*lines, "", foot])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 on success, 2 if a side or the model cannot be used."""
    options = parser("cpu-peer", "Output tokens per second beside vLLM's CPU build, in turns.")
    options.add_argument("--model", type=Path, required=True, help="a directory or a GGUF file")
    options.add_argument("--peer-python", type=Path, required=True, help="Python that has vllm")
    options.add_argument(
        "--batch", type=positive_numbers, default=(1, 8, 32), help="such as 1,8,32"
    )
    options.add_argument("--prompt", type=positive, default=128, help="prompt tokens")
    options.add_argument("--output", type=positive, default=64, help="output tokens")
    options.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    options.add_argument("--threads", type=positive, default=len(machine.cpus()))
    options.add_argument("--repeats", type=positive, default=LEAST_REPEATS)
    options.add_argument("--logs", type=Path, help="folder for the sides' output")
    chosen = options.parse_args(argv)
    task = Task(
        batches=chosen.batch,
        prompt=chosen.prompt,
        output=chosen.output,
        dtype=chosen.dtype,
        threads=chosen.threads,
        repeats=chosen.repeats,
    )
    with contextlib.ExitStack() as stack:
        folder = chosen.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        conditions = machine.conditions()
        try:
            model = one_directory(chosen.model)
            peer = stack.enter_context(
                peer_side(chosen.peer_python, name="peer", threads=task.threads, folder=folder)
            )
            ours = stack.enter_context(our_side(name="ours", threads=task.threads, folder=folder))
            found = compare(ours, peer, model=model, task=task)
        except (EngineError, SideError, OSError) as error:
            progress(f"error: {error}")
            return 2
    result = found | {
        "model": chosen.model.name,
        "task": {name: getattr(task, name) for name in Task.__slots__},
        "conditions": conditions,
    }
    progress(markdown(result))
    emit(result["rows"], kind=chosen.format, markdown=lambda: markdown(result))
    return 0
