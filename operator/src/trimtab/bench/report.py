"""What the planner's benchmarks print: options, intervals, and one document as JSON or as text."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trimtab.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

JSON = dict[str, Any]  # any: a document
_RESAMPLES: Final = 1000
_SEED: Final = 0


def options(name: str, about: str) -> argparse.ArgumentParser:
    """Return a parser with what both benchmarks on measured rows understand."""
    parser = argparse.ArgumentParser(prog=f"trimtab bench {name}", description=about)
    parser.add_argument("--rows", type=Path, required=True, help="CSV of measured runs, or .csv.gz")
    parser.add_argument("--model", default="", metavar="SUBSTRING", help="only models named so")
    parser.add_argument("--backend", default="", help="only this engine: trtllm, vllm, sglang")
    parser.add_argument("--system", default="", help="only this machine, such as h100_sxm")
    parser.add_argument(
        "--model-config",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="config.json of a model that the catalogue does not bring; may be repeated",
    )
    parser.add_argument(
        "--catalogue-python",
        metavar="PATH",
        help="interpreter with aiconfigurator; default: TRIMTAB_CATALOGUE_PYTHON, or this one",
    )
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return parser


def configs(arguments: Sequence[str]) -> dict[str, JSON]:
    """Read `NAME=PATH` arguments.

    Raises:
        CommandError: An argument is malformed, or its file is no JSON object.
    """
    found: dict[str, JSON] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        try:
            config = json.loads(Path(path).read_text()) if separator else None
        except (OSError, ValueError) as error:
            raise CommandError(
                f"--model-config {argument}: the file cannot be read as JSON: {error}. Give the model's "
                "config.json."
            ) from error
        if not isinstance(config, dict):
            raise CommandError(
                f"--model-config {argument} names no JSON object. Give NAME=PATH: the model's name in "
                "--rows and its config.json."
            )
        found[name] = config
    return found


def run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    *,
    measure: Callable[[argparse.Namespace], JSON],
    text: Callable[[JSON], str],
) -> int:
    """Parse, measure, print; 1 with a sentence on standard error if that cannot be done."""
    given = parser.parse_args(argv)
    try:
        document = measure(given)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 1
    print(json.dumps(document, indent=2) if given.output == "json" else text(document))  # noqa: T201 - a command
    return 0


def spread(errors: Sequence[float]) -> JSON:
    """Return count, mean and median of |error| and the mean error in percent, with an interval."""
    if not errors:
        names = ("mape_percent", "median_percent", "bias_percent", "interval_percent")
        return {"rows": 0, **dict.fromkeys(names)}
    sizes = [abs(error) for error in errors]
    return {
        "rows": len(sizes),
        "mape_percent": percent(statistics.fmean(sizes)),
        "median_percent": percent(statistics.median(sizes)),
        "bias_percent": percent(statistics.fmean(errors)),
        "interval_percent": interval(sizes),
    }


def interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % bootstrap interval of the mean, in percent; the seed is fixed."""
    draw = np.random.default_rng(_SEED)
    means = draw.choice(np.asarray(values), size=(_RESAMPLES, len(values))).mean(axis=1)
    return [percent(float(edge)) for edge in np.quantile(means, (0.025, 0.975))]


def percent(value: float) -> float:
    """Return a share as percent with two decimals."""
    return round(100 * value, 2)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of equal keys as aligned text."""
    if not rows:
        return "(none)"
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
