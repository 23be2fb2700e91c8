"""Models on GPUs for benchmarks without a GPU: what a planner sees, and the fuller truth beside it.

Truth is a step model of the full grid; the planner's is of the thin one, cut out of it. Both are of one
source, so what is judged is thinning, load and choice, not how right the source is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.bench.estimates import profiling_ratio
from trimtab.bench.known_models import KNOWN
from trimtab.cli.catalogue import CatalogueQuery, ask
from trimtab.cli.output import CommandError
from trimtab.planning.architecture import architecture_hash
from trimtab.planning.confidence import assess, margin_permille
from trimtab.planning.fingerprint import FingerprintInvalidError, FingerprintKey, parse
from trimtab.planning.gpu_grid import FULL, THIN, thinned
from trimtab.planning.gpu_memory import gpu_memory, indivisible
from trimtab.planning.gpus import gpu_configs
from trimtab.planning.roofline_gpu import PEAKS, gpu_roofline
from trimtab.planning.step_model import StepWork, fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from trimtab.bench.known_models import KnownModel
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.step_model import StepModel

GIB: Final = 2**30
SIZES: Final = (1, 2, 4, 8)
NODE_GPUS: Final = 8
LONGEST: Final = 16384
"""Longest prompt + output that a replica must hold."""
TOKEN_BUDGET: Final = 8192
_BACKEND: Final = "vllm"
_CLASSES: Final[Mapping[str, str]] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_PRECISION: Final = "bf16"
_BLOCK_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A GPU: its normalised name, the catalogue's name, memory as the driver reports it, price.

    Prices are planner.md §8's dated book, USD per GPU-hour; the A100's for the L40S is an example.
    """

    name: str
    system: str
    gib: float
    usd_per_hour: float


PRODUCTS: Final[Mapping[str, Product]] = {
    "a100": Product(name="NVIDIA-A100-SXM4-80GB", system="a100_sxm", gib=79.2, usd_per_hour=3.50),
    "h100": Product(name="NVIDIA-H100-80GB-HBM3", system="h100_sxm", gib=79.2, usd_per_hour=4.50),
    "h200": Product(name="NVIDIA-H200", system="h200_sxm", gib=139.8, usd_per_hour=5.75),
    "l40s": Product(name="NVIDIA-L40S", system="l40s", gib=44.5, usd_per_hour=1.80),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A model on one product over one number of GPUs.

    Attributes:
        model: A name in `KNOWN`.
        product: A name in `PRODUCTS`.
        size: Tensor-parallel size.
        document: The thin-grid fingerprint that a planner has.
        seen: The step model of it.
        truth: What judges it.
        roofline: From the data sheet; a comparator.
        kv_tokens: That a replica's cache holds.
        weights: Bytes on each GPU.
        token: Bytes that one token keeps on each GPU.
        room: Bytes on each GPU for weights and KV cache.
        margin_permille: What a prediction is lengthened by before a target.
        profiling: Full model over fingerprint, one decode step.
    """

    model: str
    product: str
    size: int
    document: Fingerprint
    seen: StepModel
    truth: StepModel
    roofline: StepModel
    kv_tokens: int
    weights: int
    token: int
    room: int
    margin_permille: int
    profiling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setups:
    """What there is to choose from, where its step times are from, and what is missing and why."""

    label: str
    setups: tuple[Setup, ...]
    refused: Mapping[str, str]


def setups(
    models: Sequence[str],
    products: Sequence[str],
    *,
    python: str | None,
    folder: Path | None,
    policy: PlannerPolicy,
) -> Setups:
    """Return every model on every product and size that it fits.

    Step times are from documents of the full grid in ``folder``, else from the catalogue, else, where that
    is absent, from data sheets: then the full grid is the same roofline, and truth says nothing about time.

    Raises:
        CommandError: A document in the folder cannot be read.
    """
    wanted = [(m, p, s) for m in models for p in products for s in SIZES]
    if folder is not None:
        label, found = f"given fingerprints of {folder}", _given(folder, wanted)
    else:
        label, found = _catalogued(wanted, python=python, policy=policy)
    ready: list[Setup] = []
    refused: dict[str, str] = {}
    for model, product, size in wanted:
        name = f"{model} on {product}, {size} GPUs"
        full = found[model, product, size]
        if isinstance(full, str):
            refused[name] = full
            continue
        try:
            ready.append(_setup(model, product, size, full, policy=policy))
        except (FingerprintInvalidError, _NoRoomError) as error:
            refused[name] = str(error)
    return Setups(label=label, setups=tuple(ready), refused=refused)


class _NoRoomError(Exception):
    """The model does not fit, or does not divide; the sentence has both figures."""


_Wanted = tuple[str, str, int]


def _given(folder: Path, wanted: Sequence[_Wanted]) -> dict[_Wanted, Fingerprint | str]:
    documents = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found = parse(path.read_text())
        except (OSError, FingerprintInvalidError) as error:
            raise CommandError(
                f"--fingerprints {path} cannot be read: {error} Give documents of the full grid, as "
                "`trimtab fingerprint derive --grid full` writes them."
            ) from error
        key = found.key
        documents[key.architecture, key.product, key.tensor_parallel_size] = found
    return {
        (m, p, s): documents.get(
            (architecture_hash(KNOWN[m].architecture), PRODUCTS[p].name, s),
            f"{folder} has no document of it",
        )
        for m, p, s in wanted
    }


def _catalogued(
    wanted: Sequence[_Wanted], *, python: str | None, policy: PlannerPolicy
) -> tuple[str, dict[_Wanted, Fingerprint | str]]:
    queries = [
        CatalogueQuery(
            model=KNOWN[m].catalogue or m,
            system=PRODUCTS[p].system,
            backend=_BACKEND,
            precision=_PRECISION,
            kv_precision=_PRECISION,
            tensor_parallel_size=s,
            config=None if KNOWN[m].catalogue else _config(KNOWN[m]),
            grid="full",
        )
        for m, p, s in wanted
    ]
    try:
        answers = ask(queries, python=python)
    except CommandError as error:
        label = f"data sheets (roofline), because there is no catalogue: {error}"
        return label, dict(_rooflines(wanted, policy=policy))
    results = (r if isinstance(r, str) else r.fingerprint for r in answers.results)
    return f"catalogue aiconfigurator {answers.package}", dict(zip(wanted, results, strict=True))


def _config(known: KnownModel) -> dict[str, object]:
    name = _CLASSES[known.architecture.family]
    return {**known.hf_config(), "architectures": [name]}


def _rooflines(
    wanted: Sequence[_Wanted], *, policy: PlannerPolicy
) -> Iterator[tuple[_Wanted, Fingerprint | str]]:
    for model, product, size in wanted:
        name = PRODUCTS[product].name
        key = FingerprintKey(
            architecture=architecture_hash(KNOWN[model].architecture),
            product=name,
            precision=_PRECISION,
            kv_precision=_PRECISION,
            tensor_parallel_size=size,
            engine=_BACKEND,
            engine_version="",
        )
        yield (
            (model, product, size),
            gpu_roofline(
                KNOWN[model].architecture, key=key, peak=PEAKS[name], policy=policy, grid=FULL
            ),
        )


def _setup(
    model: str, product: str, size: int, full: Fingerprint, *, policy: PlannerPolicy
) -> Setup:
    known, gpu = KNOWN[model], PRODUCTS[product]
    uneven = indivisible(known.architecture, depth=known.depth, ranks=size, stages=1)
    if uneven is not None:
        raise _NoRoomError(uneven)
    [config] = gpu_configs(gpu.name, stages=1, precisions=(_PRECISION,), sizes=(size,))
    memory = gpu_memory(
        known.architecture,
        config,
        depth=known.depth,
        gpu_bytes=round(gpu.gib * GIB),
        kv_precision=_PRECISION,
        block_tokens=_BLOCK_TOKENS,
        rows=(),
        policy=policy,
    )
    if memory.kv_tokens < LONGEST:
        raise _NoRoomError(
            f"weights take {memory.weights / GIB:.1f} GiB of {memory.budget / GIB:.1f}, and the rest holds "
            f"{memory.kv_tokens} tokens, not a request of {LONGEST}"
        )
    thin = thinned(full)
    seen = fit(thin, depth=known.depth)
    confidence = assess(
        thin,
        seen,
        engine_version=full.key.engine_version,
        extrapolated=seen.extrapolates(StepWork(tokens=TOKEN_BUDGET, sampled=1)),
        utilisation_permille=0,
        policy=policy,
    )
    sheet = gpu_roofline(
        known.architecture, key=full.key, peak=PEAKS[gpu.name], policy=policy, grid=THIN
    )
    return Setup(
        model=model,
        product=product,
        size=size,
        # A catalogue's own configuration may differ in what shapes no work here, as rotary scaling does.
        document=replace(
            thin, key=replace(thin.key, architecture=architecture_hash(known.architecture))
        ),
        seen=seen,
        truth=fit(full, depth=known.depth),
        roofline=fit(sheet, depth=known.depth),
        kv_tokens=memory.kv_tokens,
        weights=memory.weights,
        token=memory.token,
        room=memory.budget - memory.reserve - memory.beside,
        margin_permille=margin_permille(confidence.level, policy=policy),
        profiling=profiling_ratio(seen),
    )
