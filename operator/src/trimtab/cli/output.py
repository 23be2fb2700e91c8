"""How every command speaks: tables for people, JSON for programs, one clear line on failure."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console


_PIPED_COLUMNS: Final = 120


class Format(StrEnum):
    """What `-o` accepts."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="table for people, json for programs.")
]


class CommandError(Exception):
    """The command cannot do what was asked; the message says why and what to do."""


def console(*, stderr: bool = False) -> Console:
    """Return a console; rich is imported here, because most commands need only a line."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms

    piped = not sys.stdout.isatty()
    # Into a file or a pipe nobody's window is 80 columns wide.
    width = _PIPED_COLUMNS if piped and "COLUMNS" not in os.environ else None
    return Console(stderr=stderr, highlight=False, soft_wrap=piped, width=width)


def write(text: str) -> None:
    """Print one line to standard output."""
    typer.echo(text)


def write_json(value: Any) -> None:  # any: JSON
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False))


def fail(message: str) -> NoReturn:
    """Print a sentence to standard error and end with status 1.

    Raises:
        typer.Exit: Always.
    """
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
