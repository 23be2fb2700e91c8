"""Request traces on disk: JSON lines or CSV, plain or gzipped, with the columns of common sources."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.output import CommandError
from trimtab.planning.workload import Arrival

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# Names in the order in which they are looked for: ours, LLMServingSim's, Azure's public traces.
_TIMES: Final = ("seconds", "queued_ts", "arrival_time", "TIMESTAMP")
_PROMPTS: Final = ("prompt_tokens", "input_toks", "ContextTokens")
_OUTPUTS: Final = ("output_tokens", "output_toks", "GeneratedTokens")

Row = dict[str, Any]  # any: JSON or CSV


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace in order of time.

    Attributes:
        arrivals: From 0 µs on.
        rows: What the file says about each of them.
        skipped: Requests without a prompt or an output: nothing was served.
    """

    arrivals: tuple[Arrival, ...]
    rows: tuple[Row, ...]
    skipped: int


def read_trace(path: Path, *, faster: float = 1.0) -> Trace:
    """Read a trace.

    Args:
        path: `.jsonl` or `.csv`, with `.gz` behind it if it is gzipped.
        faster: Gaps between requests are divided by it.

    Raises:
        CommandError: The file is missing or wrong; names file, line, column and remedy.
    """
    found: list[tuple[float, int, int, Row]] = []
    skipped = 0
    for line, row in read_rows(path):
        where = f"{path} line {line}"
        prompt, output = _count(row, _PROMPTS, where=where), _count(row, _OUTPUTS, where=where)
        at = _seconds(row, where=where)
        if prompt < 1 or output < 1:
            skipped += 1
            continue
        found.append((at, prompt, output, row))
    if not found:
        raise CommandError(
            f"{path} holds no request with a prompt and an output. Give another trace."
        )
    found.sort(key=lambda entry: entry[0])
    begin = found[0][0]
    return Trace(
        arrivals=tuple(
            Arrival(at_us=(at - begin) * 1e6 / faster, prompt=prompt, output=output)
            for at, prompt, output, _ in found
        ),
        rows=tuple(row for *_, row in found),
        skipped=skipped,
    )


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """Return the lines of a JSON lines or CSV file with their numbers.

    Raises:
        CommandError: The file is missing, damaged, or of neither kind.
    """
    names = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = names[-1] if names else ""
    if kind not in (".jsonl", ".csv"):
        raise CommandError(f"{path} is no .jsonl or .csv file (.gz may follow). Give one of these.")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from error
    return list(_json_lines(path, text) if kind == ".jsonl" else _csv_lines(path, text))


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    # str.splitlines would also split at separators that JSON allows inside a string, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CommandError(f"{path} line {number} is not JSON: {error}. Correct it.") from error
        if not isinstance(row, dict):
            raise CommandError(f"{path} line {number} is {line:.60}, not an object. Correct it.")
        yield number, row


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            # Under None DictReader keeps the fields beyond the header.
            yield reader.line_num, {name: row[name] for name in row if name is not None}
    except csv.Error as error:
        raise CommandError(
            f"{path} line {reader.line_num + 1} is no CSV: {error}. Correct it."
        ) from error


def _named(row: Mapping[str, Any], names: tuple[str, ...], *, where: str) -> tuple[str, Any]:
    for name in names:
        if row.get(name) is not None:
            return name, row[name]
    raise CommandError(
        f"{where} has none of the columns {', '.join(names)}; it has "
        f"{', '.join(map(str, row)) or 'none'}. Name them so."
    )


def _count(row: Mapping[str, Any], names: tuple[str, ...], *, where: str) -> int:
    name, value = _named(row, names, where=where)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"{where}: {name} is {value!r}, which is no whole number. Correct it."
        ) from error


def _seconds(row: Mapping[str, Any], *, where: str) -> float:
    name, value = _named(row, _TIMES, where=where)
    try:
        if name == "TIMESTAMP":
            return datetime.fromisoformat(str(value)).replace(tzinfo=UTC).timestamp()
        at = float(value)
    except (TypeError, ValueError) as error:
        raise CommandError(
            f"{where}: {name} is {value!r}, which is no time. Write seconds, or a TIMESTAMP as "
            "2023-11-16 18:15:46.680590."
        ) from error
    if not math.isfinite(at):
        raise CommandError(f"{where}: {name} is {value!r}. Write a finite number of seconds.")
    return at
