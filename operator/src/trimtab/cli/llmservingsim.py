"""Read a one-layer profile in LLMServingSim's format: dense, per-sequence and attention tables.

Files are `meta.yaml` and, per tensor-parallel degree N, `tpN/dense.csv`, `tpN/per_sequence.csv`,
`tpN/attention.csv`, or the same with a dash (`tpN-dense.csv`). Times are µs of one rank's shapes.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import yaml

from trimtab.cli.output import CommandError
from trimtab.planning.curves import Curve
from trimtab.planning.onelayer import AttentionPoint, OneLayerProfile
from trimtab.planning.precision import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# How often a hidden layer computes each operator. Not in every family: qk_norm.
_IN_LAYER: Final[Mapping[str, int]] = {
    "layernorm": 2,
    "qkv_proj": 1,
    "qk_norm": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
_ONCE: Final = ("embedding", "final_layernorm")
_SAMPLED: Final = ("lm_head", "sampler")
_QK_NORM_FAMILIES: Final = ("qwen3",)
# Profilers see kernels, not modules: a fused norm or rotation may have no time of its own. Without
# a matrix product there is no layer.
_NEEDED: Final = frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"})
_AXES: Final = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
_DTYPES: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_ACTIVATIONS: Final = ("bf16", "fp16", "fp32")
_UNREAD: Final = ("moe", "linear_attention", "sparse_attention", "mtp")

Tables = dict[str, dict[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What `meta.yaml` says about the measurement.

    Attributes:
        product: Normalised name of the GPU.
        engine_version: vLLM's version.
        precision: Of the weights.
        kv_precision: Of the KV cache.
        family: Model family.
        eager: Measured without graphs.
        repeats: Measurements behind each figure.
        taken: RFC 3339 time, or empty.
    """

    product: str
    engine_version: str
    precision: str
    kv_precision: str
    family: str
    eager: bool
    repeats: int
    taken: str


def read_meta(folder: Path) -> Meta:
    """Read a profile's `meta.yaml`.

    Raises:
        CommandError: The folder or the file is missing, or a field is missing or wrong.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder: name the one that holds meta.yaml.")
    path = folder / "meta.yaml"
    try:
        data = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise CommandError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(data, dict):
        raise CommandError(f"{path} must hold an object, not {type(data).__name__}.")
    engine = data.get("engine_effective")
    if not data.get("variant") and isinstance(engine, dict) and engine.get("dtype"):
        data["variant"] = _DTYPES.get(str(engine["dtype"]), str(engine["dtype"]))
    precision, _, kv = _field(path, data, "variant").partition("-kv")
    # vLLM's `auto` keeps the KV cache in the activations' type, also where weights are quantised.
    kv = kv or (precision if precision in _ACTIVATIONS else "bf16")
    for name in (precision, kv):
        if name not in PRECISIONS:
            raise CommandError(
                f"{path}: variant {data['variant']!r} names the precision {name!r}; known are "
                f"{', '.join(PRECISIONS)}. Profile one of these."
            )
    taken = data.get("profiled_at") or ""
    repeats = data.get("measurement_iterations", 1)
    if type(repeats) is not int or repeats < 1:
        raise CommandError(f"{path}: measurement_iterations is {repeats!r}; write a count.")
    product = str(data.get("gpu") or "") or _field(path, data, "hardware")
    return Meta(
        product=re.sub(r"\s+", "-", product.strip()),
        engine_version=_field(path, data, "vllm_version"),
        precision=precision,
        kv_precision=kv,
        family=str(data.get("architecture") or ""),
        eager=isinstance(engine, dict) and engine.get("enforce_eager") is True,
        repeats=repeats,
        taken=taken.isoformat() if isinstance(taken, datetime) else str(taken),
    )


def read_profile(folder: Path, meta: Meta, *, tensor_parallel_size: int) -> OneLayerProfile:
    """Read the tables of one tensor-parallel degree.

    Raises:
        CommandError: A file is missing or wrong; names file, line, column and remedy. Also where
            the profile holds operators that would be left out, such as experts.
    """
    for kind in _UNREAD:
        found = _path(folder, tensor_parallel_size, kind)
        if found.exists():
            raise CommandError(
                f"{found} holds operators of {kind}, which are not read: leaving them out would "
                "make every step look faster. Import a model of equal, dense layers."
            )
    dense_path = _existing(folder, tensor_parallel_size, "dense")
    dense = _table(dense_path, "tokens")
    absent = _absent(dense_path, dense, known=(*_IN_LAYER, *_ONCE))
    if not meta.family.startswith(_QK_NORM_FAMILIES):
        absent = [name for name in absent if name != "qk_norm"]
    rest_path = _existing(folder, tensor_parallel_size, "per_sequence")
    rest = _table(rest_path, "sequences")
    absent += _absent(rest_path, rest, known=_SAMPLED)
    return OneLayerProfile(
        layer=_sum(dense, _IN_LAYER),
        once=_sum(dense, dict.fromkeys(_ONCE, 1)),
        sampled=_sum(rest, dict.fromkeys(_SAMPLED, 1)),
        absent=tuple(absent),
        attention=_attention(_existing(folder, tensor_parallel_size, "attention")),
        repeats=meta.repeats,
    )


def read_all_reduce(path: Path) -> tuple[tuple[int, int], ...]:
    """Read an all-reduce curve, a CSV file with the columns bytes and time_us.

    Raises:
        CommandError: The file is missing or wrong, or a size stands there twice.
    """
    found: dict[int, int] = {}
    for line, row in _rows(path, ("bytes", "time_us")):
        size = _whole(path, line, row, "bytes")
        if size in found:
            raise CommandError(f"{path} line {line}: bytes {size} stands there twice. Keep one.")
        found[size] = max(1, round(_time(path, line, row)))
    return tuple(sorted(found.items()))


def _field(path: Path, data: Mapping[str, Any], name: str) -> str:  # any: YAML
    value = data.get(name)
    if value is None or not str(value).strip():
        raise CommandError(
            f"{path} has no {name}: without it nobody knows what the times are valid for. Add it."
        )
    return str(value)


def _path(folder: Path, degree: int, kind: str) -> Path:
    nested = folder / f"tp{degree}" / f"{kind}.csv"
    return nested if nested.exists() else folder / f"tp{degree}-{kind}.csv"


def _existing(folder: Path, degree: int, kind: str) -> Path:
    path = _path(folder, degree, kind)
    if path.is_file():
        return path
    names = [p.name for p in folder.iterdir()]
    degrees = sorted({int(m.group(1)) for n in names if (m := re.match(r"tp(\d+)(-|$)", n))})
    held = ", ".join(map(str, degrees)) or "none"
    raise CommandError(
        f"{path} does not exist; {folder} holds tensor-parallel degrees {held}. Name one of them "
        "with --tensor-parallel, or profile this one too."
    )


def _table(path: Path, axis: str) -> Tables:
    tables: Tables = defaultdict(dict)
    for line, row in _rows(path, ("layer", axis, "time_us")):
        name, x = str(row["layer"]), _whole(path, line, row, axis)
        if x < 1 or x in tables[name]:
            raise CommandError(
                f"{path} line {line}: {axis} {x} of layer {name} must be positive and stand there "
                "once. Remove the line."
            )
        tables[name][x] = _time(path, line, row)
    return tables


def _absent(path: Path, tables: Tables, *, known: Sequence[str]) -> list[str]:
    """Return the operators without a time of their own.

    Raises:
        CommandError: A matrix product is missing, or an operator is not known: it would be left out.
    """
    unknown = sorted(set(tables) - set(known))
    missing = sorted(set(known) - set(tables))
    if unknown or _NEEDED & set(missing):
        raise CommandError(
            f"{path}: the layers {unknown} are not known and {missing} are missing. Every operator "
            f"must be counted, once: {', '.join(known)}. Profile a model of a supported family."
        )
    return missing


def _sum(tables: Tables, counts: Mapping[str, int]) -> Curve:
    """Return count-weighted operators over all their knots, in between interpolated."""
    counts = {name: count for name, count in counts.items() if name in tables}
    if not counts:
        return Curve((1.0,), (0.0,))
    curves = {
        name: Curve(
            tuple(float(x) for x in sorted(tables[name])),
            tuple(tables[name][x] for x in sorted(tables[name])),
        )
        for name in counts
    }
    xs = sorted({x for curve in curves.values() for x in curve.xs})
    ys = [sum(count * curves[name].at(x) for name, count in counts.items()) for x in xs]
    return Curve(tuple(xs), tuple(ys))


def _attention(path: Path) -> tuple[AttentionPoint, ...]:
    found: dict[tuple[int, ...], AttentionPoint] = {}
    for line, row in _rows(path, (*_AXES, "time_us")):
        chunk, cached, batch, context = point = tuple(_whole(path, line, row, a) for a in _AXES)
        if not chunk and not batch:
            raise CommandError(
                f"{path} line {line}: prefill_chunk and n_decode are both 0: such a step computes "
                "nothing. Remove the line."
            )
        if (cached and not chunk) or (context and not batch):
            raise CommandError(
                f"{path} line {line}: kv_prefill {cached} needs a prefill_chunk and kv_decode "
                f"{context} an n_decode above 0. Correct the line."
            )
        if point in found:
            raise CommandError(f"{path} line {line}: this point stands there twice. Keep one.")
        found[point] = AttentionPoint(
            chunk=chunk, cached=cached, batch=batch, context=context, us=_time(path, line, row)
        )
    return tuple(found.values())


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str | None]]]:
    reader = csv.DictReader(_text(path).splitlines())
    missing = [c for c in columns if c not in (reader.fieldnames or ())]
    if missing:
        raise CommandError(
            f"{path} has the columns {', '.join(reader.fieldnames or ()) or 'none'}, and lacks "
            f"{', '.join(missing)}. Export it again in the profiler's format."
        )
    rows = [(reader.line_num, row) for row in reader]
    if not rows:
        raise CommandError(f"{path} holds no measurement. Run the profiler for this table too.")
    return rows


def _whole(path: Path, line: int, row: Mapping[str, str | None], column: str) -> int:
    try:
        value = int(row[column] or "")
    except ValueError as error:
        raise CommandError(
            f"{path} line {line}: {column} is {row[column]!r}, which is no whole number. Correct it."
        ) from error
    if value < 0:
        raise CommandError(f"{path} line {line}: {column} is {value}, below 0. Correct it.")
    return value


def _time(path: Path, line: int, row: Mapping[str, str | None]) -> float:
    try:
        value = float(row["time_us"] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise CommandError(
            f"{path} line {line}: time_us is {row['time_us']!r}; it must be a positive number of "
            "microseconds. Measure the point again."
        )
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from error
