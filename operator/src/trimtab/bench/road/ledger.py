"""Results as they come: one JSON object per line, so that an interrupted benchmark goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from trimtab.bench.road.forecast import Known
from trimtab.bench.road.matrix import Rates, Run, Shape
from trimtab.cli.output import CommandError
from trimtab.observe.inspections import ModelFacts, parse_verdict
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.prices import PriceBookInvalidError, parse_price_book

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

JSON = dict[str, Any]  # any: a document
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What was fixed before the first run; a later part of the same benchmark takes it over.

    Attributes:
        model: Name that the user gave.
        shape: What is measured.
        rates: How fast requests are sent.
        inspection: The inspection Job's message.
        fingerprints: Documents of the fingerprint Jobs.
        prices: The cluster's price book, as YAML.
        overhead_us: The gateway's own time per request.
        conditions: Machine, cluster and time, for the reader.
    """

    model: str
    shape: Shape
    rates: Rates
    inspection: str
    fingerprints: tuple[str, ...]
    prices: str
    overhead_us: int
    conditions: JSON

    def known(self) -> Known:
        """Return what predictions are made from.

        Raises:
            CommandError: A document in it cannot be read.
        """
        facts = parse_verdict(self.inspection)
        if not isinstance(facts, ModelFacts):
            raise CommandError(f"Model {self.model}: {facts.message}")
        try:
            return Known(
                facts=facts,
                fingerprints=tuple(parse(text) for text in self.fingerprints),
                prices=parse_price_book(yaml.safe_load(self.prices or "{}")),
                overhead_us=self.overhead_us,
            )
        except (FingerprintInvalidError, PriceBookInvalidError, yaml.YAMLError) as error:
            raise CommandError(
                f"Model {self.model}: what the cluster measured or is priced with cannot be "
                f"read: {error}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run as measured; samples are of requests after the warm-up, in µs.

    Attributes:
        run: What was driven.
        requests: After the warm-up.
        errors: Of them, by kind; what had no end is `Unfinished`.
        ttft_us, tpot_us, e2e_us: Of those without an error.
        requests_per_second: Ended per second, from the output tokens that came after the warm-up.
        lag_ms_p99: How late the client sent.
        load_average: Of the client's machine, one minute, before and after.
        counters: Of the workers, over the run; None where they could not be read.
        kv_tokens: What the workers' caches hold, each; None where that could not be read.
        started: When, RFC 3339.
    """

    run: Run
    requests: int
    errors: Mapping[str, int]
    ttft_us: tuple[int, ...]
    tpot_us: tuple[int, ...]
    e2e_us: tuple[int, ...]
    requests_per_second: float
    lag_ms_p99: float | None
    load_average: tuple[float, float]
    counters: Mapping[str, float] | None
    kv_tokens: int | None
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A way that could not be served, and why."""

    way: str
    why: str


class Ledger:
    """The file of one benchmark."""

    def __init__(self, path: Path) -> None:
        """Open the file; it need not exist.

        Raises:
            CommandError: It holds something else.
        """
        self._path = path
        self.opening: Opening | None = None
        self.rows: dict[str, Row] = {}
        self.skipped: dict[str, Skipped] = {}
        for number, line in enumerate(_lines(path), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CommandError(
                    f"{path} line {number} is no result of planner-cpu of this release "
                    f"({error!r}). Give another --results."
                ) from error

    def begin(self, opening: Opening) -> None:
        """Write what is fixed for all runs."""
        self.opening = opening
        document = {
            "v": VERSION,
            "opening": asdict(opening)
            | {"shape": opening.shape.to_dict(), "fingerprints": list(opening.fingerprints)},
        }
        self._append(document)

    def add(self, row: Row) -> None:
        """Write one run."""
        self.rows[row.run.key] = row
        self._append({"row": asdict(row)})

    def skip(self, way: str, why: str) -> None:
        """Note that a way cannot be served; it is tried again when the benchmark goes on."""
        self.skipped[way] = Skipped(way=way, why=why)
        self._append({"skipped": asdict(self.skipped[way])})

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Return which of these were not measured yet."""
        return [run for run in runs if run.key not in self.rows]

    def _take(self, document: JSON) -> None:
        if "opening" in document:
            if document["v"] != VERSION:
                raise ValueError(f"version {document['v']}")
            self.opening = _opening(document["opening"])
        elif "row" in document:
            row = _row(document["row"])
            self.rows[row.run.key] = row
            self.skipped.pop(row.run.way, None)
        else:
            skipped = Skipped(**document["skipped"])
            self.skipped[skipped.way] = skipped

    def _append(self, document: JSON) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(document, separators=(",", ":")) + "\n")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}. Give another --results.") from error
    whole, _, cut = text.rpartition("\n")
    if cut:
        raise CommandError(
            f"{path} ends in half a line: {cut[:60]!r}. Remove that line, and its run is repeated."
        )
    return whole.splitlines()


def _opening(data: JSON) -> Opening:
    return Opening(
        **data
        | {
            "shape": Shape.from_dict(data["shape"]),
            "rates": Rates(**data["rates"]),
            "fingerprints": tuple(data["fingerprints"]),
        }
    )


def _row(data: JSON) -> Row:
    samples = {name: tuple(data[name]) for name in ("ttft_us", "tpot_us", "e2e_us")}
    averages = (float(data["load_average"][0]), float(data["load_average"][1]))
    return Row(**data | samples | {"run": Run(**data["run"]), "load_average": averages})
