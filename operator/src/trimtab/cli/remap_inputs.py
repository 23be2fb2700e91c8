"""From files and options to a question for `plan_remap`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from trimtab.cli.output import CommandError
from trimtab.observe.quantities import QuantityError, quantity
from trimtab.planning.architecture import Architecture, UnsupportedArchitectureError
from trimtab.planning.memory import matrices_bytes
from trimtab.planning.precision import PRECISIONS, value_bytes
from trimtab.planning.remap import Hardware, Limits, ModelShape, Traffic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JSON = dict[str, Any]  # any: a document as YAML reads it

# engine.md §1: usable, not nominal, rates; `trimtab bench calibrate` measures a machine's own.
PRESETS: Final[Mapping[str, Hardware]] = {
    "h100": Hardware(
        memory_bytes=76 * 10**9,
        memory_rate=3.0e12,
        link_rate=50e9,
        link_latency_s=10e-6,
        flops_rate=600e12,
        host_bytes=200 * 10**9,
    ),
    "gh200": Hardware(
        memory_bytes=90 * 10**9,
        memory_rate=4.0e12,
        link_rate=400e9,
        link_latency_s=10e-6,
        flops_rate=600e12,
        host_bytes=400 * 10**9,
    ),
    # The link is the memory itself: a copy costs reading and writing.
    "cpu": Hardware(
        memory_bytes=4 * 10**9,
        memory_rate=16e9,
        link_rate=6e9,
        link_latency_s=0.0,
        flops_rate=0.3e12,
        host_bytes=16 * 10**9,
    ),
}
_CPU_NOTE: Final = (
    "On a CPU a copy takes the cores and the memory that compute needs, so nothing hides: active "
    "layers are not streamed there, only idle models lend."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemapQuestion:
    """Everything that `plan_remap` is asked with, and what a reader should know about it."""

    models: Mapping[str, ModelShape]
    active: frozenset[str]
    hardware: Hardware
    traffic: Traffic
    limits: Limits
    notes: tuple[str, ...]


def read(
    *,
    configs: Sequence[str],
    shapes: Path | None,
    active: Sequence[str],
    hardware: str,
    figures: Mapping[str, str | None],
    precision: str | None,
    traffic: Mapping[str, Any],  # any: the fields of Traffic
) -> RemapQuestion:
    """Return the question that options describe.

    Raises:
        CommandError: A file or an option cannot be understood; names it and the remedy.
        ValueError: A figure is negative, zero or not finite.
    """
    models = _from_file(shapes) if shapes is not None else {}
    for given in configs:
        name, shape = _from_config(given, precision=precision)
        if name in models:
            raise CommandError(f"Model {name} is given twice: write --model-config OTHER=PATH.")
        models[name] = shape
    if not models:
        raise CommandError(
            "No model is given: add --model-config NAME=config.json or --shapes FILE."
        )
    if hardware not in PRESETS:
        raise CommandError(
            f"There is no hardware {hardware}: choose one of {', '.join(PRESETS)} and replace its "
            "figures with --memory, --memory-rate, --link-rate and --host-memory."
        )
    changes = {name: _number(name, text) for name, text in figures.items() if text is not None}
    on_cpu = hardware == "cpu"
    return RemapQuestion(
        models=models,
        active=frozenset(active or list(models)[:1]),
        hardware=replace(PRESETS[hardware], **changes),
        traffic=Traffic(**traffic),
        limits=Limits(active_cap=0.0) if on_cpu else Limits(),
        notes=(_CPU_NOTE,) if on_cpu else (),
    )


def _number(name: str, text: str) -> int:
    try:
        return int(quantity(text))
    except QuantityError as error:
        raise CommandError(f"--{name.replace('_', '-')}: {error}") from error


def _from_file(path: Path) -> dict[str, ModelShape]:
    document = _document(path)
    models = document.get("models")
    if not isinstance(models, dict) or not models:
        raise CommandError(f"{path} must hold models: {{NAME: {{layers: …, layer_bytes: …}}}}.")
    known = {field.name for field in fields(ModelShape)}
    found = {}
    for name, given in models.items():
        needed = known - {"bytes_per_value"}
        if not isinstance(given, dict) or not needed <= set(given) <= known:
            raise CommandError(
                f"{path}: models.{name} is {given!r}; give {', '.join(sorted(needed))} and, unless "
                "weights have 2 bytes, bytes_per_value."
            )
        found[str(name)] = ModelShape(**given)
    return found


def _from_config(given: str, *, precision: str | None) -> tuple[str, ModelShape]:
    name, separator, place = given.partition("=")
    path = Path(place if separator else given).expanduser()
    if path.is_dir():
        path /= "config.json"
    document = _document(path)
    try:
        architecture = Architecture.from_hf_config(document)
        depth = int(document["num_hidden_layers"])
    except (UnsupportedArchitectureError, KeyError, ValueError) as error:
        raise CommandError(f"{path}: {error}") from error
    own = {"float32": "fp32", "float16": "fp16"}.get(
        str(document.get("dtype") or document.get("torch_dtype")), "bf16"
    )
    chosen = precision or own
    if chosen not in PRECISIONS:
        raise CommandError(
            f"--precision is {chosen}; choose one of {', '.join(sorted(PRECISIONS))}."
        )
    size = value_bytes(chosen)
    cache = value_bytes(chosen if chosen in {"fp32", "fp16"} else "bf16")
    matrices = architecture.matrix_parameters()
    outside = architecture.layer_parameters() - matrices
    layer = matrices_bytes(architecture, precision=chosen)
    head = architecture.vocab_size * architecture.hidden_size
    shape = ModelShape(
        layers=depth,
        layer_bytes=layer,
        fixed_bytes=size * (architecture.fixed_parameters() + depth * outside),
        read_outside_bytes=size * head,
        kv_bytes_per_token=depth * cache * architecture.kv_values_per_token(),
        bytes_per_value=(depth * layer + size * head) / (depth * matrices + head),
    )
    return (name if separator else path.parent.name or path.stem), shape


def _document(path: Path) -> JSON:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from error
    if not isinstance(document, dict):
        raise CommandError(f"{path} is no mapping; give a config.json or a file of shapes.")
    return document
