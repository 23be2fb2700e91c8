"""Measured serving results, one row per run: what `planner-error` and `planner-choice` are judged by.

The format is the one in which aiconfigurator ships its measurements: a CSV file, gzipped or not,
with model, machine, engine, precision, lengths, concurrency, tensor-parallel size, TTFT and TPOT.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_COLUMNS: Final = (
    "model_path",
    "system",
    "backend",
    "backend_version",
    "precision",
    "mode",
    "isl",
    "osl",
    "batch_size",
    "tp_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)
_PRECISIONS: Final[Mapping[str, str]] = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_static": "fp8",
    "fp8_block": "fp8_block",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "int8_wo": "int8",
    "int4_wo": "int4",
}
_SINGLE: Final = ("pp_size", "attention_dp_size", "moe_ep_size")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Group:
    """Rows that differ in tensor-parallel size and load alone."""

    model: str
    system: str
    backend: str
    version: str
    precision: str

    def as_json(self) -> dict[str, str]:
        """Return the group's names."""
        return {
            "model": self.model,
            "system": self.system,
            "backend": self.backend,
            "version": self.version,
            "precision": self.precision,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured run: ``concurrency`` requests in flight all the time; mean times, ms.

    TTFT is not-a-number where it was not measured.
    """

    group: Group
    prompt: int
    output: int
    concurrency: int
    tensor_parallel_size: int
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a file holds: rows that can be judged by, and why the others cannot."""

    read: int
    used: tuple[Row, ...]
    skipped: Mapping[str, int]

    def by_group(self) -> dict[Group, list[Row]]:
        """Return the rows by group, groups in order of their names."""
        found: dict[Group, list[Row]] = {}
        for row in self.used:
            found.setdefault(row.group, []).append(row)
        return dict(sorted(found.items()))


def apart(group: Group) -> str:
    """Return why a group is reported beside the totals instead of in them, or an empty string."""
    if (group.system, group.backend, group.version) == ("h200_sxm", "vllm", "0.12.0"):
        return "about twofold faster than every estimate and every other row: planner.md §11"
    return ""


def read_rows(path: Path, *, model: str = "", backend: str = "", system: str = "") -> Rows:
    """Read a file of measured results.

    Args:
        path: CSV, gzipped if its name ends so.
        model: Part of the model's name that a row must have; any case.
        backend: The engine that a row must be of; empty for all.
        system: The machine that a row must be of; empty for all.

    Raises:
        CommandError: The file is missing or lacks a column.
    """
    read = 0
    used: list[Row] = []
    skipped: Counter[str] = Counter()
    for row in _lines(path):
        read += 1
        reason = _unfit(row, model=model, backend=backend, system=system)
        if reason:
            skipped[reason] += 1
            continue
        found = _row(row)
        if isinstance(found, str):
            skipped[found] += 1
        else:
            used.append(found)
    return Rows(read=read, used=tuple(used), skipped=dict(sorted(skipped.items())))


def _lines(path: Path) -> Iterator[dict[str, str]]:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            reader = csv.DictReader(file)
            missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise CommandError(
                    f"--rows {path} lacks the columns {', '.join(missing)}: give a file in the "
                    "format of aiconfigurator's measured results."
                )
            for row in reader:
                yield {k: (v or "").strip() for k, v in row.items() if k}
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise CommandError(
            f"--rows {path} cannot be read: {error}. Give a CSV file, gzipped only if its name ends in "
            ".gz."
        ) from error


def _unfit(row: Mapping[str, str], *, model: str, backend: str, system: str) -> str:
    """Return why a row is not used, or an empty string."""
    named = row.get("gemm_quant_mode") or row["precision"]
    spread_out = any((_whole(row.get(name) or "1") or 0) > 1 for name in _SINGLE)
    checks = {
        "other model": model.lower() not in row["model_path"].lower(),
        "other backend": bool(backend) and row["backend"] != backend,
        "other system": bool(system) and row["system"] != system,
        "prefill and decode on separate machines": row["mode"] != "agg",
        "no precision": not named,
        f"precision {named}": named not in _PRECISIONS,
        "pipeline, data or expert parallel": spread_out,
    }
    return next((reason for reason, unfit in checks.items() if unfit), "")


def _row(row: Mapping[str, str]) -> Row | str:
    """Return a row, or why it cannot be used."""
    prompt, output, concurrency, size = (
        _whole(row[name]) for name in ("isl", "osl", "batch_size", "tp_size")
    )
    if prompt is None or output is None or concurrency is None or size is None:
        return "a length, batch or group size that is no positive whole number"
    tpot = _time(row["silicon_tpot_ms"])
    if output < 2 or math.isnan(tpot):
        return "no time per output token"
    return Row(
        group=Group(
            model=row["model_path"],
            system=row["system"],
            backend=row["backend"],
            version=row["backend_version"],
            precision=_PRECISIONS[row.get("gemm_quant_mode") or row["precision"]],
        ),
        prompt=prompt,
        output=output,
        concurrency=concurrency,
        tensor_parallel_size=size,
        ttft_ms=_time(row["silicon_ttft_ms"]),
        tpot_ms=tpot,
    )


def _whole(text: str) -> int | None:
    """Return a positive whole number, also if it is written 8.0, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value >= 1 and value.is_integer() else None


def _time(text: str) -> float:
    """Return a positive time, or not-a-number."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value > 0 else math.nan
