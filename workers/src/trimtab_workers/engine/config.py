"""The model set and engine limits (contracts §5), parsed without pydantic.

Files that a person or the operator gives refuse unknown fields; every error names the field, the
value and the remedy. A bad file raises and changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from trimtab_workers.engine.capabilities import CAPABILITIES
from trimtab_workers.engine.errors import ConfigError

Dtype = Literal["bf16", "fp32", "int8", "int4"]

DTYPES: tuple[Dtype, ...] = ("bf16", "fp32", "int8", "int4")
PRESSURES = ("recompute", "swap", "remap-idle", "remap")
LendOrder = Literal["mru", "lru", "largest"]
BLOCK_TOKENS = 16
MIN_RESIDENT_UNITS = 2
ACTIVE_CAP = 0.25
QUEUE_LIMIT = 1_024
WATERMARK = 0.02
MAX_FILE_BYTES = 1 << 20

_TOP_FIELDS = frozenset(
    {
        "v",
        "revision",
        "device",
        "threads",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "memory_bytes",
        "max_model_len",
        "max_batch_tokens",
        "max_seqs",
        "pressure",
        "limits",
        "advice",
        "models",
    }
)
_MODEL_FIELDS = frozenset({"name", "path", "dtype", "chat_template"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What happens, in order, when KV blocks run out; cached prefixes first and recompute last.

    Attributes:
        lend: Idle models' units become KV cache.
        active: Running models' units do, as far as reading them again stays hidden.
        swap: Sequences and evicted prefixes go to host memory.
        streamed: Units of every model that are KV from the start (`static:K`).
        granted: Units' worth of slabs per model beside the budget (`oracle:K`).
    """

    lend: bool = False
    active: bool = False
    swap: bool = False
    streamed: int = 0
    granted: int = 0

    @property
    def host_copies(self) -> bool:
        """Whether weights are kept in host memory too."""
        return self.lend or self.active or self.streamed > 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a value of the field `pressure`.

        Raises:
            ConfigError: There is no such policy.
        """
        named = {
            "recompute": cls(),
            "swap": cls(swap=True),
            "remap-idle": cls(lend=True, swap=True),
            "remap": cls(lend=True, active=True, swap=True),
        }
        if text in named:
            return named[text]
        kind, _, number = text.partition(":")
        if kind in {"static", "oracle"} and number.isascii() and number.isdigit():
            count = int(number[:6])
            return cls(streamed=count) if kind == "static" else cls(granted=count)
        raise ConfigError(
            f"The model set's field pressure is {text!r}. Give one of {', '.join(PRESSURES)}, "
            "static:K or oracle:K with a number of units for K."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWeights:
    """Weights drawn instead of read, for fingerprints: normal, standard deviation 0.02.

    Attributes:
        hf_config: HF-style configuration; see `models.llama.LlamaShape.from_hf_config`.
    """

    hf_config: Mapping[str, object]
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the set.

    Attributes:
        name: Public name, the only one the worker answers to.
        path: A GGUF file or a directory with safetensors; unused with random weights.
        dtype: Of the weights. `int8` and `int4` quantise the layers' matrices at load; embedding,
            head, norms, activations and KV cache are bf16 then.
        chat_template: Jinja2 source that replaces the checkpoint's own, or None.
    """

    name: str
    path: Path
    dtype: Dtype = "bf16"
    chat_template: str | None = None
    random: RandomWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything an engine is started with.

    Attributes:
        threads: Of each rank.
        tensor_parallel_size: Processes that share each layer; `memory_bytes` is for each of them.
        pipeline_parallel_size: Stages of layers, each of `tensor_parallel_size` processes.
        memory_bytes: Weights, KV cache and fixed regions together; None takes what the weights
            need plus KV for `max_seqs` / 4 full contexts, at most (tests and benches).
        max_batch_tokens: Tokens computed in one step, decode rows included.
        pressure: See `Policy`.
        lend_order: Which idle model lends first: used last, used longest ago, or the largest.
        swap_bytes: Host memory for swapped blocks of all models, in even shares; None is as much as the home KV
            pool. Taken as it is used.
        slots: Slabs through which a model's units stream, 1 or 2; 0 lets the slot rule decide.
        native: Whether the C kernels may be used where they apply; no field of a model set.
        file: Where the set was read from, so that `Engine.reload` can read it again.
        model_root: Folder below which `file`'s model paths lie.
        limits, advice: Kept for `/-/state`; the remap controller reads them.
    """

    models: tuple[ModelSpec, ...]
    revision: int = 0
    device: str = "cpu"
    threads: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    memory_bytes: int | None = None
    max_model_len: int | None = None
    max_batch_tokens: int = 512
    max_seqs: int = 256
    pressure: str = "recompute"
    lend_order: LendOrder = "mru"
    swap_bytes: int | None = None
    slots: int = 0
    queue_limit: int = QUEUE_LIMIT
    watermark: float = WATERMARK
    prefix_caching: bool = True
    native: bool = True
    limits: Mapping[str, float] = field(default_factory=dict)
    advice: Mapping[str, object] | None = None
    file: Path | None = None
    model_root: Path | None = None

    def __post_init__(self) -> None:
        if self.ranks > 1 and self.pressure != "recompute":
            # Step plans carry no operations on slabs yet, so ranks would move them apart.
            raise ConfigError(
                f"The model set's field pressure is {self.pressure!r}, but with tensor_parallel_size "
                f"{self.tensor_parallel_size} and pipeline_parallel_size {self.pipeline_parallel_size} "
                "only 'recompute' is run. Set pressure to 'recompute', or both sizes to 1."
            )

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def policy(self) -> Policy:
        """What `pressure` means."""
        return Policy.parse(self.pressure)

    @property
    def min_resident_units(self) -> int:
        """Units that an idle model keeps."""
        return int(self.limits.get("min_resident_units", MIN_RESIDENT_UNITS))

    @property
    def active_cap(self) -> float:
        """Share of a running model's units that may become KV, 0 to 1."""
        return self.limits.get("active_cap", ACTIVE_CAP)


def load_config(file: Path, *, model_root: Path) -> EngineConfig:
    """Read a model set file.

    Raises:
        ConfigError: The file is missing, too large, no JSON, or a field is wrong.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"The model set {file} cannot be read: {error.strerror}. "
            "Give an existing file with --config."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            f"The model set {file} is larger than {MAX_FILE_BYTES} bytes. Declare fewer models."
        )
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"The model set {file} is no valid JSON: {error}. Correct the file."
        ) from error
    return parse_config(document, model_root=model_root, file=file)


def parse_config(document: object, *, model_root: Path, file: Path | None = None) -> EngineConfig:
    """Turn a decoded model set into a configuration.

    Raises:
        ConfigError: A field is missing, unknown or has a wrong value.
    """
    top = _mapping(document, "the model set")
    _refuse_unknown(top, _TOP_FIELDS, "the model set")
    if top.get("v") != 1:
        raise ConfigError(
            f"The model set's field v is {top.get('v')!r}; this engine reads version 1. "
            "Use an operator and a worker of the same release."
        )
    models = top.get("models")
    if not isinstance(models, Sequence) or isinstance(models, str) or not models:
        raise ConfigError(
            f"The model set's field models is {models!r}. Give a list with at least one model."
        )
    specs = tuple(_model(entry, index, model_root) for index, entry in enumerate(models))
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"The model set names {twice[0]!r} twice. Give every model its own name.")
    batch_tokens = _integer(top, "max_batch_tokens", 512, minimum=BLOCK_TOKENS)
    sequences = _integer(top, "max_seqs", min(256, batch_tokens), minimum=1)
    if sequences > batch_tokens:
        # Past the budget sequences would be starved of steps, the youngest for as long as it lasts.
        raise ConfigError(
            f"The model set's field max_seqs is {sequences}, more than its max_batch_tokens of "
            f"{batch_tokens}, of which every sequence takes one in each step. "
            "Lower max_seqs or raise max_batch_tokens."
        )
    return EngineConfig(
        models=specs,
        revision=_integer(top, "revision", 0, minimum=0),
        device=_device(top.get("device", "cpu")),
        threads=_integer(top, "threads", 1, minimum=1),
        tensor_parallel_size=_one_of(
            top, "tensor_parallel_size", CAPABILITIES.tensor_parallel_sizes
        ),
        pipeline_parallel_size=_one_of(
            top, "pipeline_parallel_size", CAPABILITIES.pipeline_parallel_sizes
        ),
        memory_bytes=_optional_integer(top, "memory_bytes"),
        max_model_len=_optional_integer(top, "max_model_len"),
        max_batch_tokens=batch_tokens,
        max_seqs=sequences,
        pressure=_pressure(top.get("pressure", "recompute")),
        limits=_limits(top.get("limits")),
        advice=None if top.get("advice") is None else _mapping(top["advice"], "field advice"),
        file=file,
        model_root=model_root,
    )


def _model(entry: object, index: int, model_root: Path) -> ModelSpec:
    where = f"models[{index}]"
    fields = _mapping(entry, where)
    _refuse_unknown(fields, _MODEL_FIELDS, where)
    name, path = fields.get("name"), fields.get("path")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.name is {name!r}. Give the model's public name.")
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{where}.path is {path!r}. Give a path below the model root.")
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigError(
            f"{where}.path is {path!r}. Give a path relative to the model root, without '..'."
        )
    template = fields.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise ConfigError(f"{where}.chat_template is no text. Give Jinja2 source or null.")
    return ModelSpec(
        name=name,
        path=model_root / relative,
        dtype=dtype_of(fields.get("dtype", "bf16"), where=where),
        chat_template=template,
    )


def dtype_of(value: object, *, where: str) -> Dtype:
    """Return a precision of weights by its name.

    Raises:
        ConfigError: There is none of that name; says which there are.
    """
    for known in DTYPES:
        if known == value:
            return known
    raise ConfigError(f"{where}.dtype is {value!r}. Give one of {', '.join(DTYPES)}.")


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}. Give a JSON object.")
    return value


def _refuse_unknown(fields: Mapping[str, object], known: frozenset[str], where: str) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(
            f"{where} has the unknown field {unknown[0]!r}. Known are {', '.join(sorted(known))}."
        )


def _integer(fields: Mapping[str, object], name: str, default: int, *, minimum: int) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(
            f"The model set's field {name} is {value!r}. Give an integer of at least {minimum}."
        )
    return value


def _one_of(fields: Mapping[str, object], name: str, sizes: tuple[int, ...]) -> int:
    value = _integer(fields, name, 1, minimum=1)
    if value not in sizes:
        raise ConfigError(
            f"The model set's field {name} is {value}, and this engine runs "
            f"{', '.join(map(str, sizes))}. Give one of these."
        )
    return value


def _optional_integer(fields: Mapping[str, object], name: str) -> int | None:
    return None if fields.get(name) is None else _integer(fields, name, 0, minimum=1)


def _device(value: object) -> str:
    """Check the form alone: whether there is such a device is found when it is opened."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:\d{1,3})?", value):
        raise ConfigError(
            f"The model set's field device is {value!r}. Give 'cpu', 'cuda' or 'cuda:N'."
        )
    return value


def _pressure(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    Policy.parse(text)
    return text


def _limits(value: object) -> Mapping[str, float]:
    if value is None:
        return {}
    limits = _mapping(value, "field limits")
    _refuse_unknown(limits, frozenset({"min_resident_units", "active_cap"}), "field limits")
    result: dict[str, float] = {}
    for name, number in limits.items():
        if not isinstance(number, int | float) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"limits.{name} is {number!r}. Give a number of zero or more.")
        result[name] = float(number)
    return result
