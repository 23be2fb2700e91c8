"""What the benchmarks' command lines share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def positive_numbers(text: str) -> tuple[int, ...]:
    """Parse `1,8,32`.

    Raises:
        argparse.ArgumentTypeError: A part is no positive number.
    """
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}; give positive numbers such as 1,8,32")
    return tuple(int(part) for part in parts)


def positive(text: str) -> int:
    """Parse one positive number.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; give a positive number")
    return int(text)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(prog=f"trimtab bench {name}", description=description)
    options.add_argument("-o", "--format", choices=["json", "markdown"], default="markdown")
    return options


def progress(line: str) -> None:
    """Say on standard error how far a run is."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command


def emit(result: Any, *, kind: str, markdown: Callable[[], str]) -> None:
    """Print a result as JSON or Markdown on standard output."""
    print(json.dumps(result, indent=2) if kind == "json" else markdown())  # noqa: T201 - a command
