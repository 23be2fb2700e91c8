"""The model and engine of a run that was recorded elsewhere, as far as a simulation needs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.output import CommandError
from trimtab.planning.architecture import Architecture, UnsupportedArchitectureError
from trimtab.planning.gpu_memory import gpu_memory, indivisible
from trimtab.planning.gpus import gpu_configs
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.scheduler_limits import SchedulerLimits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

JSON = dict[str, Any]  # any: JSON

UNBOUND_TOKENS: Final = 1 << 40
_GIB: Final = 2**30
_VLLM_SHARE: Final = 0.9
# Layers of published models that LLMServingSim's cluster files name without their configuration.
_PUBLISHED_DEPTHS: Final[Mapping[str, int]] = {
    "llama-3.1-8b": 32,
    "llama-3.1-70b": 80,
    "llama-3.2-1b": 16,
    "llama-3.2-3b": 28,
    "llama-3.3-70b": 80,
    "mistral-7b": 32,
    "qwen2.5-7b": 28,
    "qwen2.5-14b": 48,
    "qwen2.5-32b": 64,
    "qwen2.5-72b": 80,
    "qwen3-0.6b": 28,
    "qwen3-1.7b": 28,
    "qwen3-4b": 36,
    "qwen3-8b": 36,
    "qwen3-14b": 40,
    "qwen3-32b": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What is known about the model.

    Attributes:
        depth: Hidden layers.
        architecture: None where the configuration is of a family that is not planned, or is no
            model's.
        gpu_bytes: Memory of one GPU, where the file says it.
        gpu_share: Of it that the engine may take, where the file says it.
        notes: What was assumed.
    """

    depth: int
    architecture: Architecture | None
    gpu_bytes: int | None = None
    gpu_share: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEngine:
    """How the engine was started.

    ``replicas`` is vLLM's data-parallel size; ``version`` is empty where the file does not say it.
    """

    limits: SchedulerLimits
    tensor_parallel_size: int
    replicas: int
    gpu_share: float
    version: str


def read_model(path: Path) -> ServedModel:
    """Read a Hugging Face `config.json`, or LLMServingSim's cluster file of a published model.

    Raises:
        CommandError: It is neither, or does not say how many layers the model has.
    """
    document = read_object(path)
    if isinstance(document.get("nodes"), list):
        return _from_cluster(path, document)
    depth = document.get("num_hidden_layers")
    if type(depth) is not int or depth < 1:
        raise CommandError(
            f"{path}: num_hidden_layers is {depth!r}. Give the config.json of the model that was "
            "served: a fingerprint does not say how deep it is."
        )
    try:
        return ServedModel(depth=depth, architecture=Architecture.from_hf_config(document))
    except UnsupportedArchitectureError as error:
        note = f"KV memory is not known, so nothing is preempted: {error}"
        return ServedModel(depth=depth, architecture=None, notes=(note,))


def _from_cluster(path: Path, document: JSON) -> ServedModel:
    instances = [i for node in document["nodes"] for i in node.get("instances") or ()]
    if len(instances) != 1:
        raise CommandError(
            f"{path} is LLMServingSim's cluster file with {len(instances)} instances, and one can be "
            "compared. Give the model's config.json."
        )
    name = str(instances[0].get("model_name"))
    bare = name.rsplit("/", 1)[-1].lower().removesuffix("-instruct")
    depth = _PUBLISHED_DEPTHS.get(bare)
    if depth is None:
        raise CommandError(
            f"{path} is LLMServingSim's cluster file and names the model {name!r}, but not its layers. "
            "Give that model's config.json."
        )
    memory = instances[0].get("npu_mem") or {}
    size, share = memory.get("mem_size"), memory.get("mem_util")
    return ServedModel(
        depth=depth,
        architecture=None,
        gpu_bytes=None if size is None else int(float(size) * _GIB),
        gpu_share=None if share is None else float(share),
        notes=(f"{path.name} names {name}; its {depth} layers are the published ones",),
    )


def read_engine(path: Path) -> ServedEngine:
    """Read vLLM's arguments: an object, or its key `engine_kwargs`.

    Raises:
        CommandError: A limit of the scheduler is missing or wrong.
    """
    document = read_object(path)
    kwargs = document.get("engine_kwargs", document)
    if not isinstance(kwargs, dict):
        raise CommandError(f"{path}: engine_kwargs is {kwargs!r:.60}. Give vLLM's arguments.")
    if _whole(path, kwargs, "pipeline_parallel_size", default=1) != 1:
        raise CommandError(
            f"{path}: pipeline_parallel_size is {kwargs['pipeline_parallel_size']}, and stages are "
            "not simulated. Give a run with 1."
        )
    share = kwargs.get("gpu_memory_utilization")
    return ServedEngine(
        limits=SchedulerLimits(
            token_budget=_whole(path, kwargs, "max_num_batched_tokens"),
            max_running=_whole(path, kwargs, "max_num_seqs"),
            max_model_len=_whole(path, kwargs, "max_model_len", default=0) or None,
            queue_limit=None,
        ),
        tensor_parallel_size=_whole(path, kwargs, "tensor_parallel_size", default=1),
        replicas=_whole(path, kwargs, "data_parallel_size", default=1),
        gpu_share=_VLLM_SHARE if share is None else float(share),
        version=str(document.get("vllm_version") or ""),
    )


def kv_tokens(
    model: ServedModel,
    engine: ServedEngine,
    *,
    gpu_bytes: int | None,
    precision: str,
    kv_precision: str,
) -> tuple[int, str]:
    """Return how many tokens the KV cache holds, and where that figure is from."""
    architecture, tp = model.architecture, engine.tensor_parallel_size
    size = gpu_bytes or model.gpu_bytes
    if size is None or architecture is None:
        missing = "GPU memory" if size is None else "the model's sizes"
        return UNBOUND_TOKENS, f"unbounded: {missing} not given, so nothing is preempted"
    share = model.gpu_share or engine.gpu_share
    uneven = indivisible(architecture, depth=model.depth, ranks=tp, stages=1)
    if uneven is not None:
        raise CommandError(f"{uneven} Give the engine's own tensor_parallel_size.")
    [config] = gpu_configs("", stages=1, precisions=(precision,), sizes=(tp,))
    memory = gpu_memory(
        architecture,
        config,
        depth=model.depth,
        gpu_bytes=size,
        kv_precision=kv_precision,
        block_tokens=engine.limits.block_tokens,
        rows=(),
        policy=PlannerPolicy(gpu_memory_permille=round(1000 * share)),
    )
    if not memory.kv_tokens:
        raise CommandError(
            f"The model's weights take {memory.weights / _GIB:.1f} GiB of each GPU, and nothing is "
            f"left of {memory.budget / _GIB:.1f} GiB for the KV cache. Give the memory of the GPU that "
            "served."
        )
    return memory.kv_tokens, (
        f"{share:.0%} of {size / _GIB:.0f} GiB less weights, 2.3 GiB, 5 % of weights and 2 %"
    )


def read_object(path: Path) -> JSON:
    """Read a JSON object.

    Raises:
        CommandError: The file is missing or holds something else.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise CommandError(
            f"{path} holds {type(document).__name__}, not an object. Give another file."
        )
    return document


def _whole(path: Path, kwargs: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    value = kwargs.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise CommandError(
            f"{path}: {name} is {value!r}, but the simulation needs the engine's own. Write the value "
            "that the run was started with."
        )
    return value
