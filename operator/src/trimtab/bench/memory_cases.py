"""Fit cases whose outcome is public, and every option that must stay within its GPU (planner.md §2)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trimtab.bench.known_models import KNOWN
from trimtab.planning.fingerprint import MemoryPoint
from trimtab.planning.gpu_memory import gpu_memory, indivisible
from trimtab.planning.gpus import gpu_configs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trimtab.planning.gpu_memory import GpuMemory
    from trimtab.planning.policy import PlannerPolicy

JSON = dict[str, Any]  # any: JSON

GIB: Final = 2**30
GPUS_GIB: Final[Mapping[str, float]] = {
    "L4": 22.5,
    "A10": 22.5,
    "L40S": 44.5,
    "A100-40": 39.4,
    "A100-80": 79.2,
    "H100": 79.2,
    "H200": 139.8,
    "B200": 180.0,
}
"""Memory as drivers report it, which is less than what is printed on the box."""

FRACTIONS_PERMILLE: Final = (880, 900, 920, 1000)
"""SGLang's, TensorRT-LLM's, vLLM's from 0.22 on, and all of it (AIConfigurator #1396)."""

_MODELS: Final = ("llama-3.1-8b", "qwen3-14b", "qwen3-32b", "llama-3.1-70b")
_SIZES: Final = (1, 2, 4, 8)
_PRECISIONS: Final = ("bf16", "fp8")
_ENOUGH: Final = 0.03
_BLOCK_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What really happened on a GPU.

    Attributes:
        source: Where that is written.
        model: A name in `KNOWN`.
        gpu: A name in `GPUS_GIB`.
        needs_tokens: What had to fit: the longest request, or the KV tokens that the engine reported.
        fitted: Whether it did.
        exact: The engine reported ``needs_tokens`` as all that its cache holds.
        rows: Memory that was measured there; empty for the rule of thumb.
    """

    source: str
    model: str
    gpu: str
    needs_tokens: int
    fitted: bool
    exact: bool = False
    precision: str = "bf16"
    tensor: int = 1
    pipeline: int = 1
    fraction_permille: int = 920
    rows: tuple[MemoryPoint, ...] = ()


def _measured(activation: float, non_torch: float, graphs: float) -> tuple[MemoryPoint, ...]:
    return tuple(
        MemoryPoint(
            depth=depth,
            weights=0,
            activation=round(activation * GIB),
            non_torch=round(non_torch * GIB),
            graphs=round(graphs * GIB),
        )
        for depth in (1, 2)
    )


CASES: Final = (
    Case(
        source="planner.md §5: vLLM, 8B on H100, memory as the engine printed it, 51.4 GiB of KV",
        model="llama-3.1-8b",
        gpu="H100",
        needs_tokens=int(51.4 * GIB) // (128 * 1024),
        fitted=True,
        exact=True,
        fraction_permille=900,
        rows=_measured(4.76, 0.13, -0.45),
    ),
    Case(
        source="KAITO PR #2156: Qwen3-8B on one A10, vLLM's cache holds 20,272 tokens",
        model="qwen3-8b",
        gpu="A10",
        needs_tokens=20_272,
        fitted=True,
        exact=True,
    ),
    Case(
        source="KAITO PR #2156: Qwen3-14B on two A10, two stages, 55,952 tokens",
        model="qwen3-14b",
        gpu="A10",
        needs_tokens=55_952,
        fitted=True,
        exact=True,
        pipeline=2,
    ),
    Case(
        source="llm-d Planner #8: 70B recommended on one L4",
        model="llama-3.1-70b",
        gpu="L4",
        needs_tokens=1024,
        fitted=False,
        precision="fp8",
    ),
    Case(
        source="vLLM #4880: 32B in 4 bits on one GPU of 24 GB, context 32,768",
        model="qwen1.5-32b",
        gpu="A10",
        needs_tokens=32_768,
        fitted=False,
        precision="int4",
        fraction_permille=900,
    ),
    Case(
        source="vLLM #4880: the same on two",
        model="qwen1.5-32b",
        gpu="A10",
        needs_tokens=32_768,
        fitted=True,
        precision="int4",
        tensor=2,
        fraction_permille=900,
    ),
)
NOT_CHECKED: Final = {
    "KAITO PR #2139, #2302": "Mistral Medium and models with latent attention are not planned; its "
    "remedy, 2.3 GiB and 5 % of the weights per GPU, is the rule of thumb here",
    "llm-d Planner PR #205": "no figures are public; that ranks share heads and vocabulary is counted "
    "among the options",
}


def planned(
    model: str,
    *,
    gib: float,
    precision: str,
    kv_precision: str,
    tensor: int = 1,
    pipeline: int = 1,
    fraction_permille: int,
    rows: tuple[MemoryPoint, ...] = (),
    policy: PlannerPolicy,
) -> GpuMemory:
    """Return what a plan counts on, of which the engine takes another fraction than plans assume."""
    known = KNOWN[model]
    [config] = gpu_configs("", stages=pipeline, precisions=(precision,), sizes=(tensor,))
    return gpu_memory(
        known.architecture,
        config,
        depth=known.depth,
        gpu_bytes=round(gib * GIB),
        kv_precision=kv_precision,
        block_tokens=_BLOCK_TOKENS,
        rows=rows,
        policy=replace(policy, gpu_memory_permille=fraction_permille),
    )


def judge_case(case: Case, *, policy: PlannerPolicy) -> JSON:
    """Return what is planned for a case beside what happened.

    ``false_fit``: it is said to fit and did not, or the cache is said to hold more than it did, by more
    than 3 %.
    """
    memory = planned(
        case.model,
        gib=GPUS_GIB[case.gpu],
        precision=case.precision,
        kv_precision="bf16",
        tensor=case.tensor,
        pipeline=case.pipeline,
        fraction_permille=case.fraction_permille,
        rows=case.rows,
        policy=policy,
    )
    fits = memory.kv_tokens >= case.needs_tokens
    over = memory.kv_tokens / case.needs_tokens - 1
    false_fit = over > _ENOUGH if case.exact else fits and not case.fitted
    return {
        "source": case.source,
        "model": case.model,
        "gpu": case.gpu,
        "precision": case.precision,
        "tensor_parallel_size": case.tensor,
        "pipeline_parallel_size": case.pipeline,
        "fraction_permille": case.fraction_permille,
        "overhead": "measured" if memory.measured else "rule of thumb",
        "weights_gib": round(memory.weights / GIB, 2),
        "planned_kv_tokens": memory.kv_tokens,
        "kv_tokens_of_the_run" if case.exact else "tokens_needed": case.needs_tokens,
        "said_to_fit": fits if not case.exact else None,
        "did_fit": case.fitted,
        "kv_error_percent": round(100 * over, 2) if case.exact else None,
        # Before the reserve, which no engine holds back.
        "kv_error_without_reserve_percent": (
            round(100 * (_with_reserve(memory) / case.needs_tokens - 1), 2) if case.exact else None
        ),
        "false_fit": false_fit,
        "false_refusal": not case.exact and case.fitted and not fits,
    }


def _with_reserve(memory: GpuMemory) -> float:
    return memory.kv_tokens + memory.reserve / memory.token


def options(*, policy: PlannerPolicy) -> Iterator[JSON]:
    """Yield every option of four models over eight GPUs, sizes, precisions and engines' fractions."""
    for name, gib, tensor, precision, fraction in itertools.product(
        _MODELS, GPUS_GIB.values(), _SIZES, _PRECISIONS, FRACTIONS_PERMILLE
    ):
        size = round(gib * GIB)
        memory, whole = (
            planned(
                name,
                gib=gib,
                precision=precision,
                kv_precision=precision,
                tensor=ranks,
                fraction_permille=fraction,
                policy=policy,
            )
            for ranks in (tensor, 1)
        )
        yield {
            "fits": memory.kv_tokens >= KNOWN[name].context,
            "planned_permille_of_gpu": 1000 * memory.planned / size,
            "within": memory.planned + memory.reserve <= memory.budget <= size,
            "weights_of_all_ranks_ratio": tensor * memory.weights / whole.weights,
        }


def uneven_sizes() -> list[JSON]:
    """Return sizes that do not divide a model's heads, and what is said about them."""
    found = []
    for name, tensor in (("llama-3.1-8b", 3), ("qwen1.5-32b", 16), ("smollm2-135m", 2)):
        known = KNOWN[name]
        said = indivisible(known.architecture, depth=known.depth, ranks=tensor, stages=1)
        found.append({"model": name, "tensor_parallel_size": tensor, "refused": said or ""})
    return found
